"""The lessons of keras_examples as a page: their text cells as text, their code as code."""

from repository import adapted
from sphinx.application import Sphinx

from keras_examples.notebooks import LESSONS, Cell, cells_of


def _shown(cell: Cell) -> str:
    """A cell as Markdown; headings go one level down, below the page's."""
    if not cell.is_text:
        return f"```python\n{cell.source}\n```"
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in cell.source.splitlines())


def lesson(script: str) -> str:
    """A lesson as Markdown.

    Args:
        script: the lesson.

    Returns:
        Its title, its description, text and code.
    """
    header, *cells = cells_of(script)
    title, *_, description = header.source.splitlines()
    return "\n\n".join([f"#{title}", description.partition(":** ")[2], *map(_shown, cells)])


def read(app: Sphinx, page: str, content: list[str]) -> None:
    """Puts the lessons below the page's own text.

    Args:
        app: the build.
        page: its name.
        content: its text, changed in place.
    """
    if page != "lessons":
        return
    for path in LESSONS:
        app.env.note_dependency(str(path), docname=page)
        content[0] += f"\n\n{adapted(lesson(path.read_text()), path, page)}\n"


def setup(app: Sphinx) -> dict:
    """Connects the reading, after that of `repository`."""
    app.connect("source-read", read, priority=600)
    return {"parallel_read_safe": True}
