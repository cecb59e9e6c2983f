"""Kronecker products without forming them.

One order of `vec` everywhere: columns stacked, the first column on top. It makes this identity true,

    (A (x) B) vec(X) = vec(B X A^T),

so `A` acts on the columns' index (a layer's inputs) and `B` on the rows' index (its outputs); a weight gradient `X`
is `[..., d_out, d_in]`. Leading axes are batch axes and broadcast.
"""

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf.linalg import _shapes
from bellman_tf.linalg.products import matmul
from bellman_tf.linalg.solve import factor_spd, inverse_spd, solve_spd, whiten
from bellman_tf.linalg.symmetric import eigh

_transpose = tf.linalg.matrix_transpose


def vec(X):
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


def unvec(v, rows, columns):
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


def kron(A, B):
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


def kron_multiply(A, B, X):
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


def khatri_rao(A, B):
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


def block_khatri_rao(A_blocks, B_blocks):
    """The joint matrix of N players with blocks `A_nm (x) B_nm`, for tests and small cases.

    Args:
        A_blocks: N rows of N blocks `[..., a_n, a_m]` of a symmetric matrix; only m <= n is read.
        B_blocks: N rows of N blocks `[..., b_n, b_m]` of a symmetric matrix; only m <= n is read.

    Returns:
        `[..., sum a_n b_n, sum a_n b_n]`, positive semidefinite if both joint factors are.

    Raises:
        ValueError: if the numbers of blocks or their shapes do not fit.

    Source: GTDDP Sec. 3.3 and DGN Prop. 5, with the sign + of the Gauss-Newton cross block.
    Checked against: `verification/references/kronecker.py`.

    Example:
        >>> blocks = [[tf.constant([[2.0]]), None], [tf.constant([[1.0]]), tf.constant([[3.0]])]]
        >>> block_khatri_rao(blocks, blocks).numpy().tolist()
        [[4.0, 1.0], [1.0, 9.0]]
    """
    A_blocks, B_blocks = _checked_games(A_blocks, B_blocks)
    rows = zip(A_blocks, B_blocks, strict=True)
    return _assemble([[kron(A, B) for A, B in zip(A_row, B_row, strict=True)] for A_row, B_row in rows])


def kron_solve(A, B, X):
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


def kron_solve_factored(factor_A, factor_B, X):
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


def split_damping(A, B, damping):
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
    root = tf.sqrt(_shapes.damping_like(damping, A))
    mean_A, mean_B = (tf.reduce_mean(tf.linalg.diag_part(M), axis=-1) for M in (A, B))
    known = (mean_A > 0.0) & (mean_B > 0.0)
    one = tf.ones((), A.dtype)
    pi = tf.sqrt(tf.where(known, mean_A, one)) / tf.sqrt(tf.where(known, mean_B, one))
    return pi * root, root / pi


def kfac_solve(A, B, damping, X):
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


def ekfac_solve(basis_A, basis_B, scalings, damping, X):
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


def kronecker_cooperative_solve(A_blocks, B_blocks, gradients):
    """Joint solve of players whose metric has blocks `A_nm (x) B_nm`: exact for one and two, bounded for more.

    Two players, at the cost of K-FAC: in coordinates that whiten the diagonal blocks, with `C_A` and `C_B` the whitened
    cross blocks, eliminating the second player leaves

        X_1 - (C_B C_B^T) X_1 (C_A C_A^T) = R_1 - C_B R_2 C_A^T,        X_2 = R_2 - C_B^T X_1 C_A,

    diagonal in the eigenbases of `C_B C_B^T` and `C_A C_A^T`, whose eigenvalues are the squared canonical correlations.
    Squaring costs no digit here: only `1 - s_a s_b` is divided by, and an absolute error eps in `s` is all that the
    conditioning `1 / (1 - s_a s_b)` of the problem sees anyway. No singular value decomposition, which XLA computes to
    half the digits, is needed.

    Three players and more: NOT the joint solve but `kronecker_block_form`, which see.

    Args:
        A_blocks: N rows of N blocks `[..., a_n, a_m]`, inputs' moments; only m <= n is read. Damped on the diagonal.
        B_blocks: N rows of N blocks `[..., b_n, b_m]`, outputs' moments; only m <= n is read. Damped on the diagonal.
        gradients: N matrices `[..., b_n, a_n]`.

    Returns:
        List of N matrices `[..., b_n, a_n]`, to be subtracted from the weights.

    Raises:
        ValueError: if the numbers of blocks or their shapes do not fit.

    Numerics: NaN when a diagonal block is not positive definite. Relative error grows like the condition of the
        whitened joint matrix plus that of the diagonal blocks, times eps.
    Source: GTDDP Thm. 3 and DGN Prop. 5, replaced by the exact solve of the matrix they approximate.
    Checked against: `verification/references/kronecker.py`.

    Example:
        >>> blocks = [[tf.constant([[4.0]]), None], [tf.constant([[2.0]]), tf.constant([[4.0]])]]
        >>> [x.numpy().item() for x in kronecker_cooperative_solve(blocks, blocks, 2 * [tf.constant([[20.0]])])]
        [1.0, 1.0]
    """
    games = _checked_games(A_blocks, B_blocks, gradients)
    if len(gradients) == 1:
        ((A,),), ((B,),), (X,) = games
        return [kron_solve(A, B, X)]
    if len(gradients) > 2:
        return kronecker_block_form(A_blocks, B_blocks, gradients)
    ((A_1,), (A_21, A_2)), ((B_1,), (B_21, B_2)), (G_1, G_2) = games
    A_1, A_2, B_1, B_2 = (factor_spd(M) for M in (A_1, A_2, B_1, B_2))
    C_A = whiten(A_1, _transpose(whiten(A_2, A_21)))  # [..., a_1, a_2]
    C_B = whiten(B_1, _transpose(whiten(B_2, B_21)))  # [..., b_1, b_2]
    R_1, R_2 = _kron_whiten(A_1, B_1, G_1), _kron_whiten(A_2, B_2, G_2)
    s_A, U_A = eigh(matmul(C_A, C_A, transpose_b=True))
    s_B, U_B = eigh(matmul(C_B, C_B, transpose_b=True))
    left = kron_multiply(_transpose(U_A), _transpose(U_B), R_1 - kron_multiply(C_A, C_B, R_2))
    left /= 1.0 - s_B[..., :, tf.newaxis] * s_A[..., tf.newaxis, :]
    X_1 = kron_multiply(U_A, U_B, left)
    X_2 = R_2 - kron_multiply(_transpose(C_A), _transpose(C_B), X_1)
    return [_kron_unwhiten(A_1, B_1, X_1), _kron_unwhiten(A_2, B_2, X_2)]


def kronecker_block_form(A_blocks, B_blocks, gradients):
    """The papers' cooperative K-FAC step, `U_n = sum_m [B^{-1}]_nm G_m [A^{-1}]_mn`: an approximation.

    Applies P, the matrix with blocks `[A^{-1}]_nm (x) [B^{-1}]_nm`, a principal part of `(A (x) B)^{-1}`. It is not the
    inverse of H, the matrix with blocks `A_nm (x) B_nm`, but bounds it in the Loewner order, `H^{-1} <= P`, and so
    overestimates the step, the more the players have in common. Equality, for instance, without cross blocks.

    Args:
        A_blocks: N rows of N blocks `[..., a_n, a_m]`; only m <= n is read. The joint matrix is positive definite; all
            blocks have the same batch axes.
        B_blocks: N rows of N blocks `[..., b_n, b_m]`; only m <= n is read. The joint matrix is positive definite.
        gradients: N matrices `[..., b_n, a_n]`.

    Returns:
        List of N matrices `[..., b_n, a_n]`.

    Raises:
        ValueError: if the numbers of blocks or their shapes do not fit.

    Numerics: NaN when a joint factor is not positive definite. Relative error grows like their condition times eps.
    Source: GTDDP Thm. 3 and Eqs. 52-54; DGN Prop. 5 and Eqs. 29-31.
    Checked against: `verification/references/kronecker.py`.

    Example:
        >>> blocks = [[tf.constant([[4.0]]), None], [tf.constant([[0.0]]), tf.constant([[1.0]])]]
        >>> [x.numpy().item() for x in kronecker_block_form(blocks, blocks, 2 * [tf.constant([[16.0]])])]
        [1.0, 16.0]
    """
    A_blocks, B_blocks, gradients = _checked_games(A_blocks, B_blocks, gradients)
    A_inverse, B_inverse = _inverse_blocks(A_blocks), _inverse_blocks(B_blocks)
    players = range(len(gradients))
    return [tf.add_n([kron_multiply(A_inverse[n][m], B_inverse[n][m], gradients[m]) for m in players]) for n in players]


def _sizes(M):
    # static where known, so that results keep their static shapes
    dynamic = tf.shape(M)
    return [dynamic[axis] if M.shape[axis] is None else M.shape[axis] for axis in (-2, -1)]


def _kron_whiten(factor_A, factor_B, X):
    # (L_A (x) L_B)^{-1} on X
    return _transpose(whiten(factor_A, _transpose(whiten(factor_B, X))))


def _kron_unwhiten(factor_A, factor_B, X):
    # (L_A (x) L_B)^{-T} on X
    half = tf.linalg.triangular_solve(factor_B.lower, X, adjoint=True)
    return _transpose(tf.linalg.triangular_solve(factor_A.lower, _transpose(half), adjoint=True))


def _assemble(blocks):
    # The symmetric matrix of the blocks on and below the diagonal
    players = range(len(blocks))
    return tf.concat(
        [tf.concat([blocks[n][m] if m <= n else _transpose(blocks[m][n]) for m in players], axis=-1) for n in players],
        axis=-2,
    )


def _inverse_blocks(blocks):
    # All N x N blocks of the inverse of the joint matrix
    sizes = [_sizes(row[-1])[0] for row in blocks]
    inverse = inverse_spd(factor_spd(_assemble(blocks)))
    return [tf.split(rows, sizes, axis=-1) for rows in tf.split(inverse, sizes, axis=-2)]


def _checked_games(A_blocks, B_blocks, gradients=None):
    A_blocks = _shapes.lower_blocks("A_blocks", A_blocks)
    B_blocks = _shapes.lower_blocks("B_blocks", B_blocks)
    if len(A_blocks) != len(B_blocks):
        raise _checks.error("len(B_blocks)", f"be len(A_blocks) = {len(A_blocks)}", len(B_blocks))
    _shapes.as_matrices(**{"A_blocks[0][0]": A_blocks[0][0], "B_blocks[0][0]": B_blocks[0][0]})
    if gradients is None:
        return A_blocks, B_blocks
    gradients = _shapes.per_player("gradients", gradients, "B_blocks", [row[-1] for row in B_blocks])
    for n, G in enumerate(gradients):
        _shapes.check_columns(f"gradients[{n}]", G, f"A_blocks[{n}][{n}]", A_blocks[n][n])
    return A_blocks, B_blocks, gradients
