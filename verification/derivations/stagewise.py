"""The recursion without mixed derivatives, against the cost differentiated twice."""

import numpy as np
import tensorflow as tf

from bellman_tf import bellman
from verification.claim import measured, same
from verification.problems.control import arguments, as_value
from verification.problems.networks import Chain
from verification.references import jets


def decoupled(chain: Chain, metric=None, second_order=True):
    """Our recursion with Q_ux = 0 at every stage.

    `metric`, of Q and the stage, goes in place of Q_uu; without it there are no gains.

    Returns:
        Expansions and gains of the stages, and the values before all of them.
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
