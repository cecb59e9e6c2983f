"""Step control: the rule by itself, its numbers against the dense model, and what a refused step leaves."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import bellman_tf as btf
from bellman_tf.training.step_control import judge
from tests.helpers import assert_close
from verification.references import vanilla

LM = btf.LevenbergMarquardt()


def state(damping=1.0, slope=0.0, own=0.0, curvature=0.0):
    return tf.constant([damping, slope, own, curvature])


def verdict(actual, predicted=1.0, held_out=(1.0, 1.0, 1.0), control=LM, start=None):
    start = state() if start is None else start
    found = judge(control, start, *(tf.constant(x, tf.float32) for x in (predicted, actual, held_out)))
    return bool(found.taken), float(found.state[0])


def test_a_ratio_below_low_raises_the_damping():
    assert verdict(0.1) == (True, LM.raise_factor)


def test_a_step_that_raises_the_loss_beyond_the_bound_is_refused():
    assert verdict(-0.9)[0]
    assert verdict(-1.1) == (False, LM.refuse_factor)
    assert not verdict(-0.01, control=btf.LevenbergMarquardt(bound=0.0))[0]


@pytest.mark.parametrize("actual", [np.nan, -np.inf, np.inf])
def test_a_loss_that_is_not_finite_refuses_the_step(actual):
    assert verdict(actual) == (False, LM.refuse_factor)


def test_the_damping_goes_where_the_model_of_other_samples_is_least():
    """J falls by s tau - c tau^2 / 2 on other samples: damping c / s is best, downwards not in one leap."""
    steady = {"control": btf.LevenbergMarquardt(memory=0.0)}
    assert verdict(1.0, held_out=(1.0, 1.0, 3.0), **steady) == (True, pytest.approx(3.0))
    assert verdict(1.0, held_out=(2.0, 2.0, 0.01), **steady) == (True, pytest.approx(1 / LM.lower_factor))


def test_a_step_far_beyond_the_best_is_refused_and_the_damping_leaps():
    control = btf.LevenbergMarquardt(memory=0.0)
    assert verdict(1.0, held_out=(1.0, 1.0, 1e5), control=control) == (False, pytest.approx(1e5))


def test_slope_and_curvature_are_remembered_for_damping_one():
    found = judge(LM, state(damping=2.0), *(tf.constant(x) for x in (1.0, 1.0, (3.0, 5.0, 7.0))))
    fresh = 1 - LM.memory
    np.testing.assert_allclose(found.state[1:], [6 * fresh, 10 * fresh, 28 * fresh], rtol=1e-5)


def test_a_measurement_that_overflows_is_forgotten():
    found = judge(
        LM, state(slope=1.0, own=1.0, curvature=2.0), *(tf.constant(x) for x in (1.0, 1.0, (1.0, 1.0, np.inf)))
    )
    np.testing.assert_allclose(found.state[1:], [1.0, 1.0, 2.0])
    assert np.isfinite(found.state[0])


def test_a_stationary_point_changes_nothing():
    assert verdict(0.0, predicted=0.0, held_out=(0.0, 0.0, 0.0)) == (True, 1.0)


@pytest.mark.parametrize(
    "option", [{"low": 1.0}, {"raise_factor": 0.5}, {"bound": -1.0}, {"memory": 1.0}, {"most": 0.0}]
)
def test_numbers_outside_their_range_are_refused(option):
    with pytest.raises(ValueError, match="must be a finite number .* Received"):
        btf.LevenbergMarquardt(**option)


@pytest.mark.parametrize(
    "options", [{"information": "open"}, {"value_hessian": "block_diagonal"}, {"group_size": 2}, {"step_control": "x"}]
)
def test_combinations_that_cannot_work_are_refused(options):
    with pytest.raises(ValueError, match="`step_control` must"):
        btf.GTDDP(**{"step_control": "levenberg_marquardt", **options})


# ---- in a model


def chain(regularizer=None):
    keras.utils.set_random_seed(1)
    hidden = [layers.Dense(4, activation="tanh", kernel_regularizer=regularizer), layers.Dense(3, activation="tanh")]
    return btf.Sequential([layers.Input((3,)), *hidden, layers.Dense(3)])


def compiled(rate, regularizer=None, **options):
    model = chain(regularizer)
    optimizer = btf.GTDDP(rate, curvature="identity", step_control="levenberg_marquardt", **options)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    return model


def observed(model, x, y):
    """The outcomes of one step."""
    outcomes = []
    model.optimizer.observe = lambda outcome, accepted: outcomes.append(outcome)
    model.train_on_batch(x, y)
    return outcomes[0]


@pytest.mark.usefixtures("_float64")
def test_the_predicted_reduction_is_that_of_the_dense_model(rng):
    x, y = rng.normal(size=(5, 3)), rng.integers(0, 3, 5)
    model = compiled(0.4, terminal_hessian="full")
    weights = [(layer.kernel.numpy(), layer.bias.numpy()) for layer in model.layers]
    logits = vanilla.forward(x, weights)[0][-1]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    H = np.einsum("bi,ij->bij", p, np.eye(3)) - np.einsum("bi,bj->bij", p, p)
    _, decrease = vanilla.step(x, weights, p - np.eye(3)[y], H, 0.4, second_order=False)
    assert_close(float(observed(model, x, y).predicted), decrease, rtol=1e-10)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("regularizer", [None, "l2"])
def test_the_actual_reduction_is_that_of_evaluating_again(rng, regularizer):
    x, y = rng.normal(size=(5, 3)), rng.integers(0, 3, 5)
    model = compiled(0.4, regularizer)
    before = model.evaluate(x, y, batch_size=5, verbose=0)
    actual = float(observed(model, x, y).actual)
    assert_close(actual, before - model.evaluate(x, y, batch_size=5, verbose=0), rtol=1e-9, atol=1e-12)


def test_a_refused_step_leaves_everything_but_the_damping(rng):
    x, y = rng.normal(size=(6, 3)).astype("float32"), rng.integers(0, 3, 6)
    model = compiled(1e6)
    before = model.get_weights()
    model.train_on_batch(x, y)
    for was, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)
    optimizer = model.optimizer
    assert int(optimizer.refused_steps) == 1 and int(optimizer.iterations) == int(optimizer.rejected_batches) == 0
    assert float(optimizer.damping) >= LM.refuse_factor


def test_a_bad_batch_leaves_the_damping_too(rng):
    x, y = rng.normal(size=(6, 3)).astype("float32"), rng.integers(0, 3, 6)
    model = compiled(0.1)
    model.train_on_batch(x, y)
    damping = float(model.optimizer.damping)
    x[0, 0] = np.nan
    model.train_on_batch(x, y)
    assert int(model.optimizer.rejected_batches) == 1 and int(model.optimizer.refused_steps) == 0
    assert float(model.optimizer.damping) == damping


@pytest.mark.parametrize("rate", [1e-3, 1e3])
def test_a_bad_learning_rate_is_mended(rng, rate):
    x = rng.normal(size=(64, 3)).astype("float32")
    y = np.argmax(x, axis=1)
    model = chain()
    model.compile(
        btf.GTDDP(rate, curvature="identity", step_control="levenberg_marquardt"),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    history = model.fit(x, y, batch_size=16, epochs=15, verbose=0).history["loss"]
    assert history[-1] < 0.6 * history[0]
