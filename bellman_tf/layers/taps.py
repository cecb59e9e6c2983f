"""The pixels that the taps of a convolution's kernel see."""

import itertools
import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from bellman_tf._typing import Size
from bellman_tf.layers.tensors import leading
from bellman_tf.linalg.constants import constant, once, reshape


class Taps:
    """The input pixels each tap of a kernel sees, for any stride, dilation and padding.

    Attributes:
        offsets: kernel positions in the order of the kernel variable's leading axes.
        channels: input channels.
        pads: what is added before and behind each axis.
    """

    def __init__(
        self,
        inputs: tf.Tensor,
        output_sizes: Sequence[Size],
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
        self.pads, ends = [], []
        for axis, (out, k, s, d) in enumerate(zip(output_sizes, kernel_size, strides, dilation, strict=True)):
            size = inputs.shape[axis + 1]
            size = tf.shape(inputs)[axis + 1] if size is None else size
            reach = (k - 1) * d
            if padding == "causal":
                low, high = reach, 0
            elif padding == "same":
                total = (out - 1) * s + reach + 1 - size
                total = tf.maximum(total, 0) if tf.is_tensor(total) else max(total, 0)
                low, high = total // 2, total - total // 2
            else:
                low, high = 0, 0
            self.pads.append([low, high])
            ends.append(high + -(low + size + high) % s if s > 1 else high)  # whole strides
        whole = [[low, end] for (low, _), end in zip(self.pads, ends, strict=True)]
        padded = any(tf.is_tensor(low) or tf.is_tensor(end) or low or end for low, end in whole)
        self._whole, self._inputs = [[0, 0], *whole, [0, 0]] if padded else None, inputs
        self._batch = tf.shape(inputs)[0] if inputs.shape[0] is None else inputs.shape[0]

    @property
    def _padded(self) -> tf.Tensor:
        """The input with what is added to it, made where a tap reaches beyond the input itself."""
        whole = self._whole
        return self._inputs if whole is None else once(self, "padded", lambda: tf.pad(self._inputs, whole))

    def tap(self, number: int) -> tf.Tensor:
        """Input seen by one tap.

        Args:
            number: of the tap in `offsets`.

        Returns:
            `[B, L, c_in]`.
        """
        start = [k * d for k, d in zip(self.offsets[number], self._dilation, strict=True)]
        inner = self._without_padding(start)
        source, start = (self._padded, start) if inner is None else (self._inputs, inner)
        if max(self._strides) > 1:
            source, start, sizes = self._in_strides(source, start)
        else:
            start, sizes = [*start, 0], [*self._output, self.channels]
        if sizes != list(source.shape[1:]):
            wanted = [self._batch, *sizes]
            static = all(isinstance(size, int) for size in wanted)
            source = tf.slice(source, constant([0, *start]), constant(wanted) if static else wanted)
        return reshape(source, [self._batch, static_product(self._output), self.channels])

    def _in_strides(self, source: tf.Tensor, start: list[int]) -> tuple[tf.Tensor, list[int], list[Size]]:
        """Every axis cut into whole strides, so that one pixel of each is a slice; TensorFlow's strided one is slow.

        Args:
            source: `[B, *spatial, c]`, whole strides long.
            start: first pixel per axis.

        Returns:
            `[B, n_1, s_1, ..., n_k, s_k c]`, and where the pixels start and how many there are behind the batch axis.
        """
        shape: list[Size] = []
        first: list[int] = []
        sizes: list[Size] = []
        for size, begin, s, out in zip(sizes_of(source), start, self._strides, self._output, strict=True):
            shape += [size // s, s]
            first += [begin // s, begin % s]
            sizes += [out, 1]
        shape[-1], first[-1], sizes[-1] = (n * self.channels for n in (shape[-1], first[-1], 1))
        return reshape(source, [self._batch, *shape]), first, sizes

    def _without_padding(self, start: list[int]) -> list[int] | None:
        """Where a tap's pixels start in the input itself; `None` if it leaves it, or may, or does not fit strides."""
        first = []
        sizes = self._inputs.shape[1:-1]
        for begin, out, s, (low, _), size in zip(start, self._output, self._strides, self.pads, sizes, strict=True):
            static = isinstance(low, int) and isinstance(out, int)
            if not static or size is None or size % s or begin < low or begin - low + (out - 1) * s + 1 > size:
                return None
            first.append(begin - low)
        return first

    def patches(self) -> tf.Tensor:
        """All taps side by side, `[B, L, taps * c_in]`, features in the order of the kernel variable."""
        return tf.concat([self.tap(number) for number in range(len(self.offsets))], axis=-1)


def channels_last(layer: keras.Layer, tensor: tf.Tensor) -> tf.Tensor:
    """Moves the channels of a tensor in the layer's data format to the end."""
    if layer.data_format == "channels_last":
        return tensor
    rank = len(tensor.shape)
    return tf.transpose(tensor, [0, *range(2, rank), 1])


def channels_back(layer: keras.Layer, tensor: tf.Tensor) -> tf.Tensor:
    """The inverse of `channels_last`."""
    if layer.data_format == "channels_last":
        return tensor
    rank = len(tensor.shape)
    return tf.transpose(tensor, [0, rank - 1, *range(1, rank - 1)])


def sizes_of(tensor: tf.Tensor) -> list[Size]:
    """Spatial sizes of `[B, *spatial, c]`, static where known."""
    return leading(tensor, 1)[1:]


def static_product(sizes: Sequence[Size]) -> int:
    """Product of sizes, -1 where one of them is not static."""
    static = [size for size in sizes if isinstance(size, int)]
    return math.prod(static) if len(static) == len(sizes) else -1


def ravel(index: Sequence[int], sizes: Sequence[int]) -> int:
    """Flat number of an index into axes of the given sizes."""
    flat = 0
    for k, size in zip(index, sizes, strict=True):
        flat = flat * size + k
    return flat


def autocorrelation(x: tf.Tensor, kernel_size: Sequence[int], dilation: Sequence[int]) -> tf.Tensor:
    """`sum_il x_i[l + a] x_i[l + b]'` for every pair of taps (a, b), from one convolution.

    Args:
        x: `[B, *spatial, c]`.
        kernel_size: taps per axis.
        dilation: per axis.

    Returns:
        `[taps * c, taps * c]`.
    """
    channels, span = x.shape[-1], [2 * k - 1 for k in kernel_size]
    kernel = tf.zeros([*span, channels, channels], x.dtype)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(kernel)
        output = tf.nn.convolution(x, kernel, strides=[1] * len(span), padding="SAME", dilations=list(dilation))
    shifts = tape.gradient(output, kernel, output_gradients=x)  # [*span, c, c]: sum_l x[l + shift] x[l]'
    offsets = list(itertools.product(*(range(k) for k in kernel_size)))
    index = [
        [ravel([a + k - 1 - b for a, b, k in zip(first, second, kernel_size, strict=True)], span) for second in offsets]
        for first in offsets
    ]
    blocks = tf.gather(tf.reshape(shifts, [-1, channels, channels]), tf.constant(index))  # [taps, taps, c, c]
    size = len(offsets) * channels
    return tf.reshape(tf.transpose(blocks, [0, 2, 1, 3]), [size, size])
