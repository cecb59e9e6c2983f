"""What the plain step does to samples that it was not computed from, from the Gram matrix alone."""

import tensorflow as tf

from bellman_tf.bellman.sample_space import SampleValue
from bellman_tf.linalg.products import matvec


def held_out_model(terminal: SampleValue, gram: tf.Tensor, columns: int) -> tf.Tensor:
    """A quadratic model of the plain step on samples without a part in it.

    With all weights a_T sample i moves by `v_i = -sum_j Gamma_ij a_Tj` along its columns. Without j = i, times
    B / (B - 1), v is what the step does to a sample that had no part in it; with the terminal value (a_T, L_T L_T') a
    step of tau times the size lowers J by `slope tau - curvature tau^2 / 2`.

    Args:
        terminal: value at the outputs, a `[n]`, L `[n, k]`.
        gram: Gamma, the sum of all Gram matrices, `[n, n]`.
        columns: m per sample, n = B m.

    Returns:
        `[3]`: slope on samples without a part in the step, slope on the batch itself, curvature.
    """
    a, L = terminal
    n = tf.shape(gram)[-1]
    sample = tf.range(n) // columns
    others = tf.cast(sample[:, None] != sample[None, :], gram.dtype)
    B = tf.cast(n // columns, gram.dtype)
    moved = matvec(gram, a)
    apart = matvec(gram * others, a) * tf.math.divide_no_nan(B, B - 1)
    curvature = tf.reduce_sum(tf.square(matvec(L, apart, transpose_a=True)))
    return tf.stack([tf.reduce_sum(a * apart), tf.reduce_sum(a * moved), curvature])
