"""The pixels that the taps of a convolution's kernel see."""

import itertools
import math
from collections.abc import Sequence

import keras
import tensorflow as tf


class Taps:
    """The input pixels each tap of a kernel sees, for any stride, dilation and padding.

    Attributes:
        offsets: kernel positions in the order of the kernel variable's leading axes.
        channels: input channels.
    """

    def __init__(
        self,
        inputs: tf.Tensor,
        output_sizes: Sequence,
        kernel_size: Sequence[int],
        strides: Sequence[int],
        dilation: Sequence[int],
        padding: str,
    ) -> None:
        """Pads the input once.

        Args:
            inputs: `[B, *spatial, c_in]`.
            output_sizes: output positions per axis, ints or scalar tensors.
            kernel_size: taps per axis.
            strides: per axis.
            dilation: per axis.
            padding: "same", "valid" or "causal".
        """
        self.offsets = list(itertools.product(*(range(k) for k in kernel_size)))
        self.channels = inputs.shape[-1]
        self._output, self._strides, self._dilation = list(output_sizes), list(strides), list(dilation)
        pads = [[0, 0]]
        for axis, (out, k, s, d) in enumerate(zip(output_sizes, kernel_size, strides, dilation, strict=True)):
            size = inputs.shape[axis + 1]
            size = tf.shape(inputs)[axis + 1] if size is None else size
            reach = (k - 1) * d
            if padding == "causal":
                pads.append([reach, 0])
            elif padding == "same":
                total = (out - 1) * s + reach + 1 - size
                total = tf.maximum(total, 0) if tf.is_tensor(total) else max(total, 0)
                pads.append([total // 2, total - total // 2])
            else:
                pads.append([0, 0])
        padded = any(tf.is_tensor(low) or tf.is_tensor(high) or low or high for low, high in pads)
        self._padded = tf.pad(inputs, [*pads, [0, 0]]) if padded else inputs
        self._batch = tf.shape(inputs)[0] if inputs.shape[0] is None else inputs.shape[0]

    def tap(self, number: int) -> tf.Tensor:
        """Input seen by one tap.

        Args:
            number: of the tap in `offsets`.

        Returns:
            `[B, L, c_in]`.
        """
        start = [0, *(k * d for k, d in zip(self.offsets[number], self._dilation, strict=True)), 0]
        reach = [(out - 1) * s + 1 for out, s in zip(self._output, self._strides, strict=True)]
        seen = tf.slice(self._padded, start, [self._batch, *reach, self.channels])
        if any(s > 1 for s in self._strides):
            seen = seen[(slice(None), *(slice(None, None, s) for s in self._strides))]
        return tf.reshape(seen, [self._batch, static_product(self._output), self.channels])

    def patches(self) -> tf.Tensor:
        """All taps side by side, `[B, L, taps * c_in]`, features in the order of the kernel variable."""
        return tf.concat([self.tap(number) for number in range(len(self.offsets))], axis=-1)


def channels_last(layer: keras.Layer, tensor: tf.Tensor) -> tf.Tensor:
    """Moves the channels of a tensor in the layer's data format to the end."""
    if layer.data_format == "channels_last":
        return tensor
    rank = len(tensor.shape)
    return tf.transpose(tensor, [0, *range(2, rank), 1])


def sizes_of(tensor: tf.Tensor) -> list:
    """Spatial sizes of `[B, *spatial, c]`, static where known."""
    return [tf.shape(tensor)[k] if size is None else size for k, size in enumerate(tensor.shape)][1:-1]


def static_product(sizes: Sequence) -> int:
    """Product of sizes, -1 where one of them is not static."""
    if all(isinstance(size, int) for size in sizes):
        return math.prod(sizes)
    return -1
