"""Convolutions from the centre tap of their kernel.

Neighbouring taps see nearly the same pixels, so that the products of the samples' gradients of one tap stand for those
of the others: the centre tap's Gram matrix times the number of taps, with the metric's own entries for that tap. The
slice is the same at every step: drawn anew it would be another program to XLA each time.
"""

import tensorflow as tf

from bellman_tf.curvature.block import Metric
from bellman_tf.curvature.gram.plan import GramLimits
from bellman_tf.curvature.gram.products import inner_products
from bellman_tf.layers.capture import Tensors
from bellman_tf.layers.convolution import Convolution


def bias_part(capture: Convolution, metric: Metric) -> tuple[Tensors, Tensors]:
    """The bias's per-sample gradients and their solve; a tapwise metric keeps the bias row apart from the kernel."""
    if not capture.bias:
        return [], []
    q = capture.bias_per_sample()
    return [q], [metric.solve_bias(q)]


def sketch(capture: Convolution, metric: Metric, group_size: int | None, limits: GramLimits) -> tf.Tensor:
    """The kernel's part from the centre tap, the bias's part exact; `[G, b m, b m]`."""
    first, second, scale = metric.tap_pair(capture, capture.centre)
    kernel = (capture.extent.taps * scale) * inner_products(first, second, group_size)
    parts, solved = bias_part(capture, metric)
    return kernel + inner_products(parts, solved, group_size) if parts else kernel
