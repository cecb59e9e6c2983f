"""Sums, means and rows of the replicas of a `tf.distribute` strategy, called inside each; nothing on a single one.

A step calls these at the same places in every replica, in the same order, and never inside a branch or a loop of the
graph, where TensorFlow cannot exchange tensors. Every replica receives the same bits, so state that is computed from
what they return stays equal on all of them.
"""

import contextlib
import math
from typing import TypeVar

import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.linalg.constants import number, reshape

Part = TypeVar("Part")  # a tensor, or lists of them


def count() -> int:
    """Replicas that take the present step together.

    Returns:
        n; 1 outside a replica.
    """
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def scope_of(strategy: tf.distribute.Strategy) -> contextlib.AbstractContextManager[object]:
    """Where variables are made that every replica is to have.

    Args:
        strategy: of a model.

    Returns:
        Its scope; nothing for a single replica.
    """
    return strategy.scope() if strategy.num_replicas_in_sync > 1 else contextlib.nullcontext()


def averages(strategy: tf.distribute.Strategy) -> bool:
    """Tells whether a model is being built by Keras on the mean of the batches of several replicas.

    Args:
        strategy: of the model.

    Returns:
        Whether this is outside the replicas, where `fit` builds a model before its first step.
    """
    return strategy.num_replicas_in_sync > 1 and tf.distribute.in_cross_replica_context()


def total(tensors: list[Part]) -> list[Part]:
    """Sums tensors over the replicas, in one exchange.

    Args:
        tensors: this replica's terms, in lists of any depth.

    Returns:
        The sums; on a single replica the terms themselves.
    """
    flat = tf.nest.flatten(tensors)
    if count() == 1 or not flat:
        return tensors
    context = tf.distribute.get_replica_context()
    return tf.nest.pack_sequence_as(tensors, context.all_reduce(tf.distribute.ReduceOp.SUM, flat))


def own_number() -> tf.Tensor:
    """Number of this replica.

    Returns:
        int32 scalar, 0 outside a replica.
    """
    context = tf.distribute.get_replica_context()
    return tf.convert_to_tensor(0 if context is None else context.replica_id_in_sync_group)


def gather(tensors: Tensors) -> Tensors:
    """Puts rows of all replicas one behind the other, replica after replica, in one exchange.

    Args:
        tensors: `[b, ...]` each, of one dtype, static but for b, which may differ from replica to replica and be 0.

    Returns:
        `[B, ...]` each, the same on all replicas; on a single one the tensors themselves.
    """
    if count() == 1 or not tensors:
        return tensors
    widths = [math.prod(tensor.shape[1:]) for tensor in tensors]
    flat = [reshape(tensor, [-1, width]) for tensor, width in zip(tensors, widths, strict=True)]
    rows = gather_rows(flat[0] if len(flat) == 1 else tf.concat(flat, axis=1))
    parts = zip(tensors, tf.split(rows, widths, axis=1), strict=True)
    return [reshape(part, [-1, *tensor.shape[1:]]) for tensor, part in parts]


def gather_rows(matrices: tf.Tensor) -> tf.Tensor:
    """Puts the rows of all replicas' matrices one below the other.

    Args:
        matrices: `[..., b, k]`, of any sizes; all but b the same on every replica.

    Returns:
        `[..., B, k]`; on a single replica the tensor itself.
    """
    if count() == 1:
        return matrices
    return tf.distribute.get_replica_context().all_gather(matrices, axis=len(matrices.shape) - 2)


def share(tensor: tf.Tensor) -> tf.Tensor:
    """This replica's part of what all of them have.

    Args:
        tensor: equal on all replicas.

    Returns:
        `tensor / n`.
    """
    return tensor if count() == 1 else tensor * number(1 / count(), tensor.dtype)


def agreed(conditions: list[tf.Tensor]) -> list[tf.Tensor]:
    """Whether conditions hold on every replica.

    Args:
        conditions: boolean scalars.

    Returns:
        Boolean scalars.
    """
    if count() == 1:
        return conditions
    [held] = total([tf.cast(tf.stack(conditions), tf.int32)])
    return tf.unstack(tf.equal(held, count()), len(conditions))


def mean(tensors: Tensors, present: tf.Tensor | None) -> Tensors:
    """Averages tensors over the replicas that have samples, in one exchange.

    Args:
        tensors: statistics of this replica's samples; anything, NaN included, where it has none.
        present: whether it has some, boolean scalar; not read on a single replica.

    Returns:
        The means; on a single replica the tensors themselves.
    """
    if count() == 1 or not tensors:
        return tensors
    known = [tf.where(present, part, tf.zeros_like(part)) for part in tensors]
    *sums, holders = total([*known, tf.cast(present, tf.float32)])
    holders = tf.maximum(holders, 1)
    return [part / tf.cast(holders, part.dtype) for part in sums]
