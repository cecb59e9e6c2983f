"""A type checker reads two small programs of a user: in one it finds nothing, in the other every wrong line."""

import json
import pathlib
import re
import subprocess
import sys
from typing import get_args, get_type_hints

import pytest

from bellman_tf.bandit import policies
from bellman_tf.curvature import config
from bellman_tf.curvature.gram import FORMS
from bellman_tf.curvature.inner import METRICS
from bellman_tf.models import GameMixin
from bellman_tf.optimizers import dgnopt, keywords, published
from bellman_tf.training import settings, step_control
from bellman_tf.training.information import INFORMATION

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
    games = get_args(get_type_hints(GameMixin.game.fget)["return"])
    assert len(games) == 2
    missing = {(game.__name__, name) for game in games for name in asked if name not in known(game)}
    assert not missing


def known(cls):
    """Names of attributes, methods and annotations of a class."""
    return set(dir(cls)) | {name for base in cls.__mro__ for name in vars(base).get("__annotations__", {})}


@pytest.mark.parametrize(
    ("alias", "names"),
    [
        (keywords.Information, INFORMATION),
        (keywords.ValueHessian, settings.VALUE_HESSIANS),
        (get_args(keywords.TerminalHessian)[0], settings.TERMINAL_HESSIANS),
        (keywords.Rollout, settings.ROLLOUTS),
        (keywords.OuterScale, settings.OUTER_SCALES),
        (keywords.OuterGain, settings.OUTER_GAINS),
        (get_args(keywords.Gram)[0], FORMS),
        (keywords.InnerMetric, METRICS),
        (get_args(keywords.Curvature)[0], config.NAMES),
        (get_args(keywords.StepControl)[0], step_control.STEP_CONTROLS),
        (get_args(keywords.Alignment)[0], dgnopt.ALIGNMENTS),
        (keywords.Reward, dgnopt.REWARDS),
        (keywords.BanditName, policies.NAMES),
        (keywords.Paper, published.PAPERS),
    ],
)
def test_the_checker_knows_the_names_that_the_code_accepts(alias, names):
    assert set(get_args(alias)) == set(names)
