"""Losses without a closed form."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from bellman_tf import losses
from tests.helpers import assert_close
from tests.losses.cases import (
    CLOSED,
    Wave,
    at_home,
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
    "categorical on any probabilities": (keras.losses.CategoricalCrossentropy, "softplus", one_hot),
    "binary on any probabilities": (keras.losses.BinaryCrossentropy, "hard_sigmoid", bits),
    "focal": (keras.losses.CategoricalFocalCrossentropy, "softmax", one_hot),
    "cosine similarity": (keras.losses.CosineSimilarity, None, floats),
    "kullback-leibler": (keras.losses.KLDivergence, "softmax", one_hot),
    "absolute": (keras.losses.MeanAbsoluteError, None, floats),
    "own": (Wave, None, floats),
}


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
    head = observed_head(loss, cut, z, y_true, f)
    assert isinstance(head, losses.AutomaticHead)
    gradient, H = hessian_of_keras(loss, cut, z, y_true, f)
    assert_close(tf.reshape(head.gradient(), z.shape), gradient, rtol=1e-12)
    assert_close(dense(head, z), H, rtol=1e-12, atol=1e-14)
    projected = np.stack([reference.best_approximation(h, len(h)) for h in H])
    assert_close(outer(head.factor()), projected, rtol=1e-11, atol=1e-13)
    assert_close(
        outer(head.top_factor(2)), np.stack([reference.best_approximation(h, 2) for h in H]), rtol=1e-11, atol=1e-13
    )


@pytest.mark.parametrize("name", CLOSED)
def test_automatic_differentiation_agrees_with_the_closed_forms(name, rng):
    make, activation, label = CLOSED[name]
    z, labels = at_home(name, rng.normal(size=[2, 2, 3])), rng.integers(3, size=[2, 2])
    f = rng.uniform(0.0, 2.0, size=[2, 2])
    loss = make(dtype="float64")
    closed, automatic = (
        observed_head(loss, activation, z, label(labels, z), f, automatic=flag) for flag in (False, True)
    )
    assert_close(tf.reshape(automatic.gradient(), z.shape), closed.gradient(), rtol=1e-12)
    assert_close(outer(automatic.factor()), outer(closed.factor()), rtol=1e-10)


def distance(y_true, y_pred):  # its first derivative is guarded where it is 0, its second is not
    squared = keras.ops.sum((y_true - y_pred) ** 2, axis=-1)
    return keras.ops.where(squared > 0.0, keras.ops.sqrt(squared + 1e-320), 0.0)


@pytest.mark.parametrize("coupled", [False, True], ids=["separate", "coupled"])
def test_a_sample_without_second_derivatives_has_no_curvature(coupled, rng):
    z, y_true = tf.constant(rng.normal(size=[4, 3])), rng.normal(size=[4, 3])
    y_true[1] = z[1]
    end = losses.OutputEnd(z)
    with tf.GradientTape() as tape:
        tape.watch(z)
        with losses.record_loss([end], tape) as record:
            values = distance(y_true, z) + 0.1 * tf.reduce_sum(z, axis=-1)
            J = tf.reduce_mean(values) ** 2 if coupled else tf.reduce_mean(values)
    g = tape.gradient(J, z, output_gradients=tf.constant(4.0, tf.float64))
    assert np.isfinite(g).all() and np.any(g[1])
    cost = losses.terminal_cost(record, J, 4.0, closed=False)
    beta_squared = losses.terminal_curvature(cost, [g], []).beta_squared
    columns = losses.terminal_curvature(cost, [g], [], "full").columns
    assert np.isfinite(beta_squared).all() and beta_squared[1] == 0.0
    size = np.sqrt(sum(np.sum(np.square(column), axis=1) for [column] in columns))
    assert size[1] == 0.0 and (size[[0, 2, 3]] > 0.0).all()
