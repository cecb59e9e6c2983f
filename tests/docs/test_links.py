"""Links lead somewhere; nothing public is missing from the API's pages; tables read from sources are the truth."""

import importlib
import importlib.util
import inspect
import re

import keras
import pytest

import bellman_tf as btf
from bellman_tf.layers.registry import FAMILIES
from tests.docs.pages import DOCS, PAGES, ROOT, name
from tests.public_names import public_objects

LINK = re.compile(r"\]\(([^)\s]+)(?<!\.png)\)")  # the site's build looks at images, which a source distribution lacks
MODULE = re.compile(r"(?<![\w/.(])(?:keras_examples|benchmarks|verification)(?:\.[a-z]\w*)+(?![\w/])")
OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "keras_examples" / "README.md", ROOT / "benchmarks" / "README.md"]


def extension(module):
    spec = importlib.util.spec_from_file_location(module, DOCS / "extensions" / f"{module}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize("path", [*PAGES, *OTHERS], ids=name)
def test_links_lead_to_files(path):
    targets = [target.partition("#")[0] for target in LINK.findall(path.read_text()) if "://" not in target]
    missing = [target for target in targets if target and not (path.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("path", [*PAGES, *OTHERS], ids=name)
def test_commands_name_modules_that_exist(path):
    places = [ROOT.joinpath(*module.split(".")) for module in set(MODULE.findall(path.read_text()))]
    missing = [str(place) for place in places if not (place.is_dir() or place.with_suffix(".py").exists())]
    assert not missing


def shown():
    """The objects that the API's pages describe: what directives name, and the members that they ask for."""
    text, found = "".join(path.read_text() for path in (DOCS / "api").glob("*.md")), []
    for kind, path, options in re.findall(r"^\.\. (autoapi|py:)\w+:: ([\w.]+).*\n((?:   :.*\n)*)", text, re.MULTILINE):
        described = at(path)
        found.append(described)
        members = re.search(r":members:(.*)", options)
        if members and inspect.ismodule(described):
            names = members[1].replace(",", " ").split() or described.__all__
            found += [getattr(described, name) for name in names if not inspect.ismodule(getattr(described, name))]
        assert members or kind == "py:" or not inspect.ismodule(described) or ":no-index:" in options, path
    return found


def at(path):
    """What a dotted path of the package leads to."""
    found = btf
    for part in path.split(".")[1:]:
        found = getattr(found, part)
    return found


def test_the_api_shows_every_public_name():
    described = {id(value) for value in shown()}
    names = dict(public_objects(btf, "bellman_tf"))
    names |= {f"bellman_tf.bellman.{n}": at(f"bellman_tf.bellman.{n}") for n in btf.bellman.__all__}  # modules too
    assert not [name for name, value in names.items() if id(value) not in described]


def methods():
    """What the API's pages show of classes: the members that they ask for, or all where they show a whole module."""
    text = "".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    asked = re.findall(r"autoapiclass:: (.*)\n   :members: (.*)", text)
    found = [f"{owner}.{member}" for owner, members in asked for member in members.split(", ")]
    found += re.findall(r"autoapi(?:method|property):: (.*)", text)
    for module in re.findall(r"autoapimodule:: (.*)\n   :members:", text):
        for kind in filter(lambda kind: inspect.isclass(at(f"{module}.{kind}")), at(module).__all__):
            own = vars(at(f"{module}.{kind}")).items()
            found += [f"{module}.{kind}.{member}" for member, value in own if inspect.isfunction(value)]
    return [path for path in found if not path.rpartition(".")[2].startswith("_")]


def test_every_method_of_the_api_has_an_example():
    """Only those of a control problem need none: they are what the solver asks of it, not what a user calls."""
    paths = [path for path in methods() if not path.startswith("bellman_tf.trajectory.Problem.")]
    assert {"bellman_tf.GTDDP.as_published", "bellman_tf.bandit.Bandit.choose", "bellman_tf.Game.plot"} <= set(paths)
    assert not [path for path in paths if ">>>" not in (at(path).__doc__ or "")]


def test_every_name_of_the_api_exists():
    text = "".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    for path in re.findall(r"(?:autoapi|py:)\w+:: ([\w.]+)", text):
        owner, _, last = path.rpartition(".")
        try:
            assert hasattr(importlib.import_module(owner), last) or importlib.import_module(path)
        except ModuleNotFoundError:  # a method
            module, _, kind = owner.rpartition(".")
            assert hasattr(getattr(importlib.import_module(module), kind), last), path


def test_the_table_of_layers_is_the_registry():
    table = extension("layers_read")
    read = {layer for layers in table.registered().values() for layer in layers}
    assert {kind.__name__ for kind, _ in FAMILIES} == read & set(dir(keras.layers))
    assert "| `Dense` | dense | Kronecker factors |" in table.table()
    assert "its equation '...' has no leading batch axis" in table.table()
