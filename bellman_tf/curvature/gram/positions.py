"""Several positions: the same over all pairs of positions, summed."""

import tensorflow as tf

from bellman_tf.curvature.block import TwoSided
from bellman_tf.curvature.gram.plan import GramLimits
from bellman_tf.curvature.gram.products import grouped, stacked, sum_pairs
from bellman_tf.layers.capture import MatrixCapture


def positions(capture: MatrixCapture, metric: TwoSided, group_size: int | None, limits: GramLimits) -> tf.Tensor:
    """Sum over pairs of positions of input products times cotangent products."""
    x = capture.augmented()
    first, second = (grouped(part, group_size) for part in (x, metric.input_solve(x)))
    c = stacked(capture.cotangents)
    return sum_pairs(
        tf.matmul(first, second, transpose_b=True), c, metric.scale * metric.cotangent_solve(c), group_size
    )
