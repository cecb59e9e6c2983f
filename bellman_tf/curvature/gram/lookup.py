"""Embeddings: pairs of positions that hold the same token."""

import tensorflow as tf

from bellman_tf.curvature.block import Metric
from bellman_tf.curvature.gram.plan import GramLimits
from bellman_tf.curvature.gram.products import split, stacked, sum_pairs
from bellman_tf.layers.embedding import Lookup


def lookup(capture: Lookup, metric: Metric, group_size: int | None, limits: GramLimits) -> tf.Tensor:
    """`sum_lk [token_il = token_jk] <c_il, M^{-1} c_jk>`, `[G, b m, b m]`."""
    c = stacked(capture.cotangents)  # [B, m, L, e]
    solved = metric.solve_rows(capture.tokens, c)
    # What pads a group matches token 0, but its cotangents are zero.
    tokens = split(capture.tokens, group_size)
    tokens = tf.reshape(tokens, [tf.shape(tokens)[0], -1])  # [G, b L]
    same = tf.cast(tf.equal(tokens[:, :, None], tokens[:, None, :]), c.dtype)
    return sum_pairs(same, c, solved, group_size)
