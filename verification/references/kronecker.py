"""Kronecker algebra, densely and in float64; reference for `bellman_tf/linalg/kronecker.py`.

The order of `vec` is columns stacked, so that (A (x) B) vec(X) = vec(B X A^T).
"""

import numpy as np


def vec(X):
    """Columns stacked."""
    return np.concatenate([X[:, j] for j in range(X.shape[1])])


def unvec(v, rows, columns):
    """Column j is the j-th stretch of `rows` entries."""
    return np.stack([v[j * rows : (j + 1) * rows] for j in range(columns)], axis=1)


def kron(A, B):
    """Blocks A_ij B."""
    return np.block([[a * np.asarray(B, np.float64) for a in row] for row in np.asarray(A, np.float64)])


def kron_multiply(A, B, X):
    """The dense matrix times vec(X)."""
    return unvec(kron(A, B) @ vec(X), len(B), len(A))


def kron_solve(A, B, X):
    """The dense matrix divided out of vec(X)."""
    return unvec(np.linalg.solve(kron(A, B), vec(X)), len(B), len(A))


def khatri_rao(A, B):
    """Kronecker products of columns."""
    return np.stack([np.kron(A[:, i], B[:, i]) for i in range(A.shape[1])], axis=1)


def block_khatri_rao(A_blocks, B_blocks):
    """The joint matrix H with blocks A_nm (x) B_nm."""
    players = range(len(A_blocks))
    return np.block([[kron(A_blocks[n][m], B_blocks[n][m]) for m in players] for n in players])


def split_damping(A, B, damping):
    """Dampings pi sqrt(damping) and sqrt(damping) / pi with pi^2 the ratio of the mean eigenvalues."""
    pi = np.sqrt(np.mean(np.linalg.eigvalsh(A)) / np.mean(np.linalg.eigvalsh(B)))
    return pi * np.sqrt(damping), np.sqrt(damping) / pi


def kfac_solve(A, B, damping, X):
    """The dense product of the two damped factors, divided out."""
    damping_A, damping_B = split_damping(A, B, damping)
    return kron_solve(A + damping_A * np.eye(len(A)), B + damping_B * np.eye(len(B)), X)


def ekfac_solve(basis_A, basis_B, scalings, damping, X):
    """Divides the dense matrix (U_A (x) U_B) diag(vec(scalings)) (U_A (x) U_B)^T + damping I out of vec(X)."""
    basis = kron(basis_A, basis_B)
    matrix = basis @ np.diag(vec(scalings)) @ basis.T + damping * np.eye(len(basis))
    return unvec(np.linalg.solve(matrix, vec(X)), *X.shape)


def kronecker_cooperative_solve(A_blocks, B_blocks, gradients):
    """The joint minimiser: H divided out of the stacked vec(G_n)."""
    return _cut(np.linalg.solve(block_khatri_rao(A_blocks, B_blocks), _stack(gradients)), gradients)


def kronecker_block_form(A_blocks, B_blocks, gradients):
    """P = E^T (A (x) B)^{-1} E of GTDDP Eq. 52, E selecting the coordinates (player n's inputs, player n's outputs)."""
    inverse = np.linalg.inv(kron(np.block(A_blocks), np.block(B_blocks)))
    inputs = np.concatenate([np.full(G.shape[1], n) for n, G in enumerate(gradients)])
    outputs = np.concatenate([np.full(G.shape[0], n) for n, G in enumerate(gradients)])
    owner = [(a, b) for a in inputs for b in outputs]
    selected = np.concatenate([[i for i, pair in enumerate(owner) if pair == (n, n)] for n in range(len(gradients))])
    return _cut(inverse[np.ix_(selected, selected)] @ _stack(gradients), gradients)


def _stack(gradients):
    return np.concatenate([vec(G) for G in gradients])


def _cut(v, gradients):
    cuts = np.cumsum([G.size for G in gradients])[:-1]
    return [unvec(part, *G.shape) for part, G in zip(np.split(v, cuts), gradients, strict=True)]
