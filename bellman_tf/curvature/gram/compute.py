"""The Gram matrix of one player, in the form that `plan` chooses."""

import tensorflow as tf

from bellman_tf.curvature.block import Metric
from bellman_tf.curvature.ekfac import EigenMetric
from bellman_tf.curvature.gram.factored import factored, squares
from bellman_tf.curvature.gram.lookup import lookup
from bellman_tf.curvature.gram.plan import choose_form
from bellman_tf.curvature.gram.positions import positions
from bellman_tf.curvature.gram.products import inner_products
from bellman_tf.curvature.gram.reduced import reduced
from bellman_tf.curvature.gram.sketch import sketch
from bellman_tf.layers.capture import Capture, MatrixCapture
from bellman_tf.layers.dense import LinearMap


def gram(
    capture: Capture, metric: Metric, group_size: int | None, form: str = "auto", taps: tf.Tensor | None = None
) -> tf.Tensor:
    """The Gram matrix of one player, group by group.

    Args:
        capture: the player's capture, m columns.
        metric: its metric, learning rate included.
        group_size: samples per group b; `None` is the whole batch.
        form: one of `FORMS`.
        taps: what `draw_taps` drew for the player.

    Returns:
        `[G, b m, b m]`, zero where the last group is padded.
    """
    chosen = choose_form(capture, metric, form)
    if chosen == "factored":
        return factored(capture, metric, group_size)
    if chosen == "lookup":
        return lookup(capture, metric, group_size)
    if chosen == "positions":
        return positions(capture, metric, group_size)
    if chosen == "sketch":
        return sketch(capture, metric, group_size, taps)
    if chosen == "reduced":
        return reduced(capture, metric, group_size)
    if isinstance(capture, LinearMap) and capture.flat and group_size == 1 and capture.columns == 1:
        return squares(capture, metric)
    if isinstance(metric, EigenMetric) and isinstance(capture, MatrixCapture):
        q = metric.rotate(capture.matrix_per_sample())
        return inner_products([q], [metric.inverse * q], group_size)
    parts = capture.per_sample()
    return inner_products(parts, metric.solve(parts), group_size)
