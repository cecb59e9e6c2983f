"""Gram matrices of per-sample gradients as `Q' M^{-1} Q`; reference for `bellman_tf/curvature/gram`."""

import numpy as np


def gram(q, M, group_size=None):
    """`[G, b m, b m]` from gradients `[B, m, P]` and the dense metric, the last group filled up with zeros."""
    size = len(q) if group_size is None else group_size
    blocks = []
    for start in range(0, len(q), size):
        Q = np.zeros((size, *q.shape[1:]))
        part = q[start : start + size]
        Q[: len(part)] = part
        Q = Q.reshape(size * q.shape[1], -1)
        blocks.append(Q @ np.linalg.solve(M, Q.T))
    return np.stack(blocks)
