"""The matrix that a player's kernel and bias make, and the sizes from which the form of its Gram matrix follows."""

import dataclasses
import math

import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.layers.tensors import leading
from bellman_tf.linalg.constants import reshape


@dataclasses.dataclass(frozen=True)
class Extent:
    """Static sizes of a player, from which the form of its Gram matrix follows.

    Attributes:
        parameters: numbers in the player's variables.
        columns: cotangents per sample m.
        positions: places where the layer is applied to one sample; `None` where that is not static.
        rows: rows of the matrix form, the bias's included; 0 without a matrix form.
        width: columns of the matrix form, or of a table.
        groups: blocks of the matrix form that do not mix (channel groups of a convolution).
        taps: kernel taps of a convolution; 0 for other layers.
        channels: input channels that a tap sees, of one group; 0 for other layers.
        vocabulary: rows of a table; 0 for other layers.
    """

    parameters: int
    columns: int = 1
    positions: int | None = None
    rows: int = 0
    width: int = 0
    groups: int = 1
    taps: int = 0
    channels: int = 0
    vocabulary: int = 0


@dataclasses.dataclass(frozen=True)
class MatrixLayout:
    """How a kernel and a bias make one matrix `[rows(+1), width]`: the bias is the row of a constant input.

    Attributes:
        kernel_shape: shape of the kernel variable, its leading axes merging into `rows`.
        rows: input features seen by one position.
        bias_shape: shape of the bias variable, or `None` without a bias.
        groups: blocks of columns, each with input features of its own (channel groups of a convolution).
        swapped: whether the kernel variable has its output channels before its input channels.
    """

    kernel_shape: tuple[int, ...]
    rows: int
    bias_shape: tuple[int, ...] | None
    groups: int = 1
    swapped: bool = False

    @property
    def width(self) -> int:
        """Output features e."""
        return math.prod(self.kernel_shape) // self.rows

    @property
    def all_rows(self) -> int:
        """Rows with the bias."""
        return self.rows + (self.bias_shape is not None)

    def extent(self, columns: int = 1, positions: int | None = None, taps: int = 0) -> Extent:
        """Static sizes of a player with this layout.

        Args:
            columns: cotangents per sample.
            positions: places where the layer is applied to one sample; `None` where that is not static.
            taps: kernel taps of a convolution, else 0.

        Returns:
            The sizes.
        """
        bias = 0 if self.bias_shape is None else math.prod(self.bias_shape)
        numbers = math.prod(self.kernel_shape) + bias
        channels = self.rows // taps if taps else 0
        return Extent(numbers, columns, positions, self.all_rows, self.width, self.groups, taps, channels)

    def kernel_matrix(self, kernel: tf.Tensor) -> tf.Tensor:
        """The kernel variable (leading axes allowed) as a matrix `[..., rows, e]`."""
        lead = leading(kernel, len(self.kernel_shape))
        kernel = tf.linalg.matrix_transpose(kernel) if self.swapped else kernel
        return reshape(kernel, [*lead, self.rows, self.width])

    def kernel_variable(self, matrix: tf.Tensor) -> tf.Tensor:
        """Inverse of `kernel_matrix`."""
        lead, shape = leading(matrix, 2), self.kernel_shape
        if not self.swapped:
            return reshape(matrix, [*lead, *shape])
        return tf.linalg.matrix_transpose(tf.reshape(matrix, [*lead, *shape[:-2], shape[-1], shape[-2]]))

    def kernel_taps(self, kernel: tf.Tensor) -> tf.Tensor:
        """A convolution's kernel variable as taps, `[taps, c_in, c_out]`."""
        channels = self.kernel_shape[-1] if self.swapped else self.kernel_shape[-2]
        return tf.reshape(self.kernel_matrix(kernel), [-1, channels, self.width])

    def pack(self, parts: Tensors) -> tf.Tensor:
        """Kernel and bias in the shapes of the variables (leading axes allowed) to one matrix `[..., rows(+1), e]`."""
        kernel = self.kernel_matrix(parts[0])
        if self.bias_shape is None:
            return kernel
        lead = leading(kernel, 2)
        return tf.concat([kernel, reshape(parts[1], [*lead, 1, self.width])], axis=-2)

    def unpack(self, matrix: tf.Tensor) -> Tensors:
        """Inverse of `pack`."""
        if self.bias_shape is None:
            return [self.kernel_variable(matrix)]
        lead, (kernel, bias) = leading(matrix, 2), tf.split(matrix, [self.rows, 1], axis=-2)
        return [self.kernel_variable(kernel), reshape(bias, [*lead, *self.bias_shape])]
