"""Convolutions from some of their taps."""

from collections.abc import Sequence

import tensorflow as tf

from bellman_tf.curvature.block import Metric
from bellman_tf.curvature.gram import plan
from bellman_tf.curvature.gram.products import inner_products
from bellman_tf.layers.capture import Capture, Tensors
from bellman_tf.layers.convolution import Convolution


def draw_taps(
    players: Sequence[tuple[Capture, Metric]], form: str, seed: Sequence[int | tf.Tensor]
) -> list[tf.Tensor | None]:
    """Draws the taps of all sketches of a step at once.

    Args:
        players: capture and metric of each player.
        form: the `gram` option.
        seed: two integers.

    Returns:
        For each player `SKETCHED_TAPS` different taps, int32; `None` where nothing is sketched.
    """
    totals = [
        len(capture.taps.offsets) if plan.choose_form(capture, metric, form) == "sketch" else 0
        for capture, metric in players
    ]
    drawn: list[tf.Tensor | None] = [None] * len(totals)
    if any(totals):  # a row for each player; integers, because floats differ between TensorFlow and XLA
        shape = [len(totals), max(totals)]
        keys = tf.random.stateless_uniform(shape, seed, minval=None, maxval=None, dtype=tf.int32, alg="philox")
    for total in sorted({*totals} - {0}):
        places = [k for k, count in enumerate(totals) if count == total]
        order = tf.argsort(tf.gather(keys, places)[:, :total])[:, : plan.SKETCHED_TAPS]
        for k, taps in zip(places, tf.unstack(order), strict=True):
            drawn[k] = taps
    return drawn


def bias_part(capture: Convolution, metric: Metric) -> tuple[Tensors, Tensors]:
    """The bias's per-sample gradients and their solve; a tapwise metric keeps the bias row apart from the kernel."""
    if not capture.bias:
        return [], []
    q = capture.bias_per_sample()
    return [q], [metric.solve_bias(q)]


def sketch(capture: Convolution, metric: Metric, group_size: int | None, taps: tf.Tensor) -> tf.Tensor:
    """Unbiased: the kernel's part from some taps drawn without replacement, the bias's part exact."""
    parts, solved = bias_part(capture, metric)
    for tap in tf.unstack(taps):
        q, s = metric.tap_pair(capture, tap)
        parts.append(q)
        solved.append(len(capture.taps.offsets) / taps.shape[0] * s)
    return inner_products(parts, solved, group_size)
