"""How a Kronecker metric's input side acts on the rows of a player's matrix form."""

import tensorflow as tf

from bellman_tf.layers.matrix_layout import MatrixLayout
from bellman_tf.layers.tensors import delayed, leading
from bellman_tf.linalg.constants import constant, reshape
from bellman_tf.linalg.products import matmul


class KroneckerRows:
    """Applies an input-side matrix to the rows of the matrix form.

    Attributes:
        layout: kernel and bias as one matrix.
        repeats: copies of the input factor along the kernel's rows: taps for "sua", else 1.
        bias_apart: whether the bias row has its own scalar instead of a row of the factor.
    """

    def __init__(self, layout: MatrixLayout, repeats: int, bias_apart: bool) -> None:
        self.layout, self.repeats = layout, repeats
        self.bias_apart = bias_apart and layout.bias_shape is not None
        self.size = layout.rows // repeats + (layout.bias_shape is not None and not self.bias_apart)

    @property
    def plain(self) -> bool:
        """Whether one factor holds every row."""
        return self.repeats == 1 and not self.bias_apart

    def apply(self, left: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
        """`left` on every copy of the kernel's rows; a bias row that stands apart stays as it is.

        Args:
            left: `[size, size]`.
            matrix: `[..., rows(+1), e]`.

        Returns:
            Shape of `matrix`.
        """
        if self.plain:
            return matmul(left, matrix)
        kernel = matrix[..., : self.layout.rows, :]
        if self.repeats == 1:
            kernel = matmul(left, kernel)
        else:
            lead = leading(kernel, 2)
            copies = tf.reshape(kernel, [*lead, self.repeats, self.size, self.layout.width])
            kernel = tf.reshape(matmul(left, copies), [*lead, self.layout.rows, self.layout.width])
        if not self.bias_apart:
            return kernel
        return tf.concat([kernel, matrix[..., self.layout.rows :, :]], axis=-2)

    def apply_to_kernel(self, left: tf.Tensor, kernel: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        """`left K right` on every copy of a kernel's rows, for factors that leave the bias out.

        Args:
            left: `[size, size]`.
            kernel: in the shape of the variable; leading axes are allowed.
            right: `[e, e]`.

        Returns:
            Shape of `kernel`.
        """
        lead = leading(kernel, len(self.layout.kernel_shape))
        rotated = matmul(self.layout.kernel_matrix(kernel), right)
        rotated = reshape(rotated, [*lead, self.repeats, self.size, self.layout.width])
        if not lead:  # copies of a small matrix for one batched product, made when it is due
            left = tf.broadcast_to(delayed(left, rotated), constant([self.repeats, self.size, self.size]))
        solved = reshape(matmul(left, rotated), [*lead, self.layout.rows, self.layout.width])
        return self.layout.kernel_variable(solved)
