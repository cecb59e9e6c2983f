"""Dynamic programming on quadratic models, written out: expansions, batches, whole horizons, Riccati.

A value is the pair (v, W) of its gradient and Hessian. Sizes are those of the derivations: nothing here is fast.
"""

import numpy as np
from scipy.linalg import block_diag


def expand(v, W, f_x, f_u, *, l_x=0.0, l_u=0.0, l_xx=0.0, l_ux=0.0, l_uu=0.0, f_xx=None, f_ux=None, f_uu=None):
    """Quadratic model of l + V' o f in z = (x, u), from the Jacobian of f in z.

    Returns:
        Gradient [n + m] and Hessian [n + m, n + m].
    """
    n, m = f_x.shape[1], f_u.shape[1]
    F = np.hstack([f_x, f_u])
    gradient = F.T @ v + np.concatenate([l_x + np.zeros(n), l_u + np.zeros(m)])
    cross = l_ux + np.zeros((m, n))
    hessian = F.T @ W @ F + np.block([[l_xx + np.zeros((n, n)), cross.T], [cross, l_uu + np.zeros((m, m))]])
    for i, v_i in enumerate(v):
        f_i = [np.zeros(shape) if f is None else f[i] for f, shape in ((f_xx, (n, n)), (f_ux, (m, n)), (f_uu, (m, m)))]
        hessian = hessian + v_i * np.block([[f_i[0], f_i[1].T], [f_i[1], f_i[2]]])
    return gradient, hessian


def minimise(gradient, hessian, n, metric=None):
    """Minimiser of the quadratic in u for every x; `metric` instead of its Hessian in u.

    Returns:
        The gains k [m] and K [m, n].
    """
    Q_uu = hessian[n:, n:] if metric is None else metric
    solved = -np.linalg.solve(Q_uu, np.hstack([gradient[n:, None], hessian[n:, :n]]))
    return solved[:, 0], solved[:, 1:]


def follow(gradient, hessian, k, K):
    """Value of the policy u = k + K x, by inserting it in the quadratic.

    Returns:
        Gradient [n] and Hessian [n, n].
    """
    n = K.shape[1]
    offset = np.concatenate([np.zeros(n), k])
    T = np.vstack([np.eye(n), K])
    return T.T @ (gradient + hessian @ offset), T.T @ hessian @ T


def schur_value(gradient, hessian, k, K):
    """The papers' update, v = Q_x + Q_xu k and W = Q_xx + Q_xu K.

    Returns:
        The pair v, W.
    """
    n = K.shape[1]
    return gradient[:n] + hessian[:n, n:] @ k, hessian[:n, :n] + hessian[:n, n:] @ K


def stack(f_x, f_u):
    """Stacked samples, from per-sample Jacobians [B, n', n] and [B, n', m].

    Returns:
        F_X, block-diagonal, and F_u.
    """
    return block_diag(*f_x), np.concatenate(list(f_u), axis=0)


def augment(g, H, batch_size=None):
    """Value of the mean loss of stacked samples, from each one's gradient [B, n] and Hessian [B, n, n].

    Returns:
        The pair v, W.
    """
    batch_size = len(g) if batch_size is None else batch_size
    return np.concatenate(list(g)) / batch_size, block_diag(*H) / batch_size


def backward_batch(g, H, stages, *, batch_size=None):
    """The exact batch recursion: stages are (f_x [B, n', n], f_u [B, n', m], M, l_u); M is the curvature of the cost.

    The terminal value is that of the mean loss over `batch_size` samples, the ones given if None.

    Returns:
        Per stage (k, K, v, W, decrease): the value before it, and the model's decrease at zero deviation.
    """
    v, W = augment(g, H, batch_size)
    steps = []
    for f_x, f_u, M, l_u in reversed(stages):
        F_X, F_u = stack(f_x, f_u)
        gradient, hessian = expand(v, W, F_X, F_u, l_u=l_u, l_uu=M)
        n = F_X.shape[1]
        k, K = minimise(gradient, hessian, n)
        v, W = follow(gradient, hessian, k, K)  # with the minimiser's gains, the same as the Schur form, and stabler
        steps.insert(0, (k, K, v, W, -0.5 * gradient[n:] @ k))
    return steps


def whole_horizon(v, W, stages):
    """All controls at once: stages are dicts with f_x, f_u and any of l_x, l_u, l_xx, l_ux, l_uu; linear dynamics.

    Returns:
        U_0 and U_x, the controls as an affine map of the first state; gradient and Hessian in it of the least cost.
    """
    sizes = [stage["f_u"].shape[1] for stage in stages]
    n, total = stages[0]["f_x"].shape[1], sum(sizes)
    state = np.hstack([np.eye(n), np.zeros((n, total))])  # x_t as a linear map of (x_0, U)
    gradient, hessian = np.zeros(n + total), np.zeros((n + total, n + total))
    at = n
    for stage, m in zip(stages, sizes, strict=True):
        control = np.zeros((m, n + total))
        control[:, at : at + m] = np.eye(m)
        z = np.vstack([state, control])
        costs = {name: stage[name] for name in ("l_x", "l_u", "l_xx", "l_ux", "l_uu") if name in stage}
        size = state.shape[0]
        l_z, l_zz = expand(np.zeros(0), np.zeros((0, 0)), np.zeros((0, size)), np.zeros((0, m)), **costs)
        gradient, hessian = gradient + z.T @ l_z, hessian + z.T @ l_zz @ z
        state = stage["f_x"] @ state + stage["f_u"] @ control
        at += m
    gradient, hessian = gradient + state.T @ v, hessian + state.T @ W @ state
    U_0, U_x = minimise(gradient, hessian, n)
    return U_0, U_x, *follow(gradient, hessian, U_0, U_x)


def riccati(A, B, Q, R, P, steps):
    """Riccati's difference equation for x' = A x + B u with cost 1/2 (x' Q x + u' R u), from the matrix P at the end.

    Returns:
        The cost-to-go matrix.
    """
    for _ in range(steps):
        P = Q + A.T @ P @ A - A.T @ P @ B @ np.linalg.inv(R + B.T @ P @ B) @ B.T @ P @ A
    return P
