"""The papers' recursion with per-sample value matrices [n, n] kept as matrices: nothing collinear is assumed."""

import numpy as np


def backward(v, W, f_x, f_u, M, l_u, factor):
    """One stage: v [B, n'], W [B, n', n'] of the samples, Jacobians [B, ...], metric M, c = factor.

    v <- f_x' (v + W f_u k) with the shared k = -M^{-1} (l_u + mean f_u' v), W <- f_x' (W - c W f_u M^{-1} f_u' W) f_x;
    a W that stops being positive semi-definite is replaced by zero.

    Returns:
        (v, W, k, replaced): values before the stage, the shared gain, how many W were replaced.
    """
    k = -np.linalg.solve(M, l_u + np.mean([f.T @ v_i for f, v_i in zip(f_u, v, strict=True)], axis=0))
    before_v, before_W, replaced = [], [], 0
    for v_i, W_i, F_x, F_u in zip(v, W, f_x, f_u, strict=True):
        before_v.append(F_x.T @ (v_i + W_i @ F_u @ k))
        reduced = W_i - factor * W_i @ F_u @ np.linalg.solve(M, F_u.T @ W_i)
        if np.trace(reduced) < 0:  # rank one: the trace is its eigenvalue
            reduced, replaced = np.zeros_like(reduced), replaced + 1
        before_W.append(F_x.T @ reduced @ F_x)
    return np.array(before_v), np.array(before_W), k, replaced
