"""Schur complements and the N-player solve, densely and in float64; reference for `bellman_tf/linalg/schur.py`."""

import numpy as np


def assemble(blocks):
    """The joint matrix of N rows of N blocks."""
    return np.block([[np.asarray(block, np.float64) for block in row] for row in blocks])


def schur_complement(A, B, D):
    """Inverse of the leading block of the inverse of [[A, B], [B^T, D]]: the definition by elimination."""
    return np.linalg.inv(block_inverse(A, B, D)[0])


def block_inverse(A, B, D):
    """The blocks (1, 1), (1, 2) and (2, 2) of the inverse, by inverting the assembled matrix."""
    m = len(A)
    inverse = np.linalg.inv(assemble([[A, B], [np.transpose(B), D]]))
    return inverse[:m, :m], inverse[:m, m:], inverse[m:, m:]


def cooperative_solve(blocks, rhs):
    """Solves the assembled system by Gaussian elimination and cuts the answer into players."""
    cuts = np.cumsum([len(r) for r in rhs])[:-1]
    return np.split(np.linalg.solve(assemble(blocks), np.concatenate(rhs)), cuts)


def two_player_response(Q_uu, Q_uv, Q_vv, Q_u, Q_v):
    """The first player's open-loop gain as GTDDP Eqs. 14-15 print it: k = -Q̃_uu^{-1} (Q_u + Q_uv I_v)."""
    Q_uu_coop = Q_uu - Q_uv @ np.linalg.inv(Q_vv) @ Q_uv.T
    I_v = -np.linalg.inv(Q_vv) @ Q_v
    return -np.linalg.inv(Q_uu_coop) @ (Q_u + Q_uv @ I_v)
