"""EKFAC as the papers cite it: whole patches, eigenbases and exact moments of one batch, against dense matrices."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import bellman_tf as btf
from tests.helpers import assert_close
from verification.references import capture, kfac

pytestmark = pytest.mark.usefixtures("_float64")


def network():
    keras.utils.set_random_seed(1)
    inputs = layers.Input((5, 5, 2))
    h = layers.Conv2D(3, 3, padding="same", strides=2, activation="tanh")(inputs)
    return btf.Model(inputs, layers.Dense(3)(layers.Flatten()(h)))


def per_sample(model, x, y):
    """Inputs of each layer at every position, 1 behind them, `[B, L, n + 1]`, and cotangents `[B, L, e]`."""
    conv, dense = model.layers[1], model.layers[3]
    with tf.GradientTape(persistent=True) as tape:
        h = tf.nn.conv2d(x, conv.kernel, 2, "SAME") + conv.bias
        tape.watch(h)
        logits = tf.reshape(tf.tanh(h), [len(x), -1]) @ dense.kernel + dense.bias
        tape.watch(logits)
        losses = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
    c_conv = tape.gradient(losses, h).numpy().reshape(len(x), -1, 3)
    c_dense = tape.gradient(losses, logits).numpy()[:, None]
    patches = capture.patches(x, (3, 3), (3, 3), (2, 2), (1, 1), "same")
    rows = [patches.reshape(len(x), 9, -1), np.tanh(h.numpy()).reshape(len(x), 1, -1)]
    rows = [np.concatenate([r, np.ones((*r.shape[:2], 1))], axis=-1) for r in rows]
    return rows, [c_conv, c_dense]


@pytest.mark.parametrize("damping", [0.1, 0.01])
def test_two_steps_forget_the_batch_before(rng, damping):
    model = network()
    model.compile(
        btf.EKFAC.as_cited(0.3, damping=damping), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    for _ in range(2):
        x, y = rng.normal(size=(4, 5, 5, 2)), rng.integers(0, 3, 4)
        rows, cotangents = per_sample(model, x, y)
        before = model.get_weights()
        model.train_on_batch(x, y)
        after = model.get_weights()
        for k, (r, c) in enumerate(zip(rows, cotangents, strict=True)):
            q = np.einsum("bli,blj->bij", r, c)
            U, _ = kfac.eigenbasis(kfac.input_factor(r), kfac.gradient_factor(c), "patches", 9, None)
            flat = q.reshape(len(q), -1)
            step = U @ ((U.T @ flat.mean(0)) / (kfac.exact_scalings(U, flat) + damping))
            step = 0.3 * step.reshape(q.shape[1:])
            assert_close(before[2 * k] - after[2 * k], step[:-1].reshape(before[2 * k].shape), rtol=1e-8)
            assert_close(before[2 * k + 1] - after[2 * k + 1], step[-1], rtol=1e-8)


def test_it_is_an_option_of_ekfac_and_not_its_default():
    cited = btf.EKFAC.as_cited(update_every=7, weight_decay=1e-3)
    metric = cited.curvature
    assert (metric.damping, metric.decay, metric.convolution, metric.scalings) == (0.1, 0.0, "patches", "exact")
    assert (metric.update_every, metric.invert_every, cited.weight_decay) == (7, 7, 1e-3)
    assert type(cited).from_config(cited.get_config()).curvature == metric != btf.EKFAC().curvature
