"""Bounds on rounding that several tests share."""

import numpy as np


def kron_bound(A, B):
    """Two Cholesky solves: each adds cond times its backward error 2 n (3 n + 1) eps; twice for the reference."""
    n = max(len(A), len(B))
    condition = np.linalg.cond(A.astype(np.float64)) + np.linalg.cond(B.astype(np.float64))
    return 2 * 2 * n * (3 * n + 1) * np.finfo(A.dtype).eps * condition
