"""Batch after batch rejected: one warning that names a player and a way out."""

import warnings

import keras
import numpy as np
import pytest

import bellman_tf as btf
from tests.strategies.networks import classify, cross_entropy, mlp

x, y = classify(6)(8)


def compiled():
    model = mlp()
    model.compile(btf.GTDDP(0.01), **cross_entropy())
    return model


def said(run):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in seen if "rejected the last" in str(w.message)]


def test_one_warning_after_several_in_a_row():
    model = compiled()
    model.train_on_batch(x, y)
    bad = np.full_like(x, np.nan)
    messages = said(lambda: [model.train_on_batch(bad, y) for _ in range(8)])
    assert len(messages) == 1
    largest = max(model.game.players, key=lambda p: max(np.abs(v.numpy()).max() for v in p.variables))
    assert f"'{largest.name}'" in messages[0]
    assert "`learning_rate`" in messages[0]
    assert int(model.optimizer.rejected_in_a_row) == 8


def test_a_good_batch_starts_the_count_anew():
    model = compiled()
    bad = np.full_like(x, np.nan)

    def run():
        for batch in [bad] * 4 + [x] + [bad] * 4:
            model.train_on_batch(batch, y)

    assert not said(run)
    assert int(model.optimizer.rejected_in_a_row) == 4
    assert int(model.optimizer.rejected_batches) == 8


@pytest.mark.parametrize("given", ["nothing", "a list", "a CallbackList"])
def test_fit_says_it_at_the_end_of_an_epoch(given):
    model = compiled()
    bad = np.full((40, 6), np.nan, "float32")
    labels = np.zeros(40, int)
    whole = keras.callbacks.CallbackList(add_history=True, model=model)
    callbacks = {"nothing": None, "a list": [], "a CallbackList": whole}[given]
    assert len(said(lambda: model.fit(bad, labels, batch_size=8, epochs=2, verbose=0, callbacks=callbacks))) == 1


@pytest.mark.parametrize("curvature", ["identity", "rmsprop", "adam", "kfac"])
@pytest.mark.parametrize("information", ["open", "cooperative"])
def test_a_rate_that_is_not_finite_changes_nothing(curvature, information):
    model = mlp()
    model.compile(btf.GTDDP(0.01, curvature=curvature, information=information), **cross_entropy())
    model.train_on_batch(x, y)
    model.optimizer.learning_rate = float("nan")
    before = [v.numpy() for v in model.trainable_variables]
    model.train_on_batch(x, y)
    assert int(model.optimizer.rejected_batches) == 1
    for variable, value in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_half_precision_holds_the_step_and_not_the_gradient():
    inputs = keras.Input((1,))
    model = btf.Model(
        inputs, keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros", dtype="float16")(inputs)
    )
    model.compile(
        btf.GTDDP(1e-6, curvature="identity", value_hessian="block_diagonal"), loss=lambda y, p: 200 * (p - y)
    )
    model.train_on_batch(np.full((2, 1), 1000.0), np.zeros((2, 1)))  # a gradient of 2e5: float16 ends at 65504
    assert int(model.optimizer.rejected_batches) == 0
    np.testing.assert_allclose(model.trainable_variables[0], [[-0.2]], rtol=1e-3)


@pytest.mark.parametrize("information", ["open", "cooperative"])
def test_second_moments_that_overflow_are_not_kept(information):
    """The step itself is finite then: Adam's would be 0."""
    inputs = keras.Input((1,))
    model = btf.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile(btf.GTDDP(0.1, curvature="adam", information=information), loss=lambda y, p: 1e22 * (p - y))
    model.train_on_batch(np.ones((2, 1)), np.zeros((2, 1)))
    assert int(model.optimizer.rejected_batches) == 1
    assert all(np.isfinite(v).all() for v in model.optimizer.variables)
