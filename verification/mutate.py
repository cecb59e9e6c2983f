"""`python -m verification.mutate`: breaks the core on purpose, one sign at a time, and looks whether a claim goes red.

A mutant changes one operator of one line of `bellman_tf/linalg` or `bellman_tf/bellman`: + to -, - to +, * to /, a
minus sign left out, a transposition left out. In a process of its own the code of the mutated function is put in place
of the original's, wherever it has been imported, and only the claims that call the function are run. An error or a
claim that runs too long counts as found out, like a contradiction.

Ends with 1 when fewer than 95 % are found out.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import argparse
import ast
import copy
import importlib
import inspect
import pathlib
import pkgutil
import sys
from collections import defaultdict
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import CodeType, FunctionType, ModuleType

import keras

import bellman_tf.bellman
import bellman_tf.linalg
from verification.claims import CLAIMS
from verification.run import run

TARGET = 0.95
SECONDS = 90  # for the claims of one mutant, start of the process included
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


def found_out(mutant: Mutant, names: list[str]) -> str:
    """Runs claims on a mutant until one goes red.

    Args:
        mutant: the mutant.
        names: identifiers of the claims that call it.

    Returns:
        The claim that found it, or an empty string.
    """
    with applied(mutant):
        for name in names:
            try:
                if run(CLAIMS[name], "fast").contradiction:
                    return name
            except Exception as error:  # whatever a broken core raises, it has been found out
                return f"{name} ({type(error).__name__})"
    return ""


def _serve(pipe: Connection) -> None:
    """The worker: answers (module, number of the mutant, claims) with what found it out."""
    known: dict[str, list[Mutant]] = {}
    while True:
        module, number, names = pipe.recv()
        if module not in known:
            known[module] = list(mutants(importlib.import_module(module)))
        pipe.send(found_out(known[module][number], names))


class Worker:
    """A process that tries mutants: a mutant may never end, and compiled loops cannot be interrupted."""

    def __init__(self) -> None:
        self._pipe, other = get_context("spawn").Pipe()
        self._process = get_context("spawn").Process(target=_serve, args=(other,), daemon=True)
        self._process.start()

    def ask(self, module: str, number: int, names: list[str]) -> str:
        """What finds a mutant out; too long counts, and costs the worker its life.

        Args:
            module: dotted name.
            number: of the mutant in the module.
            names: claims to run.

        Returns:
            The claim, or an empty string.
        """
        self._pipe.send((module, number, names))
        if self._pipe.poll(SECONDS):
            return self._pipe.recv()
        self.stop()
        self.__init__()
        return "too long"

    def stop(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()


def callers() -> dict[str, list[str]]:
    """Which claims call which function, by running them all once; a claim that is red already is an error.

    Returns:
        "module:function" to identifiers, the quickest claims first.

    Raises:
        RuntimeError: if a claim is contradicted without any mutation.
    """
    core = {f.__code__: f"{m.__name__}:{name}" for m in core_modules() for name, f in functions(m).items()}
    calls, seconds = defaultdict(set), {}
    for name, claim in CLAIMS.items():
        called = set()

        def listen(frame, event, argument, called=called):
            if event == "call" and frame.f_code in core:
                called.add(core[frame.f_code])

        sys.setprofile(listen)
        result = run(claim, "fast")
        sys.setprofile(None)
        if result.contradiction:
            raise RuntimeError(f"{name} is contradicted without any mutation: {result.contradiction}")
        seconds[name] = result.seconds
        for function in called:
            calls[function].add(name)
    return {function: sorted(names, key=seconds.get) for function, names in calls.items()}


def main() -> int:
    """Command line.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", help="only this module, for example bellman.dense")
    parser.add_argument("--out", type=pathlib.Path, help="write the list of all mutants")
    options = parser.parse_args()
    modules = [m for m in core_modules() if not options.module or m.__name__ == f"bellman_tf.{options.module}"]
    if not modules:
        parser.error(
            f"`--module` must be one of {[m.__name__[11:] for m in core_modules()]}. Received: {options.module}."
        )
    called, worker = callers(), Worker()
    everything = [pair for module in modules for pair in enumerate(mutants(module))]
    progress = keras.utils.Progbar(len(everything), unit_name="mutant")
    lines, tally = [], defaultdict(lambda: [0, 0, 0])
    for done, (number, mutant) in enumerate(everything, 1):
        names = called.get(f"{mutant.module}:{mutant.function}", [])
        killer = worker.ask(mutant.module, number, names) if names else ""
        key = (mutant.module, mutant.after)
        reason = "" if killer else EQUIVALENT.get(key, "")
        tally[mutant.module][0 if killer else 1 if reason else 2] += 1
        verdict = killer or (
            f"SAME: {reason}" if reason else f"SURVIVES ({len(names)} claims call it) {UNNOTICED.get(key, '')}"
        )
        lines.append(
            f"{mutant.module}:{mutant.line} {mutant.function}\n    {mutant.before}\n    {mutant.after}\n    {verdict}"
        )
        progress.update(done)
    worker.stop()
    print("\n" + "\n".join(line for line in lines if "SURVIVES" in line or "SAME: " in line))
    print(f"\n{'module':34}{'found out':>10}{'same':>6}{'survive':>9}")
    for module, counts in tally.items():
        print(f"{module:34}{counts[0]:>10}{counts[1]:>6}{counts[2]:>9}")
    killed, equivalent, survive = (sum(counts[i] for counts in tally.values()) for i in range(3))
    share = killed / max(killed + survive, 1)
    print(f"{killed} of {killed + survive} mutants found out, {share:.1%}; {equivalent} more compute the same")
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")
    return int(share < TARGET)


if __name__ == "__main__":
    sys.exit(main())
