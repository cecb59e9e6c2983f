"""Positive-definite solves in float64, one matrix at a time; reference for `bellman_tf/linalg/solve.py`."""

import numpy as np
import scipy.linalg


def factor_spd(A, damping=0.0):
    """Lower Cholesky factor of A + damping I; raises `LinAlgError` when it is not positive definite."""
    return scipy.linalg.cholesky(np.asarray(A, np.float64) + damping * np.eye(len(A)), lower=True)


def factor_gram(A):
    """Lower Cholesky factor of I + A without any shift."""
    return factor_spd(A, 1.0)


def whiten(A, rhs):
    """L^{-1} rhs for A = L L^T, L^{-1} formed by Gaussian elimination."""
    return np.linalg.inv(factor_spd(A)) @ rhs


def solve_spd(A, rhs):
    """A^{-1} rhs by pivoted Gaussian elimination, which does not need A to be symmetric."""
    return np.linalg.solve(np.asarray(A, np.float64), rhs)


def inverse_spd(A):
    """A^{-1} by pivoted Gaussian elimination."""
    return np.linalg.inv(np.asarray(A, np.float64))


def backward_error(A, X, rhs):
    """||A X - rhs|| / (||A|| ||X||): how far the equation solved is from the one that was asked."""
    A, X, rhs = (np.asarray(x, np.float64) for x in (A, X, rhs))
    size = np.linalg.norm(A, 2) * np.linalg.norm(X)
    gap = np.linalg.norm(A @ X - rhs)
    return gap / size if size else gap
