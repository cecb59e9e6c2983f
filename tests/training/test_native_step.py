"""The native step on every kind of model: at a vanishing rate it is Keras's own gradient step."""

import keras
import numpy as np
import pytest

import bellman_tf as btf
from tests.zoo import ZOO, sgd_step

RATE = 1e-3


def close_to_gradient_step(actual, expected, rate):
    """The weights differ from 1/B by the leverage, which is of the order of the rate."""
    size = max(np.abs(step).max() for step in expected)
    for a, b in zip(actual, expected, strict=True):
        rounding = 2e-7  # of a weight of size 1
        np.testing.assert_allclose(a, b, rtol=0, atol=60 * rate * size + rounding)


@pytest.mark.filterwarnings("ignore:.*open-loop")
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


@pytest.mark.parametrize(
    ("curvature", "reference"), [("adam", keras.optimizers.Adam), ("identity", keras.optimizers.SGD)]
)
@pytest.mark.parametrize("weight_decay", [None, 0.1])
def test_what_a_model_writes_into_its_own_weights_stays_written(curvature, reference, weight_decay):
    """SpectralNormalization normalises the kernel itself, in every call."""
    case, rate = ZOO["spectral_normalization"], 1e-4
    expected = case.compiled(keras.Model, reference(rate, weight_decay=weight_decay))
    optimizer = btf.GTDDP(rate, curvature=curvature, information="open", weight_decay=weight_decay)
    actual = case.compiled(btf.Model, optimizer, jit_compile=False)
    for model in (expected, actual):
        for _ in range(3):
            model.train_on_batch(case.x, case.y)
    for a, b in zip(actual.trainable_variables, expected.trainable_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=1e-6)
