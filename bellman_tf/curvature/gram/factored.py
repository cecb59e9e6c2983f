"""One position: input products times cotangent products, and the diagonal alone under a diagonal metric."""

import tensorflow as tf

from bellman_tf.curvature.block import Metric
from bellman_tf.curvature.diagonal import DiagonalMetric
from bellman_tf.curvature.ekfac import EigenMetric
from bellman_tf.curvature.gram.products import inner_products, stacked
from bellman_tf.curvature.identity import IdentityMetric
from bellman_tf.layers.dense import LinearMap


def factored(capture: LinearMap, metric: Metric, group_size: int | None) -> tf.Tensor:
    """`(x A^{-1} x') * (c B^{-1} c')`, `[G, b m, b m]`, for a Kronecker metric."""
    m = capture.columns
    if isinstance(metric, IdentityMetric):
        x = solved_x = capture.inputs
        bias = 1.0 if capture.bias else 0.0  # the constant feature, added rather than carried
    else:
        x, bias = capture.augmented(), 0.0
        solved_x = metric.input_solve(x)
    if m == 1:
        c = capture.cotangents[0]
        solved_c = metric.cotangent_solve(c)
        if group_size is None:
            inputs = tf.matmul(x, solved_x, transpose_b=True)
            outputs = metric.scale * tf.matmul(c, solved_c, transpose_b=True)
            return tf.expand_dims((inputs + bias if bias else inputs) * outputs, 0)
        if group_size == 1:
            inputs = tf.reduce_sum(x * solved_x, axis=1, keepdims=True)
            outputs = metric.scale * tf.reduce_sum(c * solved_c, axis=1, keepdims=True)
            return tf.expand_dims((inputs + bias if bias else inputs) * outputs, 2)
    inputs = inner_products([x[:, None]], [solved_x[:, None]], group_size) + bias
    if m > 1:
        inputs = tf.repeat(tf.repeat(inputs, m, axis=1), m, axis=2)
    c = stacked(capture.cotangents)
    return inputs * inner_products([c], [metric.scale * metric.cotangent_solve(c)], group_size)


def squares(capture: LinearMap, metric: Metric) -> tf.Tensor:
    """The diagonal `q_i' M^{-1} q_i` for a metric that is diagonal in some basis, without per-sample gradients."""
    x, c = capture.augmented(), capture.cotangents[0]
    if isinstance(metric, EigenMetric):
        x, c, inverse = metric.rotate_input(x), metric.rotate_cotangent(c), metric.inverse
    elif isinstance(metric, DiagonalMetric):
        inverse = capture.layout.pack(metric.inverse)
    else:
        parts = capture.per_sample()
        return inner_products(parts, metric.solve(parts), 1)
    return tf.reduce_sum(tf.matmul(tf.square(x), inverse) * tf.square(c), axis=1)[:, None, None]
