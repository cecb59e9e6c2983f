"""Whiteners of positive definite matrices in blocks of rows, all sizes in one loop: what XLA compiles and runs fastest.

Compiled by XLA, a factorisation is a loop over columns that passes over the whole matrix again and again
(`columns.py`), one program for every size; `tf.linalg.triangular_solve` of fewer than 32 rows is written out row by row
and takes 1.5 s to compile.
"""

from collections.abc import Sequence

import tensorflow as tf

from bellman_tf._typing import Square
from bellman_tf.linalg.columns import factor_in_columns
from bellman_tf.linalg.symmetric import padded

BLOCK = 32  # rows: the fewest of which XLA does not write the triangular solve out


def whiteners_in_blocks(stacks: Sequence[Square], dampings: Sequence[tf.Tensor]) -> list[Square]:
    """`L^{-1}` of stacks of matrices `A + damping I = L L'`, by a Cholesky factorisation in blocks of rows.

    With W the rows of `L^{-1}` known so far, the rows R of A in the next block give

        N = R W'     C C' = R[block] + damping I - N N'     W[block] = C^{-1} (I[block] - N W)

    and in the end the inverse is `W' W`. Only C is factored by columns, that of all matrices as one stack.

    Args:
        stacks: `[S, n, n]` each, S and n static, symmetric, of one dtype; as many sizes n as there are stacks.
        dampings: `[S]` each, not negative.

    Returns:
        The whiteners, `[S, n, n]`, lower triangular.

    Numerics: NaN for a matrix that is not positive definite. Relative error of `W' W` as that of `inverse_spd`, about
        `cond(A) eps`.
    Checked against: `verification/references/solve.py`.

    Example:
        >>> whiteners_in_blocks([tf.constant([[[3.0]]])], [tf.ones([1])])[0].numpy().tolist()
        [[[0.5]]]
    """
    counts = [-(-A.shape[-1] // BLOCK) for A in stacks]  # blocks of each size
    alike, one = [A.shape[0] for A in stacks], tf.eye(BLOCK, dtype=stacks[0].dtype)
    shift = _joined(dampings)[:, None, None] * one
    rows = [
        tf.reshape(padded(A, count * BLOCK), [-1, count, BLOCK, count * BLOCK])
        for A, count in zip(stacks, counts, strict=True)
    ]

    def square(W: tf.Tensor) -> tf.Tensor:
        return tf.reshape(W, [-1, W.shape[-1], W.shape[-1]])

    def next_block(k: tf.Tensor, *known: tf.Tensor) -> tuple[tf.Tensor, ...]:
        along, own = [], []
        for A, W, count in zip(rows, known, counts, strict=True):
            R = tf.gather(A, tf.minimum(k, count - 1), axis=1)  # [S, BLOCK, n]
            N = tf.matmul(R, square(W), transpose_b=True)
            blocks = tf.reshape(R, [-1, BLOCK, count, BLOCK])
            along.append(N)
            own.append(tf.gather(blocks, tf.minimum(k, count - 1), axis=2) - tf.matmul(N, N, transpose_b=True))
        C = factor_in_columns(_joined(own) + shift)
        inverses = tf.split(tf.linalg.triangular_solve(C, one), alike)  # reads nothing above the diagonal
        new = []
        for W, N, inverse, count in zip(known, along, inverses, counts, strict=True):
            here = tf.equal(k * BLOCK + tf.range(BLOCK)[:, None], tf.range(count * BLOCK))
            found = tf.matmul(inverse, tf.cast(here, W.dtype) - tf.matmul(N, square(W)))
            due = tf.reshape(tf.equal(tf.range(count), k), [1, count, 1, 1])  # none, where the matrix is done
            new.append(tf.where(due, found[:, None], W))
        return (k + 1, *new)

    start = [tf.zeros_like(A) for A in rows]
    _, *whiteners = tf.while_loop(
        lambda k, *_: k < max(counts), next_block, (tf.constant(0), *start), maximum_iterations=max(counts)
    )
    return [square(W)[:, : A.shape[-1], : A.shape[-1]] for W, A in zip(whiteners, stacks, strict=True)]


def _joined(parts: Sequence[tf.Tensor]) -> tf.Tensor:
    """One tensor or several as one."""
    return parts[0] if len(parts) == 1 else tf.concat(parts, 0)
