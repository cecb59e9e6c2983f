"""Embeddings: pairs of positions that hold the same token."""

import tensorflow as tf

from bellman_tf.curvature.block import Metric
from bellman_tf.curvature.diagonal import DiagonalMetric
from bellman_tf.curvature.gram.products import inner_products, split, stacked, sum_pairs
from bellman_tf.curvature.identity import IdentityMetric
from bellman_tf.layers.embedding import Lookup


def lookup(capture: Lookup, metric: Metric, group_size: int | None) -> tf.Tensor:
    """Pairs of positions that hold the same token: `sum_lk [token_il = token_jk] <c_il, M^{-1} c_jk>`."""
    c = stacked(capture.cotangents)  # [B, m, L, e]
    if isinstance(metric, DiagonalMetric):
        solved = tf.gather(metric.inverse[0], capture.tokens)[:, None] * c
    elif isinstance(metric, IdentityMetric):
        solved = metric.scale * c
    else:
        parts = capture.per_sample()
        return inner_products(parts, metric.solve(parts), group_size)
    # What pads a group matches token 0, but its cotangents are zero.
    tokens = split(capture.tokens, group_size)
    tokens = tf.reshape(tokens, [tf.shape(tokens)[0], -1])  # [G, b L]
    same = tf.cast(tf.equal(tokens[:, :, None], tokens[:, None, :]), c.dtype)
    return sum_pairs(same, c, solved, group_size)
