"""Optimal control of a trajectory, written out: derivatives by complex steps, adjoints, whole horizons, active sets.

One instance, no batch. A function is given as f(z, t) of z = (x, u) and must accept complex numbers; a stage of a
quadratic model is the gradient g [n + m] and the Hessian H [n + m, n + m] of the cost in z, and the Jacobian
F [n, n + m] of the dynamics with, where it is used, their tensor D [n, n + m, n + m].
"""

import itertools

import numpy as np
from scipy.optimize import approx_fprime

_STEP = 1e-30  # of complex steps: exact to rounding, nothing cancels
_DIFFERENCE = 1e-5  # of central differences, of first derivatives that are exact: errors of 1e-10


def jacobian(function, z):
    """Jacobian of a function by complex steps.

    Returns:
        [outputs, z].
    """
    columns = [np.imag(np.atleast_1d(function(z + 1j * _STEP * e))) / _STEP for e in np.eye(len(z))]
    return np.stack(columns, axis=1)


def hessian(function, z):
    """Hessians of a function by central differences of its Jacobian, good to about 1e-9.

    Returns:
        [outputs, z, z].
    """
    h = _DIFFERENCE
    slices = [(jacobian(function, z + h * e) - jacobian(function, z - h * e)) / (2 * h) for e in np.eye(len(z))]
    H = np.stack(slices, axis=2)
    return 0.5 * (H + H.transpose(0, 2, 1))


def roll(f, x, U):
    """States [T + 1, n] under controls U [T, m]."""
    X = [x]
    for t, u in enumerate(U):
        X.append(f(np.concatenate([X[-1], u]), t))
    return np.array(X)


def total_cost(f, cost, terminal, x, U):
    """Cost of the controls U [T, m] from the state x."""
    X = roll(f, x, U)
    return sum(cost(np.concatenate([x, u]), t) for t, (x, u) in enumerate(zip(X, U, strict=False))) + terminal(X[-1])


def total_gradient(f, cost, terminal, x, U):
    """Gradient of the total cost in U, by the adjoint equation.

    Returns:
        [T, m].
    """
    X = roll(f, x, U)
    n = len(x)
    costate = jacobian(terminal, X[-1])[0]
    gradient = np.zeros(U.shape)
    for t in reversed(range(len(U))):
        z = np.concatenate([X[t], U[t]])
        pulled = jacobian(lambda z, t=t: cost(z, t), z)[0] + jacobian(lambda z, t=t: f(z, t), z).T @ costate
        costate, gradient[t] = pulled[:n], pulled[n:]
    return gradient


def difference_gradient(f, cost, terminal, x, U):
    """The same by finite differences of the total cost, good to about 1e-6.

    Returns:
        [T, m].
    """
    return approx_fprime(U.ravel(), lambda u: total_cost(f, cost, terminal, x, u.reshape(U.shape))).reshape(U.shape)


def sweep(stages, v, W, *, mu_state=0.0, mu_control=0.0, limits=None):
    """The recursion of differential dynamic programming: at each stage insert the policy in the quadratic model.

    The gains minimise the model with mu_state I added to the value Hessian and mu_control I to that in u; the value is
    that of the policy in the model itself.

    Args:
        stages: T tuples (g, H, F, D), D possibly `None`.
        v: gradient of the terminal cost.
        W: its Hessian.
        mu_state: number.
        mu_control: number.
        limits: T pairs of least and largest step, or `None`.

    Returns:
        Lists of k, K, v, W, T entries of the first two and T + 1 of the others, and the expected change of the cost for
        the full step.
    """
    n = len(v)
    ks, Ks, vs, Ws, change = [], [], [v], [W], 0.0
    for t in reversed(range(len(stages))):
        g, H, F, D = stages[t]
        curved = H if D is None else H + np.tensordot(vs[0], D, axes=1)
        gradient = g + F.T @ vs[0]
        true = curved + F.T @ Ws[0] @ F
        used = curved + F.T @ (Ws[0] + mu_state * np.eye(n)) @ F
        used[n:, n:] += mu_control * np.eye(len(g) - n)
        if limits is None:
            k = -np.linalg.solve(used[n:, n:], gradient[n:])
            K = -np.linalg.solve(used[n:, n:], used[n:, :n])
        else:
            k, K = box_policy(used, gradient, *limits[t])
        offset, T = np.concatenate([np.zeros(n), k]), np.vstack([np.eye(n), K])
        change += gradient @ offset + 0.5 * offset @ true @ offset
        ks, Ks = [k, *ks], [K, *Ks]
        vs, Ws = [T.T @ (gradient + true @ offset), *vs], [T.T @ true @ T, *Ws]
    return ks, Ks, vs, Ws, change


def box_policy(hessian, gradient, lower, upper):
    """Minimiser in a box of a quadratic in u, and the feedback of the controls that are free.

    Returns:
        k [m] and K [m, n]; rows of K are zero for controls at a limit.
    """
    m = len(lower)
    n = len(gradient) - m
    Q_uu, Q_ux, Q_u = hessian[n:, n:], hessian[n:, :n], gradient[n:]
    k, free = box_minimum(Q_uu, Q_u, lower, upper)
    K = np.zeros((m, n))
    if free.any():
        K[free] = -np.linalg.solve(Q_uu[np.ix_(free, free)], Q_ux[free])
    return k, K


def box_minimum(H, g, lower, upper):
    """Minimiser of g'd + d'Hd/2 in a box for a positive definite H, by trying all 3^m active sets.

    Returns:
        d [m], and which of its entries are free.
    """
    best, best_value, best_free = None, np.inf, None
    for where in itertools.product((-1, 0, 1), repeat=len(g)):
        where = np.array(where)
        free = where == 0
        d = np.where(where < 0, lower, np.where(where > 0, upper, 0.0))
        if not np.isfinite(d).all():
            continue
        if free.any():
            d[free] = -np.linalg.solve(H[np.ix_(free, free)], g[free] + H[np.ix_(free, ~free)] @ d[~free])
        if (d < lower).any() or (d > upper).any():
            continue
        value = g @ d + 0.5 * d @ H @ d
        if value < best_value:
            best, best_value, best_free = d, value, free
    return best, best_free


def whole_horizon_step(stages, v, W, x):
    """All controls at once: the minimiser of the quadratic model from a first deviation x, with linear dynamics.

    The stages are (g, H, F, _); their tensors are not used. States are eliminated, dx_{t+1} = F_t (dx_t, du_t).

    Returns:
        The controls' deviations [T, m] and the change of the cost.
    """
    n, m, T = len(v), len(stages[0][0]) - len(v), len(stages)
    state, offset = np.zeros((n, T * m)), x  # dx_t = state U + offset
    gradient, hessian, change = np.zeros(T * m), np.zeros((T * m, T * m)), 0.0
    for t, (g, H, F, _) in enumerate(stages):
        select = np.zeros((m, T * m))
        select[:, t * m : (t + 1) * m] = np.eye(m)
        Z, z = np.vstack([state, select]), np.concatenate([offset, np.zeros(m)])
        gradient, hessian = gradient + Z.T @ (g + H @ z), hessian + Z.T @ H @ Z
        change += g @ z + 0.5 * z @ H @ z
        state, offset = F @ Z, F @ z
    gradient, hessian = gradient + state.T @ (v + W @ offset), hessian + state.T @ W @ state
    change += v @ offset + 0.5 * offset @ W @ offset
    U = -np.linalg.solve(hessian, gradient)
    return U.reshape(T, m), change + 0.5 * gradient @ U
