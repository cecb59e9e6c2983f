"""A type checker reads two small programs of a user: in one it finds nothing, in the other every wrong line."""

import ast
import inspect
import json
import pathlib
import re
import subprocess
import sys
import types
from typing import Literal, Union, get_args, get_origin, get_type_hints

import pytest

from bellman_tf import bandit, trajectory
from bellman_tf.analysis import information_ablation
from bellman_tf.bandit import policies
from bellman_tf.baselines import kwng
from bellman_tf.curvature import config
from bellman_tf.curvature.gram import FORMS
from bellman_tf.curvature.inner import METRICS
from bellman_tf.game.players import Player
from bellman_tf.losses import terminal_curvature
from bellman_tf.models import GameMixin
from bellman_tf.optimizers import GTDDP, DGNOpt, arguments, dgnopt, keywords, published
from bellman_tf.training import settings, step_control
from bellman_tf.training.information import INFORMATION
from bellman_tf.trajectory import options as trajectory_options

ROOT = pathlib.Path(__file__).parents[1]
PROGRAMS = ROOT / "tests" / "typing"


@pytest.fixture(scope="module")
def found():
    """Lines with an error, by the name of the program; one run of the checker for both."""
    pytest.importorskip("pyright")
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
    files = [str(path) for path in sorted(PROGRAMS.glob("*.py"))]
    run = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True, check=False)
    report = json.loads(run.stdout)
    lines = {pathlib.Path(file).name: {} for file in files}
    for entry in report["generalDiagnostics"]:
        lines[pathlib.Path(entry["file"]).name][entry["range"]["start"]["line"] + 1] = entry["message"]
    return lines


def test_right_use_has_the_right_types(found):
    assert found["program.py"] == {}


def test_wrong_use_is_found_and_nothing_else(found):
    source = (PROGRAMS / "wrong.py").read_text().splitlines()
    marked = {number for number, line in enumerate(source, start=1) if line.endswith("# wrong")}
    assert len(marked) > 15
    assert set(found["wrong.py"]) == marked, found["wrong.py"]


def test_a_game_has_what_pages_and_lessons_ask_of_it():
    pages = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("keras_examples/**/*.py")]
    pages += [ROOT / "bellman_tf" / "models.py", *ROOT.glob("bellman_tf/optimizers/*.py")]
    asked = {name for page in pages for name in re.findall(r"(?:model|game)\.game\.([a-z]\w*)", page.read_text())}
    assert {"plot", "coverage", "alignments"} <= asked
    assert not asked - known(get_type_hints(GameMixin.game.fget)["return"])


def known(cls):
    """Names of attributes, methods and annotations of a class."""
    return set(dir(cls)) | {name for base in cls.__mro__ for name in vars(base).get("__annotations__", {})}


@pytest.mark.parametrize(
    ("owner", "argument", "names"),
    [
        (GTDDP, "information", INFORMATION),
        (GTDDP, "value_hessian", settings.VALUE_HESSIANS),
        (GTDDP, "terminal_hessian", settings.TERMINAL_HESSIANS),
        (GTDDP, "coupling", settings.COUPLINGS),
        (GTDDP, "rollout", settings.ROLLOUTS),
        (GTDDP, "outer_scale", settings.OUTER_SCALES),
        (GTDDP, "outer_gain", settings.OUTER_GAINS),
        (GTDDP, "gram", FORMS),
        (GTDDP, "inner_metric", METRICS),
        (GTDDP, "curvature", config.NAMES),
        (GTDDP, "step_control", step_control.STEP_CONTROLS),
        (GTDDP.as_published, "paper", published.PAPERS),
        (DGNOpt, "alignment", dgnopt.ALIGNMENTS),
        (DGNOpt, "reward", dgnopt.REWARDS),
        (DGNOpt, "bandit", policies.NAMES),
        (bandit.get, "identifier", policies.NAMES),
        (bandit.Exp3PlusPlus, "analysis", policies.ANALYSES),
        (config.KFAC, "convolution", config.CONVOLUTION_FORMS),
        (config.KFAC, "cooperative", {False, *config.COOPERATION}),
        (config.KFAC, "cooperative_sign", config.SIGNS),
        (config.KFAC, "fisher", config.FISHERS),
        (config.Full, "fisher", config.FISHERS),
        (config.EKFAC, "scalings", config.SCALINGS),
        (information_ablation, "cross_blocks", config.COOPERATION),
        (kwng.KWNG, "coordinates", kwng.COORDINATES),
        (trajectory.Regularization, "on", trajectory_options.PLACES),
        (terminal_curvature, "terminal_hessian", settings.TERMINAL_HESSIANS),
        (Player.gram_plan, "form", FORMS),
        (keywords.AllKeywords, "information", INFORMATION),
        (keywords.AllKeywords, "coupling", settings.COUPLINGS),
    ],
)
def test_the_checker_knows_the_names_that_the_code_accepts(owner, argument, names):
    plain = inspect.isfunction(owner) or inspect.ismethod(owner)
    hints = get_type_hints(owner if plain or argument in owner.__annotations__ else owner.__init__)
    assert set(literals(hints[argument])) == set(names)


@pytest.mark.parametrize("check", [arguments.check_game, arguments.check_keras, arguments.check_inner])
def test_what_checks_the_options_takes_what_the_constructors_take(check):
    options, own = get_type_hints(keywords.AllKeywords), get_type_hints(check)
    shared = own.keys() & options.keys()
    assert shared
    assert {name: own[name] for name in shared} == {name: options[name] for name in shared}


def literals(hint):
    """The values of all `Literal`s in a type."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return [
        value for part in get_args(hint) if get_origin(hint) in {Union, types.UnionType} for value in literals(part)
    ]


def test_no_option_that_has_names_is_any_string():
    found = {}
    for path in sorted((ROOT / "bellman_tf").rglob("*.py")):
        if path.name != "_checks.py":
            found |= {f"{path.name}: {name}": hint for name, hint in checked(ast.parse(path.read_text()))}
    assert len(found) > 15
    assert not {name: hint for name, hint in found.items() if hint is None or re.search(r"\bstr\b", hint)}


def checked(tree):
    """(name, annotation) of what `check_choice` is called on: a field of the class, or an argument of the function."""
    for scope in ast.walk(tree):
        fields, functions = {}, []
        if isinstance(scope, ast.ClassDef):
            functions = [node for node in scope.body if isinstance(node, ast.FunctionDef)]
            fields = {node.target.id: node for node in scope.body if isinstance(node, ast.AnnAssign)}
        elif isinstance(scope, ast.Module):
            functions = [node for node in scope.body if isinstance(node, ast.FunctionDef)]
        for function in functions:
            arguments = {node.arg: node for node in [*function.args.args, *function.args.kwonlyargs]}
            for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
                if ast.unparse(call.func).split(".")[-1] == "check_choice":
                    name = call.args[0].value
                    annotation = (arguments | fields)[name].annotation
                    yield name, annotation and ast.unparse(annotation)
