"""Convolutions from few pooled positions."""

import tensorflow as tf

from bellman_tf.curvature.block import Metric
from bellman_tf.curvature.gram.plan import GramLimits
from bellman_tf.curvature.gram.products import inner_products
from bellman_tf.curvature.gram.sketch import bias_part
from bellman_tf.layers.convolution import Convolution


def reduced(capture: Convolution, metric: Metric, group_size: int | None, limits: GramLimits) -> tf.Tensor:
    """Pixels averaged and cotangents summed over the same few cells; every tap then sees the same pixels.

    Exact for inputs that are constant in space, as far as no tap leaves the image.

    Args:
        capture: the player's capture.
        metric: a metric that does not mix taps.
        group_size: samples per group.
        limits: positions to keep.

    Returns:
        `[G, b m, b m]`.
    """
    parts, solved = bias_part(capture, metric)
    q = capture.pooled_gradients(limits.reduced_size)
    taps = tf.add_n([metric.solve_tap(q, tap) for tap in range(capture.extent.taps)])
    return inner_products([*parts, q], [*solved, taps], group_size)
