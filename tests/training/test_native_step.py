"""The native step on every kind of model: at a vanishing rate it is Keras's own gradient step."""

import numpy as np
import pytest

import bellman_tf as btf
from tests.zoo import ZOO, sgd_step

RATE = 1e-3
pytestmark = pytest.mark.filterwarnings("ignore:.*open-loop")  # many of these models have such layers


def close_to_gradient_step(actual, expected, rate):
    """The weights differ from 1/B by the leverage, which is of the order of the rate."""
    size = max(np.abs(step).max() for step in expected)
    for a, b in zip(actual, expected, strict=True):
        rounding = 2e-7  # of a weight of size 1
        np.testing.assert_allclose(a, b, rtol=0, atol=60 * rate * size + rounding)


@pytest.mark.parametrize("name", ZOO)
def test_a_vanishing_step_is_the_gradient_step(name):
    case = ZOO[name]
    step = case.step(btf.Model, btf.GTDDP(RATE, curvature="identity"), jit_compile=False)
    close_to_gradient_step(step, sgd_step(case, RATE), RATE)


@pytest.mark.parametrize("name", ZOO)
def test_coverage_is_what_is_known_of_the_model(name):
    case = ZOO[name]
    model = case.compiled(btf.Model, btf.GTDDP(RATE, curvature="identity"))
    if case.covered is not None:
        assert model.game.coverage == pytest.approx(case.covered)
    trained = {id(v) for player in model.game.players for v in player.variables}
    assert trained == {id(v) for v in model.trainable_variables}
