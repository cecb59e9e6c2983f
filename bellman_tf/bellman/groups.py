"""Samples in groups: columns of a batch as rows of groups, padded with zeros, and back."""

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Matrix, Size
from bellman_tf.linalg.constants import reshape

__all__ = ["from_groups", "size_of_groups", "to_groups"]


def size_of_groups(batch_size: Size, group_size: int | None) -> Size:
    """Samples per group: where B is known only when the step runs, a larger group costs no more than the batch.

    A replica may have no samples; it has no groups then, and their size is 1.

    Args:
        batch_size: B, an integer or a scalar tensor.
        group_size: what was asked for; `None` is the whole batch.

    Returns:
        An integer or a scalar tensor.
    """
    if group_size is None:
        return batch_size
    if group_size > 1 and tf.is_tensor(batch_size):
        return tf.clip_by_value(batch_size, 1, group_size)
    return group_size


def _size_and_groups(batch_size: Size, group_size: int | None) -> tuple[Size, Size]:
    if group_size is None:
        return batch_size, 1
    size = size_of_groups(batch_size, group_size)
    return size, -(-batch_size // size)


def to_groups(columns: tf.Tensor, group_size: int | None = None) -> Matrix:
    """One row per group of samples, padded with zeros.

    Args:
        columns: `[B]` or `[B, m]`, one entry per sample, or per sample and column.
        group_size: samples in a group, b; `None` puts the whole batch in one group.

    Returns:
        `[G, b * m]` with G = ceil(B / b), sample-major.

    Raises:
        ValueError: if `columns` has neither one nor two axes, or `group_size` is not a positive integer.

    Example:
        >>> to_groups(tf.constant([1.0, 2.0, 3.0]), 2).numpy().tolist()
        [[1.0, 2.0], [3.0, 0.0]]
    """
    columns = tf.convert_to_tensor(columns)
    if columns.shape.rank not in {1, 2}:
        raise _checks.error("columns", "have the axes [B] or [B, m]", columns.shape)
    if group_size is not None:
        _checks.check_integer("group_size", group_size, least=1)
    m = 1 if columns.shape.rank == 1 else columns.shape[1]
    batch_size = columns.shape[0] if columns.shape[0] is not None else tf.shape(columns)[0]
    size, groups = _size_and_groups(batch_size, group_size)
    flat = reshape(columns, [-1])
    if group_size is not None and group_size != 1:  # the other cases have nothing to pad
        flat = tf.pad(flat, [[0, (groups * size - batch_size) * m]])
    return reshape(flat, [groups, size * m])


def from_groups(x: Matrix, batch_size: Size, columns: int = 1) -> tf.Tensor:
    """Undoes `to_groups`: back to one entry per sample.

    Args:
        x: `[G, b * m]`.
        batch_size: B, an integer or a scalar tensor.
        columns: m, columns per sample.

    Returns:
        `[B]` if `columns` is 1, else `[B, m]`; the padding is dropped.

    Raises:
        ValueError: if `x` does not have two axes or `columns` is not a positive integer.

    Example:
        >>> from_groups(tf.constant([[1.0, 2.0], [3.0, 0.0]]), 3).numpy().tolist()
        [1.0, 2.0, 3.0]
    """
    _checks.check_integer("columns", columns, least=1)
    if x.shape.rank != 2:
        raise _checks.error("x", "have the axes [groups, group_size * columns]", x.shape)
    flat = tf.reshape(x, [-1])[: batch_size * columns]
    return flat if columns == 1 else tf.reshape(flat, [batch_size, columns])
