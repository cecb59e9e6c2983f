"""The re-weighted gradient of a layer in front of a BatchNormalization."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import bellman_tf as btf
from bellman_tf.training.game_step import GameStep
from tests.helpers import assert_close, round_of


def normalised_step(rng, scale=True):
    keras.config.set_dtype_policy("float64")  # conftest resets it
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(3, 3, use_bias=False, name="before")(inputs)
    x = keras.layers.BatchNormalization(epsilon=1e-12, scale=scale)(x)
    x = keras.layers.Conv2D(2, 3, activation="tanh", name="last")(x)
    model = btf.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(x)))
    if scale:
        model.layers[2].gamma.assign(rng.normal(size=3))
    loss = keras.losses.SparseCategoricalCrossentropy(True, dtype="float64")
    model.compile(btf.GTDDP(0.1, curvature="identity", rollout="nonlinear"), loss)
    x, y = tf.constant(rng.normal(size=[5, 6, 6, 2])), tf.constant(rng.integers(0, 4, 5))
    model.optimizer.build(model.trainable_variables)
    step = GameStep(round_of(model, (x, y)))
    step.differentiate()
    return model, step, x, y


@pytest.mark.parametrize("scale", [True, False])
def test_with_equal_weights_it_is_the_plain_gradient(rng, scale):
    model, step, x, y = normalised_step(rng, scale)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x, training=True))
    [kernel] = tape.gradient(loss, model.get_layer("before").trainable_variables)
    player = step.game.players[0]
    assert list(step.game.normalised_by) == [0]
    [got] = step._gradient(player, tf.fill([5, 1], tf.constant(0.2, tf.float64)))
    assert_close(got, kernel, rtol=1e-10)


def test_any_weights_leave_the_scale_of_the_kernel_alone(rng):
    # The normalisation makes the network blind to a kernel's scale, so no update may point along the kernel: not only
    # for the whole kernel but for each output channel.
    model, step, _, _ = normalised_step(rng)
    player = step.game.players[0]
    kernel = model.get_layer("before").kernel.numpy()
    [got] = step._gradient(player, tf.constant(rng.normal(size=[5, 1])))
    along = np.sum(got.numpy() * kernel, axis=(0, 1, 2))
    size = np.linalg.norm(got) * np.linalg.norm(kernel)
    assert np.abs(along).max() <= 1e-9 * size
    # Slices of the plain backward pass, weighed before the normalisation, do point along it.
    [sliced] = step.derivatives.captures[0].gradient(tf.constant(rng.normal(size=[5, 1])))
    assert np.abs(np.sum(sliced.numpy() * kernel, axis=(0, 1, 2))).max() > 1e-4 * size
