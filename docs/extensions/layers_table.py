"""The directive `layers-table`: the table of covered layers."""

from docutils import nodes
from docutils.statemachine import StringList
from layers_read import LAYERS, table
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class LayersTable(SphinxDirective):
    """Puts the table on the page."""

    def run(self) -> list[nodes.Node]:
        """The table's nodes."""
        for path in LAYERS.glob("*.py"):
            self.env.note_dependency(str(path))
        container = nodes.container()
        self.state.nested_parse(StringList(table().splitlines(), "registry.py"), self.content_offset, container)
        return container.children


def setup(app: Sphinx) -> dict:
    """Registers the directive."""
    app.add_directive("layers-table", LayersTable)
    return {"parallel_read_safe": True}
