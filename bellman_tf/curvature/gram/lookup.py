"""Embeddings: pairs of positions that hold the same token."""

import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.curvature.gram.blocks import in_blocks
from bellman_tf.curvature.gram.memory_use import MemoryUse
from bellman_tf.curvature.gram.plan import GramLimits
from bellman_tf.curvature.gram.products import split, stacked, sum_pairs
from bellman_tf.curvature.metric import Metric
from bellman_tf.layers.embedding import Lookup


def lookup(capture: Lookup, metric: Metric, group_size: int | None, limits: GramLimits, load: MemoryUse) -> tf.Tensor:
    """`sum_lk [token_il = token_jk] <c_il, M^{-1} c_jk>`, `[G, b m, b m]`."""
    c = stacked(capture.cotangents)  # [B, m, L, e]
    solved = metric.solve_rows(capture.tokens, c)

    def combine(first: Tensors, second: Tensors, size: int | None) -> tf.Tensor:
        # What pads a group matches token 0, but its cotangents are zero.
        tokens = [split(part[0], size) for part in (first, second)]
        left, right = (tf.reshape(part, [tf.shape(part)[0], -1]) for part in tokens)  # [G, b L]
        same = tf.cast(tf.equal(left[:, :, None], right[:, None, :]), c.dtype)
        return sum_pairs(same, first[1], second[2], size)

    tensors = [capture.tokens, c, solved]
    return in_blocks(tensors, list, combine, load, group_size, capture.columns, limits.memory)
