"""Files of the repository that are pages of the site, and links to files: one text serves GitHub and the site.

A page named here takes its text from a file outside `docs/`. In every page a link to such a file becomes a link to its
page, a link to any other file outside `docs/` becomes plain text, and a link to a file that is not there is a warning.
"""

import os
import pathlib
import re

from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
SOURCES = {
    "contributing": ROOT / "CONTRIBUTING.md",
    "changelog": ROOT / "CHANGELOG.md",
    "notation": ROOT / "bellman_tf" / "NOTATION.md",
    "examples": ROOT / "keras_examples" / "README.md",
    "benchmarks": ROOT / "benchmarks" / "README.md",
}
PAGES = {ROOT / "README.md": "index"} | {path: page for page, path in SOURCES.items()}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
LOG = logging.getLogger(__name__)


def adapted(text: str, source: pathlib.Path, page: str) -> str:
    """A page's text with its links turned to the site.

    Args:
        text: Markdown.
        source: the file it stands in.
        page: name of the page.

    Returns:
        The Markdown that Sphinx reads.
    """
    here = (DOCS / page).parent

    def turned(link: re.Match) -> str:
        image, shown, target = link.groups()
        name, mark, anchor = target.partition("#")
        if "://" in target or not name or target.startswith("mailto:"):
            return link[0]
        path = pathlib.Path(os.path.normpath(source.parent / name))
        if not path.exists():
            LOG.warning("%s links to %s, which is not there", source.relative_to(ROOT), target)
            return link[0]
        path = DOCS / f"{PAGES[path]}.md" if path in PAGES else path
        if not path.is_relative_to(DOCS):
            return shown
        return f"{image}[{shown}]({pathlib.Path(os.path.relpath(path, here)).as_posix()}{mark}{anchor})"

    return LINK.sub(turned, text)


def read(app: Sphinx, page: str, content: list[str]) -> None:
    """Gives Sphinx the text of a page.

    Args:
        app: the build.
        page: its name.
        content: its text, changed in place.
    """
    source = SOURCES.get(page, DOCS / f"{page}.md")
    if page in SOURCES:
        app.env.note_dependency(str(source), docname=page)
    content[0] = adapted(source.read_text(), source, page)


def setup(app: Sphinx) -> dict:
    """Connects the reading."""
    app.connect("source-read", read)
    return {"parallel_read_safe": True}
