"""Blocks of N players on and below the diagonal: checks, assembly, inverse, whitened coordinates."""

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf.linalg import _shapes
from bellman_tf.linalg.solve import factor_spd, inverse_spd, whiten

_transpose = tf.linalg.matrix_transpose


def unwhiten(factor, X):
    """Applies `L^{-T}` of a `Factor`, `[..., n, k]` to the same."""
    return tf.linalg.triangular_solve(factor.lower, X, adjoint=True)


def _size(M):
    """Rows of a square matrix, static where known."""
    return tf.shape(M)[-1] if M.shape[-1] is None else M.shape[-1]


def kron_whiten(factor_A, factor_B, X):
    """Applies `(L_A (x) L_B)^{-1}` to X, `[..., b, a]` to the same."""
    return _transpose(whiten(factor_A, _transpose(whiten(factor_B, X))))


def kron_unwhiten(factor_A, factor_B, X):
    """Applies `(L_A (x) L_B)^{-T}` to X, `[..., b, a]` to the same."""
    return _transpose(unwhiten(factor_A, _transpose(unwhiten(factor_B, X))))


def assemble(blocks):
    """The symmetric matrix of the blocks on and below the diagonal, `[..., sum n, sum n]`."""
    players = range(len(blocks))
    return tf.concat(
        [tf.concat([blocks[n][m] if m <= n else _transpose(blocks[m][n]) for m in players], axis=-1) for n in players],
        axis=-2,
    )


def inverse_blocks(blocks):
    """All N x N blocks of the inverse of the joint matrix."""
    sizes = [_size(row[-1]) for row in blocks]
    inverse = inverse_spd(factor_spd(assemble(blocks)))
    return [tf.split(rows, sizes, axis=-1) for rows in tf.split(inverse, sizes, axis=-2)]


def checked_games(A_blocks, B_blocks, gradients=None):
    """The arguments as tensors, one game of N players; raises `ValueError` where they do not fit each other."""
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
