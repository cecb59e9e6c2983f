"""Depthwise and separable convolutions: their per-sample gradients are small, so they are formed, tap by tap."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.layers.capture import PerSampleCapture
from bellman_tf.layers.coverage import Coverage, cover_kernels
from bellman_tf.layers.taps import Taps, channels_last, sizes_of
from bellman_tf.layers.tensors import leading, to_work


def _depthwise_gradient(taps: Taps, cotangent: tf.Tensor, kernel_shape: Sequence[int]) -> tf.Tensor:
    """Per-sample gradient of a depthwise kernel, `[B, *kernel_shape]`, from `[B, L, c_in * multiplier]`."""
    channels, multiplier = kernel_shape[-2:]
    batch, count = tf.shape(cotangent)[0], tf.shape(cotangent)[1]
    c = tf.reshape(cotangent, [batch, count, channels, multiplier])
    parts = [tf.reduce_sum(taps.tap(number)[..., None] * c, axis=1) for number in range(len(taps.offsets))]
    return tf.reshape(tf.stack(parts, axis=1), [batch, *kernel_shape])


def _last(layer: keras.Layer, inputs: tf.Tensor, cotangents: Sequence[tf.Tensor]) -> tuple[tf.Tensor, Tensors]:
    """Input and cotangents, channels last."""
    return to_work(channels_last(layer, inputs)), [to_work(channels_last(layer, c)) for c in cotangents]


def _seen(layer: keras.Layer, cotangent: tf.Tensor, x: tf.Tensor) -> tuple[Taps, tf.Tensor]:
    """What each tap of the depthwise kernel sees of the input, and the cotangent as `[B, L, c_out]`."""
    sizes = sizes_of(cotangent)
    taps = Taps(x, sizes, layer.kernel_size, layer.strides, layer.dilation_rate, layer.padding)
    return taps, tf.reshape(cotangent, [*leading(cotangent, len(sizes) + 1), -1, cotangent.shape[-1]])


def _bias_gradient(layer: keras.Layer, bias: bool, cotangent: tf.Tensor) -> Tensors:
    """Per-sample gradient of the bias, `[B, c_out]`, where there is one."""
    return [tf.reduce_sum(cotangent, axis=1)] if bias and layer.use_bias else []


def capture_depthwise(
    layer: keras.Layer, inputs: tf.Tensor, cotangents: Sequence[tf.Tensor], bias: bool = True
) -> PerSampleCapture:
    """Captures `keras.layers.DepthwiseConv1D` or `DepthwiseConv2D`."""
    x, columns = _last(layer, inputs, cotangents)
    shape = list(layer.kernel.shape)

    def form(c: tf.Tensor, x: tf.Tensor) -> Tensors:
        taps, c = _seen(layer, c, x)
        return [_depthwise_gradient(taps, c, shape), *_bias_gradient(layer, bias, c)]

    return PerSampleCapture(columns, [x], form)


def capture_separable(
    layer: keras.Layer, inputs: tf.Tensor, cotangents: Sequence[tf.Tensor], bias: bool = True
) -> PerSampleCapture:
    """Captures `keras.layers.SeparableConv1D` or `SeparableConv2D`: depthwise kernel, pointwise kernel, bias."""
    x, columns = _last(layer, inputs, cotangents)
    depthwise, pointwise = (to_work(tf.convert_to_tensor(v)) for v in (layer.depthwise_kernel, layer.pointwise_kernel))
    depthwise_shape, pointwise_shape = list(depthwise.shape), list(pointwise.shape)
    between = depthwise_shape[-2] * depthwise_shape[-1]
    kernel = tf.reshape(depthwise, [-1, *depthwise_shape[-2:]])
    mix = tf.reshape(pointwise, [between, -1])

    def sides(c: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Of the depthwise kernel the gradient per sample, of the pointwise one what it multiplies."""
        taps, c = _seen(layer, c, x)
        # What the depthwise kernel hands to the pointwise one, tap by tap: [B, L, c_in, multiplier].
        hidden = tf.add_n([taps.tap(number)[..., None] * kernel[number] for number in range(len(taps.offsets))])
        hidden = tf.reshape(hidden, [tf.shape(hidden)[0], -1, between])
        return _depthwise_gradient(taps, tf.tensordot(c, mix, [[2], [1]]), depthwise_shape), hidden, c

    def form(c: tf.Tensor, x: tf.Tensor) -> Tensors:
        q, hidden, c = sides(c, x)
        q_pointwise = tf.reshape(tf.matmul(hidden, c, transpose_a=True), [-1, *pointwise_shape])
        return [q, q_pointwise, *_bias_gradient(layer, bias, c)]

    def total(c: tf.Tensor, x: tf.Tensor) -> Tensors:
        q, hidden, c = sides(c, x)
        pointwise = tf.reshape(tf.tensordot(hidden, c, [[0, 1], [0, 1]]), pointwise_shape)
        small = [tf.reduce_sum(part, axis=0) for part in (q, *_bias_gradient(layer, bias, c))]
        return [small[0], pointwise, *small[1:]]

    return PerSampleCapture(columns, [x], form, total)


def cover_depthwise(layer: keras.Layer, bias: bool) -> Coverage | str:
    """Coverage of `keras.layers.DepthwiseConv1D` and `DepthwiseConv2D`."""
    return cover_kernels("depthwise convolution", layer, bias, capture_depthwise)


def cover_separable(layer: keras.Layer, bias: bool) -> Coverage | str:
    """Coverage of `keras.layers.SeparableConv1D` and `SeparableConv2D`."""
    kernels = ("depthwise_kernel", "pointwise_kernel")
    return cover_kernels("separable convolution", layer, bias, capture_separable, kernels=kernels)
