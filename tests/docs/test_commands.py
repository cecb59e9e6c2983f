"""What pages say of the commands in `.ci`, of the claims and of the tests' profiles is what these are."""

import re

import hypothesis

from tests.docs.pages import DOCS, ROOT
from verification.claims import CLAIMS
from verification.run import PROFILES, problems

COMMANDS, CONTRIBUTING = (DOCS / "commands.md").read_text(), (ROOT / "CONTRIBUTING.md").read_text()
# A command of `.ci/run`, and the words by which a page names it.
STEPS = {
    "python -m build": "wheel",
    "ruff check": "style",
    "ruff format": "style",
    "pyright": "types",
    "sphinx-build": "site",
    "python -m keras_examples.digits": "main example",
    "python -m keras_examples.notebooks": "lessons as notebooks",
    "python -m verification": "claims",
    "python -m pytest -n 2 -m slow tests/papers": "papers' tables in small",
    "python -m pytest": "suite",
}
QUIET = ("python -m pip", "(cd ")  # installs, and the wheel's trial


def row(command):
    [line] = [line for line in COMMANDS.splitlines() if line.startswith(f"| `{command}` |")]
    return line


def script(name):
    return (ROOT / ".ci" / name).read_text()


def steps():
    """Commands of `.ci/run`, in order."""
    tools = ("python", "ruff", "pyright", "sphinx-build")
    lines = [line for line in script("run").splitlines() if line.startswith(tools) and not line.startswith(QUIET)]
    return [next((step for step in STEPS if line.startswith(step)), line) for line in lines]


def test_pages_name_every_step_of_a_new_machine():
    assert list(STEPS) == steps()
    [paragraph] = re.findall(r"^`\.ci/run` is what.*?(?=^`\.ci/oldest`)", CONTRIBUTING, re.MULTILINE | re.DOTALL)
    for text in (row(".ci/run"), " ".join(paragraph.split())):
        assert [words for words in STEPS.values() if words not in text] == []


def test_the_oldest_versions_and_their_time_are_those_of_the_script():
    text, oldest = script("oldest"), row(".ci/oldest")
    for package, name in (("tensorflow", "TensorFlow"), ("keras", "Keras"), ("numpy", "NumPy")):
        [version] = re.findall(rf" {package}==(\S+)", text)
        assert f"{name} {version}" in oldest
    [time] = re.findall(r"Two cores take (.+? minutes)", text)
    assert f"{time} on two cores" in oldest


def test_the_claims_are_counted():
    checked = [claim for claim in CLAIMS.values() if claim.check is not None]
    drawn = sum(problems(claim, "thorough") for claim in checked)
    count = f"{round(drawn, -3):_}".replace("_", " ")
    words = f"Of {len(CLAIMS)} claims {len(checked)} have a check, on {count} problems"
    assert words in " ".join(COMMANDS.split())


def test_profiles_of_properties_are_those_of_conftest():
    [line] = [line for line in CONTRIBUTING.splitlines() if line.startswith("| `tests/conftest.py`")]
    named = re.findall(r"`(\w+)` \((\d+)", line)
    assert [name for name, _ in named] == list(PROFILES)
    for name, count in named:
        assert hypothesis.settings.get_profile(name).max_examples == int(count)
