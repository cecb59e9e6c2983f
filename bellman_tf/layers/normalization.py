"""Players with one scale and one shift per feature: batch, layer and group normalisation.

Their per-sample gradients are tiny, `sum_l c_l xhat_l` and `sum_l c_l`, so they are formed. The normalised input is
computed again from the layer's input when the cotangent is there: kept from pass 1 it would double the memory.
"""

import functools
from collections.abc import Sequence

import keras
import tensorflow as tf

from bellman_tf import keras_access
from bellman_tf._typing import Tensors
from bellman_tf.layers.capture import PerSampleCapture
from bellman_tf.layers.coverage import OUTPUT, Coverage, expected
from bellman_tf.layers.tensors import delayed, leading, to_work


def normalised_input(
    layer: keras.Layer, inputs: tf.Tensor, mask: tf.Tensor | None = None, source: tf.Tensor | None = None
) -> tf.Tensor:
    """What the layer multiplies by its scale, in the layer's training mode.

    Args:
        layer: BatchNormalization, LayerNormalization or GroupNormalization.
        inputs: `[B, ...]`.
        mask: boolean, without the last axis; BatchNormalization leaves what it hides out of its moments.
        source: where to take the moments from, by default `inputs`. The layer's own input tensor has them already:
            TensorFlow computes what it sees twice in a graph once.

    Returns:
        The normalised input, shape of `inputs`.
    """
    rank = len(inputs.shape)
    source = inputs if source is None else source
    if isinstance(layer, keras.layers.GroupNormalization):
        axis = layer.axis % rank
        shape = leading(inputs, 0)
        grouped = tf.reshape(
            inputs, [*shape[:axis], layer.groups, inputs.shape[axis] // layer.groups, *shape[axis + 1 :]]
        )
        axes = [k for k in range(1, rank + 1) if k != axis]
        mean, variance = tf.nn.moments(grouped, axes, keepdims=True)
        return tf.reshape((grouped - mean) * tf.math.rsqrt(variance + layer.epsilon), shape)
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    axes = [axis % rank for axis in axes]
    if isinstance(layer, keras.layers.BatchNormalization):
        axes = [k for k in range(rank) if k not in axes]
        if mask is not None:
            return _masked(inputs, mask, axes, layer.epsilon)
    mean, variance = tf.nn.moments(source, axes, keepdims=True)
    return (inputs - mean) * tf.math.rsqrt(variance + layer.epsilon)


def _masked(inputs: tf.Tensor, mask: tf.Tensor, axes: list[int], epsilon: float) -> tf.Tensor:
    """Normalises by the moments of the visible entries, which Keras divides by their count plus its own epsilon."""
    seen = tf.broadcast_to(tf.cast(mask, inputs.dtype)[..., None], tf.shape(inputs))
    count = tf.reduce_sum(seen, axes, keepdims=True) + keras.config.epsilon()
    mean = tf.reduce_sum(seen * inputs, axes, keepdims=True) / count
    variance = tf.reduce_sum(seen * tf.square(inputs - mean), axes, keepdims=True) / count
    return (inputs - mean) * tf.math.rsqrt(variance + epsilon)


def scaled(layer: keras.Layer, normalised: tf.Tensor) -> tf.Tensor:
    """The normalised input times the layer's scale.

    Args:
        layer: a BatchNormalization.
        normalised: `[B, ...]`, as `normalised_input` gives it.

    Returns:
        The layer's output without its shift.
    """
    if not layer.scale:
        return normalised
    shape = [1] * len(normalised.shape)
    shape[layer.axis % len(shape)] = -1
    return normalised * tf.reshape(tf.cast(tf.convert_to_tensor(layer.gamma), normalised.dtype), shape)


def capture_scale_shift(
    layer: keras.Layer, inputs: tf.Tensor, cotangents: Sequence[tf.Tensor], bias: bool = True
) -> PerSampleCapture:
    """Captures a normalisation layer.

    Args:
        layer: BatchNormalization, LayerNormalization or GroupNormalization.
        inputs: `[B, ...]`.
        cotangents: m tensors, cotangents of the layer's output.
        bias: whether the shift, where there is one, belongs to the capture.

    Returns:
        The capture; variables in the layer's order, scale before shift.
    """
    source = to_work(inputs)
    x = delayed(source, cotangents[0])
    rank = len(x.shape)
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    kept = [axis % rank for axis in axes]
    summed = [k for k in range(1, rank) if k not in kept]
    mask = keras_access.mask_of(inputs)
    by_batch = isinstance(layer, keras.layers.BatchNormalization) and mask is None
    moments = None
    if layer.scale and by_batch:
        mean, variance = tf.nn.moments(source, [0, *summed])
        moments = mean, tf.math.rsqrt(variance + layer.epsilon)
    elif layer.scale:
        x = normalised_input(layer, x, mask, source)

    def form(c: tf.Tensor, *seen: tf.Tensor) -> Tensors:
        parts, shift = [], tf.reduce_sum(c, axis=summed)
        if layer.scale:  # by the batch's moments without the normalised input: one mean and one slope per feature
            of_scale = tf.reduce_sum(c * seen[0], axis=summed)
            if moments is not None:
                mean, slope = moments
                of_scale = (of_scale - mean * shift) * slope
            # Keras reshapes, and does not transpose, a scale whose axes are listed out of order.
            parts.append(tf.reshape(of_scale, [-1, *layer.gamma.shape]))
        if bias and layer.center:
            parts.append(tf.reshape(shift, [-1, *layer.beta.shape]))
        return parts

    return PerSampleCapture([to_work(c) for c in cotangents], [x] if layer.scale else [], form)


def cover_scale_shift(layer: keras.Layer, bias: bool) -> Coverage | str:
    """Coverage of BatchNormalization, LayerNormalization and GroupNormalization."""
    variables = expected(layer, ("gamma", "beta"))
    if variables is None:
        return "its trainable variables are not just scale and shift"
    if getattr(layer, "synchronized", False):
        return "its statistics are synchronised across replicas"
    if getattr(layer, "renorm", False):
        return "it uses batch renormalisation"
    if getattr(layer, "rms_scaling", False):
        return "it uses the deprecated rms_scaling"
    if 0 in (layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]):
        return "its scale runs along the batch axis"
    bias = bias and layer.center
    if not (layer.scale or bias):
        return "nothing is left of it without its shift"
    capture = functools.partial(capture_scale_shift, bias=bias)
    return Coverage("scale and shift", OUTPUT, capture, variables[: int(layer.scale) + bias])
