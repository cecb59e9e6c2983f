"""A drawn cotangent has the Hessian of the loss for its second moment."""

import itertools

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import tensorflow as tf

from bellman_tf import losses
from tests.helpers import assert_close
from tests.losses.cases import CLOSED, at_home, dense, observed_head
from verification.references import losses as reference


class Pattern(losses.Signs):
    """Signs that a test chooses, the same ones for every sample; notes how many were asked for."""

    def __init__(self, chosen):
        super().__init__(tf.constant([0, 0]))
        self.chosen, self.asked = chosen, 0

    def __call__(self, like):
        size = int(np.prod(like.shape[1:]))
        own = [self.chosen[(self.asked + k) % len(self.chosen)] for k in range(size)]
        self.asked += size
        return tf.broadcast_to(tf.reshape(tf.constant(own, like.dtype), like.shape[1:]), like.shape)


def mean_square(head, rows):
    """The mean of (Z e)(Z e)' over all e, `[B, D, D]`."""
    first = Pattern([1.0])
    head.draw(first)
    total, patterns = 0.0, list(itertools.product([-1.0, 1.0], repeat=first.asked))
    for chosen in patterns:
        drawn = np.reshape(head.draw(Pattern(chosen)), [rows, -1])
        total = total + drawn[:, :, None] * drawn[:, None, :]
    return total / len(patterns)


@st.composite
def small_outputs(draw):
    """As `cases.outputs`, with at most six entries a sample: they have 64 patterns of signs."""
    classes, steps = draw(st.sampled_from([(2, ()), (3, ()), (5, ()), (3, (2,)), (2, (3,))]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    shape = (2, *steps, classes)
    temper = draw(st.sampled_from(["moderate", "extreme", "identical", "confident"]))
    z = {"extreme": rng.uniform(-50, 50, shape), "identical": np.ones(shape)}.get(temper, rng.normal(size=shape))
    labels = rng.integers(classes, size=shape[:-1])
    if temper == "confident":
        z = z + 30.0 * np.eye(classes)[labels]
    return z, labels, rng.uniform(0.1, 3.0, shape[:-1]) * rng.integers(0, 2, shape[:-1])


@pytest.mark.parametrize("name", CLOSED)
@hypothesis.given(case=small_outputs())
@hypothesis.settings(max_examples=6)
def test_the_second_moment_of_a_draw_is_the_hessian(name, case):
    make, activation, label = CLOSED[name]
    z, labels, f = case
    z = at_home(name, z)
    head = observed_head(make(dtype="float64"), activation, z, label(labels, z), f)
    H = dense(head, z)
    # Every term is at most the trace times its entries, and the signs cancel in pairs.
    size = np.abs(H).max(axis=(1, 2), keepdims=True)
    assert_close(mean_square(head, len(z)) / np.where(size, size, 1), H / np.where(size, size, 1), atol=1e-12)


def test_losses_without_a_closed_form_and_sums_of_losses_are_drawn_too():
    z = np.array([[0.3, -0.7, 1.1], [2.0, 0.1, -0.4]])
    y, f = np.array([[0.0, 1.0, 0.5], [1.0, -1.0, 0.2]]), np.ones(2)

    def quartic(y_true, y_pred):
        return tf.reduce_sum((y_true - y_pred) ** 4, axis=-1)

    automatic = observed_head(keras.losses.MeanSquaredError(dtype="float64"), None, z, y, f, automatic=True)
    assert_close(mean_square(automatic, 2), dense(automatic, z), rtol=1e-12, atol=1e-13)
    square = observed_head(keras.losses.MeanSquaredError(dtype="float64"), None, z, y, f)
    huber = observed_head(keras.losses.Huber(dtype="float64"), None, z, y, 2 * f)
    both = losses.SumOfHeads((square, huber))
    assert_close(mean_square(both, 2), dense(both, z), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("margin", [0.0, 5.0, 30.0, 80.0])
def test_nearly_certain_classes_keep_their_digits(margin):
    rng = np.random.default_rng(1)
    z = (rng.normal(size=(4, 5)) + margin * np.eye(5)[[0, 2, 4, 1]]).astype(np.float32)
    p = tf.nn.softmax(tf.constant(z)).numpy().astype(np.float64)
    v = rng.choice([-1.0, 1.0], size=z.shape)
    for row, signs in zip(p, v, strict=True):
        exact = reference.categorical_half(row) @ signs
        found = losses.softmax_half_times(tf.constant(row, tf.float32), tf.constant(signs, tf.float32)).numpy()
        # Single terms may cancel by the choice of signs, not by what they are.
        assert_close(found, exact, rtol=0, atol=1e-6 * np.abs(exact).max())


def test_signs_differ_between_seeds_calls_and_entries_and_are_xlas():
    def drawn(seed):
        signs = losses.Signs(tf.constant(seed))
        return [signs(tf.zeros([400])), signs(tf.zeros([400]))]

    first, second = (part.numpy() for part in drawn([3, 0]))
    assert set(first) == {-1.0, 1.0}
    assert abs(first.mean()) < 5 / 20
    others = [second, drawn([4, 0])[0].numpy(), drawn([3, 1024])[0].numpy()]
    assert all(abs(np.mean(first * other)) < 5 / 20 for other in others)
    compiled = tf.function(drawn, jit_compile=True)([3, 0])
    assert all((a.numpy() == b).all() for a, b in zip(compiled, (first, second), strict=True))
