"""Convolutions from few pooled positions."""

import math

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
    pixels, sizes = capture.pixels, capture.output_sizes
    cells = [min(limits.reduced_size, into, out) for into, out in zip(pixels.shape[1:-1], sizes, strict=True)]
    mean = _pool(pixels, cells, average=True)
    q = tf.stack(
        [
            tf.matmul(mean, _pool(tf.reshape(c, [-1, *sizes, c.shape[-1]]), cells, average=False), transpose_a=True)
            for c in capture.cotangents
        ],
        axis=1,
    )
    parts, solved = bias_part(capture, metric)
    parts.append(q)
    solved.append(tf.add_n([metric.solve_tap(q, tap) for tap in range(len(capture.taps.offsets))]))
    return inner_products(parts, solved, group_size)


def _pool(tensor: tf.Tensor, cells: list[int], *, average: bool) -> tf.Tensor:
    """Sums or averages of `[B, *spatial, c]` over a grid of nearly equal cells, `[B, product of cells, c]`."""
    for axis, count in enumerate(cells):
        size = tensor.shape[axis + 1]
        member = [[float(k * count // size == cell) for k in range(size)] for cell in range(count)]
        weights = [[entry / sum(row) if average else entry for entry in row] for row in member]
        moved = tf.tensordot(tensor, tf.constant(weights, tensor.dtype), [[axis + 1], [1]])
        order = list(range(len(moved.shape) - 1))
        tensor = tf.transpose(moved, [*order[: axis + 1], len(order), *order[axis + 1 :]])
    return tf.reshape(tensor, [-1, math.prod(cells), tensor.shape[-1]])
