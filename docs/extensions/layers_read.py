"""Which layers are covered, read from the sources of the registry without running them."""

import ast
import functools
import pathlib
from typing import NamedTuple

LAYERS = pathlib.Path(__file__).parents[2] / "bellman_tf" / "layers"


class Family(NamedTuple):
    """What a `cover_...` function says of its layers.

    Attributes:
        layers: names of Keras layers, in the registry's order.
        kind: as `game_summary` shows it.
        matrix: whether its variables are one matrix, so that K-FAC has two factors for it.
        reasons: why a layer of the family may be open-loop.
    """

    layers: list[str]
    kind: str
    matrix: bool
    reasons: list[str]


def registered() -> dict[str, list[str]]:
    """Names of Keras layers by the function that covers them.

    Returns:
        The registry.

    Raises:
        ValueError: if `FAMILIES` is not a tuple of pairs (Keras class, function).
    """
    found: dict[str, list[str]] = {}
    tree = ast.parse((LAYERS / "registry.py").read_text())
    [families] = [node.value for node in tree.body if isinstance(node, ast.AnnAssign) and node.target.id == "FAMILIES"]
    for pair in ast.walk(families):
        if isinstance(pair, ast.Tuple) and len(pair.elts) == 2 and isinstance(pair.elts[1], ast.Name):
            found.setdefault(pair.elts[1].id, []).append(pair.elts[0].attr)
    if not found or sum(map(len, found.values())) != len(families.elts):
        raise ValueError("`FAMILIES` of bellman_tf/layers/registry.py is not written as pairs any more")
    return found


def _text(node: ast.expr) -> str | None:
    """A constant string, or an f-string with dots for its values."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
        return "".join(parts)
    return None


@functools.cache
def _functions() -> dict[str, ast.FunctionDef]:
    """The functions of the layers' files, by name."""
    trees = [ast.parse(path.read_text()) for path in sorted(LAYERS.glob("*.py"))]
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}


def family(name: str, layers: list[str]) -> Family:
    """Reads one `cover_...` function.

    Args:
        name: of the function.
        layers: the Keras layers it covers.

    Returns:
        What it says.
    """
    function = _functions()[name]
    [call] = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"cover_kernels", "Coverage"}
    ]
    returned = (node.value for node in ast.walk(function) if isinstance(node, ast.Return))
    reasons = [text for text in map(_text, returned) if text]
    return Family(layers, call.args[0].value, any(k.arg == "layout" for k in call.keywords), reasons)


def table() -> str:
    """The table.

    Returns:
        Markdown.
    """
    rows = ["| Keras layers | kind | K-FAC's metric | open-loop when |", "|---|---|---|---|"]
    for name, layers in registered().items():
        found = family(name, layers)
        shown = ", ".join(f"`{layer}`" for layer in found.layers)
        metric = "Kronecker factors" if found.matrix else "diagonal"
        rows.append(f"| {shown} | {found.kind} | {metric} | {'; '.join(found.reasons)} |")
    return "\n".join(rows)
