"""Several positions: the same over all pairs of positions, summed."""

import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.curvature.gram.blocks import in_blocks
from bellman_tf.curvature.gram.memory_use import MemoryUse
from bellman_tf.curvature.gram.plan import GramLimits
from bellman_tf.curvature.gram.products import grouped, stacked, sum_pairs
from bellman_tf.curvature.metric import TwoSided
from bellman_tf.layers.capture import MatrixCapture


def positions(
    capture: MatrixCapture, metric: TwoSided, group_size: int | None, limits: GramLimits, load: MemoryUse
) -> tf.Tensor:
    """Sum over pairs of positions of input products times cotangent products."""
    x = capture.augmented()
    return of_sides(x, metric.input_solve(x), capture.cotangents, metric, group_size, limits, load)


def of_sides(
    x: tf.Tensor,
    solved: tf.Tensor,
    cotangents: Tensors,
    metric: TwoSided,
    group_size: int | None,
    limits: GramLimits,
    load: MemoryUse,
) -> tf.Tensor:
    """The sum over pairs of positions, from inputs and cotangents.

    Args:
        x: `[B, L, d]`.
        solved: `x A^{-1}`.
        cotangents: m tensors `[B, L, e]`.
        metric: acts on the cotangents.
        group_size: samples per group.
        limits: how much memory the products may take.
        load: numbers that they take.

    Returns:
        `[G, b m, b m]`.
    """
    c = stacked(cotangents)

    def combine(first: Tensors, second: Tensors, size: int | None) -> tf.Tensor:
        inputs = tf.matmul(grouped(first[0], size), grouped(second[1], size), transpose_b=True)
        return sum_pairs(inputs, first[2], second[3], size)

    tensors = [x, solved, c, metric.cotangent_solve(c)]
    return metric.scale * in_blocks(tensors, list, combine, load, group_size, len(cotangents), limits.memory)
