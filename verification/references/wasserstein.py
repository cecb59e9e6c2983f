"""The kernelized Wasserstein natural gradient with dense matrices; reference for `bellman_tf/baselines/wasserstein.py`.

Derivation. A density rho that moves with velocity v obeys d rho/dt = -div(rho v). Among all v with one d rho/dt the
kinetic energy 1/2 int |v|^2 rho is least for a gradient v = grad f, and that least energy is 1/2 u' G u (Otto). Because
int f d rho/dt = int grad f . v rho, completing the square gives the dual form

    1/2 u' G u = sup_f [ int f (d rho/dt) - 1/2 int |grad f|^2 rho ].

For rho = law of X = h_theta(Z) the first term is d/dt E f(X) = E[grad f(X) . (dX/dtheta) u]. With N samples, and
f = sum_m a_m d/dy_{i_m} k(Y_m, .), grad f at the samples is C'a, so that, lambda/2 |f|^2 = lambda/2 a'K a subtracted,

    1/2 u' G u = sup_a [ a' T u - 1/2 a' A a ],   T = C J / N,   A = C C'/N + lambda K,   G = T' A^+ T.

T u is in the range of A (for lambda = 0: T = C (J/N), and C C' has the range of C), so the supremum is finite.
The damped natural gradient min_u [ 1/2 u'(G + epsilon D) u - u' grad J ] is (G + epsilon D)^{-1} grad J.

Gaussian laws. X = mu + L z, z standard normal, S = L L': a step (dmu, dL) moves mu by dmu and S by dS = dL L' + L dL';
the least velocity is v(x) = dmu + V (x - mu), V symmetric with V S + S V = dS, and its energy |dmu|^2 + tr(V S V).
"""

import numpy as np
import scipy.linalg

from verification.references import complex_step


def slope(y, x, i, variance):
    """d/dy_i of exp(-|y - x|^2 / (2 variance)); complex x pass."""
    return -(y[i] - x[i]) / variance * np.exp(-np.sum((y - x) ** 2) / (2 * variance))


def mixed(points, coordinates, X, variance):
    """C `[M, N, d]`: the slopes' derivatives in x, by the complex step."""
    rows = [
        [complex_step.jacobian(lambda x, y=y, i=i: slope(y, x, i, variance), each) for each in X]
        for y, i in zip(points, coordinates, strict=True)
    ]
    return np.array(rows)


def energy(points, coordinates, X, variance, ridge):
    """A `[M, M]`."""
    C = mixed(points, coordinates, X, variance).reshape(len(points), -1)
    own = mixed(points, coordinates, points, variance)
    K = own[:, np.arange(len(points)), coordinates]
    return C @ C.T / len(X) + ridge * K


def metric(points, coordinates, X, J, variance, ridge, cutoff):
    """G `[q, q]` from Jacobians J `[N, d, q]`; eigenvalues of A below `cutoff` of the largest count as 0."""
    C = mixed(points, coordinates, X, variance).reshape(len(points), -1)
    T = C @ J.reshape(C.shape[1], -1) / len(X)
    A = energy(points, coordinates, X, variance, ridge)
    return T.T @ np.linalg.pinv(A, rcond=cutoff, hermitian=True) @ T


def gaussian_outputs(mu, L, z):
    """X = mu + L z `[N, d]`, and dX/d(mu, L row by row) `[N, d, d + d^2]`."""
    d = len(mu)
    J = np.stack([np.hstack([np.eye(d), np.kron(np.eye(d), each)]) for each in z])
    return mu + z @ L.T, J


def gaussian_metric(L):
    """The exact Wasserstein metric in (mu, L row by row), `[d + d^2, d + d^2]`."""
    d, S = len(L), L @ L.T
    fields = []
    for k in range(d * d):
        dL = np.zeros((d, d))
        dL[divmod(k, d)] = 1
        fields.append(scipy.linalg.solve_continuous_lyapunov(S, dL @ L.T + L @ dL.T))
    block = [[np.trace(V @ S @ W) for W in fields] for V in fields]
    return scipy.linalg.block_diag(np.eye(d), np.array(block))
