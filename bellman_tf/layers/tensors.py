"""Small operations on tensors that captures of all kinds of layers need."""

from collections.abc import Sequence

import tensorflow as tf

from bellman_tf._typing import Size
from bellman_tf.linalg.constants import expand_dims, number

HALF = frozenset({"float16", "bfloat16"})  # dtypes of two to four digits


def with_ones(x: tf.Tensor) -> tf.Tensor:
    """Appends the constant feature of a bias, `[..., d]` to `[..., d + 1]`."""
    return tf.pad(x, [*[[0, 0]] * (len(x.shape) - 1), [0, 1]], constant_values=number(1, x.dtype))


def as_number(count: int | tf.Tensor, dtype: tf.DType) -> float | tf.Tensor:
    """A count to calculate with: a plain number where it is static.

    Args:
        count: integer.
        dtype: of what it is multiplied with.

    Returns:
        The same number.
    """
    return float(count) if isinstance(count, int) else tf.cast(count, dtype)


def beside(columns: Sequence[tf.Tensor]) -> tf.Tensor:
    """Puts the columns of samples side by side.

    Args:
        columns: m tensors `[B, ...]`.

    Returns:
        `[B, m, ...]`.
    """
    return expand_dims(columns[0], 1) if len(columns) == 1 else tf.stack(columns, axis=1)


def leading(tensor: tf.Tensor, tail: int) -> list[Size]:
    """Leading sizes of a tensor, static where known, so that a reshape keeps static shapes."""
    count = len(tensor.shape) - tail
    static = tensor.shape[:count].as_list()
    if None not in static:
        return static
    dynamic = tf.shape(tensor)
    return [size if size is not None else dynamic[k] for k, size in enumerate(static)]


def with_sizes(tensor: tf.Tensor, sizes: Sequence[int | None] | tf.TensorShape) -> tf.Tensor:
    """Adds to the static shape of a tensor what is known of it otherwise.

    Args:
        tensor: any tensor.
        sizes: one per axis, `None` where nothing is known.

    Returns:
        The tensor itself where it knows all of them; else the same values, checked when the step runs. A size that the
        tensor knows stays, whatever `sizes` says.
    """
    own = tensor.shape
    known = list(sizes if own.rank is None else [b if a is None else a for a, b in zip(own, sizes, strict=True)])
    return tensor if own.rank is not None and known == own.as_list() else tf.ensure_shape(tensor, known)


def delayed(tensor: tf.Tensor, event: tf.Tensor) -> tf.Tensor:
    """Identity of `tensor` that runs only after `event`; what is made of it is not computed before.

    TensorFlow runs an operation as soon as its inputs exist. What is made of an input of pass 1 would be computed in
    pass 1 and held in memory through the backward pass.

    Args:
        tensor: what the operations read.
        event: what they wait for.

    Returns:
        An identity of `tensor`.
    """
    with tf.control_dependencies([event]):
        return tf.identity(tensor)


def either(condition: tf.Tensor, first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """One of two tensors whole. `tf.where` compares and copies entry by entry: twelve times as long for a big tensor.

    Args:
        condition: boolean scalar.
        first: taken where it holds.
        second: in the shape of `first`.

    Returns:
        The tensor.
    """
    return tf.raw_ops.Select(condition=condition, x=first, y=second)


def work_dtype(tensor: tf.Tensor) -> tf.DType:
    """The dtype curvature is computed in: float64 for float64, float32 for everything else."""
    return tf.float64 if tensor.dtype == tf.float64 else tf.float32


def to_work(tensor: tf.Tensor) -> tf.Tensor:
    """Casts to `work_dtype`; free when nothing changes."""
    return tf.cast(tensor, work_dtype(tensor))
