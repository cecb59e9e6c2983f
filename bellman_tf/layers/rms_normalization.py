"""RMSNormalization: one scale per feature behind a division by the root mean square."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.layers.capture import PerSampleCapture
from bellman_tf.layers.coverage import OUTPUT, Coverage, built_shape, expected
from bellman_tf.layers.tensors import delayed, to_work


def capture_rms_normalization(
    layer: keras.Layer, inputs: tf.Tensor, cotangents: Sequence[tf.Tensor]
) -> PerSampleCapture:
    """Captures the scale of `keras.layers.RMSNormalization`, normalised over the last axes."""
    x = delayed(to_work(inputs), cotangents[0])
    rank, kept = len(x.shape), len(layer.scale.shape)
    axes = list(range(rank - kept, rank))
    normalised = x * tf.math.rsqrt(tf.reduce_mean(tf.square(x), axes, keepdims=True) + layer.epsilon)
    summed = list(range(1, rank - kept))

    def form(c: tf.Tensor, normalised: tf.Tensor) -> Tensors:
        return [tf.reduce_sum(c * normalised, axis=summed)]

    return PerSampleCapture([to_work(c) for c in cotangents], [normalised], form)


def cover_rms_normalization(layer: keras.Layer, bias: bool) -> Coverage | str:
    """Coverage of `keras.layers.RMSNormalization`, which has no bias."""
    variables = expected(layer, ("scale",))
    if variables is None:
        return "its trainable variable is not just the scale"
    rank = len(built_shape(layer))
    if sorted(axis % rank for axis in layer.axis) != list(range(rank - len(layer.axis), rank)):
        return "Keras multiplies by its scale along the last axes, whichever it normalises"
    if len(layer.axis) >= rank:
        return "it normalises along the batch axis"
    return Coverage("scale", OUTPUT, capture_rms_normalization, variables)
