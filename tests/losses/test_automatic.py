"""Losses without a closed form."""

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf

from bellman_tf import losses
from tests.helpers import assert_close
from tests.losses.cases import (
    CLOSED,
    Wave,
    bits,
    dense,
    floats,
    hessian_of_keras,
    observed_head,
    one_hot,
    outer,
)
from verification.references import losses as reference

ARBITRARY = {
    "log cosh": (keras.losses.LogCosh, None, floats),
    "categorical on any probabilities": (keras.losses.CategoricalCrossentropy, "softplus", one_hot),
    "binary on any probabilities": (keras.losses.BinaryCrossentropy, "hard_sigmoid", bits),
    "categorical on a sigmoid": (keras.losses.CategoricalCrossentropy, "sigmoid", one_hot),
    "logits that are not": (
        partial(keras.losses.CategoricalCrossentropy, from_logits=True),
        "softmax",
        one_hot,
    ),
    "kullback-leibler": (keras.losses.KLDivergence, "softmax", one_hot),
    "absolute": (keras.losses.MeanAbsoluteError, None, floats),
    "own": (Wave, None, floats),
}


@pytest.mark.filterwarnings("ignore:.*received `from_logits=True`")
@pytest.mark.parametrize("name", ARBITRARY)
def test_any_other_loss_is_differentiated_twice(name, rng):
    make, activation, label = ARBITRARY[name]
    loss = make(dtype="float64")
    through = activation in {"softmax", "sigmoid"}
    z = rng.normal(size=[3, 2, 3])
    if activation in {"softplus", "hard_sigmoid"}:  # cut at the output
        z = np.asarray(keras.activations.get(activation)(tf.constant(z)))
    labels = rng.integers(3, size=[3, 2])
    y_true, f = label(labels, z), rng.uniform(0.0, 2.0, size=[3, 2])
    cut = activation if through else None
    form = losses.recognise(loss, activation)
    assert form.kind == "automatic"
    assert form.before_activation == through
    observation = losses.Observation(loss, tf.constant(y_true, tf.float64), None, None)
    head = losses.terminal_head(form, observation, tf.constant(z), tf.constant(f), activation)
    gradient, H = hessian_of_keras(loss, cut, z, y_true, f)
    assert_close(head.gradient(), gradient, rtol=1e-12)
    assert_close(dense(head, z), H, rtol=1e-12, atol=1e-14)
    projected = np.stack([reference.best_approximation(h, len(h)) for h in H])
    assert_close(outer(head.factor()), projected, rtol=1e-11, atol=1e-13)
    assert_close(
        outer(head.top_factor(2)), np.stack([reference.best_approximation(h, 2) for h in H]), rtol=1e-11, atol=1e-13
    )


@pytest.mark.parametrize("name", CLOSED)
def test_automatic_differentiation_agrees_with_the_closed_forms(name, rng):
    make, activation, label = CLOSED[name]
    z, labels = rng.normal(size=[2, 2, 3]), rng.integers(3, size=[2, 2])
    f = rng.uniform(0.0, 2.0, size=[2, 2])
    loss = make(dtype="float64")
    closed, automatic = (
        observed_head(loss, activation, z, label(labels, z), f, automatic=flag) for flag in (False, True)
    )
    assert_close(automatic.gradient(), closed.gradient(), rtol=1e-12)
    assert_close(outer(automatic.factor()), outer(closed.factor()), rtol=1e-10)


def test_a_loss_that_is_one_number_for_the_batch_has_no_curvature_per_sample(rng):
    loss = keras.losses.Dice(dtype="float64")
    head = observed_head(loss, None, rng.uniform(size=[3, 2]), rng.integers(2, size=[3, 2]), np.float64(3.0))
    assert head.gradient().numpy().any()
    assert not head.hessian_times(tf.ones([3, 2], tf.float64)).numpy().any()
    assert head.factor().shape == [3, 2, 2]
    assert not head.factor().numpy().any()


def test_the_cost_as_a_function_of_two_outputs_has_blocks_between_them(rng):
    z = [tf.constant(rng.normal(size=[3, 2])), tf.constant(rng.normal(size=[3, 2, 1]))]

    def phi(z):
        return tf.reduce_sum(tf.exp(tf.reduce_sum(z[0], axis=1) + 0.5 * tf.reduce_sum(z[1], axis=[1, 2])))

    a = np.exp(np.sum(z[0], axis=1) + 0.5 * np.sum(z[1], axis=(1, 2)))
    direction = np.array([1.0, 1.0, 0.5, 0.5])
    expected = a[:, None, None] * np.outer(direction, direction)
    assert_close(losses.hessian_by_ad(phi, z), expected, rtol=1e-14)
    assert_close(outer(losses.hessian_factor_by_ad(phi, z, rank=1)), expected, rtol=1e-13)
    v = [tf.constant(rng.normal(size=x.shape)) for x in z]
    flat = np.concatenate([np.reshape(x, [3, -1]) for x in v], axis=1)
    got = np.concatenate([np.reshape(x, [3, -1]) for x in losses.hessian_times_by_ad(phi, z, v)], axis=1)
    assert_close(got, np.einsum("bij,bj->bi", expected, flat), rtol=1e-13)


def test_the_output_reaches_the_loss_in_the_dtype_of_the_loss(rng):
    z, y_true = tf.constant(rng.normal(size=[2, 3])), tf.constant(rng.normal(size=[2, 3]), tf.float32)
    observation = losses.Observation(Wave(dtype="float32"), y_true, None, None)
    head = losses.terminal_head(losses.LossForm("automatic"), observation, z, tf.ones([2]))
    assert head.factor().dtype == tf.float64
    _, H = hessian_of_keras(Wave(dtype="float64"), None, z, y_true, [1.0, 1.0])
    assert_close(dense(head, z), H, rtol=1e-5)
