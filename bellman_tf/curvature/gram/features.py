"""Dense layers and convolutions of one tap with many positions, from some of their input features.

The rows of a kernel's gradients see the same cotangents, so that the inner products of some of them stand for those of
the others: those of the first features, times how many more there are. The bias is exact. The slice is the same at
every step, as XLA wants it.

A metric that mixes the rows, `A^{-1} (x) B^{-1}`, has features of its own, the whitened ones, and the first of these do
not stand for the rest. Sums of all of them do, each with a random sign (`curvature/whitening.py`).
"""

import tensorflow as tf

from bellman_tf.curvature.gram.blocks import gradient_products, with_bias
from bellman_tf.curvature.gram.memory_use import MemoryUse
from bellman_tf.curvature.gram.plan import GramLimits, kept_features
from bellman_tf.curvature.metric import Metric
from bellman_tf.layers.capture import MatrixCapture


def features(
    capture: MatrixCapture, metric: Metric, group_size: int | None, limits: GramLimits, load: MemoryUse
) -> tf.Tensor:
    """The kernel's part from some input features; the bias's part exact, unless its feature is mixed with the others.

    Args:
        capture: the player's capture.
        metric: one that does not mix the rows of the matrix form, or knows mixtures that stand for all.
        group_size: samples per group.
        limits: which share of the features to keep, and how much memory their gradients may take.
        load: numbers that the gradients take.

    Returns:
        `[G, b m, b m]`; positive semidefinite, exact where all features are kept.
    """
    kept = kept_features(capture.layout.rows, limits)
    kernel = gradient_products(capture, lambda part: metric.feature_pair(part, kept), load, group_size, limits.memory)
    return with_bias(kernel, capture, metric, group_size)
