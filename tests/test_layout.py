"""Inside the package a folder imports only from what stands above it."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "bellman_tf"
ORDER = (
    "_checks",
    "keras_access",
    "linalg",
    "bandit",
    "bellman",
    "trajectory",
    "curvature",
    "game",
    "losses",
    "training",
    "optimizers",
    "models",
    "callbacks",
    "analysis",
)


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """Names of `bellman_tf` modules that a file imports, wherever in the file it does so."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "bellman_tf")
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            if node.module == "bellman_tf":
                yield from (f"bellman_tf.{name.name}" for name in node.names)
            elif node.module.startswith("bellman_tf."):
                yield node.module


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_up(path):
    own = part_of(path)
    assert own in ORDER, f"{own} has no place in the order"
    for module in imported(path):
        part = module.split(".")[1]
        assert part in ORDER, f"{module} has no place in the order"
        assert ORDER.index(part) <= ORDER.index(own), f"{path.name} of {own} imports {module}"


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.parent.glob("verification/references/*.py")), ids=lambda path: path.name
)
def test_references_import_nothing_of_ours(path):
    assert not list(imported(path))
    roots = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert not roots & {"tensorflow", "keras"}


def test_the_layout_is_read_and_not_empty():
    assert len(FILES) > 30
    assert "bellman_tf.training.step" in set(imported(PACKAGE / "optimizers" / "gtddp.py"))
