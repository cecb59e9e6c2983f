"""What a step does to samples that it was not computed from, from the Gram matrix alone.

With `P = (Gamma^{-1} + S)^{-1}` the step of all samples moves the columns by `-f`, `f = Gamma w + lambda`, and has
`f = P a + (I - P S) lambda`. Without sample i in it, weights and all, the step would move i's own columns by

    f_i without i = (I - P_ii S_i)^{-1} (f_i - P_ii a_i)

(block elimination of sample i from `(S^{-1} + Gamma) w = S^{-1} a - lambda`; nothing is divided by S). So one
factorisation of the batch's size leaves every sample out, as for the residuals of a ridge regression.
"""

import tensorflow as tf

from bellman_tf.bellman.sample_space import SampleValue, factor_stage
from bellman_tf.linalg import factor_spd, solve_spd, whiten
from bellman_tf.linalg.products import matvec

# Roundings that may take the leverage of a sample, in exact arithmetic below 1, to 1 or above.
_ROUNDINGS = 100


def held_out_model(
    terminal: SampleValue,
    gram: tf.Tensor,
    linear: tf.Tensor | None,
    columns: int,
    elsewhere: tf.Tensor | None = None,
) -> tf.Tensor:
    """A quadratic model of the cooperative step on samples without a part in it.

    With the terminal value (a_T, L_T L_T') a step of tau times the size lowers J by
    `slope tau - curvature tau^2 / 2` on samples that were left out of its computation, each in turn.

    Args:
        terminal: value at the outputs, a `[n]`, L `[n, k]`, L block-diagonal over samples.
        gram: Gamma, the sum of all Gram matrices, `[n, n]`.
        linear: lambda, the sum of all linear terms, `[n]`, `None` for zero.
        columns: m per sample, n = B m.
        elsewhere: what moves the columns downhill besides, `[n]`, such as the steps of replicas that do not hold the
            samples; `None` for nothing.

    Returns:
        `[3]`: slope on samples without a part in the step, slope on the batch itself, curvature on the former.

    Checked against: `verification/references/held_out.py`, steps from which each sample was left out.
    """
    a, L = terminal
    diagonal = columns == 1
    pulled = tf.linalg.diag_part(L)[:, None] * gram if diagonal else tf.matmul(L, gram, transpose_a=True)  # L' Gamma
    Z = whiten(factor_stage(L, gram, diagonal), pulled)  # P = Gamma - Z' Z
    moved = matvec(gram, a) - matvec(Z, matvec(Z, a), transpose_a=True)
    if linear is not None:
        back = matvec(L, linear, transpose_a=True)  # P S lambda = (Gamma - Z' Z) L back
        pushed = matvec(pulled, back, transpose_a=True) - matvec(Z, matvec(Z, matvec(L, back)), transpose_a=True)
        moved += linear - pushed
    away = tf.zeros_like(a) if elsewhere is None else elsewhere
    least = _ROUNDINGS * tf.experimental.numpy.finfo(gram.dtype.as_numpy_dtype).eps  # of 1 - leverage
    count = tf.shape(gram)[-1] // columns
    if diagonal:
        s = tf.linalg.diag_part(L)
        own = tf.linalg.diag_part(gram) - tf.reduce_sum(tf.square(Z), axis=0)
        apart = (moved - own * a) / tf.maximum(1 - tf.square(s) * own, least) + away
        slopes = [tf.reduce_sum(a * apart), tf.reduce_sum(a * (moved + away))]
        return tf.stack([*slopes, tf.reduce_sum(tf.square(s * apart))])
    rank = tf.shape(L)[-1] // count
    a_i, moved_i = tf.reshape(a, [count, columns]), tf.reshape(moved, [count, columns])
    Z_i = tf.reshape(Z, [-1, count, columns])
    own = _blocks(gram, count, columns, columns) - tf.einsum("kip,kiq->ipq", Z_i, Z_i)  # [B, m, m]
    L_i = _blocks(L, count, columns, rank)  # [B, m, r]
    rest = moved_i - matvec(own, a_i)
    leverage = tf.matmul(L_i, tf.matmul(own, L_i), transpose_a=True)
    eye = tf.eye(rank, dtype=gram.dtype)
    factor = factor_spd(eye - (leverage + tf.linalg.matrix_transpose(leverage)) / 2, damping=least)
    back = solve_spd(factor, matvec(L_i, rest, transpose_a=True)[..., None])
    apart = rest + matvec(own, matvec(L_i, back[..., 0])) + tf.reshape(away, [count, columns])
    curvature = tf.reduce_sum(tf.square(matvec(L_i, apart, transpose_a=True)))
    return tf.stack([tf.reduce_sum(a_i * apart), tf.reduce_sum(a * (moved + away)), curvature])


def _blocks(matrix: tf.Tensor, count: tf.Tensor, rows: int, columns: tf.Tensor | int) -> tf.Tensor:
    """Blocks on the diagonal of a matrix, `[count, rows, columns]`."""
    whole = tf.reshape(matrix, [count, rows, count, columns])
    return tf.einsum("ipiq->ipq", whole)
