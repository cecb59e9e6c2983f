"""The joint Kronecker metric of `cooperative.py`, factored once and applied many times.

`factor_pair` (two players) and `factor_game` (more) are exact, `factor_block_form` is the papers' form; each has its
solve.

Source: claims OURS-6; GTDDP Thm. 3, DGN Prop. 5.
"""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Blocks, LowerBlocks, Matrix, Scalar, Square, Vector
from bellman_tf.linalg import _shapes
from bellman_tf.linalg._games import assemble, checked_games, unwhiten
from bellman_tf.linalg.products import matmul
from bellman_tf.linalg.solve import factor_spd, inverse_spd, whiten
from bellman_tf.linalg.symmetric import eigh

_transpose = tf.linalg.matrix_transpose

# Conjugate gradients of `solve_game` end at this relative residual in whitened coordinates, or after so many steps.
TOLERANCE = 1e-6
MOST_ITERATIONS = 50


class PairFactor(NamedTuple):
    """What `solve_pair` needs of two players, from canonical correlations (claims OURS-6).

    With L the Cholesky factors of the diagonal blocks, `C = L_1^{-1} A_12 L_2^{-T}` and `C C^T = U diag(s^2) U^T`. What
    is left of the first gradient once the second player has answered is, in canonical coordinates,

        Y = first_B^T X_1 first_A - cross_B^T X_2 cross_A,

    and `<X, H^{-1} X> = <X_2, (A_22 (x) B_22)^{-1} X_2> + <Y, weights * Y>`.

    Attributes:
        first_A: `L_1^{-T} U`, `[a_1, a_1]`.
        first_B: the same for B, `[b_1, b_1]`.
        cross_A: `L_2^{-T} C^T U`, `[a_2, a_1]`.
        cross_B: the same for B, `[b_2, b_1]`.
        second_A: `A_22^{-1}`.
        second_B: `B_22^{-1}`.
        weights: `1 / (1 - s_B^2 s_A^2)`, `[b_1, a_1]`.

    Example:
        >>> blocks = [[tf.constant([[4.0]]), None], [tf.constant([[2.0]]), tf.constant([[4.0]])]]
        >>> factor_pair(blocks, blocks).second_A.numpy().tolist()
        [[0.25]]
    """

    first_A: tf.Tensor
    first_B: tf.Tensor
    cross_A: tf.Tensor
    cross_B: tf.Tensor
    second_A: tf.Tensor
    second_B: tf.Tensor
    weights: tf.Tensor


def factor_pair(A_blocks: LowerBlocks, B_blocks: LowerBlocks) -> PairFactor:
    """Factors the joint matrix of two players for `solve_pair`.

    Args:
        A_blocks: 2 rows of 2 blocks `[a_n, a_m]`; only m <= n is read. Damped on the diagonal.
        B_blocks: 2 rows of 2 blocks `[b_n, b_m]`; only m <= n is read. Damped on the diagonal.

    Returns:
        `PairFactor`.

    Raises:
        ValueError: if the numbers of blocks or their shapes do not fit, or there are not two players.

    Numerics: NaN when a diagonal block is not positive definite. A product of squared correlations that rounding takes
        to one is taken back by that rounding, `4 n eps`, so that the weights stay positive.
    Checked against: `verification/references/kronecker.py`.

    Example:
        >>> blocks = [[tf.constant([[4.0]]), None], [tf.constant([[2.0]]), tf.constant([[4.0]])]]
        >>> [[round(w, 4) for w in row] for row in factor_pair(blocks, blocks).weights.numpy().tolist()]
        [[1.0667]]
    """
    A_blocks, B_blocks = checked_games(A_blocks, B_blocks)
    if len(A_blocks) != 2:
        raise _checks.error("len(A_blocks)", "be 2", len(A_blocks), "`factor_game` takes any number of players.")
    (first_A, cross_A, second_A, s_A), (first_B, cross_B, second_B, s_B) = map(_canonical, (A_blocks, B_blocks))
    size = s_A.shape[-1] + s_B.shape[-1]
    largest = 1.0 - 4.0 * size * tf.experimental.numpy.finfo(s_A.dtype.as_numpy_dtype).eps
    s = tf.minimum(s_B[..., :, tf.newaxis] * s_A[..., tf.newaxis, :], tf.constant(largest, s_A.dtype))
    return PairFactor(first_A, first_B, cross_A, cross_B, second_A, second_B, 1.0 / (1.0 - s))


def _canonical(blocks: Blocks) -> tuple[Square, Matrix, Square, Vector]:
    # L_1^{-T} U, L_2^{-T} C^T U, the inverse of the second block, squared canonical correlations
    (M_1,), (M_21, M_2) = blocks
    first, second = factor_spd(M_1), factor_spd(M_2)
    C = whiten(first, _transpose(whiten(second, M_21)))
    s, U = eigh(matmul(C, C, transpose_b=True))
    cross = unwhiten(second, matmul(C, U, transpose_a=True))
    return unwhiten(first, U), cross, inverse_spd(second), tf.maximum(s, tf.zeros((), s.dtype))


def solve_pair(factor: PairFactor, gradients: Sequence[Matrix]) -> list[Matrix]:
    """`H^{-1}` on the gradients of two players.

    Args:
        factor: `PairFactor`.
        gradients: two matrices `[..., b_n, a_n]`; leading axes are allowed.

    Returns:
        List of two matrices `[..., b_n, a_n]`.

    Numerics: relative error grows like the condition of the joint matrix plus that of the diagonal blocks, times eps.
    Source: claims OURS-6.
    Checked against: `verification/references/kronecker.py`.

    Example:
        >>> blocks = [[tf.constant([[4.0]]), None], [tf.constant([[2.0]]), tf.constant([[4.0]])]]
        >>> [x.numpy().round(4).item() for x in solve_pair(factor_pair(blocks, blocks), 2 * [tf.constant([[20.0]])])]
        [1.0, 1.0]
    """
    X_1, X_2 = gradients
    own = matmul(matmul(factor.first_B, X_1, transpose_a=True), factor.first_A)
    Y = factor.weights * (own - matmul(matmul(factor.cross_B, X_2, transpose_a=True), factor.cross_A))
    U_1 = matmul(matmul(factor.first_B, Y), factor.first_A, transpose_b=True)
    response = matmul(matmul(factor.cross_B, Y), factor.cross_A, transpose_b=True)
    return [U_1, matmul(matmul(factor.second_B, X_2), factor.second_A) - response]


class GameFactor(NamedTuple):
    """What `solve_game` needs of any number of players.

    Attributes:
        whiten_A: `L_n^{-T}` of the diagonal blocks, N matrices `[a_n, a_n]`.
        whiten_B: the same for B.
        cross_A: the whitened blocks `L_n^{-1} A_nm L_m^{-T}` for m < n, row after row.
        cross_B: the same for B.

    Example:
        >>> blocks = [[tf.constant([[4.0]]), None], [tf.constant([[2.0]]), tf.constant([[4.0]])]]
        >>> factor = factor_game(blocks, blocks)
        >>> len(factor.whiten_A), len(factor.cross_A)
        (2, 1)
    """

    whiten_A: list[Matrix]
    whiten_B: list[Matrix]
    cross_A: list[Matrix]
    cross_B: list[Matrix]


def factor_game(A_blocks: LowerBlocks, B_blocks: LowerBlocks) -> GameFactor:
    """Factors the diagonal of the joint matrix of N players and whitens the rest, for `solve_game`.

    Args:
        A_blocks: N rows of N blocks `[a_n, a_m]`; only m <= n is read. Damped on the diagonal.
        B_blocks: N rows of N blocks `[b_n, b_m]`; only m <= n is read. Damped on the diagonal.

    Returns:
        `GameFactor`.

    Raises:
        ValueError: if the numbers of blocks or their shapes do not fit.

    Numerics: NaN when a diagonal block is not positive definite.
    Checked against: `verification/references/kronecker.py`.

    Example:
        >>> blocks = [[tf.constant([[4.0]]), None], [tf.constant([[2.0]]), tf.constant([[4.0]])]]
        >>> factor_game(blocks, blocks).cross_A[0].numpy().tolist()
        [[0.5]]
    """
    A_blocks, B_blocks = checked_games(A_blocks, B_blocks)
    (whiten_A, cross_A), (whiten_B, cross_B) = map(_whitened, (A_blocks, B_blocks))
    return GameFactor(whiten_A, whiten_B, cross_A, cross_B)


def _whitened(blocks: Blocks) -> tuple[list[Square], list[Matrix]]:
    factors = [factor_spd(row[-1]) for row in blocks]
    eyes = [_shapes.identity_like(row[-1]) for row in blocks]
    roots = [_transpose(whiten(factor, eye)) for factor, eye in zip(factors, eyes, strict=True)]
    cross = [
        whiten(factors[n], _transpose(whiten(factors[m], _transpose(blocks[n][m]))))
        for n in range(len(blocks))
        for m in range(n)
    ]
    return roots, cross


def solve_game(
    factor: GameFactor,
    gradients: Sequence[Matrix],
    tolerance: float = TOLERANCE,
    most_iterations: int = MOST_ITERATIONS,
) -> list[Matrix]:
    """`H^{-1}` on the gradients of N players by conjugate gradients, with the players' own blocks as preconditioner.

    Whitened by its diagonal blocks the matrix is `I` plus the blocks `C_A (x) C_B`, and its condition number is that
    of what the players have in common: one iteration where they have nothing.

    Args:
        factor: `GameFactor`.
        gradients: N matrices `[..., b_n, a_n]`; the systems of the leading axes are solved side by side.
        tolerance: relative residual in whitened coordinates, for every system.
        most_iterations: at most so many.

    Returns:
        List of N matrices `[..., b_n, a_n]`.

    Numerics: relative error in the norm of H up to `tolerance` times the root of the whitened condition number.
    Checked against: `verification/references/kronecker.py`.

    Example:
        >>> blocks = [[tf.constant([[4.0]]), None], [tf.constant([[2.0]]), tf.constant([[4.0]])]]
        >>> [x.numpy().round(4).item() for x in solve_game(factor_game(blocks, blocks), 2 * [tf.constant([[20.0]])])]
        [1.0, 1.0]
    """
    players = range(len(gradients))
    sides = list(zip(factor.whiten_A, factor.whiten_B, strict=True))
    pairs = [(n, m) for n in players for m in range(n)]

    def multiply(X: list[Matrix]) -> list[Matrix]:
        terms = [[part] for part in X]
        for (n, m), C_A, C_B in zip(pairs, factor.cross_A, factor.cross_B, strict=True):
            terms[n].append(matmul(matmul(C_B, X[m]), C_A, transpose_b=True))
            terms[m].append(matmul(matmul(C_B, X[n], transpose_a=True), C_A))
        return [tf.add_n(parts) for parts in terms]

    def inner(X: list[Matrix], Y: list[Matrix]) -> Matrix:
        parts = [tf.reduce_sum(x * y, axis=(-2, -1), keepdims=True) for x, y in zip(X, Y, strict=True)]
        return tf.add_n(parts)  # [..., 1, 1]

    def ratio(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:  # a system that is solved has nothing left to divide
        return tf.where(y > 0.0, x / tf.where(y > 0.0, y, tf.ones_like(y)), tf.zeros_like(x))

    R = [matmul(matmul(B, X, transpose_a=True), A) for (A, B), X in zip(sides, gradients, strict=True)]
    start = inner(R, R)
    goal = tf.cast(tolerance, start.dtype) ** 2 * start

    def unfinished(turn: Scalar, X: list[Matrix], R: list[Matrix], P: list[Matrix], size: Matrix) -> Scalar:
        return (turn < most_iterations) & tf.reduce_any(size > goal)

    def iterate(
        turn: Scalar, X: list[Matrix], R: list[Matrix], P: list[Matrix], size: Matrix
    ) -> tuple[Scalar, list[Matrix], list[Matrix], list[Matrix], Matrix]:
        HP = multiply(P)
        alpha = ratio(size, inner(P, HP))
        X = [x + alpha * p for x, p in zip(X, P, strict=True)]
        R = [r - alpha * hp for r, hp in zip(R, HP, strict=True)]
        new = inner(R, R)
        beta = ratio(new, size)
        return turn + 1, X, R, [r + beta * p for r, p in zip(R, P, strict=True)], new

    zero = [tf.zeros_like(r) for r in R]
    _, X, _, _, _ = tf.while_loop(unfinished, iterate, (tf.constant(0), zero, R, R, start))
    return [matmul(matmul(B, x), A, transpose_b=True) for (A, B), x in zip(sides, X, strict=True)]


def factor_block_form(A_blocks: LowerBlocks, B_blocks: LowerBlocks) -> tuple[Square, Square]:
    """The inverses of the two joint factors, for `solve_block_form`.

    Args:
        A_blocks: N rows of N blocks `[a_n, a_m]`; only m <= n is read. The joint matrix is positive definite.
        B_blocks: N rows of N blocks `[b_n, b_m]`; only m <= n is read. The joint matrix is positive definite.

    Returns:
        `A^{-1}` and `B^{-1}`, each one matrix.

    Raises:
        ValueError: if the numbers of blocks or their shapes do not fit.

    Numerics: as `kronecker_block_form`.
    Checked against: `verification/references/kronecker.py`.

    Example:
        >>> blocks = [[tf.constant([[4.0]]), None], [tf.constant([[0.0]]), tf.constant([[1.0]])]]
        >>> factor_block_form(blocks, blocks)[0].numpy().tolist()
        [[0.25, 0.0], [0.0, 1.0]]
    """
    A_blocks, B_blocks = checked_games(A_blocks, B_blocks)
    return inverse_spd(factor_spd(assemble(A_blocks))), inverse_spd(factor_spd(assemble(B_blocks)))


def solve_block_form(A_inverse: Blocks, B_inverse: Blocks, gradients: Sequence[Matrix], sign: int = 1) -> list[Matrix]:
    """`kronecker_block_form` for inverses computed before, with either sign of the cross terms.

    Args:
        A_inverse: blocks `[A^{-1}]_nm` for every n and m.
        B_inverse: blocks `[B^{-1}]_nm` for every n and m.
        gradients: N matrices `[..., b_n, a_n]`; leading axes are allowed.
        sign: 1 as in GTDDP Eqs. 53-54 and DGN Eqs. 30-31, -1 as in DGN Eq. 15.

    Returns:
        List of N matrices, `U_n = sum_m (+-) [B^{-1}]_nm G_m [A^{-1}]_mn`.

    Checked against: `verification/references/kronecker.py`.

    Example:
        >>> blocks = [[tf.constant([[2.0]]), tf.constant([[-1.0]])], [tf.constant([[-1.0]]), tf.constant([[2.0]])]]
        >>> one = [tf.constant([[1.0]])] * 2
        >>> [[x.numpy().item() for x in solve_block_form(blocks, blocks, one, sign)] for sign in (1, -1)]
        [[5.0, 5.0], [3.0, 3.0]]
    """
    players = range(len(gradients))
    solved = []
    for n in players:
        own = matmul(matmul(B_inverse[n][n], gradients[n]), A_inverse[n][n])
        others = [matmul(matmul(B_inverse[n][m], gradients[m]), A_inverse[m][n]) for m in players if m != n]
        solved.append(tf.add_n([own, *others]) if sign > 0 else own - tf.add_n(others))
    return solved
