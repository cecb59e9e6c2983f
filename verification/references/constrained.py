"""Constrained optimal control written out: a whole horizon as one dense program, and what an augmented cost is.

A quadratic program is solved as Lawson and Hanson's least distance problem by non-negative least squares, an active-set
method that ends exactly and says when nothing is feasible; a nonlinear one by SLSQP over all controls at once.
"""

import numpy as np
from scipy.optimize import minimize, nnls

from verification.references import trajectory


def quadratic_program(H, g, A, b):
    """Minimises g'u + u'Hu/2 under A u <= b for a positive definite H.

    Returns:
        u, the multipliers of the rows of A, or `None` where no u is feasible.

    Source: Lawson, Hanson, "Solving Least Squares Problems" (1974), Chapter 23.
    """
    L = np.linalg.cholesky(H)  # with z = L'u + L^-1 g the cost is |z|^2 / 2
    G = -np.linalg.solve(L, A.T).T
    h = -b - A @ np.linalg.solve(H, g)
    E, f = np.vstack([G.T, h]), np.append(np.zeros(len(g)), 1.0)
    dual, _ = nnls(E, f, maxiter=50 * len(b))
    residual = E @ dual - f
    if np.linalg.norm(residual) < 1e-9:
        return None
    z, multipliers = -residual[:-1] / residual[-1], dual / -residual[-1]
    return np.linalg.solve(L.T, z - np.linalg.solve(L, g)), multipliers


def linear_quadratic(x, F, c, g, H, v, W, A, b, A_end, b_end):
    """A linear-quadratic problem with linear inequalities as one quadratic program in all controls.

    x' = F_t z + c_t with z = (x, u), cost g_t'z + z'H_t z/2 and v'x + x'Wx/2 at the end, under A_t z <= b_t and
    A_end x <= b_end. States are eliminated.

    Returns:
        Controls [T, m], multipliers [T, p] and [q], or `None`.
    """
    T, n = len(F), len(v)
    m, p = F.shape[2] - n, A.shape[1]
    state, offset = np.zeros((n, T * m)), x
    gradient, hessian = np.zeros(T * m), np.zeros((T * m, T * m))
    rows, sides = [], []
    for t in range(T):
        select = np.zeros((m, T * m))
        select[:, t * m : (t + 1) * m] = np.eye(m)
        Z, z = np.vstack([state, select]), np.append(offset, np.zeros(m))
        gradient, hessian = gradient + Z.T @ (g[t] + H[t] @ z), hessian + Z.T @ H[t] @ Z
        rows.append(A[t] @ Z)
        sides.append(b[t] - A[t] @ z)
        state, offset = F[t] @ Z, F[t] @ z + c[t]
    gradient, hessian = gradient + state.T @ (v + W @ offset), hessian + state.T @ W @ state
    rows, sides = [*rows, A_end @ state], [*sides, b_end - A_end @ offset]
    found = quadratic_program(hessian, gradient, np.vstack(rows), np.concatenate(sides))
    if found is None:
        return None
    U, multipliers = found
    return U.reshape(T, m), multipliers[: T * p].reshape(T, p), multipliers[T * p :]


def nonlinear_program(f, cost, terminal, inequality, x, U):
    """Minimises the cost of the controls under inequality(z, t) <= 0 at every stage, by SLSQP from U [T, m].

    Returns:
        Controls [T, m] and cost.
    """

    def values(u):
        U_ = u.reshape(U.shape)
        X = trajectory.roll(f, x, U_)
        return np.concatenate([inequality(np.append(X[t], U_[t]), t) for t in range(len(U_))])

    found = minimize(
        lambda u: trajectory.total_cost(f, cost, terminal, x, u.reshape(U.shape)),
        U.ravel(),
        jac=lambda u: trajectory.total_gradient(f, cost, terminal, x, u.reshape(U.shape)).ravel(),
        constraints={
            "type": "ineq",
            "fun": lambda u: -values(u),
            "jac": lambda u: -trajectory.jacobian(values, u),
        },
        method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 500},
    )
    return found.x.reshape(U.shape), float(found.fun)


def augmented_cost(values, multipliers, penalty):
    """Least over slacks s >= 0 of lambda'(g + s) + rho/2 |g + s|^2, what an augmented Lagrangian adds for values g.

    Returns:
        The number.
    """
    slack = np.maximum(0.0, -values - multipliers / penalty)
    return multipliers @ (values + slack) + 0.5 * penalty * (values + slack) @ (values + slack)
