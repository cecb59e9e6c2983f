"""Embeddings of large tables, from tokens that share a bucket.

Pairs of positions that hold one token grow with the square of batch and length. Here a token's row goes with a sign s
to the bucket h of a small table,

    q~_i[h] = sum_l [h(token_il) = h] s(token_il) r_il,        r = M^{-1/2} c

so that G~_ij = <q~_i, q~_j> costs a matrix product. Tokens that meet in a bucket add products with both signs: over
random signs G~ has the mean G. Bucket and sign depend on the token alone and are the same at every step; of the tokens
below the number of buckets, the frequent ones in most vocabularies, no two share one.

Source: Weinberger, Dasgupta, Langford, Smola & Attenberg 2009 (feature hashing), claims OURS-9.
"""

import numpy as np
import tensorflow as tf

from bellman_tf.curvature.gram.blocks import gradient_products
from bellman_tf.curvature.gram.memory_use import MemoryUse
from bellman_tf.curvature.gram.plan import GramLimits
from bellman_tf.curvature.gram.products import stacked
from bellman_tf.curvature.metric import GradientPair, Metric
from bellman_tf.layers.embedding import Lookup


def signs(vocabulary: int) -> np.ndarray:
    """A sign for every token, drawn once and for all.

    Args:
        vocabulary: rows of the table.

    Returns:
        -1 or 1, `[vocabulary]`.
    """
    return 1.0 - 2.0 * np.random.default_rng(0).integers(0, 2, size=vocabulary)


def bucket_sums(tokens: tf.Tensor, rows: tf.Tensor, buckets: int, vocabulary: int) -> tf.Tensor:
    """Sums of signed rows, bucket by bucket.

    Args:
        tokens: `[B, L]`, integers.
        rows: `[B, m, L, e]`.
        buckets: how many; a token's is its remainder.
        vocabulary: tokens that there are.

    Returns:
        `[B, m, buckets, e]`.
    """
    m, width = rows.shape[1], rows.shape[-1]
    rows *= tf.gather(tf.constant(signs(vocabulary), rows.dtype), tokens)[:, None, :, None]
    batch = tf.shape(rows)[0]
    place = (tf.range(batch)[:, None, None] * m + tf.range(m)[None, :, None]) * buckets
    place = tf.reshape(place + (tf.cast(tokens, tf.int32) % buckets)[:, None, :], [-1])
    sums = tf.math.unsorted_segment_sum(tf.reshape(rows, [-1, width]), place, batch * m * buckets)
    return tf.reshape(sums, [-1, m, buckets, width])


def hashed_pair(capture: Lookup, metric: Metric, limits: GramLimits) -> GradientPair:
    """The samples' bucket sums under the root of the metric.

    Args:
        capture: the player's capture.
        metric: one that does not mix the rows of the table and is a diagonal on each.
        limits: how many buckets.

    Returns:
        Two sides that are alike, `[B, m, buckets, e]`.
    """
    c = stacked(capture.cotangents)  # [B, m, L, e]
    root = tf.sign(c) * tf.sqrt(c * metric.solve_rows(capture.tokens, c))
    sums = [bucket_sums(capture.tokens, root, limits.buckets, capture.vocabulary)]
    return GradientPair(sums, sums)


def hashed(capture: Lookup, metric: Metric, group_size: int | None, limits: GramLimits, load: MemoryUse) -> tf.Tensor:
    """Inner products of the samples' bucket sums, `[G, b m, b m]`; positive semidefinite.

    Args:
        capture: the player's capture.
        metric: one that does not mix the rows of the table and is a diagonal on each.
        group_size: samples per group.
        limits: how many buckets, and how much memory they may take.
        load: numbers that they take.

    Returns:
        `[G, b m, b m]`; exact where no two tokens share a bucket.
    """
    return gradient_products(capture, lambda part: hashed_pair(part, metric, limits), load, group_size, limits.memory)
