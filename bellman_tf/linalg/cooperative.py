"""Players whose joint metric has Kronecker blocks: the matrix H with blocks `A_nm (x) B_nm`, solved at once.

`vec` and the order of the factors are those of `kronecker.py`: player n's gradient is `X_n`, `[..., b_n, a_n]`, and
row n of H gives `sum_m B_nm X_m A_mn`. To factor once and solve often: `cooperative_factors.py`.

Source: claims OURS-6; GTDDP Thm. 3, DGN Prop. 5.
"""

from collections.abc import Sequence

import tensorflow as tf

from bellman_tf._typing import LowerBlocks, Matrix, Square
from bellman_tf.linalg._games import assemble, checked_games, checked_gradients, inverse_blocks
from bellman_tf.linalg.cooperative_factors import factor_pair, solve_pair
from bellman_tf.linalg.kronecker import kron, kron_multiply, kron_solve


def block_khatri_rao(A_blocks: LowerBlocks, B_blocks: LowerBlocks) -> Square:
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
    rows = zip(*checked_games(A_blocks, B_blocks), strict=True)
    return assemble([[kron(A, B) for A, B in zip(A_row, B_row, strict=True)] for A_row, B_row in rows])


def kronecker_cooperative_solve(
    A_blocks: LowerBlocks, B_blocks: LowerBlocks, gradients: Sequence[Matrix]
) -> list[Matrix]:
    """Joint solve of players whose metric has blocks `A_nm (x) B_nm`: exact for one and two, bounded for more.

    Two players, at the cost of K-FAC: in coordinates that whiten the diagonal blocks, with `C_A` and `C_B` the whitened
    cross blocks, eliminating the second player leaves

        X_1 - (C_B C_B^T) X_1 (C_A C_A^T) = R_1 - C_B R_2 C_A^T,        X_2 = R_2 - C_B^T X_1 C_A,

    diagonal in the eigenbases of `C_B C_B^T` and `C_A C_A^T`, whose eigenvalues are the squared canonical correlations.
    Squaring costs no digit here: only `1 - s_a s_b` is divided by, and an absolute error eps in `s` is all that the
    conditioning `1 / (1 - s_a s_b)` of the problem sees anyway. No singular value decomposition, which XLA computes to
    half the digits, is needed. The work is `factor_pair`'s and `solve_pair`'s.

    Three players and more: NOT the joint solve but `kronecker_block_form`, which see.

    Args:
        A_blocks: N rows of N blocks `[..., a_n, a_m]`, inputs' moments; only m <= n is read. Damped on the diagonal.
        B_blocks: N rows of N blocks `[..., b_n, b_m]`, outputs' moments; only m <= n is read. Damped on the diagonal.
        gradients: N matrices `[..., b_n, a_n]`.

    Returns:
        List of N matrices `[..., b_n, a_n]`, to be subtracted from the weights.

    Raises:
        ValueError: if the numbers of blocks or their shapes do not fit.

    Numerics: NaN when a diagonal block is not positive definite; finite and a descent otherwise, also where rounding
        takes a squared correlation to one. Relative error grows like the condition of the whitened joint matrix plus
        that of the diagonal blocks, times eps.
    Source: GTDDP Thm. 3 and DGN Prop. 5, replaced by the exact solve of the matrix they approximate.
    Checked against: `verification/references/kronecker.py`.

    Example:
        >>> blocks = [[tf.constant([[4.0]]), None], [tf.constant([[2.0]]), tf.constant([[4.0]])]]
        >>> [x.numpy().item() for x in kronecker_cooperative_solve(blocks, blocks, 2 * [tf.constant([[20.0]])])]
        [1.0, 1.0]
    """
    A_lower, B_lower = checked_games(A_blocks, B_blocks)
    checked = checked_gradients(gradients, A_lower, B_lower)
    if len(gradients) == 1:
        ((A,),), ((B,),), (X,) = A_lower, B_lower, checked
        return [kron_solve(A, B, X)]
    if len(gradients) > 2:
        return kronecker_block_form(A_blocks, B_blocks, gradients)
    return solve_pair(factor_pair(A_blocks, B_blocks), checked)


def kronecker_block_form(A_blocks: LowerBlocks, B_blocks: LowerBlocks, gradients: Sequence[Matrix]) -> list[Matrix]:
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
    A_lower, B_lower = checked_games(A_blocks, B_blocks)
    G = checked_gradients(gradients, A_lower, B_lower)
    A_inverse, B_inverse = inverse_blocks(A_lower), inverse_blocks(B_lower)
    players = range(len(G))
    return [tf.add_n([kron_multiply(A_inverse[n][m], B_inverse[n][m], G[m]) for m in players]) for n in players]
