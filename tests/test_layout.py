"""Inside the package a folder imports only from what stands above it, and no module from one that needs it."""

import ast
import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "bellman_tf"
ORDER = (
    "_typing",
    "_serial",
    "_checks",
    "keras_access",
    "keras_optimizers",
    "keras_graphs",
    "linalg",
    "replicas",
    "bandit",
    "bellman",
    "trajectory",
    "layers",
    "curvature",
    "game",
    "losses",
    "training",
    "optimizers",
    "baselines",
    "models",
    "wrapped",
    "workers",
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


def name_of(path):
    """Dotted name of a file inside the package; that of a package for its `__init__`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def needed(path):
    """Modules of the package that a file imports, for type checkers too: `from package import module` is `module`."""
    names = {name_of(file) for file in FILES}
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or node.module.split(".")[0] != "bellman_tf":
            continue
        base = node.module.removeprefix("bellman_tf").removeprefix(".")
        for alias in node.names:
            inside = f"{base}.{alias.name}".removeprefix(".")
            yield inside if inside in names else base


def circles(graph):
    """Sets of modules each of which needs every other one."""

    def reach(start):
        seen, open_ = set(), [start]
        while open_:
            for module in graph.get(open_.pop(), ()):
                if module not in seen:
                    seen.add(module)
                    open_.append(module)
        return seen

    reached = {module: reach(module) for module in graph}
    return {
        frozenset({module} | {o for o in reached[module] if module in reached.get(o, ())})
        for module in graph
        if module in reached[module]
    }


def test_no_module_needs_itself():
    graph = {name_of(path): set(needed(path)) for path in FILES}
    found = [sorted(circle) for circle in circles(graph)]
    assert not found, f"modules that need each other: {found}"


def test_a_circle_is_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}
    assert circles(graph) == {frozenset({"b", "c"})}


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


ROOMS = ("keras_access.py", "keras_optimizers.py", "keras_graphs.py")  # for Keras's private names
PRIVATE = re.compile(r"""["']_keras_\w+["']|\._keras_\w+""")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_keras_attaches_to_tensors_is_read_in_one_room(path):
    found = PRIVATE.findall(path.read_text())
    assert path.name in ROOMS or not found


def test_the_room_has_private_names():
    assert len(PRIVATE.findall((PACKAGE / "keras_access.py").read_text())) > 3


def test_the_layout_is_read_and_not_empty():
    assert len(FILES) > 30
    assert "bellman_tf.training.step" in set(imported(PACKAGE / "optimizers" / "stepping.py"))
