"""The expansion through a layer sigma(W x + b)."""

import numpy as np

from bellman_tf import bellman
from verification.claim import same
from verification.derivations.expansion import blocks
from verification.problems.control import Behind, arguments, as_value
from verification.problems.networks import ACTIVATIONS
from verification.references import jets


def mixed_product(V_h, n):
    """V_h . g_ux [m, n] by Eq. 14: column k holds V_h in rows (k - 1) n' + 1 ... k n', the rest is zero."""
    out = len(V_h)
    product = np.zeros((out * (n + 1), n))
    for k in range(1, n + 1):
        product[(k - 1) * out : k * out, k - 1] = V_h
    return product


def through_preactivation(problem: Behind):
    """Q_x, Q_u, Q_xx, Q_ux, Q_uu letter by letter from Eq. 13."""
    s, (x,), f = problem.derivatives()[0], problem.states()[0], problem.layer
    W, h = f.split(problem.control)[0], f.preactivation(x, problem.control)
    sigma_h, sigma_hh = (derivative(h) for derivative in ACTIVATIONS[f.activation][1:])
    g_x, g_u = W, np.hstack([np.kron(x, np.eye(f.rows)), np.eye(f.rows)])
    V_h, V_hh = sigma_h * problem.v, sigma_h[:, None] * problem.W * sigma_h
    inner = V_hh + np.diag(problem.v * sigma_hh)
    return {
        "Q_x": s["l_x"] + g_x.T @ V_h,
        "Q_u": s["l_u"] + g_u.T @ V_h,
        "Q_xx": s["l_xx"] + g_x.T @ inner @ g_x,
        "Q_ux": s["l_ux"] + g_u.T @ inner @ g_x + mixed_product(V_h, f.cols),
        "Q_uu": s["l_uu"] + g_u.T @ inner @ g_u,
    }


def layer_expansion(*names):
    """The check that the named parts of Eq. 13, and of our `expand`, are what twice differentiating Q gives."""

    def check(problem: Behind):
        """Eq. 13 and ours against forward differentiation."""
        _, gradient, hessian = jets.expansion(problem.bellman_objective, problem.point())
        truth = blocks(gradient, hessian, problem.layer.cols)
        printed = through_preactivation(problem)
        ours = bellman.expand(as_value(problem.v, problem.W), **arguments(problem.derivatives()[0]))
        for name in names:
            scale = np.linalg.norm(gradient) if len(name) == 3 else np.linalg.norm(hessian)
            yield same(printed[name], truth[name], scale=scale, label=f"{name} through h")
            yield same(getattr(ours, name), truth[name], scale=scale, label=name)

    return check


def slopes_of_activations(problem: Behind):
    """The derivatives of sigma that enter, against the complex step."""
    h = problem.layer.preactivation(problem.states()[0][0], problem.control)
    value, first, second = ACTIVATIONS[problem.layer.activation]
    yield same(first(h), value(h + 1e-40j).imag / 1e-40, scale=1.0, label="sigma_h")
    yield same(second(h), first(h + 1e-40j).imag / 1e-40, scale=1.0, label="sigma_hh")
