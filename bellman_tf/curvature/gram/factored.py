"""One position: input products times cotangent products, and the diagonal alone under a diagonal metric."""

import tensorflow as tf

from bellman_tf.curvature.gram.memory_use import MemoryUse
from bellman_tf.curvature.gram.plan import GramLimits
from bellman_tf.curvature.gram.products import inner_products, stacked
from bellman_tf.curvature.metric import Metric, TwoSided
from bellman_tf.layers.capture import MatrixCapture
from bellman_tf.linalg.constants import expand_dims, number


def factored(
    capture: MatrixCapture, metric: TwoSided, group_size: int | None, limits: GramLimits, load: MemoryUse
) -> tf.Tensor:
    """`(x A^{-1} x') * (c B^{-1} c')`, `[G, b m, b m]`, for a metric with two sides."""
    m = capture.columns
    x, solved_x, bias = metric.input_pair(capture)
    plus = (lambda products: products) if bias is None else (lambda products: products + number(bias, products.dtype))
    if m == 1:
        c = capture.cotangents[0]
        solved_c = metric.cotangent_solve(c)
        if group_size is None:
            inputs = tf.matmul(x, solved_x, transpose_b=True)
            outputs = metric.scale * tf.matmul(c, solved_c, transpose_b=True)
            return expand_dims(plus(inputs) * outputs, 0)
        if group_size == 1:
            inputs = tf.reduce_sum(x * solved_x, axis=1, keepdims=True)
            outputs = metric.scale * tf.reduce_sum(c * solved_c, axis=1, keepdims=True)
            return tf.expand_dims(plus(inputs) * outputs, 2)
    inputs = plus(inner_products([x[:, None]], [solved_x[:, None]], group_size))
    if m > 1:
        inputs = tf.repeat(tf.repeat(inputs, m, axis=1), m, axis=2)
    c = stacked(capture.cotangents)
    return inputs * inner_products([c], [metric.scale * metric.cotangent_solve(c)], group_size)


def squares(
    capture: MatrixCapture, metric: Metric, group_size: int | None, limits: GramLimits, load: MemoryUse
) -> tf.Tensor:
    """The diagonal `q_i' M^{-1} q_i`, `[B, 1, 1]`, for a metric that is diagonal in some basis."""
    x, c, inverse = metric.rotated(capture)
    return tf.reduce_sum(tf.matmul(tf.square(x), inverse) * tf.square(c), axis=1)[:, None, None]
