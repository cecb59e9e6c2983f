"""Symmetric matrices: their symmetric part, finiteness, and an eigendecomposition that is right under XLA."""

import numpy as np
import tensorflow as tf

from bellman_tf._typing import Batch, Matrix, Scalar, Square, Vector
from bellman_tf.linalg import _shapes

_MAX_SWEEPS = 30  # quadratic convergence: 1 or 2 after a good start, about log2(n) + 5 from nothing


def symmetrize(A: Square) -> Square:
    """Symmetric part, exactly symmetric in floating point.

    Args:
        A: `[..., n, n]`.

    Returns:
        `[..., n, n]`, `(A + A^T) / 2`, dtype of `A` (float32 or float64).

    Raises:
        ValueError: if `A` is not square.

    Checked against: `verification/references/symmetric.py`.

    Example:
        >>> symmetrize(tf.constant([[1.0, 4.0], [0.0, 1.0]])).numpy().tolist()
        [[1.0, 2.0], [2.0, 1.0]]
    """
    (A,) = _shapes.as_matrices(A=A)
    _shapes.check_square("A", A)
    if A.shape[-1] == 1:
        return A  # besides being free: TensorFlow 2.21's grappler miscompiles A + A' of 1 x 1 inside a tf.cond
    return 0.5 * (A + tf.linalg.matrix_transpose(A))


def is_finite(A: Matrix) -> Batch:
    """Whether every entry of a matrix is finite, one boolean per matrix of the batch.

    Of a matrix and of its Cholesky factor it separates "input not finite" from "not positive definite".

    Args:
        A: `[..., n, m]`.

    Returns:
        `[...]`, bool.

    Raises:
        ValueError: if `A` has less than two axes or is not float32 or float64.

    Checked against: `verification/references/symmetric.py`.

    Example:
        >>> is_finite(tf.constant([[[1.0]], [[float("nan")]]])).numpy().tolist()
        [True, False]
    """
    (A,) = _shapes.as_matrices(A=A)
    return tf.reduce_all(tf.math.is_finite(A), axis=(-2, -1))


def padded(matrices: Square, size: int) -> Square:
    """`[[A, 0], [0, I]]`, of which the inverse is `[[A^{-1}, 0], [0, I]]`.

    Args:
        matrices: `[..., n, n]`, n static.
        size: of the result, n or more.

    Returns:
        `[..., size, size]`.

    Example:
        >>> padded(tf.constant([[[2.0]]]), 2).numpy().tolist()
        [[[2.0, 0.0], [0.0, 1.0]]]
    """
    missing = size - matrices.shape[-1]
    if not missing:
        return matrices
    ones = tf.constant(np.diag(np.arange(size) >= size - missing), matrices.dtype)
    return tf.pad(matrices, [[0, 0]] * (matrices.shape.rank - 2) + [[0, missing]] * 2) + ones


def eigh(A: Square) -> tuple[Vector, Square]:
    """Eigenvalues, ascending, and orthonormal eigenvectors of symmetric matrices, to full accuracy in every mode.

    Compiled by XLA for the CPU, `tf.linalg.eigh` stops at a residual of about `1e-7 ||A||` even in float64, though its
    eigenvectors `V` are orthonormal to rounding. So `V^T A V` is nearly diagonal, and Jacobi rotations, which never
    divide by a gap, finish the work for repeated and clustered eigenvalues too: each sweep squares the off-diagonal
    part, until it is at rounding level. Where the start was accurate already (eager, and `tf.function` without XLA)
    that takes no sweep, and the price is two matrix products.

    Args:
        A: `[..., n, n]`, symmetric, `n` static; the symmetric part is used.

    Returns:
        Eigenvalues `[..., n]` and eigenvectors `[..., n, n]`, one per column, dtype of `A` (float32 or float64).

    Raises:
        ValueError: if `A` is not square or `n` is not known while tracing.

    Numerics: `||A V - V diag(w)|| <= 100 n eps ||A||` and `||V^T V - I|| <= 100 n eps`. NaN for the matrices of the
        batch that are not finite (`tf.linalg.eigh` would raise). Not meant to be differentiated.
    Checked against: `verification/references/symmetric.py`.

    Example:
        >>> eigh(tf.constant([[2.0, 0.0], [0.0, 1.0]]))[0].numpy().tolist()
        [1.0, 2.0]
    """
    A = symmetrize(A)
    size = A.shape[-1]
    if size is None:
        raise _shapes.shape_error("A", "have a size that is known while tracing", A=A)
    if size == 1:
        return A[..., 0], A - A + 1.0  # NaN stays NaN
    finite = is_finite(A)
    # Norms and products below stay far from overflow. The scale is no power of two, but is undone in the eigenvalues.
    scale = tf.reduce_max(tf.abs(A), axis=(-2, -1))
    usable = finite & (scale > 0.0)
    scale = tf.where(usable, scale, tf.ones_like(scale))
    A = tf.where(usable[..., tf.newaxis, tf.newaxis], A, tf.zeros_like(A)) / scale[..., tf.newaxis, tf.newaxis]

    V = tf.linalg.eigh(A)[1]
    w, V = _jacobi(symmetrize(tf.matmul(V, tf.matmul(A, V), transpose_a=True)), V)

    order = tf.argsort(w, axis=-1, stable=True)
    batch_dims = A.shape.rank - 2
    w = tf.gather(w, order, axis=-1, batch_dims=batch_dims) * scale[..., tf.newaxis]
    V = tf.gather(V, order, axis=-1, batch_dims=batch_dims)
    nan = tf.constant(float("nan"), A.dtype)
    return tf.where(finite[..., tf.newaxis], w, nan), tf.where(finite[..., tf.newaxis, tf.newaxis], V, nan)


def _jacobi(T: Square, V: Square) -> tuple[Vector, Square]:
    """Rotates `T` to diagonal form, `V` along with it; `V T V^T` does not change.

    A sweep visits every pair of indices once, half of `n` disjoint pairs at a time (round-robin order), so each of its
    `n - 1` rounds is a handful of tensor operations.

    Args:
        T: `[..., n, n]`, symmetric, nearly diagonal.
        V: `[..., n, n]`.

    Returns:
        Diagonal `[..., n]` of the rotated `T`, and the rotated `V`.
    """
    size = T.shape[-1]
    odd = size % 2
    if odd:  # one more index, decoupled: it is never rotated
        rank = T.shape.rank
        T = tf.pad(T, [[0, 0]] * (rank - 2) + [[0, 1], [0, 1]])
        V = tf.pad(V, [[0, 0]] * (rank - 2) + [[0, 0], [0, 1]])
    half = (size + odd) // 2
    # Pairs are (i, half + i). The circle method keeps place 0 and moves the others by one place around the table.
    order = [0, half, *range(1, half - 1), *range(half + 1, 2 * half), half - 1] if half > 1 else [0, 1]
    eps = tf.experimental.numpy.finfo(T.dtype.as_numpy_dtype).eps
    tolerance = 10.0 * size * eps

    def unfinished(sweep: Scalar, T: Square, V: Square) -> Scalar:
        diagonal = tf.abs(tf.linalg.diag_part(T))
        off = tf.reduce_sum(tf.abs(T), axis=-1) - diagonal  # row sums bound the spectral norm
        largest = tf.reduce_max(diagonal, axis=-1, keepdims=True)
        return (sweep < _MAX_SWEEPS) & tf.reduce_any(off > tolerance * largest)

    def sweep_once(sweep: Scalar, T: Square, V: Square) -> tuple[Scalar, Square, Square]:
        _, T, V = tf.while_loop(
            lambda turn, T, V: turn < 2 * half - 1,
            lambda turn, T, V: (turn + 1, *_rotate_and_move(T, V, half, order)),
            (tf.constant(0), T, V),
        )
        return sweep + 1, T, V

    _, T, V = tf.while_loop(unfinished, sweep_once, (tf.constant(0), T, V))
    return tf.linalg.diag_part(T)[..., :size], V[..., :size]


def _rotate_and_move(T: Square, V: Square, half: int, order: list[int]) -> tuple[Square, Square]:
    # one round of _jacobi: zeroes the entries (i, half + i), then reorders the indices
    diagonal = tf.linalg.diag_part(T)
    t_pp, t_qq = diagonal[..., :half], diagonal[..., half:]
    t_pq = tf.linalg.diag_part(T[..., :half, half:])
    # tan of the smaller of the two angles that zero t_pq; where t_pq is zero already, no rotation
    still = tf.equal(t_pq, 0.0)
    cotangent = (t_qq - t_pp) / (2.0 * tf.where(still, tf.ones_like(t_pq), t_pq))
    sign = tf.where(cotangent < 0.0, -tf.ones_like(cotangent), tf.ones_like(cotangent))
    tangent = tf.where(still, tf.zeros_like(t_pq), sign / (tf.abs(cotangent) + tf.sqrt(1.0 + tf.square(cotangent))))
    cos = tf.math.rsqrt(1.0 + tf.square(tangent))[..., tf.newaxis, :]
    sin = tangent[..., tf.newaxis, :] * cos

    def columns(M: Matrix) -> Matrix:
        p, q = M[..., :half], M[..., half:]
        return tf.concat([cos * p - sin * q, sin * p + cos * q], axis=-1)

    T = columns(tf.linalg.matrix_transpose(columns(T)))
    return tf.gather(tf.gather(T, order, axis=-1), order, axis=-2), tf.gather(columns(V), order, axis=-1)
