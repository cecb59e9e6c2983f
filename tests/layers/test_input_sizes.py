"""A batch without sizes: captures of every kind take theirs from the layer's variables."""

import keras
import pytest
import tensorflow as tf

from bellman_tf.layers.input_sizes import as_computed, input_sizes
from bellman_tf.layers.registry import coverage
from bellman_tf.layers.tensors import with_sizes
from tests.helpers import assert_close, thinned
from tests.layers.cases import CASES, draw

NEEDS_SIZES = {
    "einsum batched kernel": {1: 5, 2: 4},
    "einsum positions": {2: 4},
    "conv 2d": {-1: 2},
    "dense rank 3": {-1: 4},
    "embedding": {},
    "layer norm": {},
}
KERAS_NEEDS_SIZES = ("depthwise", "layer norm", "group norm", "instance norm")


@pytest.mark.parametrize("name", NEEDS_SIZES)
def test_variables_settle_the_axes_that_they_share_with_the_input(name, rng):
    assert input_sizes(draw(CASES[name], rng).layer) == NEEDS_SIZES[name]


@pytest.mark.parametrize("name", thinned([name for name in CASES if not name.startswith(KERAS_NEEDS_SIZES)]))
def test_without_sizes_the_capture_is_the_same(name, rng):
    sample = draw(CASES[name], rng, columns=2)
    layer, weights = sample.layer, tf.constant(rng.normal(size=(3, 2)))
    unknown = [tf.TensorSpec([None] * t.shape.rank, t.dtype) for t in (sample.inputs, *sample.cotangents)]

    @tf.function(input_signature=unknown)
    def compute(x, *cotangents):
        site = layer(x)  # of the kernel's width, as far as TensorFlow can tell
        capture = coverage(layer).capture(layer, as_computed(layer, x), [with_sizes(c, site.shape) for c in cotangents])
        assert capture.extent.parameters == sample.capture.extent.parameters
        return capture.gradient(weights)

    for ours, expected in zip(
        compute(sample.inputs, *sample.cotangents), sample.capture.gradient(weights), strict=True
    ):
        assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_a_mask_stays_with_the_input():
    layer = keras.layers.BatchNormalization()
    layer.build((None, 3, 4))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None])])
    def run(x):
        x._keras_mask = tf.ones(tf.shape(x)[:2], tf.bool)
        known = as_computed(layer, x)
        assert known.shape[-1] == 4
        assert known._keras_mask is x._keras_mask
        return known

    run(tf.ones([2, 3, 4]))
