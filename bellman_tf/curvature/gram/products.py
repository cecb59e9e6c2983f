"""Inner products inside groups of samples, which every form ends in."""

import math

import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.bellman.groups import size_of_groups
from bellman_tf.layers.tensors import beside, leading
from bellman_tf.linalg.constants import constant, expand_dims, reshape
from bellman_tf.linalg.products import row_products


def split(tensor: tf.Tensor, group_size: int | None) -> tf.Tensor:
    """`[B, ...]` to `[G, b, ...]`, zero-padded."""
    if group_size is None:
        return expand_dims(tensor, 0)
    sizes = leading(tensor, 0)
    size = size_of_groups(sizes[0], group_size)
    groups = -(-sizes[0] // size)
    if group_size > 1:
        tensor = tf.pad(tensor, [[0, groups * size - sizes[0]], *[[0, 0]] * (len(sizes) - 1)])
    return tf.reshape(tensor, [groups, size, *sizes[1:]])


def grouped(tensor: tf.Tensor, group_size: int | None) -> tf.Tensor:
    """`[B, m, ...]` to `[G, b m, P]`, zero-padded."""
    parts = split(tensor, group_size)
    sizes = leading(parts, 0)
    return reshape(parts, [sizes[0], sizes[1] * sizes[2], math.prod(sizes[3:])])


def inner_products(parts: Tensors, solved: Tensors, group_size: int | None) -> tf.Tensor:
    """`sum over variables of Q (M^{-1} Q)'` inside groups."""
    pairs = list(zip(parts, solved, strict=True))
    if group_size is None:  # a plain product: the batched one costs more than a small matrix
        return expand_dims(tf.add_n([row_products(*_row_pair(q, s)) for q, s in pairs]), 0)
    if group_size == 1 and all(q.shape[1] == 1 for q in parts):
        sums = [tf.reduce_sum(q * s, axis=list(range(1, len(q.shape)))) for q, s in pairs]
        return tf.reshape(tf.add_n(sums), [-1, 1, 1])
    return tf.add_n([tf.matmul(grouped(q, group_size), grouped(s, group_size), transpose_b=True) for q, s in pairs])


def _row_pair(q: tf.Tensor, s: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Both as rows, of one tensor one."""
    rows = _rows(q)
    return rows, rows if q is s else _rows(s)


def _rows(tensor: tf.Tensor) -> tf.Tensor:
    """`[B, m, ...]` to `[B m, P]`."""
    return reshape(tensor, [-1, math.prod(tensor.shape[2:])])


def stacked(cotangents: Tensors) -> tf.Tensor:
    """`m` tensors `[B, ...]` to `[B, m, ...]`."""
    return beside(cotangents)


def sum_pairs(inputs: tf.Tensor, c: tf.Tensor, solved: tf.Tensor, group_size: int | None) -> tf.Tensor:
    """`sum_lk inputs[il, jk] <c_il, solved_jk>` over positions l of a sample and k of another.

    Args:
        inputs: `[G, b L, b L]`.
        c: `[B, m, L, e]`.
        solved: `[B, m, L, e]`, another tensor like it.
        group_size: samples per group.

    Returns:
        `[G, b m, b m]`.
    """
    m, length = c.shape[1], tf.shape(c)[2] if c.shape[2] is None else c.shape[2]
    first, second = (split(part, group_size) for part in (c, solved))  # [G, b, m, L, e]
    groups, size = leading(first, 3)
    first, second = (reshape(part, [groups, size * m * length, c.shape[-1]]) for part in (first, second))
    pairs = tf.matmul(first, second, transpose_b=True)
    pairs = reshape(pairs, [groups, size, m, length, size, m, length])
    pairs *= reshape(inputs, [groups, size, 1, length, size, 1, length])
    return reshape(tf.reduce_sum(pairs, constant([3, 6])), [groups, size * m, size * m])
