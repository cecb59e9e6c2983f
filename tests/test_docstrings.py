"""Every example in a docstring gives what it says, and every public name has one."""

import ast
import doctest
import functools
import importlib
import inspect
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import bellman_tf as btf
from tests.public_names import public_objects

PACKAGE = pathlib.Path(btf.__file__).parent
NAMES = {"btf": btf, "keras": keras, "np": np, "tf": tf}  # what an example may use beside its module's own names
CONSTANTS = ["btf.analysis.STRUCTURES"]  # public names that are truly data: Python keeps no docstring of theirs


def module_of(path):
    return ".".join(("bellman_tf", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


WITH_EXAMPLES = [module_of(path) for path in sorted(PACKAGE.rglob("*.py")) if ">>>" in path.read_text()]


def examples_of(module):
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = finder.find(module, module.__name__, extraglobs=NAMES)
    for kind in vars(module).values():
        if inspect.isclass(kind) and kind.__module__ == module.__name__:  # in which doctest sees no cached property
            cached = [member.func for member in vars(kind).values() if isinstance(member, functools.cached_property)]
            found += [test for f in cached for test in finder.find(f, f.__qualname__, module, extraglobs=NAMES)]
    return [test for test in found if test.examples]


def report_of(tests):
    """What does not agree, as doctest prints it."""
    runner, lines = doctest.DocTestRunner(verbose=False), []
    for test in tests:
        runner.run(test, out=lines.append)
    return "".join(lines)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_give_what_they_say(name):
    tests = examples_of(importlib.import_module(name))
    assert tests, f"the examples of {name} are not in docstrings"
    report = report_of(tests)
    assert not report, report


def test_a_wrong_example_is_reported():
    [test] = [doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)]
    assert "Expected:\n    3\nGot:\n    2" in report_of([test])


def test_every_public_name_has_an_example():
    names = dict(public_objects(btf, "btf"))
    assert len(names) > 100
    assert [name for name, value in names.items() if not callable(value)] == CONSTANTS
    bare = [name for name, value in names.items() if callable(value) and ">>>" not in (value.__doc__ or "")]
    assert not bare, f"public names without an example: {bare}"


def test_code_in_docstrings_is_an_example():
    """Fenced code would not run."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    for path in PACKAGE.rglob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]
        assert not [node for node in nodes if "```" in (ast.get_docstring(node) or "")], path
