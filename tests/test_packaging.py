"""What is installed, what it declares to need, and which version it says it is."""

import ast
import fnmatch
import pathlib
import re
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

import bellman_tf

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
MODULES = {"scikit-learn": "sklearn", "kfac-jax": "kfac_jax", "python-somax": "somax", "pytest-xdist": "xdist"}
OWN = {"bellman_tf", "verification", "keras_examples", "benchmarks", "tests"}
OWN |= {path.stem for path in (ROOT / "docs" / "figures").glob("*.py")}  # put on the path by their tests


def names(requirements):
    """Import names of requirements, those of our own extras put in their place."""
    for requirement in map(Requirement, requirements):
        if requirement.name == PROJECT["name"]:
            yield from names(line for extra in requirement.extras for line in EXTRAS[extra])
        else:
            yield MODULES.get(requirement.name, requirement.name.replace("-", "_"))


def imported(folder):
    """Import names of other people's packages in the Python files of a folder."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module]
            else:
                continue
            beside = {other.stem for other in path.parent.glob("*.py")}  # what a script run by its path imports
            for root in {module.split(".")[0] for module in modules} - OWN - beside - sys.stdlib_module_names:
                yield root, str(path.relative_to(ROOT))


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("bellman_tf", []),
        ("verification", ["verification"]),
        ("keras_examples", ["examples", "lessons", "ray"]),
        ("benchmarks", ["examples", "oracle", "peers", "peers-torch"]),
        ("tests", ["test", "oracle"]),
    ],
)
def test_what_a_folder_imports_is_declared(folder, extras):
    allowed = set(names([*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]))
    if folder == "bellman_tf":
        assert allowed == {"tensorflow", "keras", "numpy"}
        allowed |= {"matplotlib"}  # of `Game.plot`, which says what to install where it is missing
    found = dict(imported(folder))
    assert found, "no import was read"
    assert not set(found) - allowed, {name: path for name, path in found.items() if name not in allowed}


def test_the_package_asks_for_matplotlib_where_it_draws_alone():
    assert {path for name, path in imported("bellman_tf") if name == "matplotlib"} == {"bellman_tf/game/plot.py"}


def test_the_version_is_that_of_the_changelog_and_of_the_citation():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    unreleased, newest, *_ = re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert unreleased == "Unreleased"
    assert newest == bellman_tf.__version__
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {bellman_tf.__version__}\n" in citation
    date = re.search(rf"^## \[{re.escape(newest)}\] - (\S+)$", changelog, re.MULTILINE).group(1)
    assert f'\ndate-released: "{date}"\n' in citation


def test_the_version_is_declared_once():
    assert "version" in PROJECT["dynamic"]
    assert "version" not in PROJECT


def test_every_folder_of_the_package_is_a_package():
    folders = {path.parent for path in (ROOT / "bellman_tf").rglob("*.py")}
    assert len(folders) > 5
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


def test_the_commands_for_the_oldest_versions_name_the_lower_bounds():
    command = (ROOT / ".ci" / "oldest").read_text()
    for requirement in map(Requirement, PROJECT["dependencies"]):
        (bound,) = requirement.specifier
        assert bound.operator == ">="
        assert re.search(rf" {requirement.name}=={re.escape(bound.version)}(\.\d+)? ", command), str(requirement)


def shipped(path):
    """Whether MANIFEST.in puts a file of the checkout, given from its root, into the source distribution."""
    inside = False
    for line in (ROOT / "MANIFEST.in").read_text().splitlines():
        command, *rest = line.split()
        if command == "graft":
            inside |= path.is_relative_to(rest[0])
        elif command == "include":
            inside |= any(fnmatch.fnmatch(str(path), pattern) for pattern in rest)
        elif command == "recursive-exclude":
            inside &= not (path.is_relative_to(rest[0]) and any(path.match(pattern) for pattern in rest[1:]))
        elif command == "global-exclude":
            inside &= not any(path.match(pattern) for pattern in rest)
        else:
            assert command == "#", line
    return inside


def test_a_source_distribution_has_what_the_tests_read():
    folders = ("tests", "verification", "keras_examples", "benchmarks", "docs", "typings", ".ci", ".github")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    files += [ROOT / "CHANGELOG.md", ROOT / "CITATION.cff", ROOT / "CONTRIBUTING.md"]
    assert {".jsonl", ".json", ".md", ".py", ".pyi", ".yml"} <= {path.suffix for path in files}
    read = [path.relative_to(ROOT) for path in files if path.suffix not in {".png", ".pyc"}]
    assert not [str(path) for path in read if not shipped(path)]


def test_classifiers_begin_with_the_oldest_python_that_is_allowed():
    versions = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert PROJECT["requires-python"] == f">={versions[0]}"
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert re.search(r"python-version: \[(.+)\]", workflow).group(1) == ", ".join(f'"{v}"' for v in versions)
