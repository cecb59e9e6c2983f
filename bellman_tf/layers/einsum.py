"""EinsumDense players: one matrix where the equation is one, per-sample gradients otherwise."""

import functools
import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.layers.capture import Capture, PerSampleCapture
from bellman_tf.layers.coverage import Coverage, bias_shape, built_shape, cover_kernels
from bellman_tf.layers.dense import LinearMap
from bellman_tf.layers.matrix_layout import MatrixLayout
from bellman_tf.layers.tensors import to_work


class EinsumPlan:
    """How an EinsumDense equation maps to per-sample gradients and, where possible, to one matrix.

    Attributes:
        gradient_equation: einsum of input and cotangent that gives the per-sample kernel gradient.
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
        rows = [k for k in kernel if k in source and k not in output]
        columns = [k for k in kernel if k in output and k not in source]
        shared = [k for k in source[1:] if k in output]
        plain = len(rows) + len(columns) == len(kernel) and set(output[1:]) == set(shared) | set(columns)
        self.matrix = plain and kernel == "".join(rows + columns) and set(source[1:]) == set(shared) | set(rows)
        self.rows, self.columns, self.shared = rows, columns, shared

    def matrix_layout(self, kernel_shape: tuple[int, ...], bias_shape: tuple[int, ...] | None) -> MatrixLayout | None:
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
        self, plan: EinsumPlan, inputs: tf.Tensor, cotangents: Sequence[tf.Tensor], layout: MatrixLayout
    ) -> None:
        self._plan = plan
        super().__init__(
            plan.layout(inputs, plan.source, plan.rows),
            [plan.layout(c, plan.output, plan.columns) for c in cotangents],
            layout.kernel_shape,
            layout.bias_shape,
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
    spec = layer.input_spec
    if spec is None:
        return None
    try:
        return EinsumPlan(layer.equation, spec.ndim)
    except ValueError:
        return None


def einsum_layout(layer: keras.Layer, bias: bool, plan: EinsumPlan) -> MatrixLayout | None:
    """The matrix layout of an EinsumDense layer, or `None` where it has none.

    Args:
        layer: a built `keras.layers.EinsumDense`.
        bias: whether the bias, where there is one, belongs to the capture.
        plan: the layer's plan.

    Returns:
        What `EinsumPlan.matrix_layout` says about its variables.
    """
    return plan.matrix_layout(tuple(layer.kernel.shape), bias_shape(layer, bias))


def capture_einsum(
    layer: keras.Layer, inputs: tf.Tensor, cotangents: Sequence[tf.Tensor], bias: bool = True
) -> Capture:
    """Captures a `keras.layers.EinsumDense`: a matrix where the equation is one, per-sample gradients otherwise.

    Args:
        layer: the layer; its equation starts with a batch axis (`einsum_plan` is not `None`).
        inputs: in the layer's input layout.
        cotangents: m tensors in the layer's output layout.
        bias: whether the bias, where there is one, belongs to the capture.

    Returns:
        The capture, in the layer's variable order (kernel, bias).
    """
    plan = EinsumPlan(layer.equation, len(inputs.shape))
    x = to_work(inputs)
    cotangents = [to_work(c) for c in cotangents]
    layout = einsum_layout(layer, bias, plan)
    if layout is not None:
        return _EinsumMap(plan, x, cotangents, layout)

    def form(c: tf.Tensor, x: tf.Tensor) -> Tensors:
        parts = [tf.einsum(plan.gradient_equation, x, c)]
        if bias and layer.bias is not None:
            parts.append(_sum_to(c, tuple(layer.bias.shape)))
        return parts

    def total(c: tf.Tensor, x: tf.Tensor) -> Tensors:
        parts = [tf.einsum(f"{plan.source},{plan.output}->{plan.kernel}", x, c)]
        if bias and layer.bias is not None:
            parts.append(tf.reduce_sum(_sum_to(c, tuple(layer.bias.shape)), axis=0))
        return parts

    return PerSampleCapture(cotangents, [x], form, total)


def _sum_to(cotangent: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """Sums `[B, ...]` over the axes that a bias of `shape` is broadcast along; returns `[B, *shape]`."""
    rank = len(cotangent.shape) - 1
    padded = (1,) * (rank - len(shape)) + shape
    axes = [k + 1 for k, size in enumerate(padded) if size == 1 and cotangent.shape[k + 1] != 1]
    return tf.reshape(tf.reduce_sum(cotangent, axis=axes, keepdims=True), [-1, *shape])


def cover_einsum(layer: keras.Layer, bias: bool) -> Coverage | str:
    """Coverage of `keras.layers.EinsumDense`."""
    plan = einsum_plan(layer)
    if plan is None:
        return f"its equation '{layer.equation}' has no leading batch axis"
    if layer.bias is not None and _bias_may_stray(layer):
        return "Keras may add its bias along another axis of the same size"
    return cover_kernels(
        "einsum dense", layer, bias, capture_einsum, layout=functools.partial(einsum_layout, plan=plan)
    )


def _bias_may_stray(layer: keras.Layer) -> bool:
    """Whether `keras.ops.add` takes a bias along one axis for a channel bias: it looks at axes -1 and 1, by size."""
    wide = [(axis, size) for axis, size in enumerate(layer.bias.shape, start=-len(layer.bias.shape)) if size > 1]
    if len(wide) != 1 or wide[0][0] == -1:
        return False
    [(axis, size)] = wide
    output = layer.compute_output_shape(built_shape(layer))
    return output[-1] in {None, size} or (axis != 1 - len(output) and output[1] in {None, size})
