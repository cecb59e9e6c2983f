"""Transposed convolutions: the same products of taps, with inputs and cotangents in each other's place.

Tap `delta` sends input pixel l to output `l stride + delta`, so that

    q_i[delta] = sum_l x_il c_i[l stride + delta]'          [c_in, c_out]

are the taps that a convolution of the same strides would see of the cotangents. The matrix form has the rows (tap,
input channel), as for a convolution; the kernel variable holds output channels before input channels.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from bellman_tf.layers.convolution import Convolution
from bellman_tf.layers.coverage import Coverage, bias_shape, cover_kernels
from bellman_tf.layers.matrix_layout import MatrixLayout
from bellman_tf.layers.taps import Taps, ravel, sizes_of
from bellman_tf.layers.tensors import leading


class TransposedConvolution(Convolution):
    """A transposed convolution of any rank; the attributes are those of `Convolution`.

    Attributes:
        positions: output positions L.
        taps: `Taps` of the first column's cotangent.
    """

    def __init__(
        self, layer: keras.Layer, inputs: tf.Tensor, cotangents: Sequence[tf.Tensor], layout: MatrixLayout
    ) -> None:
        super().__init__(layer, inputs, cotangents, layout)
        self._columns = [self.taps, *map(self.taps_of, self.outputs[1:])]

    def _first_taps(self) -> Taps:
        return self.taps_of(self.outputs[0])

    def taps_of(self, pixels: tf.Tensor) -> Taps:
        """What the taps send to a channels-last tensor of the output's spatial size."""
        layer, sizes = self.layer, sizes_of(self.pixels)
        return Taps(pixels, sizes, layer.kernel_size, layer.strides, layer.dilation_rate, layer.padding)

    def _flat_pixels(self, pixels: tf.Tensor) -> tf.Tensor:
        return tf.reshape(pixels, [tf.shape(pixels)[0], -1, pixels.shape[-1]])

    def sides(self, number: int) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """What one tap brings together: inputs `[B, L, c_in]`, and cotangents `[B, L, c_out]` of every column."""
        return self._flat_pixels(self.pixels), [taps.tap(number) for taps in self._columns]

    def _share(self) -> tf.Tensor:
        """Every tap sees every pixel once."""
        return 1 / tf.cast(self.batch_size, self.pixels.dtype)

    def _convolve(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """The layer's own transposed convolution of an input with another kernel, in the layer's data format."""
        layer = self.layer
        strides: Any = list(layer.strides)  # as in `Convolution._convolve`
        sides = layer.padding, layer.output_padding, layer.data_format, layer.dilation_rate
        return tf.convert_to_tensor(keras.ops.conv_transpose(x, kernel, strides, *sides))

    def features(self) -> tf.Tensor:
        """Patches `[B, L, rows]`: what each output position sees of the input with zeros between its pixels."""
        layer, x = self.layer, self.pixels
        pads = []
        for axis, (k, s, d) in enumerate(zip(self.kernel_size, layer.strides, layer.dilation_rate, strict=True)):
            x = _spread(x, axis + 1, s)
            size = x.shape[axis + 1] if x.shape[axis + 1] is not None else tf.shape(x)[axis + 1]
            low = self.taps.pads[axis][0]
            pads.append([(k - 1) * d - low, self.output_sizes[axis] + low - size])
        x = tf.pad(x, [[0, 0], *pads, [0, 0]])
        ones = [1] * len(self.kernel_size)
        taps = Taps(x, self.output_sizes, self.kernel_size, ones, layer.dilation_rate, "valid")
        mirrored = [[k - 1 - o for k, o in zip(self.kernel_size, offset, strict=True)] for offset in taps.offsets]
        return tf.concat([taps.tap(ravel(offset, self.kernel_size)) for offset in mirrored], axis=-1)


def _spread(tensor: tf.Tensor, axis: int, stride: int) -> tf.Tensor:
    """Puts `stride - 1` zeros between neighbours along an axis."""
    if stride == 1:
        return tensor
    shape = leading(tensor, 0)
    pads = [[0, 0]] * (len(shape) + 1)
    pads[axis + 1] = [0, stride - 1]
    spread = tf.pad(tf.expand_dims(tensor, axis + 1), pads)
    spread = tf.reshape(spread, [*shape[:axis], shape[axis] * stride, *shape[axis + 1 :]])
    return spread[(*[slice(None)] * axis, slice(0, (shape[axis] - 1) * stride + 1))]


def capture_transposed(
    layer: keras.Layer, inputs: tf.Tensor, cotangents: Sequence[tf.Tensor], bias: bool = True
) -> TransposedConvolution:
    """Captures `keras.layers.Conv1DTranspose`, `Conv2DTranspose` or `Conv3DTranspose`."""
    return TransposedConvolution(layer, inputs, cotangents, _layout(layer, bias))


def _layout(layer: keras.Layer, bias: bool) -> MatrixLayout:
    shape = tuple(layer.kernel.shape)
    return MatrixLayout(shape, math.prod(shape[:-2]) * shape[-1], bias_shape(layer, bias), swapped=True)


def cover_transposed(layer: keras.Layer, bias: bool) -> Coverage | str:
    """Coverage of `keras.layers.Conv1DTranspose`, `Conv2DTranspose` and `Conv3DTranspose`."""
    return cover_kernels("transposed convolution", layer, bias, capture_transposed, layout=_layout, convolution=True)
