"""Blocks of N players on and below the diagonal: checks, assembly, inverse, whitened coordinates."""

from collections.abc import Sequence

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Blocks, LowerBlocks, Matrix, Size, Square, Tensors
from bellman_tf.linalg import _shapes
from bellman_tf.linalg.solve import Factor, factor_spd, inverse_spd

_transpose = tf.linalg.matrix_transpose


def unwhiten(factor: Factor, X: Matrix) -> Matrix:
    """Applies `L^{-T}` of a `Factor`, `[..., n, k]` to the same."""
    return tf.linalg.triangular_solve(factor.lower, X, adjoint=True)


def _size(M: Square) -> Size:
    """Rows of a square matrix, static where known."""
    return tf.shape(M)[-1] if M.shape[-1] is None else M.shape[-1]


def assemble(blocks: Blocks) -> Square:
    """The symmetric matrix of the blocks on and below the diagonal, `[..., sum n, sum n]`."""
    players = range(len(blocks))
    return tf.concat(
        [tf.concat([blocks[n][m] if m <= n else _transpose(blocks[m][n]) for m in players], axis=-1) for n in players],
        axis=-2,
    )


def inverse_blocks(blocks: Blocks) -> list[Tensors]:
    """All N x N blocks of the inverse of the joint matrix."""
    sizes = [_size(row[-1]) for row in blocks]
    inverse = inverse_spd(factor_spd(assemble(blocks)))
    return [tf.split(rows, sizes, axis=-1) for rows in tf.split(inverse, sizes, axis=-2)]


def checked_games(A_blocks: LowerBlocks, B_blocks: LowerBlocks) -> tuple[list[Tensors], list[Tensors]]:
    """Two games of N players as tensors, blocks m <= n; raises `ValueError` where they do not fit each other."""
    A_lower = _shapes.lower_blocks("A_blocks", A_blocks)
    B_lower = _shapes.lower_blocks("B_blocks", B_blocks)
    if len(A_lower) != len(B_lower):
        raise _checks.error("len(B_blocks)", f"be len(A_blocks) = {len(A_lower)}", len(B_lower))
    _shapes.as_matrices(**{"A_blocks[0][0]": A_lower[0][0], "B_blocks[0][0]": B_lower[0][0]})
    return A_lower, B_lower


def checked_gradients(gradients: Sequence[Matrix], A_lower: Blocks, B_lower: Blocks) -> list[Matrix]:
    """One gradient `[..., b_n, a_n]` per player as tensors; raises `ValueError` where they do not fit the games."""
    checked = _shapes.per_player("gradients", gradients, "B_blocks", [row[-1] for row in B_lower])
    for n, G in enumerate(checked):
        _shapes.check_columns(f"gradients[{n}]", G, f"A_blocks[{n}][{n}]", A_lower[n][n])
    return checked
