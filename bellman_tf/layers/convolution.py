"""Convolution players, without patch matrices wherever that is possible.

The kernel gradient of sample i splits over the kernel's taps: with `x[l + delta]` the input pixel that tap `delta`
sees at output position `l`,

    q_i[delta] = sum_l x_i[l + delta] c_il'          [c_in, c_out]

so everything is a matrix product over positions, one per tap. Source: claims OURS-9.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Size, Tensors
from bellman_tf.layers.capture import along, sample_products, weigh_smaller
from bellman_tf.layers.coverage import Coverage, bias_shape, cover_kernels
from bellman_tf.layers.matrix_layout import Extent, MatrixLayout
from bellman_tf.layers.tap_capture import TapCapture
from bellman_tf.layers.taps import Taps, autocorrelation, channels_back, channels_last, ravel, sizes_of, static_product
from bellman_tf.layers.tensors import as_number, beside, delayed, leading, to_work, with_ones
from bellman_tf.linalg.constants import constant, number, once, reshape
from bellman_tf.linalg.products import matmul


class Convolution(TapCapture):
    """A convolution of any rank.

    Attributes:
        layer: the Keras layer.
        cotangents: m tensors `[B, L, c_out]`.
        taps: `Taps` over the channels-last input.
        kernel_size: taps per axis.
        groups: channel groups of the kernel.
        output_sizes: positions per axis.
        pixels: the input, channels last.
        outputs: the cotangents, channels last.
    """

    def __init__(
        self, layer: keras.Layer, inputs: tf.Tensor, cotangents: Sequence[tf.Tensor], layout: MatrixLayout
    ) -> None:
        self.layer = layer
        self._native = [to_work(c) for c in cotangents]
        self._inputs = delayed(to_work(inputs), self._native[0])
        self.groups = layout.groups
        self.kernel_size = tuple(layer.kernel_size)
        self.outputs = [channels_last(layer, c) for c in self._native]
        sizes = sizes_of(self.outputs[0])
        count = static_product(sizes)
        flat = [reshape(c, [*_rows_of(c, count), count, c.shape[-1]]) for c in self.outputs]
        self.positions = static_product(sizes) if all(isinstance(s, int) for s in sizes) else None
        super().__init__(flat, layout)
        self.pixels = channels_last(layer, self._inputs)
        self.output_sizes = sizes
        self.taps = self._first_taps()

    @property
    def extent(self) -> Extent:
        """Static sizes."""
        return self.layout.extent(self.columns, self.positions, math.prod(self.kernel_size))

    @property
    def centre(self) -> int:
        """Number of the kernel's centre tap."""
        return ravel([(k - 1) // 2 for k in self.kernel_size], self.kernel_size)

    def _first_taps(self) -> Taps:
        return self.taps_of(self.pixels)

    def taps_of(self, pixels: tf.Tensor) -> Taps:
        """What this layer's taps see of another channels-last tensor of the input's spatial size."""
        layer = self.layer
        return Taps(pixels, self.output_sizes, layer.kernel_size, layer.strides, layer.dilation_rate, layer.padding)

    def scaled(self, alpha: tf.Tensor) -> "Convolution":
        """The same capture with one column, `along(cotangents, alpha)`."""
        return type(self)(self.layer, self._inputs, [along(self._native, alpha)], self.layout)

    def with_inputs(self, inputs: tf.Tensor) -> "Convolution":
        """The same cotangents with the layer's new input."""
        return type(self)(self.layer, inputs, self._native, self.layout)

    def thinned(self, channels: int) -> "Convolution":
        """The same cotangents with the first input channels only; layout and `extent` stay the whole layer's."""
        kept = slice(channels)
        inputs = self._inputs[..., kept] if self.layer.data_format == "channels_last" else self._inputs[:, kept]
        return self.with_inputs(inputs)

    def tensors(self) -> Tensors:
        """Inputs and cotangents, in the layer's data format."""
        return [self._inputs, *self._native]

    def made_of(self, tensors: Tensors) -> "Convolution":
        """The same convolution on other samples."""
        return type(self)(self.layer, tensors[0], tensors[1:], self.layout)

    def gradient(self, weights: tf.Tensor) -> Tensors:
        """`sum_ij w_ij q_ij`: one backward-filter convolution with weighted cotangents."""
        parts = [self._kernel_gradient(*weigh_smaller(self._inputs, self._native, weights))]
        return [*parts, self.bias_gradient(weights)] if self.bias else parts

    def _kernel_gradient(self, x: tf.Tensor, c: tf.Tensor) -> tf.Tensor:
        """Sums over samples of products of inputs and cotangents, in the layer's data format, tap by tap."""
        layer = self.layer
        same = layer.padding in {"same", "valid"} and not self.layout.swapped
        plain = self.groups == 1 and max(layer.dilation_rate) == 1
        if len(self.kernel_size) == 2 and same and plain and layer.data_format == "channels_last":
            sizes, strides = constant(self.layout.kernel_shape), [1, *layer.strides, 1]
            return tf.raw_ops.Conv2DBackpropFilter(
                input=x, filter_sizes=sizes, out_backprop=c, strides=strides, padding=layer.padding.upper()
            )
        kernel = tf.cast(layer.kernel, x.dtype)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(kernel)
            output = self._convolve(x, kernel)
        return tape.gradient(output, kernel, output_gradients=c)

    def _convolve(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """The layer's own convolution of an input with another kernel, in the layer's data format."""
        layer, padding = self.layer, self.layer.padding
        if padding == "causal":
            pads, padding = [[0, 0], [0, 0], [0, 0]], "valid"
            pads[2 if layer.data_format == "channels_first" else 1][0] = (kernel.shape[0] - 1) * layer.dilation_rate[0]
            x = tf.pad(x, pads)
        strides: Any = list(layer.strides)  # `strides=1` makes Keras's parameter an int for type checkers
        return tf.convert_to_tensor(keras.ops.conv(x, kernel, strides, padding, layer.data_format, layer.dilation_rate))

    def inner(self, direction: Tensors) -> tf.Tensor:
        """`<q_ij, K>`, `[B, m]`: one convolution of the input with the direction."""
        moved = channels_last(self.layer, self._convolve(self._inputs, tf.cast(direction[0], self._inputs.dtype)))
        moved = tf.reshape(moved, tf.shape(self.cotangents[0]))
        if self.bias:
            moved += tf.cast(direction[1], moved.dtype)
        return beside([tf.reduce_sum(moved * c, constant([1, 2])) for c in self.cotangents])

    def sides(self, number: int) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """What one tap brings together: inputs `[B, L, c_in]`, and cotangents `[B, L, c_out]` of every column."""
        return self.taps.tap(number), self.cotangents

    def tap_moments(self, left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        """`sum_il (left' x_il[delta])^2 (right' c_il)^2'` of every tap, `[taps * c_in, c_out]`, from column 0.

        The kernel's gradient, with squares in place of inputs and cotangents.

        Args:
            left: `[c_in, c_in]`.
            right: `[c_out, c_out]`.

        Returns:
            The sums, in matrix form.
        """
        sides = ((self.pixels, left), (self.outputs[0], right))
        x, c = (channels_back(self.layer, tf.square(tf.tensordot(part, turn, 1))) for part, turn in sides)
        return self.layout.kernel_matrix(self._kernel_gradient(x, c))

    def tap_gradients(self, number: int) -> tf.Tensor:
        """Per-sample gradients of one tap, `q_ij[delta]`.

        Args:
            number: of the tap.

        Returns:
            `[B, m, c_in / groups, c_out]`.
        """

        def make() -> tf.Tensor:
            x, columns = self.sides(number)
            return self._grouped_gradients(x) if self.groups > 1 else sample_products(x, columns)

        return once(self, f"tap {number}", make)

    @property
    def turns_gradients(self) -> bool:
        """Whether a metric with two sides turns a tap's gradients and not, where it has few positions, the sides."""
        rows, width = self.pixels.shape[-1], self.layout.width
        few = self.positions is not None and self.positions * (rows**2 + width**2) < rows * width * (rows + width)
        return not few

    def rotated_tap_gradients(self, number: int, left: tf.Tensor, right: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Per-sample gradients of one tap, and the same as `left' q_ij[delta] right`.

        Args:
            number: of the tap.
            left: `[c_in, c_in]`.
            right: `[c_out, c_out]`.

        Returns:
            Two tensors `[B, m, c_in, c_out]`.

        Raises:
            ValueError: if there are channel groups.
        """
        if self.groups > 1:
            raise _checks.error("groups", "be 1 where gradients are turned", self.groups)
        q = self.tap_gradients(number)
        # q = x' c: few positions are cheaper to turn than the gradients that they make.
        if not self.turns_gradients:
            x, columns = self.sides(number)
            return q, sample_products(matmul(x, left), [matmul(c, right) for c in columns])
        return q, matmul(matmul(left, q, transpose_a=True), right)

    def _grouped_gradients(self, x: tf.Tensor) -> tf.Tensor:
        batch, count = tf.shape(x)[0], tf.shape(x)[1]
        x = tf.reshape(x, [batch, count, self.groups, -1])
        parts = []
        for c in self.cotangents:
            grouped = tf.reshape(c, [batch, count, self.groups, -1])
            q = tf.einsum("blgi,blgo->bigo", x, grouped)
            parts.append(tf.reshape(q, [batch, self.layout.kernel_shape[-2], self.layout.width]))
        return tf.stack(parts, axis=1)

    def kernel_per_sample(self) -> tf.Tensor:
        """Per-sample gradients of the kernel in matrix form, `[B, m, taps * c_in / groups, c_out]`."""
        return tf.concat([self.tap_gradients(number) for number in range(math.prod(self.kernel_size))], axis=2)

    def features(self) -> tf.Tensor:
        """Patches, `[B, L, rows]`."""
        return self.taps.patches()

    def augmented(self) -> tf.Tensor:
        """Patches with the constant feature of the bias, `[B, L, rows(+1)]`."""
        patches = self.features()
        return with_ones(patches) if self.bias else patches

    def input_moment(self, form: str = "patches") -> tf.Tensor:
        """Second moment of the patches.

        Args:
            form: "patches" (exact, `[rows(+1), rows(+1)]`), "autocorrelation" (the same matrix from one convolution,
                exact up to the border), or "sua" (spatially uncorrelated: `[c_in, c_in]`, the same for every tap).

        Returns:
            `A = (1/B) sum_i sum_l p_il p_il'` in the chosen form; for "sua" and "autocorrelation" the bias row is
            left out, its entry is the number of positions.
        """
        if form == "patches":
            return super().input_moment()
        if form == "sua":
            flat = reshape(self.pixels, [-1, self.pixels.shape[-1]])
            return tf.matmul(flat, flat, transpose_a=True) * number(self._share(), flat.dtype)
        return autocorrelation(self.pixels, self.kernel_size, self.layer.dilation_rate) * self._share()

    def _share(self) -> float | tf.Tensor:
        """Pixels that one tap sees over pixels that are there, for one sample."""
        counts = (_count(self.cotangents[0], [1]), _count(self.pixels, range(1, len(self.pixels.shape) - 1)))
        seen, held, batch = (as_number(count, self.pixels.dtype) for count in (*counts, self.batch_size))
        return seen / (held * batch)

    def group_input_moments(self, form: str) -> tf.Tensor:
        """`input_moment` of every channel group, `[groups, rows(+1), rows(+1)]` or `[groups, c_in, c_in]` for "sua"."""
        if form == "sua":
            x = tf.reshape(self.pixels, [-1, self.groups, self.pixels.shape[-1] // self.groups])
            return tf.einsum("ngi,ngj->gij", x, x) * self._share()
        taps = math.prod(self.kernel_size)
        x = tf.reshape(self.features(), [-1, taps, self.groups, self.pixels.shape[-1] // self.groups])
        x = tf.reshape(tf.transpose(x, [2, 0, 1, 3]), [self.groups, -1, self.layout.rows])
        x = with_ones(x) if self.bias else x
        return tf.matmul(x, x, transpose_a=True) / tf.cast(self.batch_size, x.dtype)


def _rows_of(tensor: tf.Tensor, count: int) -> list[Size]:
    """The size of the first axis for a reshape that may have one -1: its own, where `count` of positions is not -1."""
    if count == -1:
        return leading(tensor, len(tensor.shape) - 1)
    return [-1 if tensor.shape[0] is None else tensor.shape[0]]


def convolution_layout(layer: keras.Layer, bias: bool) -> MatrixLayout:
    """The matrix layout of a convolution: rows are taps times input channels.

    Args:
        layer: a built convolution.
        bias: whether the bias, where there is one, belongs to the capture.

    Returns:
        The layout.
    """
    shape = tuple(layer.kernel.shape)
    return MatrixLayout(shape, math.prod(shape[:-1]), bias_shape(layer, bias), layer.groups)


def _count(tensor: tf.Tensor, axes: Sequence[int]) -> int | tf.Tensor:
    """Entries along some axes, static where known."""
    sizes = [tensor.shape[k] for k in axes]
    return tf.reduce_prod([tf.shape(tensor)[k] for k in axes]) if None in sizes else math.prod(sizes)


def capture_convolution(
    layer: keras.Layer, inputs: tf.Tensor, cotangents: Sequence[tf.Tensor], bias: bool = True
) -> Convolution:
    """Captures `keras.layers.Conv1D`, `Conv2D` or `Conv3D`."""
    return Convolution(layer, inputs, cotangents, convolution_layout(layer, bias))


def cover_convolution(layer: keras.Layer, bias: bool) -> Coverage | str:
    """Coverage of `keras.layers.Conv1D`, `Conv2D` and `Conv3D`."""
    return cover_kernels("convolution", layer, bias, capture_convolution, layout=convolution_layout, convolution=True)
