"""Dense and EinsumDense players: pre-activation = input times kernel, at one or several positions.

Layout `[batch, positions, features]`. With a bias, the matrix form has one more input feature that is always one:
rows `0..d-1` are the kernel, row `d` is the bias. Source: algorithm.md, Section 7, claims OURS-9.
"""

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from bellman_tf.curvature.capture import (
    Capture,
    MatrixCapture,
    MatrixLayout,
    PerSampleCapture,
    Tensors,
    to_work,
    weigh,
    with_ones,
)


class LinearMap(MatrixCapture):
    """`h = x W + b` at `positions` positions.

    Attributes:
        inputs: `[B, d]` when there is one position, else `[B, L, d]`.
        cotangents: m tensors `[B, e]` or `[B, L, e]`.
        positions: L, or `None` when it is not static.
    """

    def __init__(
        self, inputs: tf.Tensor, cotangents: Sequence[tf.Tensor], kernel_shape: tuple, bias_shape: tuple | None
    ) -> None:
        layout = MatrixLayout(tuple(kernel_shape), inputs.shape[-1], None if bias_shape is None else tuple(bias_shape))
        super().__init__([to_work(c) for c in cotangents], layout)
        self.inputs = to_work(inputs)
        self.positions = 1 if len(self.inputs.shape) == 2 else self.inputs.shape[1]

    @property
    def flat(self) -> bool:
        """Whether there is one position, so that inputs are `[B, d]`."""
        return len(self.inputs.shape) == 2

    def with_inputs(self, inputs: tf.Tensor) -> "LinearMap":
        """The same cotangents with the layer's new input, given in the layer's own layout."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.inputs = self._layout(to_work(inputs))
        return other

    def _layout(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs if self.flat else _merge_positions(inputs)

    def augmented(self) -> tf.Tensor:
        """Inputs with the constant feature of the bias, `[B(, L), d+1]`; the inputs themselves without a bias."""
        return with_ones(self.inputs) if self.bias else self.inputs

    def gradient(self, weights: tf.Tensor) -> Tensors:
        """`sum_ij w_ij q_ij` for `weights` `[B, m]`."""
        c, x = weigh(self.cotangents, weights), self.inputs
        if not self.flat:
            c, x = tf.reshape(c, [-1, self.layout.width]), tf.reshape(x, [-1, self.layout.rows])
        kernel = tf.reshape(tf.matmul(x, c, transpose_a=True), self.layout.kernel_shape)
        return [kernel, tf.reshape(tf.reduce_sum(c, axis=0), self.layout.bias_shape)] if self.bias else [kernel]

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
        x = self.augmented()
        if self.flat:
            return tf.stack([x[:, :, None] * c[:, None, :] for c in self.cotangents], axis=1)
        return tf.stack([tf.matmul(x, c, transpose_a=True) for c in self.cotangents], axis=1)


def capture_dense(layer: keras.Layer, inputs: tf.Tensor, cotangents: Sequence[tf.Tensor]) -> LinearMap:
    """Captures a `keras.layers.Dense`; inputs of rank above two have positions.

    Args:
        layer: the layer.
        inputs: `[B, ..., d]`.
        cotangents: m tensors `[B, ..., e]`.

    Returns:
        The capture, in the layer's variable order (kernel, bias).
    """
    if len(inputs.shape) > 2:
        inputs = _merge_positions(inputs)
        cotangents = [_merge_positions(c) for c in cotangents]
    return LinearMap(inputs, cotangents, layer.kernel.shape, layer.bias.shape if layer.use_bias else None)


def _merge_positions(tensor: tf.Tensor) -> tf.Tensor:
    middle = tensor.shape[1:-1]
    count = -1 if any(size is None for size in middle) else int(tf.TensorShape(middle).num_elements())
    return tf.reshape(tensor, [tf.shape(tensor)[0], count, tensor.shape[-1]])


class EinsumPlan:
    """How an EinsumDense equation maps to per-sample gradients and, where possible, to one matrix.

    Attributes:
        gradient_equation: einsum of input and cotangent that gives the per-sample kernel gradient.
        apply_equation: einsum of input and kernel that is the layer.
        matrix: whether no letter is shared by input, kernel and output, so that the kernel is one matrix.
    """

    def __init__(self, equation: str, input_rank: int) -> None:
        """Reads the equation.

        Args:
            equation: as given to `keras.layers.EinsumDense`.
            input_rank: rank of the layer's input, to write out an ellipsis.

        Raises:
            ValueError: if the first axis of input and output is not a batch axis absent from the kernel.
        """
        left, output = equation.replace(" ", "").split("->")
        source, kernel = left.split(",")
        used = set(equation)
        free = iter([letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in used])
        dots = "".join(next(free) for _ in range(input_rank - len(source.replace("...", ""))))
        source, output = source.replace("...", dots), output.replace("...", dots)
        if not source or not output or source[0] != output[0] or source[0] in kernel:
            raise ValueError("no batch axis")
        batch = source[0]
        self.source, self.kernel, self.output = source, kernel, output
        self.gradient_equation = f"{source},{output}->{batch}{kernel}"
        self.apply_equation = f"{source},{kernel}->{output}"
        rows = [k for k in kernel if k in source and k not in output]
        columns = [k for k in kernel if k in output and k not in source]
        shared = [k for k in source[1:] if k in output]
        plain = len(rows) + len(columns) == len(kernel) and set(output[1:]) == set(shared) | set(columns)
        self.matrix = plain and kernel == "".join(rows + columns) and set(source[1:]) == set(shared) | set(rows)
        self.rows, self.columns, self.shared = rows, columns, shared

    def matrix_layout(self, kernel_shape: tuple, bias_shape: tuple | None) -> MatrixLayout | None:
        """Kernel and bias as one matrix.

        Args:
            kernel_shape: shape of the kernel variable.
            bias_shape: shape of the bias variable, or `None` without a bias.

        Returns:
            The layout; `None` if there is none, also where the bias is not one number for each column of the matrix,
            in the order of the columns.
        """
        sizes = dict(zip(self.kernel, kernel_shape, strict=True))
        if bias_shape is not None:
            columns = [letter for letter in self.output if letter in self.columns]
            wanted = [sizes[letter] if letter in columns else 1 for letter in self.output[1:]]
            given = [1] * (len(wanted) - len(bias_shape)) + list(bias_shape)
            if columns != self.columns or given != wanted:
                return None
        return MatrixLayout(kernel_shape, math.prod(sizes[k] for k in self.rows), bias_shape) if self.matrix else None

    def layout(self, tensor: tf.Tensor, letters: str, features: list[str]) -> tf.Tensor:
        """Transposes `[B, ...]` with axes `letters` to `[B, L, features]`."""
        order = [letters[0], *self.shared, *features]
        moved = tf.transpose(tensor, [letters.index(k) for k in order])
        sizes = moved.shape[1 + len(self.shared) :]
        return (
            tf.reshape(moved, [tf.shape(moved)[0], -1, int(sizes.num_elements())])
            if self.shared
            else tf.reshape(moved, [tf.shape(moved)[0], int(sizes.num_elements())])
        )


class _EinsumMap(LinearMap):
    """A LinearMap read through an einsum equation."""

    def __init__(
        self, plan: EinsumPlan, inputs: tf.Tensor, cotangents: Sequence[tf.Tensor], layer: keras.Layer
    ) -> None:
        self._plan = plan
        super().__init__(
            plan.layout(inputs, plan.source, plan.rows),
            [plan.layout(c, plan.output, plan.columns) for c in cotangents],
            layer.kernel.shape,
            None if layer.bias is None else layer.bias.shape,
        )

    def _layout(self, inputs: tf.Tensor) -> tf.Tensor:
        return self._plan.layout(inputs, self._plan.source, self._plan.rows)


def einsum_plan(layer: keras.Layer) -> EinsumPlan | None:
    """The plan of an EinsumDense layer, or `None` if its equation has no leading batch axis.

    Args:
        layer: a built `keras.layers.EinsumDense`.

    Returns:
        The plan; `None` means the layer is played open-loop.
    """
    try:
        return EinsumPlan(layer.equation, layer.input_spec.ndim)
    except ValueError:
        return None


def einsum_layout(layer: keras.Layer, plan: EinsumPlan) -> MatrixLayout | None:
    """The matrix layout of an EinsumDense layer, or `None` where it has none.

    Args:
        layer: a built `keras.layers.EinsumDense`.
        plan: its plan.

    Returns:
        What `EinsumPlan.matrix_layout` says about its variables.
    """
    return plan.matrix_layout(tuple(layer.kernel.shape), None if layer.bias is None else tuple(layer.bias.shape))


def capture_einsum(layer: keras.Layer, inputs: tf.Tensor, cotangents: Sequence[tf.Tensor]) -> Capture:
    """Captures a `keras.layers.EinsumDense`: a matrix where the equation is one, per-sample gradients otherwise.

    Args:
        layer: the layer; its equation starts with a batch axis (`einsum_plan` is not `None`).
        inputs: in the layer's input layout.
        cotangents: m tensors in the layer's output layout.

    Returns:
        The capture, in the layer's variable order (kernel, bias).
    """
    plan = EinsumPlan(layer.equation, len(inputs.shape))
    x = to_work(inputs)
    cotangents = [to_work(c) for c in cotangents]
    if einsum_layout(layer, plan) is not None:
        return _EinsumMap(plan, x, cotangents, layer)

    def form(c: tf.Tensor) -> Tensors:
        parts = [tf.einsum(plan.gradient_equation, x, c)]
        if layer.bias is not None:
            parts.append(_sum_to(c, tuple(layer.bias.shape)))
        return parts

    return PerSampleCapture(cotangents, form)


def _sum_to(cotangent: tf.Tensor, shape: tuple) -> tf.Tensor:
    """Sums `[B, ...]` over the axes that a bias of `shape` is broadcast along; returns `[B, *shape]`."""
    rank = len(cotangent.shape) - 1
    padded = (1,) * (rank - len(shape)) + shape
    axes = [k + 1 for k, size in enumerate(padded) if size == 1 and cotangent.shape[k + 1] != 1]
    return tf.reshape(tf.reduce_sum(cotangent, axis=axes, keepdims=True), [-1, *shape])
