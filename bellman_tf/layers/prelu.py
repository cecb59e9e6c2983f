"""PReLU: one slope per input feature, shared along some axes."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.layers.capture import PerSampleCapture
from bellman_tf.layers.coverage import OUTPUT, Coverage, expected
from bellman_tf.layers.tensors import delayed, to_work


def capture_prelu(layer: keras.Layer, inputs: tf.Tensor, cotangents: Sequence[tf.Tensor]) -> PerSampleCapture:
    """Captures the slopes of `keras.layers.PReLU`."""
    negative = tf.minimum(delayed(to_work(inputs), cotangents[0]), 0)
    shared = [k + 1 for k, size in enumerate(layer.alpha.shape) if size == 1]

    def form(c: tf.Tensor, negative: tf.Tensor) -> Tensors:
        return [tf.reshape(tf.reduce_sum(c * negative, axis=shared, keepdims=True), [-1, *layer.alpha.shape])]

    return PerSampleCapture([to_work(c) for c in cotangents], [negative], form)


def cover_prelu(layer: keras.Layer, bias: bool) -> Coverage | str:
    """Coverage of `keras.layers.PReLU`, which has no bias."""
    variables = expected(layer, ("alpha",))
    if variables is None:
        return "its trainable variable is not just the slope"
    return Coverage("slope", OUTPUT, capture_prelu, variables)
