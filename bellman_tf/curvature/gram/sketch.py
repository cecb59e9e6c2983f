"""Convolutions from the centre tap of their kernel, and from some of its input channels where there are many.

Neighbouring taps see nearly the same pixels, so that the products of the samples' gradients of one tap stand for those
of the others: the centre tap's Gram matrix times the number of taps, with the metric's own entries for that tap. The
channels of a tap see the same cotangents, so that where a metric does not mix them those of the first stand for the
others. The slice is the same at every step: drawn anew it would be another program to XLA each time.
"""

import tensorflow as tf

from bellman_tf.curvature.gram.blocks import gradient_products, with_bias
from bellman_tf.curvature.gram.memory_use import MemoryUse
from bellman_tf.curvature.gram.plan import GramLimits, kept_channels, pairs_are_cheaper
from bellman_tf.curvature.gram.positions import of_sides
from bellman_tf.curvature.metric import Metric, MetricKind, TwoSided
from bellman_tf.layers.convolution import Convolution
from bellman_tf.layers.tap_capture import TapCapture
from bellman_tf.linalg.constants import number


def condense_tap(
    capture: Convolution, samples: int, kind: MetricKind, group_size: int | None, limits: GramLimits, load: MemoryUse
) -> None:
    """Forms the centre tap's gradients, where all channels are kept, they fit, and are fewer than the cotangents.

    Args:
        capture: the player's capture.
        samples: that it holds.
        kind: of its metric.
        group_size: samples per group.
        limits: as in `sketch`.
        load: numbers that the gradients take.
    """
    extent, itemsize = capture.extent, capture.cotangents[0].dtype.size
    fewer = extent.positions is not None and extent.channels < extent.positions
    whole = kept_channels(extent, kind, limits) == extent.channels and capture.turns_gradients
    fits = load.whole(samples, group_size) * itemsize <= limits.memory
    if fewer and whole and fits and not pairs_are_cheaper(extent, kind, group_size, limits):
        capture.tap_gradients(capture.centre)
        if capture.bias:
            capture.bias_per_sample()


def sketch(
    capture: TapCapture, metric: Metric, group_size: int | None, limits: GramLimits, load: MemoryUse
) -> tf.Tensor:
    """The kernel's part from the centre tap, the bias's part exact; `[G, b m, b m]`.

    The tap's inner products are those of its gradients `x' c` per sample, or sums over pairs of positions where a
    sample has few of them and many channels.

    Args:
        capture: the player's capture.
        metric: a metric that does not mix taps.
        group_size: samples per group.
        limits: which share of many channels to keep, and how much memory the tap's gradients, or the products of
            positions, may take.
        load: numbers that they take.

    Returns:
        `[G, b m, b m]`.
    """
    extent = capture.extent
    kept = kept_channels(extent, metric.kind, limits)
    seen = capture if kept == extent.channels else capture.thinned(kept)
    if isinstance(metric, TwoSided) and pairs_are_cheaper(extent, metric.kind, group_size, limits):
        x, cotangents = seen.sides(seen.centre)
        kernel = of_sides(x, metric.tap_input_solve(x), cotangents, metric, group_size, limits, load)
    else:
        kernel = gradient_products(
            seen, lambda part: metric.tap_pair(part, part.centre), load, group_size, limits.memory
        )
    kernel *= number(extent.taps * extent.channels / kept, kernel.dtype)
    return with_bias(kernel, capture, metric, group_size)
