"""The figure of one step shows what `docs/how-keras.md` says of it."""

import importlib

import matplotlib
import numpy as np
import pytest

from tests.docs.pages import DOCS


@pytest.fixture
def one_step(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "figures"))
    with matplotlib.rc_context():
        yield importlib.import_module("one_step")


def test_the_page_says_what_the_figure_shows(one_step):
    before, plain, weighted, w = one_step.measured()
    text = (DOCS / "how-keras.md").read_text()
    assert "longer than 0.6 makes the loss worse" in text and "lower it at a rate of 8" in text
    assert np.interp(0.59, one_step.RATES, plain) < before < np.interp(0.65, one_step.RATES, plain)
    assert np.interp(8, one_step.RATES, weighted) < before
    np.testing.assert_allclose(w[0], 1, atol=0.05)
    np.testing.assert_allclose(plain[0], weighted[0], rtol=1e-2)


def test_every_figure_of_a_page_is_committed():
    pages = "".join(path.read_text() for path in DOCS.glob("*.md"))
    drawn = {path.stem for path in (DOCS / "figures").glob("*.svg")}
    assert drawn == {"one_step", "recursion", "value"}
    assert all(f"(figures/{name}.svg)" in pages for name in drawn)
