"""Existing methods as special cases: Proposition 5, Eq. 12, Lemma 7, Eq. 38, Table 2."""

import numpy as np
import tensorflow as tf

from bellman_tf import bellman
from verification.claim import measured, same
from verification.papers import DDP1
from verification.problems.control import arguments, as_value
from verification.problems.networks import Chain, chains
from verification.references import jets


def decoupled(chain: Chain, metric=None, second_order=True):
    """Our recursion with Q_ux = 0 at every stage: expansions and gains of the stages, values before all of them.

    `metric`, of Q and the stage, goes in place of Q_uu; without it there are no gains.
    """
    states = chain.states()
    values, expansions, policy = [as_value(*chain.terminal_derivatives(states[-1]))], [], []
    for t in reversed(range(len(chain.layers))):
        Q = bellman.expand(values[0], **arguments(chain.stage(t, states[t], second_order)))
        Q = Q._replace(Q_ux=tf.zeros_like(Q.Q_ux))
        none = bellman.Gains(tf.zeros_like(Q.Q_u), tf.zeros_like(Q.Q_ux))
        policy.insert(0, none if metric is None else bellman.gains(Q, metric(Q, t)))
        values.insert(0, bellman.value_update(Q, policy[0]))
        expansions.insert(0, Q)
    return expansions, policy, values


def true_derivatives(chain: Chain, t):
    """Gradient and Hessian of J in [x_t; u_t], the later controls fixed."""
    x, u = chain.states()[t], chain.controls[t]

    def cost(z):
        return chain.cost_from(t, z[: len(x)], [*chain.controls[:t], z[len(x) :], *chain.controls[t + 1 :]])

    return jets.expansion(cost, np.concatenate([x, u]))[1:]


def collapse(chain: Chain):
    """V_x, V_xx, Q_u, Q_uu of the recursion without Q_ux, against J differentiated twice."""
    expansions, _, values = decoupled(chain)
    for t, (Q, V) in enumerate(zip(expansions, values[:-1], strict=True)):
        (gradient, hessian), n = true_derivatives(chain, t), chain.layers[t].cols
        slope, curvature = np.linalg.norm(gradient), np.linalg.norm(hessian)
        yield same(V.V_x, gradient[:n], scale=slope, label="V_x = dJ/dx_t")
        yield same(V.V_xx, hessian[:n, :n], scale=curvature, label="V_xx = d2J/dx_t2")
        yield same(Q.Q_u, gradient[n:], scale=slope, label="Q_u = dJ/du_t")
        yield same(Q.Q_uu, hessian[n:, n:], scale=curvature, label="Q_uu = d2J/du_t2")


def collapse_and_gauss_newton(chain: Chain):
    """The same, and how far the Hessian is off with linearised dynamics."""
    yield from collapse(chain)
    full, linearised = decoupled(chain)[0], decoupled(chain, second_order=False)[0]
    for Q, P in zip(full, linearised, strict=True):
        yield same(P.Q_u, Q.Q_u, label="Q_u, linearised dynamics")
    gap = np.linalg.norm(full[0].Q_uu - linearised[0].Q_uu) / np.linalg.norm(full[0].Q_uu)
    yield measured(gap, "Q_uu against its Gauss-Newton part, first layer")


FORCED = (
    "Q_ux is set to 0 at every stage (it is not 0 on its own); for the Hessians: second-order dynamics terms are kept"
)
CAVEAT = (
    "With linearised dynamics, the paper's own choice (Sec. 4.2), Q_uu is the Gauss-Newton block; the gradients "
    "stay exact."
)
P5 = (
    "with Q_ux = 0 at all stages V_x = p = nabla_{x_t} J, V_xx = nabla^2_{x_t} J, Q_u = nabla_{u_t} J, Q_uu = "
    "nabla^2_{u_t} J"
)

DDP1.exact(
    "P5",
    "Proposition 5",
    f"{P5}: DDP is stage-wise Newton",
    assumes=FORCED,
    remark=CAVEAT,
    over=chains(activations=("tanh", "softplus", "sigmoid")),
    ranges={"Q_uu against its Gauss-Newton part, first layer": (1e-3, 2.0)},
)(collapse_and_gauss_newton)
for key, place, statement in (
    ("E12", "Eq. 12", "Q_u = H_u = nabla_u J, Q_uu = nabla^2_u J"),
    ("L7", "Lemma 7", "V_x = H_x = p_t = nabla_{x_t} J and V_xx = nabla^2_{x_t} J"),
    ("E38", "Eq. 38", "V_x = H_x = p_t = nabla_{x_t} J and V_xx = nabla^2_{x_t} J"),
):
    DDP1.exact(key, place, statement, assumes=FORCED, remark=CAVEAT, over=chains())(collapse)


@DDP1.exact(
    "TAB2",
    "Table 2",
    "with Q_ux = 0, Q_uu^{-1} = eta I is gradient descent, eta diag(g) an adaptive first-order method, J_uu^{-1} "
    "stage-wise Newton",
    assumes="Q_ux set to 0; for the last column: J_uu positive definite and second-order dynamics kept",
    over=chains(running=("control",)),
)
def methods(chain: Chain):
    """Our gains for the three preconditioners against the three methods' steps from J differentiated twice."""
    eta, rng = 0.1, np.random.default_rng(0)
    g = [10.0 ** rng.uniform(-3, 3, layer.size) for layer in chain.layers]
    truth = [true_derivatives(chain, t) for t in range(len(chain.layers))]
    shift = [
        max(0.0, 1e-3 - np.linalg.eigvalsh(H[layer.cols :, layer.cols :])[0])
        for layer, (_, H) in zip(chain.layers, truth, strict=True)
    ]
    columns = {
        "first-order": lambda Q, t: tf.eye(chain.layers[t].size, dtype=tf.float64) / eta,
        "adaptive": lambda Q, t: tf.linalg.diag(1 / (eta * g[t])),
        "Newton": lambda Q, t: Q.Q_uu + shift[t] * tf.eye(chain.layers[t].size, dtype=tf.float64),
    }
    for name, metric in columns.items():
        _, policy, _ = decoupled(chain, metric)
        for t, (k, K, _) in enumerate(policy):
            n = chain.layers[t].cols
            slope, curvature = truth[t][0][n:], truth[t][1][n:, n:] + shift[t] * np.eye(chain.layers[t].size)
            step = {"first-order": eta * slope, "adaptive": eta * g[t] * slope}.get(name)
            condition, size = 1.0, np.linalg.norm(truth[t][0])
            if name == "Newton":
                step, condition = np.linalg.solve(curvature, slope), np.linalg.cond(curvature)
                size = size / np.linalg.norm(curvature, 2)
            else:
                size *= eta * (np.max(g[t]) if name == "adaptive" else 1)
            yield same(k, -step, condition=condition, scale=size, label=name)
            yield same(K, np.zeros(K.shape), label=f"{name}, feedback")
