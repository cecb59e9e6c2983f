"""Kronecker products without forming them.

One order of `vec` everywhere: columns stacked, the first column on top. It makes this identity true,

    (A (x) B) vec(X) = vec(B X A^T),

so `A` acts on the columns' index (a layer's inputs) and `B` on the rows' index (its outputs); a weight gradient `X`
is `[..., d_out, d_in]`. Leading axes are batch axes and broadcast.
"""

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Batch, Matrix, Number, Size, Square, Vector
from bellman_tf.linalg import _shapes
from bellman_tf.linalg.products import matmul, trace
from bellman_tf.linalg.solve import Factor, factor_spd, solve_spd

_transpose = tf.linalg.matrix_transpose


def vec(X: Matrix) -> Vector:
    """Stacks the columns of a matrix.

    Args:
        X: `[..., m, n]`.

    Returns:
        `[..., m n]`.

    Raises:
        ValueError: if `X` has less than two axes.

    Checked against: `verification/references/kronecker.py`.

    Example:
        >>> vec(tf.constant([[1.0, 3.0], [2.0, 4.0]])).numpy().tolist()
        [1.0, 2.0, 3.0, 4.0]
    """
    (X,) = _shapes.as_matrices(X=X)
    rows, columns = _sizes(X)
    return tf.reshape(_transpose(X), tf.concat([tf.shape(X)[:-2], [rows * columns]], axis=0))


def unvec(v: Vector, rows: int, columns: int) -> Matrix:
    """Inverse of `vec`.

    Args:
        v: `[..., rows * columns]`.
        rows: number of rows, an integer.
        columns: number of columns, an integer.

    Returns:
        `[..., rows, columns]`.

    Raises:
        ValueError: if the length of `v` is not `rows * columns`.

    Checked against: `verification/references/kronecker.py`.

    Example:
        >>> unvec(tf.constant([1.0, 2.0, 3.0, 4.0]), 2, 2).numpy().tolist()
        [[1.0, 3.0], [2.0, 4.0]]
    """
    v = tf.convert_to_tensor(v)
    _checks.check_float_dtype("v", v)
    _checks.check_integer("rows", rows, least=1)
    _checks.check_integer("columns", columns, least=1)
    if v.shape.rank is None or v.shape.rank < 1 or v.shape[-1] not in {None, rows * columns}:
        raise _shapes.shape_error("v", f"have rows * columns = {rows * columns} entries in its last axis", v=v)
    return _transpose(tf.reshape(v, tf.concat([tf.shape(v)[:-1], [columns, rows]], axis=0)))


def kron(A: Matrix, B: Matrix) -> Matrix:
    """The Kronecker product as a matrix, for tests and small cases.

    Args:
        A: `[..., m, n]`.
        B: `[..., p, q]`.

    Returns:
        `[..., m p, n q]`, blocks `A_ij B`.

    Raises:
        ValueError: if the dtypes differ.

    Checked against: `verification/references/kronecker.py`.

    Example:
        >>> kron(tf.constant([[1.0, 2.0]]), tf.constant([[3.0], [4.0]])).numpy().tolist()
        [[3.0, 6.0], [4.0, 8.0]]
    """
    A, B = _shapes.as_matrices(A=A, B=B)
    product = A[..., :, tf.newaxis, :, tf.newaxis] * B[..., tf.newaxis, :, tf.newaxis, :]  # [..., m, p, n, q]
    (m, n), (p, q) = _sizes(A), _sizes(B)
    return tf.reshape(product, tf.concat([tf.shape(product)[:-4], [m * p, n * q]], axis=0))


def kron_multiply(A: Matrix, B: Matrix, X: Matrix) -> Matrix:
    """Multiplies by `A (x) B`: the matrix whose `vec` is `(A (x) B) vec(X)`.

    Args:
        A: `[..., m, n]`.
        B: `[..., p, q]`.
        X: `[..., q, n]`.

    Returns:
        `[..., p, m]`, `B X A^T`.

    Raises:
        ValueError: if the last two axes do not fit the shapes above.

    Checked against: `verification/references/kronecker.py`.

    Example:
        >>> kron_multiply(*(tf.constant([[x]]) for x in (2.0, 3.0, 5.0))).numpy().tolist()
        [[30.0]]
    """
    A, B, X = _shapes.as_matrices(A=A, B=B, X=X)
    _shapes.check_rows("X", X, "B^T", _transpose(B))
    _shapes.check_columns("X", X, "A^T", _transpose(A))
    return matmul(matmul(B, X), A, transpose_b=True)


def khatri_rao(A: Matrix, B: Matrix) -> Matrix:
    """Column-wise Kronecker product: column i is `a_i (x) b_i`.

    Args:
        A: `[..., m, k]`.
        B: `[..., p, k]`.

    Returns:
        `[..., m p, k]`. The per-sample gradients `vec(g_i x_i^T)` of a dense layer are its columns for `A = [x_i]`,
        `B = [g_i]`.

    Raises:
        ValueError: if the numbers of columns differ.

    Checked against: `verification/references/kronecker.py`.

    Example:
        >>> khatri_rao(tf.constant([[1.0, 2.0]]), tf.constant([[3.0, 4.0]])).numpy().tolist()
        [[3.0, 8.0]]
    """
    A, B = _shapes.as_matrices(A=A, B=B)
    _shapes.check_columns("B", B, "A^T", _transpose(A))
    product = A[..., :, tf.newaxis, :] * B[..., tf.newaxis, :, :]  # [..., m, p, k]
    (m, k), (p, _) = _sizes(A), _sizes(B)
    return tf.reshape(product, tf.concat([tf.shape(product)[:-3], [m * p, k]], axis=0))


def kron_solve(A: Square, B: Square, X: Matrix) -> Matrix:
    """Applies `(A (x) B)^{-1}` for symmetric positive definite factors, damped already.

    Args:
        A: `[..., n, n]`.
        B: `[..., m, m]`.
        X: `[..., m, n]`.

    Returns:
        `[..., m, n]`, `B^{-1} X A^{-1}`.

    Raises:
        ValueError: if the last two axes do not fit the shapes above.

    Numerics: NaN when A or B is not positive definite. Relative error grows like (cond(A) + cond(B)) * eps.
    Checked against: `verification/references/kronecker.py`.

    Example:
        >>> kron_solve(*(tf.constant([[x]]) for x in (4.0, 4.0, 32.0))).numpy().tolist()
        [[2.0]]
    """
    return kron_solve_factored(factor_spd(A), factor_spd(B), X)


def kron_solve_factored(factor_A: Factor, factor_B: Factor, X: Matrix) -> Matrix:
    """`kron_solve` for factors computed before, with or without damping.

    Args:
        factor_A: `Factor` of an `[..., n, n]` matrix.
        factor_B: `Factor` of an `[..., m, m]` matrix.
        X: `[..., m, n]`.

    Returns:
        `[..., m, n]`, `B^{-1} X A^{-1}`.

    Raises:
        ValueError: if the last two axes do not fit the shapes above.

    Numerics: as `kron_solve`.
    Checked against: `verification/references/kronecker.py`.

    Example:
        >>> four = factor_spd(tf.constant([[3.0]]), damping=1.0)
        >>> kron_solve_factored(four, four, tf.constant([[16.0]])).numpy().tolist()
        [[1.0]]
    """
    return _transpose(solve_spd(factor_A, _transpose(solve_spd(factor_B, X))))


def split_damping(A: Square, B: Square, damping: Number) -> tuple[Batch, Batch]:
    """Splits the damping of `A (x) B` over its factors by the ratio of their mean eigenvalues.

    With `pi = sqrt((tr A / n) / (tr B / m))` the factors get `pi sqrt(damping)` and `sqrt(damping) / pi`, the choice
    that minimises the trace-norm bound of what the split adds beyond `damping I`.

    Args:
        A: `[..., n, n]`, positive semidefinite.
        B: `[..., m, m]`, positive semidefinite.
        damping: number, or tensor `[...]`; not negative.

    Returns:
        `damping_A` and `damping_B`, `[...]`, whose product is `damping`.

    Raises:
        ValueError: if A or B is not square or a Python `damping` is negative or not finite.

    Numerics: where a trace is not positive there is no ratio and `pi` is 1. No product of traces is formed, so nothing
        overflows before the damping itself does.
    Source: Martens and Grosse 2015, Sec. 6.3.
    Checked against: `verification/references/kronecker.py`.

    Example:
        >>> [float(x) for x in split_damping(tf.constant([[8.0]]), tf.constant([[2.0]]), 0.25)]
        [1.0, 0.25]
    """
    A, B = _shapes.as_matrices(A=A, B=B)
    _shapes.check_square("A", A)
    _shapes.check_square("B", B)
    mean_A, mean_B = (trace(M) / tf.cast(tf.shape(M)[-1], M.dtype) for M in (A, B))
    return split_by_means(mean_A, mean_B, _shapes.damping_like(damping, A))


def split_by_means(mean_A: Batch, mean_B: Batch, damping: Batch) -> tuple[Batch, Batch]:
    """`split_damping` of factors of which the mean eigenvalues are known.

    Args:
        mean_A: `[...]`.
        mean_B: `[...]`.
        damping: `[...]`, not negative.

    Returns:
        `damping_A` and `damping_B`, `[...]`.
    """
    root, one = tf.sqrt(damping), tf.ones((), mean_A.dtype)
    known = (mean_A > 0.0) & (mean_B > 0.0)
    pi = tf.sqrt(tf.where(known, mean_A, one)) / tf.sqrt(tf.where(known, mean_B, one))
    return pi * root, root / pi


def kfac_solve(A: Square, B: Square, damping: Number, X: Matrix) -> Matrix:
    """K-FAC's damped solve, `(A + damping_A I)^{-1}` on the inputs' side and the same for `B` on the outputs'.

    Args:
        A: `[..., n, n]`, second moment of the inputs, positive semidefinite.
        B: `[..., m, m]`, second moment of the outputs' derivatives, positive semidefinite.
        damping: number, or tensor `[...]`, split by `split_damping`.
        X: `[..., m, n]`, the weights' gradient.

    Returns:
        `[..., m, n]`.

    Raises:
        ValueError: if the last two axes do not fit the shapes above.

    Numerics: as `kron_solve`, with the condition of the damped factors.
    Source: Martens and Grosse 2015, Sec. 6.3.
    Checked against: `verification/references/kronecker.py`.

    Example:
        >>> kfac_solve(*(tf.constant([[x]]) for x in (3.0, 3.0)), 1.0, tf.constant([[16.0]])).numpy().tolist()
        [[1.0]]
    """
    damping_A, damping_B = split_damping(A, B, damping)
    return kron_solve_factored(factor_spd(A, damping_A), factor_spd(B, damping_B), X)


def ekfac_solve(basis_A: Square, basis_B: Square, scalings: Matrix, damping: Number, X: Matrix) -> Matrix:
    """EKFAC's damped solve: diagonal in the Kronecker eigenbasis, so the damping is exact.

    Args:
        basis_A: `[..., n, n]`, orthonormal columns (the eigenvectors of `A`).
        basis_B: `[..., m, m]`, orthonormal columns.
        scalings: `[..., m, n]`, second moments in that basis; the eigenvalue products give K-FAC back.
        damping: number, or tensor `[...]`, added to every scaling.
        X: `[..., m, n]`, the weights' gradient.

    Returns:
        `[..., m, n]`.

    Raises:
        ValueError: if the last two axes do not fit the shapes above.

    Numerics: infinite or NaN where a damped scaling is zero.
    Source: George et al. 2018, Sec. 3.
    Checked against: `verification/references/kronecker.py`.

    Example:
        >>> one = tf.constant([[1.0]])
        >>> ekfac_solve(one, one, 3.0 * one, 1.0, 8.0 * one).numpy().tolist()
        [[2.0]]
    """
    basis_A, basis_B, scalings, X = _shapes.as_matrices(basis_A=basis_A, basis_B=basis_B, scalings=scalings, X=X)
    for name, value in (("scalings", scalings), ("X", X)):
        _shapes.check_rows(name, value, "basis_B", basis_B)
        _shapes.check_columns(name, value, "basis_A", basis_A)
    damped = scalings + _shapes.damping_like(damping, X)[..., tf.newaxis, tf.newaxis]
    coordinates = kron_multiply(_transpose(basis_A), _transpose(basis_B), X)
    return kron_multiply(basis_A, basis_B, coordinates / damped)


def _sizes(M: Matrix) -> list[Size]:
    # static where known, so that results keep their static shapes
    dynamic = tf.shape(M)
    return [dynamic[axis] if M.shape[axis] is None else M.shape[axis] for axis in (-2, -1)]
