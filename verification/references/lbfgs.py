"""The inverse BFGS matrix written out; reference for `bellman_tf/linalg/lbfgs.py`."""

import numpy as np


def inverse_bfgs(steps, changes, scale):
    """H of some pairs, from gamma I on: `H <- (I - r s y') H (I - r y s') + r s s'`, r = 1/s'y.

    Args:
        steps: s, `[m, n]`, oldest first.
        changes: y, `[m, n]`, with s'y > 0.
        scale: gamma.

    Returns:
        `[n, n]` (Nocedal & Wright 2006, Eq. 6.17).
    """
    n = steps.shape[1]
    H = scale * np.eye(n)
    for s, y in zip(steps, changes, strict=True):
        r = 1 / (s @ y)
        V = np.eye(n) - r * np.outer(y, s)
        H = V.T @ H @ V + r * np.outer(s, s)
    return H
