"""The page on options has a row for every option of every class, with its default."""

import ast
import inspect
import operator
import re

import pytest

import bellman_tf as btf
from bellman_tf.optimizers.keywords import KerasKeywords
from tests.docs.pages import DOCS

LINES = (DOCS / "options.md").read_text().splitlines()
BANDITS = [kind for kind in vars(btf.bandit).values() if inspect.isclass(kind) and kind is not btf.bandit.Bandit]
BANDITS = [kind for kind in BANDITS if issubclass(kind, btf.bandit.Bandit)]


def rows():
    """Of every section the first two columns of its tables: an option and the code of its default."""
    found, section = {}, ""
    for line in LINES:
        if heading := re.fullmatch(r"(#+) (.*)", line):
            section = heading[2].strip("`") if heading[1] == "###" else "btf.GTDDP"
            found.setdefault(section, {})
        elif row := re.match(r"\| `([\w.]+)` \| `([^`]+)`(?:: [^|]+)? \|", line):
            assert row[1] not in found[section], f"two rows for {row[1]} of {section}"
            found[section][row[1]] = row[2]
        else:
            assert not line.startswith("|") or line.startswith(("| option |", "|---")), (
                f"not the row of an option: {line}"
            )
    return found


ROWS = rows()


def value(code):
    """A literal, or a power of two."""
    base, _, exponent = code.partition("**")
    return operator.pow(int(base), int(exponent)) if exponent else ast.literal_eval(code)


def options(kind):
    """Names and defaults of a constructor's keyword arguments."""
    parameters = inspect.signature(kind).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD}


def public(module, prefix, base):
    """The classes of a module's `__all__` that derive from a class, without it."""
    kinds = {f"{prefix}.{name}": getattr(module, name) for name in module.__all__}
    return {name: k for name, k in kinds.items() if inspect.isclass(k) and issubclass(k, base) and k is not base}


FAMILY = public(btf, "btf", btf.GTDDP) | public(btf.baselines, "btf.baselines", btf.GTDDP)
CONFIGS = public(btf.curvature, "btf.curvature", btf.curvature.Config)
OTHERS = {"btf.curvature.GramLimits": btf.curvature.GramLimits, "btf.LevenbergMarquardt": btf.LevenbergMarquardt}
OWN = {name: set(options(kind)) - set(KerasKeywords.__annotations__) for name, kind in FAMILY.items()}
OWN |= {name: set(options(kind)) for name, kind in {**CONFIGS, **OTHERS, "btf.GTDDP": btf.GTDDP}.items()}
OWN["btf.curvature.EKFAC"] -= OWN["btf.curvature.KFAC"]
KINDS = {**FAMILY, **CONFIGS, **OTHERS, "btf.GTDDP": btf.GTDDP}


def test_every_class_has_a_section():
    assert len(FAMILY) == 7 and len(CONFIGS) == 6 and len(BANDITS) == 4
    assert set(ROWS) == {*KINDS, "Bandits"}


@pytest.mark.parametrize("name", KINDS)
def test_every_option_has_a_row_with_its_default(name):
    said = {option: value(code) for option, code in ROWS[name].items()}
    assert said == {option: default for option, default in options(KINDS[name]).items() if option in OWN[name]}


@pytest.mark.parametrize("name", FAMILY)
def test_options_that_a_section_leaves_out_are_those_of_gtddp(name):
    shared, here = options(btf.GTDDP), options(FAMILY[name])
    assert {option: here[option] for option in here if option not in OWN[name]}.items() <= shared.items()


def test_options_that_a_section_of_ekfac_leaves_out_are_those_of_kfac():
    parent, here = options(btf.curvature.KFAC), options(btf.curvature.EKFAC)
    assert {option: here[option] for option in parent} == parent


def test_every_option_of_a_bandit_has_a_row_with_its_default():
    expected = {f"{kind.__name__}.{option}": d for kind in BANDITS for option, d in options(kind).items()}
    assert {option: value(code) for option, code in ROWS["Bandits"].items()} == expected


def test_what_stands_for_none_is_what_none_becomes():
    text = "\n".join(LINES)
    for kind in (btf.GTDDP, btf.DDPNOpt, btf.DGNOpt):
        assert float(kind().learning_rate) == pytest.approx(0.03)
    assert text.count("| `learning_rate` | `None`: 0.03 |") == 3
    optimizer = btf.GTDDP()
    assert optimizer.curvature == btf.curvature.KFAC() and '| `curvature` | `None`: `"kfac"` |' in text
    assert optimizer.options.rollout == "linear" and '| `rollout` | `None`: `"linear"` |' in text
    assert optimizer.options.gram_limits.memory == 256 * 2**20 and "| `gram_memory` | `None`: 256 MiB |" in text
    assert f"as_cited{defaults_of(btf.EKFAC.as_cited)}" in text


def defaults_of(function):
    """The keyword arguments as they are called, without the learning rate."""
    given = {p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    return "(" + ", ".join(f"{name}={default!r}" for name, default in given.items()) + ")"
