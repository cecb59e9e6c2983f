"""Feedback Nash equilibrium of a quadratic game: no player gains by deviating, given the policies of the others."""

import numpy as np

from verification.references import dense


def stage(values, f_x, f_us, l_us, l_uus):
    """One stage. Player p has the cost l_p(u_p) + V_p'(f(x, u_1 ... u_N)) and is stationary in its own control.

    The stationarity rows of all players, (Q_p)_{u_p} + (Q_p)_{u_p x} dx + sum_m (Q_p)_{u_p u_m} u_m = 0, are solved
    together. They are not symmetric unless the players' values agree.

    Args:
        values: pairs (v, W), one per player.
        f_x: `[n', n]`.
        f_us: `[n', m_p]` per player.
        l_us: `[m_p]` per player.
        l_uus: `[m_p, m_p]` per player.

    Returns:
        Joint gains k and K, the players below each other; pairs (v, W) before the stage; the coefficient matrix.
    """
    n = f_x.shape[1]
    ends = np.cumsum([f_u.shape[1] for f_u in f_us])
    expansions, rows = [], []
    for p, (v, W) in enumerate(values):
        own = slice(ends[p] - f_us[p].shape[1], ends[p])
        l_u, l_uu = np.zeros(ends[-1]), np.zeros((ends[-1], ends[-1]))
        l_u[own], l_uu[own, own] = l_us[p], l_uus[p]
        gradient, hessian = dense.expand(v, W, f_x, np.hstack(f_us), l_u=l_u, l_uu=l_uu)
        expansions.append((gradient, hessian))
        rows.append(np.hstack([gradient[n:, None], hessian[n:]])[own])
    system = np.vstack(rows)  # [m, 1 + n + m]
    solved = -np.linalg.solve(system[:, 1 + n :], system[:, : 1 + n])
    k, K = solved[:, 0], solved[:, 1:]
    return k, K, [dense.follow(gradient, hessian, k, K) for gradient, hessian in expansions], system[:, 1 + n :]


def without_cross(v, W, f_x, f_us, l_us, l_uus):
    """Group rationality with P_uv := 0, gains and the papers' value update; nothing here needs to be definite.

    Args:
        v: `[n']`.
        W: `[n', n']`.
        f_x: `[n', n]`.
        f_us: `[n', m_p]` per player.
        l_us: `[m_p]` per player.
        l_uus: `[m_p, m_p]` per player.

    Returns:
        Joint gains k and K, and the pair (v, W) before the stage.
    """
    value, gains = (f_x.T @ v, f_x.T @ W @ f_x), []
    for f_u, l_u, l_uu in zip(f_us, l_us, l_uus, strict=True):
        gradient, hessian = dense.expand(v, W, f_x, f_u, l_u=l_u, l_uu=l_uu)
        n = f_x.shape[1]
        k, K = dense.minimise(gradient, hessian, n)
        gains.append((k, K))
        value = (value[0] + hessian[n:, :n].T @ k, value[1] + hessian[n:, :n].T @ K)
    return np.concatenate([k for k, _ in gains]), np.vstack([K for _, K in gains]), value
