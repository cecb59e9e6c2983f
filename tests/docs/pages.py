"""The pages whose text is tested: the README and what the site is made of."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted((DOCS / "api").glob("*.md"))]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def name(path):
    return str(path.relative_to(ROOT))


def python_blocks(path):
    """Code of the page's python blocks, with blank lines in front so that an error names the page's own line."""
    text = path.read_text()
    return ["\n" * text[: found.start(1)].count("\n") + found[1] for found in _BLOCK.finditer(text)]
