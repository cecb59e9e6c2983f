"""Links lead somewhere; nothing public is missing from the API's pages; tables read from sources are the truth."""

import importlib
import importlib.util
import re

import keras
import pytest

import bellman_tf as btf
from bellman_tf.layers.registry import FAMILIES
from tests.docs.pages import DOCS, PAGES, ROOT, name

LINK = re.compile(r"\]\(([^)\s]+)(?<!\.png)\)")  # the site's build looks at images, which a source distribution lacks
MODULE = re.compile(r"(?<![\w/.(])(?:keras_examples|benchmarks|verification)(?:\.[a-z]\w*)+(?![\w/])")
OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "keras_examples" / "README.md", ROOT / "benchmarks" / "README.md"]
MODULES = ("trajectory", "baselines", "analysis")  # their `__all__` is shown name by name


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


def test_the_api_shows_every_public_name():
    text = "".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    missing = [n for n in btf.__all__ if not re.search(rf"bellman_tf\.{n}\b", text)]
    configs = [n for n, value in vars(btf.curvature).items() if isinstance(value, type) and n != "Config"]
    missing += [n for n in configs if f"bellman_tf.curvature.{n}\n" not in text]
    for module in MODULES:
        whole = f"autoapimodule:: bellman_tf.{module}\n   :members:\n" in text
        names = getattr(btf, module).__all__
        missing += [n for n in names if not whole and n.lower() == n and not re.search(rf"\b{n}\b", text)]
    assert not missing


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
