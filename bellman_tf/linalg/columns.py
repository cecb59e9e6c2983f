"""Cholesky factorisation for programs that XLA compiles, a few columns at a time.

XLA has no factorisation of its own, on a CPU or a GPU: `tf.linalg.cholesky` becomes a loop over single columns of
several kernels each, which on an H100 takes 2 ms for 128 rows, longer than a small network's whole step.
`factor_in_columns` takes four columns a turn, in a few elementwise kernels: an eighth of the time there, a quarter on
one core of a CPU (`benchmarks/factorisation.py`). It contains no product, so a GPU that rounds the factors of products
to ten bits (TF32) does not make it less exact.
"""

import tensorflow as tf
from tensorflow.python.ops import control_flow_util  # nothing public says whether XLA compiles what is traced

from bellman_tf._typing import Square
from bellman_tf.linalg.symmetric import padded

COLUMNS = 4  # per turn: with 8 a step takes 3 to 5 % less on a GPU and twice as long to compile
LARGEST = 512  # rows; on a CPU XLA's own factorisation is faster from 350 on, on a GPU ten times slower at 512


def compiled_by_xla() -> bool:
    """Looks at the graph that is being traced.

    Returns:
        Whether it is, or is inside, that of a `tf.function(jit_compile=True)`.

    Example:
        >>> compiled_by_xla()
        False
    """
    return not tf.executing_eagerly() and control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def factor_in_columns(A: Square) -> Square:
    """The lower triangular L with `L L^T = A` and a positive diagonal.

    A turn factors the next columns, of which the pivot block's entries are scalars written out, and subtracts their
    outer products from all others (the right-looking form).

    Args:
        A: `[..., n, n]`, symmetric, n static; only the lower triangle is read.

    Returns:
        `[..., n, n]`, zero above the diagonal.

    Numerics: NaN on and below the diagonal for the matrices of the batch that are not positive definite or not finite.
        As accurate as `tf.linalg.cholesky`.
    Checked against: `verification/references/solve.py`.

    Example:
        >>> factor_in_columns(tf.constant([[4.0, 0.0], [2.0, 2.0]])).numpy().tolist()
        [[2.0, 0.0], [1.0, 1.0]]
    """
    n = A.shape[-1]
    width = min(COLUMNS, n)
    turns = -(-n // width)
    size = turns * width
    lower = tf.linalg.band_part(tf.ones([size, size], tf.bool), -1, 0)
    A = padded(A, size)
    rows = tf.range(size)

    def turn(k: tf.Tensor, A: tf.Tensor, L: tf.Tensor) -> tuple[tf.Tensor, ...]:
        first = k * width
        due = tf.gather(A, first + tf.range(width), axis=-1)  # [..., size, width]
        pivot = _factor_written_out(tf.gather(due, first + tf.range(width), axis=-2))
        columns: list[tf.Tensor] = []
        for j in range(width):
            column = due[..., j]
            for m, earlier in enumerate(columns):
                column = column - earlier * pivot[j, m][..., None]
            column = column / pivot[j, j][..., None]
            columns.append(tf.where(rows >= first + j, column, tf.zeros_like(column)))
        new = tf.tile(tf.stack(columns, axis=-1), [1] * (A.shape.rank - 1) + [turns])
        rest = A - tf.add_n([column[..., :, None] * column[..., None, :] for column in columns])
        return k + 1, rest, tf.where(tf.equal(rows // width, k), new, L)

    start = tf.constant(0), A, tf.zeros_like(A)
    _, _, L = tf.while_loop(lambda k, *_: k < turns, turn, start, maximum_iterations=turns)
    failed = tf.reduce_any(~tf.math.is_finite(tf.linalg.diag_part(L)), axis=-1)[..., None, None]
    return tf.where(failed & lower, tf.constant(float("nan"), A.dtype), L)[..., :n, :n]


def _factor_written_out(P: Square) -> dict[tuple[int, int], tf.Tensor]:
    """The entries `[...]` on and below the diagonal of the factor of a small matrix, by row and column."""
    found: dict[tuple[int, int], tf.Tensor] = {}
    for j in range(P.shape[-1]):
        for i in range(j, P.shape[-1]):
            entry = P[..., i, j]
            for m in range(j):
                entry = entry - found[i, m] * found[j, m]
            found[i, j] = tf.sqrt(entry) if i == j else entry / found[j, j]
    return found
