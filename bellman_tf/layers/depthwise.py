"""Depthwise and separable convolutions: their per-sample gradients are small, so they are formed, tap by tap."""

import functools
from collections.abc import Sequence

import keras
import tensorflow as tf

from bellman_tf.layers.capture import PerSampleCapture, Tensors, to_work
from bellman_tf.layers.coverage import PREACTIVATION, Coverage, expected
from bellman_tf.layers.taps import Taps, channels_last, sizes_of


def _depthwise_gradient(taps: Taps, cotangent: tf.Tensor, kernel_shape: Sequence[int]) -> tf.Tensor:
    """Per-sample gradient of a depthwise kernel, `[B, *kernel_shape]`, from `[B, L, c_in * multiplier]`."""
    channels, multiplier = kernel_shape[-2:]
    batch, count = tf.shape(cotangent)[0], tf.shape(cotangent)[1]
    c = tf.reshape(cotangent, [batch, count, channels, multiplier])
    parts = [tf.reduce_sum(taps.tap(number)[..., None] * c, axis=1) for number in range(len(taps.offsets))]
    return tf.reshape(tf.stack(parts, axis=1), [batch, *kernel_shape])


def capture_depthwise(
    layer: keras.Layer, inputs: tf.Tensor, cotangents: Sequence[tf.Tensor], bias: bool = True
) -> PerSampleCapture:
    """Captures `keras.layers.DepthwiseConv1D` or `DepthwiseConv2D`.

    Args:
        layer: the layer.
        inputs: in the layer's data format.
        cotangents: m cotangents of the pre-activation, in the layer's data format.
        bias: whether the bias, where there is one, belongs to the capture.

    Returns:
        The capture, in the layer's variable order (kernel, bias).
    """
    x = to_work(channels_last(layer, inputs))
    last = [to_work(channels_last(layer, c)) for c in cotangents]
    taps = Taps(x, sizes_of(last[0]), layer.kernel_size, layer.strides, layer.dilation_rate, layer.padding)
    kernel_shape = list(layer.kernel.shape)

    def form(c: tf.Tensor) -> Tensors:
        flat = tf.reshape(c, [tf.shape(c)[0], -1, c.shape[-1]])
        parts = [_depthwise_gradient(taps, flat, kernel_shape)]
        if bias and layer.use_bias:
            parts.append(tf.reduce_sum(flat, axis=1))
        return parts

    return PerSampleCapture(last, form)


def capture_separable(
    layer: keras.Layer, inputs: tf.Tensor, cotangents: Sequence[tf.Tensor], bias: bool = True
) -> PerSampleCapture:
    """Captures `keras.layers.SeparableConv1D` or `SeparableConv2D`: a depthwise and a pointwise kernel.

    Args:
        layer: the layer.
        inputs: in the layer's data format.
        cotangents: m cotangents of the pre-activation, in the layer's data format.
        bias: whether the bias, where there is one, belongs to the capture.

    Returns:
        The capture, in the layer's variable order (depthwise kernel, pointwise kernel, bias).
    """
    x = to_work(channels_last(layer, inputs))
    last = [to_work(channels_last(layer, c)) for c in cotangents]
    taps = Taps(x, sizes_of(last[0]), layer.kernel_size, layer.strides, layer.dilation_rate, layer.padding)
    depthwise, pointwise = (
        to_work(tf.convert_to_tensor(layer.depthwise_kernel)),
        to_work(tf.convert_to_tensor(layer.pointwise_kernel)),
    )
    depthwise_shape, pointwise_shape = list(depthwise.shape), list(pointwise.shape)
    between = depthwise_shape[-2] * depthwise_shape[-1]
    # What the depthwise kernel hands to the pointwise one, tap by tap: [B, L, c_in, multiplier].
    kernel = tf.reshape(depthwise, [-1, *depthwise_shape[-2:]])
    hidden = tf.add_n([taps.tap(number)[..., None] * kernel[number] for number in range(len(taps.offsets))])
    hidden = tf.reshape(hidden, [tf.shape(hidden)[0], -1, between])
    mix = tf.reshape(pointwise, [between, -1])

    def form(c: tf.Tensor) -> Tensors:
        flat = tf.reshape(c, [tf.shape(c)[0], -1, c.shape[-1]])
        back = tf.tensordot(flat, mix, [[2], [1]])
        q_pointwise = tf.reshape(tf.matmul(hidden, flat, transpose_a=True), [-1, *pointwise_shape])
        parts = [_depthwise_gradient(taps, back, depthwise_shape), q_pointwise]
        if bias and layer.use_bias:
            parts.append(tf.reduce_sum(flat, axis=1))
        return parts

    return PerSampleCapture(last, form)


def cover_depthwise(layer: keras.Layer, bias: bool) -> Coverage | str:
    """Coverage of `keras.layers.DepthwiseConv1D` and `DepthwiseConv2D`.

    Args:
        layer: a built layer of this family.
        bias: whether the bias belongs to the capture.

    Returns:
        The coverage, or the reason why the layer is played open-loop.
    """
    variables = expected(layer, ("kernel", "bias"))
    if variables is None:
        return "its trainable variables are not just kernel and bias"
    bias = bias and layer.use_bias
    capture = functools.partial(capture_depthwise, bias=bias)
    return Coverage("depthwise convolution", PREACTIVATION, capture, variables[: 1 + bias])


def cover_separable(layer: keras.Layer, bias: bool) -> Coverage | str:
    """Coverage of `keras.layers.SeparableConv1D` and `SeparableConv2D`.

    Args:
        layer: a built layer of this family.
        bias: whether the bias belongs to the capture.

    Returns:
        The coverage, or the reason why the layer is played open-loop.
    """
    variables = expected(layer, ("depthwise_kernel", "pointwise_kernel", "bias"))
    if variables is None:
        return "its trainable variables are not just its kernels and bias"
    bias = bias and layer.use_bias
    capture = functools.partial(capture_separable, bias=bias)
    return Coverage("separable convolution", PREACTIVATION, capture, variables[: 2 + bias])
