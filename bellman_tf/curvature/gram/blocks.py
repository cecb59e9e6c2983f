"""Gram matrices of large batches, formed in blocks of samples: the same numbers in less memory.

What a Gram matrix is made of grows with the batch: gradients per sample, or products of pairs of positions. Where these
would take more than `GramLimits.memory`, samples i of one block meet samples j of another, block after block:

    G[i, j] = <q_i, M^{-1} q_j>

Small groups are taken some at a time; the blocks of a large group, or of the whole batch, all meet each other. The
gradients of a block are formed anew for every block that they meet. Blocks have the same size at every step; what is
missing from the last one is filled with zeros, and cut off.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import tensorflow as tf

from bellman_tf._typing import Size, Tensors
from bellman_tf.bellman.groups import size_of_groups
from bellman_tf.curvature.gram.memory_use import MemoryUse, largest
from bellman_tf.curvature.gram.products import inner_products, split
from bellman_tf.curvature.metric import ONE, GradientPair, Metric
from bellman_tf.layers.capture import Capture, MatrixCapture
from bellman_tf.layers.tensors import leading

Side = TypeVar("Side")
Make: TypeAlias = Callable[[Tensors], Side]  # of some samples
Combine: TypeAlias = Callable[[Side, Side, int | None], tf.Tensor]  # some with others; the samples of a group


def gradient_products(
    capture: Capture, pair: Callable[[Any], GradientPair], load: MemoryUse, group_size: int | None, memory: int
) -> tf.Tensor:
    """Inner products of gradients per sample.

    Args:
        capture: the player's capture, m columns.
        pair: a function of a capture giving the two sides of the products, a `GradientPair`; the
            captures it is given are of the kind of `capture`.
        load: numbers that the gradients take.
        group_size: samples per group; `None` is the whole batch.
        memory: bytes that they may take.

    Returns:
        `[G, b m, b m]`.
    """
    own = capture.tensors()

    def make(tensors: Tensors) -> GradientPair:
        return pair(capture if tensors is own else capture.made_of(tensors))

    def combine(one: GradientPair, other: GradientPair, size: int | None) -> tf.Tensor:
        found = inner_products(one.first, other.second, size)
        return found if one.scale is ONE else one.scale * found

    return in_blocks(own, make, combine, load, group_size, capture.columns, memory)


def bias_pairs(capture: MatrixCapture, metric: Metric) -> list[GradientPair]:
    """The bias's pair; none without a bias, or where it is part of the kernel's pair."""
    pair = metric.bias_pair(capture) if capture.bias else None
    return [] if pair is None else [pair]


def with_bias(kernel: tf.Tensor, capture: MatrixCapture, metric: Metric, group_size: int | None) -> tf.Tensor:
    """Adds the bias's inner products to the kernel's, `[G, b m, b m]`, where these do not hold it."""
    for pair in bias_pairs(capture, metric):
        kernel += pair.scale * inner_products(pair.first, pair.second, group_size)
    return kernel


def in_blocks(
    tensors: Tensors,
    make: Make[Side],
    combine: Combine[Side],
    load: MemoryUse,
    group_size: int | None,
    columns: int,
    memory: int,
) -> tf.Tensor:
    """The Gram matrix of all samples, in blocks where it does not fit.

    Where the size of the batch is not static, a branch of the graph decides; not for players of which all batches fit
    whose Gram matrix does not take all the memory by itself.

    Args:
        tensors: `[B, ...]`.
        make: a function of the tensors of some samples, giving what `combine` reads.
        combine: a function of what `make` gives for some samples, for as many others, and the size of groups, giving
            `[G, b m, b m]`.
        load: numbers that `make` and `combine` hold.
        group_size: samples per group; `None` is the whole batch.
        columns: m.
        memory: bytes that these numbers may take.

    Returns:
        `[G, b m, b m]`.
    """
    room, [batch, *_] = memory // tensors[-1].dtype.size, leading(tensors[0], 0)

    def whole() -> tf.Tensor:
        side = make(tensors)
        return combine(side, side, group_size)

    def parts() -> tf.Tensor:
        if group_size is not None and (groups := load.groups(room, group_size)):
            return _some_groups(tensors, make, combine, groups, group_size, columns)
        return _pairs(tensors, make, combine, load.side(room), group_size, columns)

    static = isinstance(batch, int)
    if load.whole(batch if static else largest(room, columns), group_size) <= room:
        return whole()
    return parts() if static else tf.cond(batch <= load.most(room, group_size, columns), whole, parts)


def _some_groups(
    tensors: Tensors,
    make: Make[Side],
    combine: Combine[Side],
    at_once: int,
    group_size: int,
    columns: int,
) -> tf.Tensor:
    """Some groups at a time."""
    batch = leading(tensors[0], 0)[0]
    groups = -(-batch // group_size)
    count, each = _even(groups, at_once)
    parts = [_blocks(tensor, count, each * group_size) for tensor in tensors]

    def some(k: tf.Tensor) -> tf.Tensor:
        side = make([tf.gather(part, k) for part in parts])
        return combine(side, side, group_size)

    found = _stack(some, count, parts[-1].dtype)  # [count, each, b m, b m]
    found = tf.reshape(found, [count * each, group_size * columns, group_size * columns])
    size = size_of_groups(batch, group_size) * columns
    return found[: -(-batch // size_of_groups(batch, group_size)), :size, :size]


def _pairs(
    tensors: Tensors,
    make: Make[Side],
    combine: Combine[Side],
    side: int,
    group_size: int | None,
    columns: int,
) -> tf.Tensor:
    """Every block of a group with every other, group after group."""
    parts = [split(tensor, group_size) for tensor in tensors]  # [G, b, ...]
    groups, size, *_ = leading(parts[0], 0)
    count, each = _even(size, side)
    wide = size * columns

    def blocks(part: tf.Tensor) -> tf.Tensor:
        filled = tf.pad(part, [[0, 0], [0, count * each - size], *[[0, 0]] * (len(part.shape) - 2)])
        return tf.reshape(filled, [groups * count, each, *leading(part, 0)[2:]])

    parts = [blocks(part) for part in parts]

    def rows(k: tf.Tensor) -> tf.Tensor:
        first, start = make([tf.gather(part, k) for part in parts]), k // count * count

        def block(j: tf.Tensor) -> tf.Tensor:
            return combine(first, make([tf.gather(part, start + j) for part in parts]), None)[0]

        found = tf.transpose(_stack(block, count, parts[-1].dtype), [1, 0, 2])  # [each m, count, each m]
        return tf.reshape(found, [each * columns, count * each * columns])[:, :wide]

    found = _stack(rows, groups * count, parts[-1].dtype)
    return tf.reshape(found, [groups, count * each * columns, wide])[:, :wide]


def _even(total: Size, most: int) -> tuple[Size, Size]:
    """How many parts of at most `most`, and their size."""
    count = -(-total // most)
    return count, -(-total // count)


def _blocks(tensor: tf.Tensor, count: Size, size: Size) -> tf.Tensor:
    """`[B, ...]` to `[count, size, ...]`, zero-padded."""
    [batch, *rest] = leading(tensor, 0)
    filled = tf.pad(tensor, [[0, count * size - batch], *[[0, 0]] * len(rest)])
    return tf.reshape(filled, [count, size, *rest])


def _stack(function: Callable[[tf.Tensor], tf.Tensor], count: Size, dtype: tf.DType) -> tf.Tensor:
    """`function(k)` for every k below `count`, one after the other."""
    return tf.map_fn(function, tf.range(count), fn_output_signature=dtype, parallel_iterations=1)
