"""Damped positive-definite solves: factor once, apply many times.

A `Factor` holds the Cholesky factor `L` of `A + damping I = L L^T`; `solve_spd`, `whiten` and `inverse_spd` apply it.
Leading axes are batch axes and broadcast. Nothing here raises on data: `tf.linalg.cholesky` of an indefinite or
not finite matrix is NaN, every use of that factor is NaN, and `is_finite` of the input and of `factor.lower` separates
the two causes. Eager, `tf.function` and XLA agree on this.
"""

from typing import NamedTuple

import tensorflow as tf

from bellman_tf._typing import Batch, Matrix, Number, Square
from bellman_tf.linalg import _shapes
from bellman_tf.linalg.columns import LARGEST, compiled_by_xla, factor_in_columns
from bellman_tf.linalg.constants import constant, expand_dims, number
from bellman_tf.linalg.products import diag, trace
from bellman_tf.linalg.symmetric import symmetrize


class Factor(NamedTuple):
    """Cholesky factor `L` of a positive definite matrix `L L^T`.

    Attributes:
        lower: `[..., n, n]`, lower triangular with positive diagonal; NaN on and below the diagonal where the matrix
            was not positive definite.

    Example:
        >>> factor_spd(tf.constant([[4.0]])).lower.numpy().tolist()
        [[2.0]]
    """

    lower: tf.Tensor


def factor_spd(A: Square, damping: Number = 0.0) -> Factor:
    """Cholesky factor of `A + damping I`.

    Args:
        A: `[..., n, n]`, symmetric; only the lower triangle is read.
        damping: number, or tensor of shape `[...]` that broadcasts with the batch axes of `A`; not negative.

    Returns:
        `Factor`, dtype of `A` (float32 or float64).

    Raises:
        ValueError: if `A` is not square or a Python `damping` is negative or not finite.

    Numerics: NaN for the matrices of the batch that are not positive definite. Solves have a residual of about
        `n eps ||A|| ||X||`.
    Checked against: `verification/references/solve.py`.

    Example:
        >>> factor_spd(tf.constant([[3.0]]), damping=1.0).lower.numpy().tolist()
        [[2.0]]
    """
    (A,) = _shapes.as_matrices(A=A)
    _shapes.check_square("A", A)
    return Factor(_cholesky(A + _on_diagonal(_shapes.damping_like(damping, A), A)))


def factor_gram(A: Square, scale: Batch | None = None) -> Factor:
    """Cholesky factor of `I + A` for a positive semidefinite `A` that is known only to rounding.

    A Gram matrix computed as `X^T X`, with up to `2 n` rows or sums in blocks, is off by at most `n eps tr(A)` in norm,
    so a large one may have eigenvalues below -1. Cholesky adds `(n + 1) (eps / 2)` times the trace it sees (Higham,
    Accuracy and Stability of Numerical Algorithms, Thm. 10.3). With the shift

        tau = 4 n eps tr(A)   where that is above 0.1,   else 0

    both together are at most `2 n eps tr(A) + n^2 eps (1 + tau)`, so that for `n^2 eps < 0.5` (`n < 2000` in float32)
    the smallest eigenvalue is at least `1 - 0.05 - 0.5` without, and `1 + tau - tau / 2 - (1 + tau) / 2` with the
    shift, and no pivot fails. The shift has the size of the error that `A` carries already; nothing is clamped.

    Args:
        A: `[..., n, n]`, symmetric, positive semidefinite up to an error of norm `n eps tr(A)`.
        scale: `[...]`, used instead of `tr(A)` where the rounding of `A` was larger: for `A = L^T G L` formed from a
            stored `G` it is at most `sum_p (sum_i |L_ip| sqrt(G_ii))^2`, the same sum without cancellation.

    Returns:
        `Factor` of `I + A + tau I`. For `n = 1`, where nothing can fail, `sqrt(1 + A)`.

    Raises:
        ValueError: if `A` is not square.

    Numerics: finite for every finite `A` as described.
    Checked against: `verification/references/solve.py`.

    Example:
        >>> factor_gram(tf.constant([[3.0]])).lower.numpy().tolist()
        [[2.0]]
    """
    (A,) = _shapes.as_matrices(A=A)
    _shapes.check_square("A", A)
    if A.shape[-1] == 1 and scale is None:
        return Factor(tf.sqrt(1.0 + A))
    scale = trace(A) if scale is None else tf.cast(scale, A.dtype)
    size = A.shape[-1] if A.shape[-1] is not None else tf.cast(tf.shape(A)[-1], A.dtype)
    eps = float(tf.experimental.numpy.finfo(A.dtype.as_numpy_dtype).eps)
    shift = number(4.0 * size * eps, A.dtype) * scale  # [...]
    shift = tf.where(shift > number(0.1, A.dtype), shift, number(0.0, A.dtype))
    return Factor(_cholesky(A + _on_diagonal(number(1.0, A.dtype) + shift, A)))


def whiten(factor: Factor, rhs: Matrix) -> Matrix:
    """Applies `L^{-1}`: coordinates in which the factored matrix is the identity.

    Args:
        factor: `Factor` of an `[..., n, n]` matrix.
        rhs: `[..., n, k]`.

    Returns:
        `[..., n, k]`; its columns' inner products are `rhs^T (L L^T)^{-1} rhs`.

    Raises:
        ValueError: if the rows of `rhs` do not fit or the dtypes differ.

    Numerics: NaN where the factor is.
    Checked against: `verification/references/solve.py`.

    Example:
        >>> whiten(Factor(tf.constant([[2.0]])), tf.constant([[4.0]])).numpy().tolist()
        [[2.0]]
    """
    lower, rhs = _checked(factor, rhs)
    return tf.linalg.triangular_solve(lower, rhs)


def solve_spd(factor: Factor, rhs: Matrix) -> Matrix:
    """Applies `(L L^T)^{-1}`, the inverse of the factored matrix.

    Args:
        factor: `Factor` of an `[..., n, n]` matrix.
        rhs: `[..., n, k]`.

    Returns:
        `[..., n, k]`.

    Raises:
        ValueError: if the rows of `rhs` do not fit or the dtypes differ.

    Numerics: NaN where the factor is. Backward stable: the residual is about `n eps ||A|| ||X||` at any condition.
    Checked against: `verification/references/solve.py`.

    Example:
        >>> solve_spd(factor_spd(tf.constant([[4.0]])), tf.constant([[8.0]])).numpy().tolist()
        [[2.0]]
    """
    lower, rhs = _checked(factor, rhs)
    return tf.linalg.triangular_solve(lower, tf.linalg.triangular_solve(lower, rhs), adjoint=True)


def inverse_spd(factor: Factor) -> Square:
    """Inverse of the factored matrix, exactly symmetric.

    Args:
        factor: `Factor` of an `[..., n, n]` matrix.

    Returns:
        `[..., n, n]`, the product `L^{-T} L^{-1}`.

    Raises:
        ValueError: if the factor is not square.

    Numerics: NaN where the factor is. Relative error grows like `cond(A) eps`; prefer `solve_spd`.
    Checked against: `verification/references/solve.py`.

    Example:
        >>> inverse_spd(factor_spd(tf.constant([[4.0]]))).numpy().tolist()
        [[0.25]]
    """
    (lower,) = _shapes.as_matrices(factor=factor.lower)
    _shapes.check_square("factor", lower)
    whitened = tf.linalg.triangular_solve(lower, _shapes.identity_like(lower))
    return symmetrize(tf.matmul(whitened, whitened, transpose_a=True))


def _on_diagonal(numbers: Batch, A: Square) -> Square:
    """Multiples `[...]` of the identity of the size of `A`."""
    if numbers.shape.rank == 0 and A.shape[-1] is not None:
        return diag(tf.fill(constant([A.shape[-1]]), numbers))
    return expand_dims(expand_dims(numbers, -1), -1) * _shapes.identity_like(A)


def _cholesky(A: Square) -> Square:
    if compiled_by_xla() and A.shape[-1] is not None and A.shape[-1] <= LARGEST:
        return factor_in_columns(A)
    # an eager failure leaves other people's memory above the diagonal
    return tf.linalg.band_part(tf.linalg.cholesky(A), constant(-1), constant(0))


def _checked(factor: Factor, rhs: Matrix) -> tuple[Square, Matrix]:
    lower, rhs = _shapes.as_matrices(factor=factor.lower, rhs=rhs)
    _shapes.check_square("factor", lower)
    _shapes.check_rows("rhs", rhs, "factor", lower)
    return lower, rhs
