"""Schur complements: eliminating one block of a symmetric positive definite system, and the game solved that way."""

from collections.abc import Sequence

import tensorflow as tf

from bellman_tf._typing import LowerBlocks, Matrix, Square
from bellman_tf.linalg import _shapes
from bellman_tf.linalg.products import matmul
from bellman_tf.linalg.solve import factor_spd, inverse_spd, solve_spd, whiten
from bellman_tf.linalg.symmetric import symmetrize


def schur_complement(A: Square, B: Matrix, D: Square) -> Square:
    """Curvature left for the first block once the second has been eliminated.

    For the symmetric matrix [[A, B], [B^T, D]] computes A - B D^{-1} B^T from one Cholesky factorisation of D; no
    inverse is formed.

    Args:
        A: `[..., m, m]`, symmetric.
        B: `[..., m, p]`.
        D: `[..., p, p]`, symmetric positive definite, already damped.

    Returns:
        `[..., m, m]`, exactly symmetric, dtype of the inputs (float32 or float64).

    Raises:
        ValueError: if the last two axes do not fit the shapes above.

    Numerics: NaN when D is not positive definite. Relative error grows like cond(D) * eps.
    Source: GTDDP Eq. 14, there written with a tilde on Q_uu.
    Checked against: `verification/references/schur.py`.

    Example:
        >>> schur_complement(*(tf.constant([[x]]) for x in (4., 2., 2.))).numpy().tolist()
        [[2.0]]
    """
    A, B, D = _checked(A, B, D)
    half = whiten(factor_spd(D), tf.linalg.matrix_transpose(B))  # [..., p, m]
    return symmetrize(A - matmul(half, half, transpose_a=True))


def block_inverse(A: Square, B: Matrix, D: Square) -> tuple[Square, Matrix, Square]:
    """Blocks of the inverse of the symmetric positive definite matrix [[A, B], [B^T, D]].

    With the Schur complement S = A - B D^{-1} B^T and the gain K = D^{-1} B^T the inverse is
    [[S^{-1}, -S^{-1} K^T], [-K S^{-1}, D^{-1} + K S^{-1} K^T]].

    Args:
        A: `[..., m, m]`, symmetric.
        B: `[..., m, p]`.
        D: `[..., p, p]`, symmetric positive definite, already damped.

    Returns:
        The blocks `[..., m, m]`, `[..., m, p]` and `[..., p, p]` in the places of A, B and D.

    Raises:
        ValueError: if the last two axes do not fit the shapes above.

    Numerics: NaN when D or the Schur complement is not positive definite. Relative error grows like the condition
        number of the whole matrix times eps.
    Source: GTDDP Eq. 51 and DGN Eq. 22, which hold for nonsingular blocks only.
    Checked against: `verification/references/schur.py`.

    Example:
        >>> [x.numpy().item() for x in block_inverse(*(tf.constant([[x]]) for x in (5., 4., 4.)))]
        [1.0, -1.0, 1.25]
    """
    A, B, D = _checked(A, B, D)
    factor = factor_spd(D)
    K = solve_spd(factor, tf.linalg.matrix_transpose(B))  # [..., p, m]
    half = whiten(factor, tf.linalg.matrix_transpose(B))  # [..., p, m]
    S = symmetrize(A - matmul(half, half, transpose_a=True))
    S_factor = factor_spd(S)
    K_whitened = whiten(S_factor, tf.linalg.matrix_transpose(K))  # [..., m, p]
    upper = -solve_spd(S_factor, tf.linalg.matrix_transpose(K))
    corner = symmetrize(inverse_spd(factor) + matmul(K_whitened, K_whitened, transpose_a=True))
    return inverse_spd(S_factor), upper, corner


def cooperative_solve(blocks: LowerBlocks, rhs: Sequence[Matrix]) -> list[Matrix]:
    """Joint minimiser of a game whose N players share one quadratic cost.

    Solves sum_m Q_nm x_m = r_n for all players n by block elimination: player by player, the curvature that is left
    for the next ones is a Schur complement, and the joint matrix is never assembled. For N = 2 this is the Schur form
    of GTDDP Eqs. 14-15 / DGN Eqs. 21-22, x_1 = Q̃_11^{-1} (r_1 - Q_12 Q_22^{-1} r_2) and its companion.

    Args:
        blocks: N rows of N blocks, `blocks[n][m]` is Q_nm, `[..., p_n, p_m]`, with Q_mn = Q_nm^T; the diagonal blocks
            are damped already and the joint matrix is positive definite. Only m <= n is read: the blocks above the
            diagonal may be `None`.
        rhs: N tensors `[..., p_n, k]`.

    Returns:
        List of N tensors `[..., p_n, k]`. Gains carry the minus sign of their caller.

    Raises:
        ValueError: if the numbers of blocks or their shapes do not fit.

    Numerics: NaN when the joint matrix is not positive definite. Backward stable, as Cholesky of the joint matrix.
    Source: GTDDP Eqs. 14-15, 38-40.
    Checked against: `verification/references/schur.py`.

    Example:
        >>> Q_11, Q_21, Q_22, r_1, r_2 = (tf.constant([[x]]) for x in (4., 2., 5., 6., 7.))
        >>> [x.numpy().item() for x in cooperative_solve([[Q_11, None], [Q_21, Q_22]], [r_1, r_2])]
        [1.0, 1.0]
    """
    blocks = _shapes.lower_blocks("blocks", blocks)
    rhs = _shapes.per_player("rhs", rhs, "blocks", [row[-1] for row in blocks])
    players = range(len(blocks))
    factors, lower, forward = [], {}, []
    for n in players:
        for m in range(n):  # L_nm = (Q_nm - sum_k L_nk L_mk^T) L_m^{-T}, kept transposed: [..., p_m, p_n]
            rest = tf.linalg.matrix_transpose(blocks[n][m])
            for k in range(m):
                rest -= matmul(lower[m, k], lower[n, k], transpose_a=True)
            lower[n, m] = whiten(factors[m], rest)
        left, reduced = blocks[n][n], rhs[n]
        for m in range(n):
            left -= matmul(lower[n, m], lower[n, m], transpose_a=True)
            reduced -= matmul(lower[n, m], forward[m], transpose_a=True)
        factors.append(factor_spd(left))
        forward.append(whiten(factors[n], reduced))
    solution: dict[int, Matrix] = {}
    for n in reversed(players):
        reduced = forward[n]
        for m in range(n + 1, len(blocks)):
            reduced -= matmul(lower[m, n], solution[m])
        solution[n] = tf.linalg.triangular_solve(factors[n].lower, reduced, adjoint=True)
    return [solution[n] for n in players]


def _checked(A: Square, B: Matrix, D: Square) -> tuple[Square, Matrix, Square]:
    A, B, D = _shapes.as_matrices(A=A, B=B, D=D)
    _shapes.check_square("A", A)
    _shapes.check_square("D", D)
    _shapes.check_rows("B", B, "A", A)
    _shapes.check_columns("B", B, "D", D)
    return A, B, D
