"""Makes notebooks of the lessons, and runs them.

    pip install -e ".[examples,lessons]"
    python -m keras_examples.notebooks --out notebooks              # one .ipynb per lesson
    python -m keras_examples.notebooks --out notebooks --execute    # with the outputs; about a minute and a half

A lesson is a script in the format of keras.io's examples: a header, then text cells, which are strings of Markdown at
the top level, with code between them.
"""

import argparse
import ast
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

LESSONS = tuple(sorted(pathlib.Path(__file__).parent.glob("[0-9]*.py")))
FIELDS = ("Title", "Author", "Date created", "Last modified", "Description")


class Cell(NamedTuple):
    """One cell of a lesson.

    Attributes:
        is_text: whether it is Markdown; else it is code.
        source: what it says.
    """

    is_text: bool
    source: str


def cells_of(script: str) -> list[Cell]:
    """Cuts a lesson into cells.

    Args:
        script: the lesson.

    Returns:
        The header first, as a title and a line per further field; then text and code as they follow each other.

    Raises:
        ValueError: if the script does not begin with a header that has the five fields in order.
    """
    lines, body = script.splitlines(), ast.parse(script).body
    texts = [node for node in body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    texts = [node for node in texts if isinstance(node.value.value, str)]
    header = texts[0].value.value.strip().splitlines() if texts and texts[0] is body[0] else []
    fields = dict(line.split(": ", 1) for line in header if ": " in line)
    if tuple(fields) != FIELDS:
        raise ValueError(f"A lesson must begin with a header of the fields {FIELDS}. Received: {header}.")
    title = f"# {fields.pop('Title')}\n\n" + "<br>\n".join(f"**{name}:** {value}" for name, value in fields.items())
    cells = [Cell(True, title)]
    ends = [node.lineno - 1 for node in texts[1:]] + [len(lines)]
    for node, end in zip(texts, ends, strict=True):
        if node is not texts[0]:
            cells.append(Cell(True, node.value.value.strip()))
        code = "\n".join(lines[node.end_lineno : end]).strip()
        if code:
            cells.append(Cell(False, code))
    return cells


def notebook_of(script: str, execute: bool = False, path: pathlib.Path = pathlib.Path()) -> object:
    """Makes a notebook of a lesson.

    Args:
        script: the lesson.
        execute: run it; an error in a cell is raised.
        path: directory that it is run in.

    Returns:
        An `nbformat.NotebookNode`.
    """
    import nbformat.v4 as nb  # an extra: `pip install "bellman_tf[lessons]"`

    cells = []
    for k, cell in enumerate(cells_of(script)):
        make = nb.new_markdown_cell if cell.is_text else nb.new_code_cell
        cells.append(make(cell.source, id=f"cell-{k}"))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = nb.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    if execute:
        import nbclient

        nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path)}}).execute()
    return notebook


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
        arguments: of the command line.
    """
    import nbformat

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/notebooks"), help="directory")
    parser.add_argument("--execute", action="store_true", help="run them, and keep what they print")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for lesson in LESSONS:
        notebook = notebook_of(lesson.read_text(), options.execute, options.out)
        nbformat.validate(notebook)
        path = options.out / f"{lesson.stem}.ipynb"
        nbformat.write(notebook, path)
        print(path, flush=True)


if __name__ == "__main__":
    main()
