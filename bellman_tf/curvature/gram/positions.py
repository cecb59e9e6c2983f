"""Several positions: the same over all pairs of positions, summed."""

import tensorflow as tf

from bellman_tf.curvature.block import TwoSided
from bellman_tf.curvature.gram.plan import GramLimits
from bellman_tf.curvature.gram.products import grouped, stacked, sum_pairs
from bellman_tf.layers.capture import MatrixCapture
from bellman_tf.layers.tensors import Tensors


def positions(capture: MatrixCapture, metric: TwoSided, group_size: int | None, limits: GramLimits) -> tf.Tensor:
    """Sum over pairs of positions of input products times cotangent products."""
    x = capture.augmented()
    return of_sides(x, metric.input_solve(x), capture.cotangents, metric, group_size)


def of_sides(
    x: tf.Tensor, solved: tf.Tensor, cotangents: Tensors, metric: TwoSided, group_size: int | None
) -> tf.Tensor:
    """The sum over pairs of positions, from inputs and cotangents.

    Args:
        x: `[B, L, d]`.
        solved: `x A^{-1}`.
        cotangents: m tensors `[B, L, e]`.
        metric: acts on the cotangents.
        group_size: samples per group.

    Returns:
        `[G, b m, b m]`.
    """
    first, second = (grouped(part, group_size) for part in (x, solved))
    c = stacked(cotangents)
    inputs = tf.matmul(first, second, transpose_b=True)
    return metric.scale * sum_pairs(inputs, c, metric.cotangent_solve(c), group_size)
