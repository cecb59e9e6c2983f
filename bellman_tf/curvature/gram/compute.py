"""The Gram matrix of one player, in the form that `plan` chooses."""

import tensorflow as tf

from bellman_tf.curvature.gram.blocks import gradient_products
from bellman_tf.curvature.gram.factored import factored, squares
from bellman_tf.curvature.gram.features import features
from bellman_tf.curvature.gram.hashed import hashed
from bellman_tf.curvature.gram.lookup import lookup
from bellman_tf.curvature.gram.memory_use import MemoryUse
from bellman_tf.curvature.gram.plan import LIMITS, GramForm, GramLimits, plan
from bellman_tf.curvature.gram.positions import positions
from bellman_tf.curvature.gram.sketch import condense_tap, sketch
from bellman_tf.curvature.metric import Metric, MetricKind
from bellman_tf.layers.capture import Capture, MatrixCapture
from bellman_tf.layers.convolution import Convolution


def per_sample(
    capture: Capture, metric: Metric, group_size: int | None, limits: GramLimits, load: MemoryUse
) -> tf.Tensor:
    """Inner products of per-sample gradients, `[G, b m, b m]`."""
    return gradient_products(capture, metric.sample_pair, load, group_size, limits.memory)


def rank_one(
    capture: MatrixCapture, metric: Metric, group_size: int | None, limits: GramLimits, load: MemoryUse
) -> tf.Tensor:
    """`factored` or `positions` with the nearest two-sided metric, `[G, b m, b m]`."""
    run = factored if capture.positions == 1 else positions
    return run(capture, metric.rank_one(), group_size, limits, load)


RUN = {
    "factored": factored,
    "positions": positions,
    "per_sample": per_sample,
    "squares": squares,
    "lookup": lookup,
    "rank_one": rank_one,
    "sketch": sketch,
    "features": features,
    "hashed": hashed,
}


def condense(
    capture: Capture,
    kind: MetricKind,
    group_size: int | None = None,
    form: GramForm = "auto",
    limits: GramLimits = LIMITS,
) -> None:
    """Forms early what a Gram matrix needs of a capture, where that holds fewer numbers than the cotangents.

    A metric may be known long after the cotangents, as K-FAC's is, whose inverses are formed when the factors of all
    layers are there. The gradients of one tap are kept instead; `gram` finds them in the capture.

    Args:
        capture: the player's capture.
        kind: of its metric.
        group_size: as in `gram`.
        form: as in `gram`.
        limits: as in `gram`.
    """
    chosen = plan(capture.extent, kind, form, group_size, limits, capture.cotangents[0].dtype.size)
    samples = capture.batch_size
    if chosen.form == "sketch" and isinstance(capture, Convolution) and isinstance(samples, int):
        condense_tap(capture, samples, kind, group_size, limits, chosen.load)


def gram(
    capture: Capture,
    metric: Metric,
    group_size: int | None = None,
    form: GramForm = "auto",
    limits: GramLimits = LIMITS,
) -> tf.Tensor:
    """The Gram matrix of one player, group by group.

    Args:
        capture: the player's capture, m columns.
        metric: its metric, learning rate included.
        group_size: samples per group b; `None` is the whole batch.
        form: one of `plan.FORMS`.
        limits: sizes from which on "auto" approximates, and bytes from which on the matrix is formed in blocks.

    Returns:
        `[G, b m, b m]`, zero where the last group is padded.
    """
    itemsize = capture.cotangents[0].dtype.size
    chosen = plan(capture.extent, metric.kind, form, group_size, limits, itemsize)
    return RUN[chosen.form](capture, metric, group_size, limits, chosen.load)
