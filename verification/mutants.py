"""Mutants of the core: one operator of one line of `bellman_tf/linalg` or `bellman_tf/bellman` changed."""

import ast
import copy
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType

import bellman_tf.bellman
import bellman_tf.linalg

# Mutants that compute the same thing, by module and mutated line, with the reason.
EQUIVALENT: dict[tuple[str, str], str] = {
    ("bellman_tf.linalg.symmetric", "return (A[..., 0], A - A - 1.0)"): "an eigenvector's sign is free",
    ("bellman_tf.linalg.symmetric", "tolerance = 10.0 / size * eps"): "more sweeps than needed, the same result",
    ("bellman_tf.linalg.symmetric", "off = tf.reduce_sum(tf.abs(T), axis=-1) + diagonal"): (
        "as many sweeps as the cap allows, the same result"
    ),
}

# Mutants that no claim notices, with the reason; they count as survivors.
UNNOTICED: dict[tuple[str, str], str] = {
    ("bellman_tf.linalg.solve", "shift = 4.0 / tf.cast(size, A.dtype) * eps * scale"): (
        "the shift covers the worst case of rounding, n times what matrices of these sizes need"
    ),
    ("bellman_tf.linalg.symmetric", "return (sweep - 1, T, V)"): "the cap on the sweeps is not reached",
    **{
        ("bellman_tf.linalg.cooperative_factors", line): reason
        for line, reason in (
            ("size = s_A.shape[-1] - s_B.shape[-1]", "only in the margin of the next line"),
            (
                "largest = 1.0 + 4.0 * size * tf.experimental.numpy.finfo(s_A.dtype.as_numpy_dtype).eps",
                "a correlation above 1 needs players that rounding alone tells apart",
            ),
            (
                "largest = 1.0 - 4.0 / size * tf.experimental.numpy.finfo(s_A.dtype.as_numpy_dtype).eps",
                "a narrower margin, which these sizes do not need",
            ),
            ("goal = tf.cast(tolerance, start.dtype) ** 2 / start", "another goal, reached as well at this tolerance"),
            (
                "return (turn - 1, X, R, [r + beta * p for r, p in zip(R, P, strict=True)], new)",
                "the cap on the iterations is not reached",
            ),
        )
    },
}


@dataclass(frozen=True)
class Mutant:
    """One changed operator.

    Attributes:
        module: dotted name.
        function: qualified name of the function in it.
        line: number.
        before, after: the statement, as it was and as it is.
        code: of the function, changed.
    """

    module: str
    function: str
    line: int
    before: str
    after: str
    code: CodeType


def core_modules() -> list[ModuleType]:
    """The modules of `linalg` and `bellman`, without the checks of shapes.

    Returns:
        Modules.
    """
    names = []
    for package in (bellman_tf.linalg, bellman_tf.bellman):
        names += [f"{package.__name__}.{found.name}" for found in pkgutil.iter_modules(package.__path__)]
    return [importlib.import_module(name) for name in names if not name.endswith("_shapes")]


def functions(module: ModuleType) -> dict[str, FunctionType]:
    """The functions and methods that a module defines.

    Args:
        module: a module.

    Returns:
        Qualified name to function.
    """
    found = {}
    for owner in [
        module,
        *[c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__],
    ]:
        for item in vars(owner).values():
            item = item.fget if isinstance(item, property) else item
            item = getattr(item, "__func__", item)
            item = inspect.unwrap(getattr(item, "python_function", item)) if callable(item) else item
            if isinstance(item, FunctionType) and item.__module__ == module.__name__:
                found[item.__qualname__] = item
    return found


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    """What a node may become."""
    if isinstance(node, ast.BinOp):
        swap = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div}.get(type(node.op))
        if swap:
            yield ast.BinOp(node.left, swap(), node.right)
    elif isinstance(node, ast.AugAssign):
        swap = {ast.Add: ast.Sub, ast.Sub: ast.Add}.get(type(node.op))
        if swap:
            yield ast.AugAssign(node.target, swap(), node.value)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        yield node.operand
    elif (
        isinstance(node, ast.keyword) and node.arg and "transpose" in node.arg and isinstance(node.value, ast.Constant)
    ):
        yield ast.keyword(node.arg, ast.Constant(not node.value.value))


def _arithmetic(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that compute: not indices, shapes, comparisons or the texts of errors."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.arguments | ast.List | ast.Compare):
            continue
        if isinstance(node, ast.Subscript):
            yield from _arithmetic(ast.Expr(node.value))
            continue
        yield node
        yield from _arithmetic(node)


def mutants(module: ModuleType) -> Iterator[Mutant]:
    """All mutants of a module.

    Args:
        module: a module.

    Yields:
        Mutants.
    """
    source = inspect.getsource(module)
    known = functions(module)
    statements = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.stmt)]
    for position, original in enumerate(_arithmetic(ast.parse(source))):
        for number in range(len(list(_changes(original)))):
            tree = ast.parse(source)
            node = list(_arithmetic(tree))[position]
            changed = list(_changes(copy.deepcopy(node)))[number]
            _replace(tree, node, ast.copy_location(changed, node))
            ast.fix_missing_locations(tree)
            line = getattr(original, "lineno", 0)
            holders = [s for s in statements if s.lineno <= line <= s.end_lineno]
            before = ast.unparse(min(holders, key=lambda s: s.end_lineno - s.lineno))
            after = next(
                ast.unparse(s)
                for s in sorted(
                    (n for n in ast.walk(tree) if isinstance(n, ast.stmt) and n.lineno <= line <= n.end_lineno),
                    key=lambda s: s.end_lineno - s.lineno,
                )
            )
            for name, code in _codes(compile(tree, module.__file__, "exec")):
                if name in known and known[name].__code__ != code and before != after:
                    yield Mutant(module.__name__, name, line, before, after, code)


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, field, new)
            elif isinstance(value, list) and any(item is old for item in value):
                value[[item is old for item in value].index(True)] = new


def _codes(code: CodeType) -> Iterator[tuple[str, CodeType]]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant.co_qualname, constant
            yield from _codes(constant)


@contextmanager
def applied(mutant: Mutant) -> Generator[None]:
    """The mutant in place of the original.

    Args:
        mutant: the mutant.

    Yields:
        Nothing.
    """
    function = functions(sys.modules[mutant.module])[mutant.function]
    original, function.__code__ = function.__code__, mutant.code
    try:
        yield
    finally:
        function.__code__ = original
