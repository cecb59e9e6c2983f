"""Mixtures of whitened features that stand for all of them.

With `A^{-1} = W' W` the inner product `x A^{-1} y'` is that of the whitened features `x W'` and `y W'`. A few of these
stand for the others badly: the first whitened feature of a position says nothing of the last. Sums of many of them with
random signs do: with S a matrix of one entry +1 or -1 in every row, drawn once,

    R = W' S        E[R R'] = A^{-1},        R R' = A^{-1} where every feature has a column of its own

Source: Charikar, Chen & Farach-Colton, Finding frequent items in data streams, 2002, for such sums.
"""

import numpy as np
import tensorflow as tf

from bellman_tf._typing import Matrix, Square


def signs(count: int) -> np.ndarray:
    """A random sign for each of `count` features, the same at every call: `[count]` of +1 and -1, int8."""
    return np.random.default_rng(count).choice(np.array([-1, 1], np.int8), size=count)


def mixtures(whitener: Square, count: int) -> Matrix:
    """Sums of whitened features with random signs.

    Args:
        whitener: `[n, n]`, W with `W' W` the inverse of the features' second moment.
        count: of sums; feature k goes into sum `k % count`.

    Returns:
        `[n, count]`, R.

    Checked against: `verification/references/gram.py`.

    Example:
        >>> R = mixtures(tf.eye(4), 2)  # features 0 and 2, features 1 and 3
        >>> tf.abs(R).numpy().tolist()
        [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
    """
    size = whitener.shape[-1]
    each = -(-size // count)
    signed = tf.transpose(whitener) * tf.constant(signs(size), whitener.dtype)
    filled = tf.pad(signed, [[0, 0], [0, each * count - size]])
    return tf.reduce_sum(tf.reshape(filled, [size, each, count]), 1)
