"""Dense players: pre-activation = input times kernel, at one or several positions.

Layout `[batch, positions, features]`. With a bias, the matrix form has one more input feature that is always one:
rows `0..d-1` are the kernel, row `d` is the bias. Source: claims OURS-9.
"""

from collections.abc import Iterable, Sequence

import keras
import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.layers.capture import Columns, MatrixCapture, sample_products, weigh_smaller
from bellman_tf.layers.coverage import Coverage, bias_shape, cover_kernels
from bellman_tf.layers.matrix_layout import MatrixLayout
from bellman_tf.layers.tensors import to_work, with_ones
from bellman_tf.linalg.constants import reshape


class LinearMap(MatrixCapture):
    """`h = x W + b` at `positions` positions.

    Attributes:
        inputs: `[B, d]` when there is one position, else `[B, L, d]`.
        cotangents: m tensors `[B, e]` or `[B, L, e]`.
        positions: L, or `None` when it is not static.
    """

    def __init__(
        self,
        inputs: tf.Tensor,
        cotangents: Sequence[tf.Tensor],
        kernel_shape: Iterable[int],
        bias_shape: Iterable[int] | None,
    ) -> None:
        layout = MatrixLayout(tuple(kernel_shape), inputs.shape[-1], None if bias_shape is None else tuple(bias_shape))
        super().__init__([_without_one_position(to_work(c)) for c in cotangents], layout)
        self.inputs = _without_one_position(to_work(inputs))
        self.positions = 1 if self.flat else self.inputs.shape[1]

    @property
    def flat(self) -> bool:
        """Whether there is one position, so that inputs are `[B, d]`."""
        return len(self.inputs.shape) == 2

    def with_inputs(self, inputs: tf.Tensor) -> "LinearMap":
        """The same cotangents with the layer's new input, given in the layer's own layout."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.inputs = _without_one_position(self._layout(to_work(inputs)))
        return other

    def tensors(self) -> Tensors:
        """Inputs and cotangents."""
        return [self.inputs, *self.cotangents]

    def made_of(self, tensors: Tensors) -> "LinearMap":
        """The same map on other samples."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.inputs, other.cotangents = tensors[0], Columns(tensors[1:])
        return other

    def _layout(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs if len(inputs.shape) == 2 else _merge_positions(inputs)

    def features(self) -> tf.Tensor:
        """The inputs."""
        return self.inputs

    def augmented(self) -> tf.Tensor:
        """Inputs with the constant feature of the bias, `[B(, L), d+1]`; the inputs themselves without a bias."""
        return with_ones(self.inputs) if self.bias else self.inputs

    def gradient(self, weights: tf.Tensor) -> Tensors:
        """`sum_ij w_ij q_ij` for `weights` `[B, m]`."""
        x, c = weigh_smaller(self.inputs, self.cotangents, weights)
        if not self.flat:
            c, x = reshape(c, [-1, self.layout.width]), reshape(x, [-1, self.layout.rows])
        kernel = reshape(tf.matmul(x, c, transpose_a=True), self.layout.kernel_shape)
        return [kernel, self.bias_gradient(weights)] if self.bias else [kernel]

    def inner(self, direction: Tensors) -> tf.Tensor:
        """`<q_ij, K>`, `[B, m]`."""
        matrix = self.layout.pack([to_work(part) for part in direction])
        moved = tf.tensordot(self.inputs, matrix[: self.layout.rows], 1)
        if self.bias:
            moved += matrix[self.layout.rows]
        axes = list(range(1, len(moved.shape)))
        return tf.stack([tf.reduce_sum(moved * c, axis=axes) for c in self.cotangents], axis=1)

    def matrix_per_sample(self) -> tf.Tensor:
        """Per-sample gradients in matrix form, `[B, m, d(+1), e]`."""
        return self._products(self.augmented())

    def kernel_per_sample(self) -> tf.Tensor:
        """The same without the bias, `[B, m, d, e]`."""
        return self._products(self.inputs)

    def _products(self, x: tf.Tensor) -> tf.Tensor:
        if self.flat:
            return tf.stack([x[:, :, None] * c[:, None, :] for c in self.cotangents], axis=1)
        return sample_products(x, self.cotangents)


def capture_dense(
    layer: keras.Layer, inputs: tf.Tensor, cotangents: Sequence[tf.Tensor], bias: bool = True
) -> LinearMap:
    """Captures a `keras.layers.Dense`; inputs of rank above two have positions.

    Args:
        layer: the layer.
        inputs: `[B, ..., d]`.
        cotangents: m tensors `[B, ..., e]`.
        bias: whether the bias, where there is one, belongs to the capture.

    Returns:
        The capture, in the layer's variable order (kernel, bias).
    """
    if len(inputs.shape) > 2:
        inputs = _merge_positions(inputs)
        cotangents = [_merge_positions(c) for c in cotangents]
    return LinearMap(inputs, cotangents, layer.kernel.shape, bias_shape(layer, bias))


def _without_one_position(tensor: tf.Tensor) -> tf.Tensor:
    """`[B, 1, d]` as `[B, d]`; other tensors as they are."""
    return tf.squeeze(tensor, 1) if len(tensor.shape) == 3 and tensor.shape[1] == 1 else tensor


def _merge_positions(tensor: tf.Tensor) -> tf.Tensor:
    middle = tensor.shape[1:-1]
    count = -1 if any(size is None for size in middle) else int(tf.TensorShape(middle).num_elements())
    return tf.reshape(tensor, [tf.shape(tensor)[0], count, tensor.shape[-1]])


def dense_layout(layer: keras.Layer, bias: bool) -> MatrixLayout:
    """The matrix layout of a Dense layer.

    Args:
        layer: a built `keras.layers.Dense`.
        bias: whether the bias, where there is one, belongs to the capture.

    Returns:
        The layout.
    """
    shape = tuple(layer.kernel.shape)
    return MatrixLayout(shape, shape[0], bias_shape(layer, bias))


def cover_dense(layer: keras.Layer, bias: bool) -> Coverage | str:
    """Coverage of `keras.layers.Dense`."""
    return cover_kernels("dense", layer, bias, capture_dense, layout=dense_layout)
