"""Symmetric matrices in float64, one matrix at a time; reference for `bellman_tf/linalg/symmetric.py`."""

import numpy as np
import scipy.linalg


def symmetrize(A):
    """Entry by entry, (A_ij + A_ji) / 2."""
    n = len(A)
    return np.array([[(A[i][j] + A[j][i]) / 2 for j in range(n)] for i in range(n)], np.float64)


def is_finite(A):
    """Neither infinite nor NaN anywhere."""
    return not any(np.isnan(entry) or np.isinf(entry) for entry in np.ravel(A))


def eigh(A):
    """LAPACK's divide and conquer: eigenvalues ascending, orthonormal eigenvectors in columns."""
    return scipy.linalg.eigh(np.asarray(A, np.float64), driver="evd")


def eigen_residual(A, w, V):
    """Spectral norm of A V - V diag(w) relative to that of A, and of V^T V - I; both in float64."""
    A, w, V = (np.asarray(x, np.float64) for x in (A, w, V))
    norm = np.linalg.norm(A, 2)
    residual = np.linalg.norm(A @ V - V * w, 2)
    return residual / norm if norm else residual, np.linalg.norm(V.T @ V - np.eye(len(w)), 2)
