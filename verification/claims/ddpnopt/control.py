"""Bellman, DDP and back-propagation: Theorem 1, Proposition 2, Lemma 3, Eqs. 1-8, Algorithms 1 and 2, footnote 1."""

import numpy as np
import tensorflow as tf

from bellman_tf import bellman
from verification.claim import Counterexample, same
from verification.derivations.expansion import one_iteration
from verification.derivations.pontryagin import (
    BELLMAN,
    FINITE,
    algorithm_2,
    bellman_recursion,
    cost_of_control,
    costates,
    gradient,
    words,
)
from verification.derivations.quadratic import affine_minimiser, value_of_the_minimiser
from verification.derivations.stagewise import CAVEAT, FORCED, collapse, collapse_and_gauss_newton
from verification.papers import DDP1, DDPN
from verification.problems.control import as_stage, as_value, finite_problems, linear_quadratics
from verification.problems.networks import Chain, chains
from verification.problems.quadratics import quadratics

DDPN.definition(
    "TAB1",
    "Table 1",
    "the words: J total loss, x_t activation vector, u_t weights, f layer propagation, phi end-goal loss, l weight "
    "decay",
    over=DDP1.claims["DDP1-TAB1"].over,
    examples=2,
)(words)
for key, place in (("T1", "Theorem 1"), ("E1", "Eq. 1")):
    DDPN.exact(key, place, BELLMAN, assumes=FINITE, over=finite_problems())(bellman_recursion)


def corner_counterexample() -> Counterexample:
    """The least du of the printed form, one row of its matrix read as it stands, at dx = 1."""
    Q_x, Q_u, Q_xx, Q_ux, Q_uu = 0.0, 1.0, 0.0, 2.0, 1.0
    grid, dx = np.linspace(-4, 4, 8001), 1.0

    def least(corner):
        matrix = np.array([[0, Q_x, Q_u], [Q_x, Q_xx, corner], [Q_u, Q_ux, Q_uu]])
        z = np.stack([np.ones_like(grid), dx * np.ones_like(grid), grid])
        return np.round(grid[np.argmin(np.einsum("ig,ij,jg->g", z, matrix, z) / 2)], 9)

    truth = grid[np.argmin(Q_u * grid + Q_ux * dx * grid + Q_uu * grid**2 / 2)]
    return Counterexample(
        "scalars Q_x = Q_xx = 0, Q_u = 1, Q_ux = 2, Q_uu = 1, at dx = 1: 3 du + du^2/2 is least at du = -3",
        printed=least(Q_u),
        corrected=least(Q_ux),
        truth=np.round(truth, 9),
    )


DDPN.misprint(
    "E2",
    "Eq. 2",
    "the quadratic model of Q that the feedback policy minimises over affine maps",
    assumes="Q_uu positive definite",
    printed="1/2 [1 dx du] [[0, Q_x', Q_u'], [Q_x, Q_xx, Q_u], [Q_u, Q_ux, Q_uu]] [1 dx du]'",
    corrected="1/2 [1 dx du] [[0, Q_x', Q_u'], [Q_x, Q_xx, Q_xu], [Q_u, Q_ux, Q_uu]] [1 dx du]', Q_xu = Q_ux'",
    derivation=(
        "The matrix of a quadratic form in (1, dx, du) has the cross derivative on both sides of its diagonal. The "
        "entry between dx and du is of shape [n, m], Q_u of shape [m]; DDP1 prints Q_xu there. The minimiser "
        "-Q_uu^{-1} (Q_u + Q_ux dx) of Eq. 3 follows from the corrected form."
    ),
    origin="likely OCR",
    remark="Catalogue: exact (the misprint in the second row was not noticed). The minimiser and Eq. 3 are exact.",
    over=quadratics(),
    counterexample=corner_counterexample,
)(affine_minimiser)
DDPN.exact(
    "E3",
    "Eq. 3",
    "du = k + K dx with k = -Q_uu^{-1} Q_u, K = -Q_uu^{-1} Q_ux",
    assumes="Q_uu positive definite",
    remark="The restriction to affine maps is none: the minimiser over all maps of dx is this one.",
    over=quadratics(),
)(affine_minimiser)
DDPN.exact(
    "E4",
    "Eq. 4",
    "V_x = Q_x - Q_ux' Q_uu^{-1} Q_u, V_xx = Q_xx - Q_ux' Q_uu^{-1} Q_ux",
    assumes="the gains come from the same Q_uu, taken constant in x",
    remark="With M in place of Q_uu (Table 2) it is not the value of the executed policy: OURS-5.",
    over=quadratics(),
)(value_of_the_minimiser)
DDPN.exact(
    "A1",
    "Algorithm 1",
    "backward pass by Eqs. 2-4, closed-loop forward pass; on a linear-quadratic problem one iteration is the minimum",
    assumes="linear dynamics, quadratic costs, joint Hessian positive definite",
    over=linear_quadratics(),
)(one_iteration)
DDPN.exact(
    "A2",
    "Algorithm 2",
    "back-propagation with gradient descent computes u - eta nabla J",
    remark="The stored text has lost the transpose of f_u in line 4. l = l(u) there; with l(x, u) line 5 needs + l_x.",
    over=chains(),
)(algorithm_2)


@DDPN.exact(
    "E5",
    "Eq. 5",
    "argmin_d J_t + nabla_u J_t' d + d' (I / eta) d / 2 = -eta nabla_u J_t",
    assumes="eta > 0",
    over=chains(),
)
def gradient_step(chain: Chain):
    """Our gains of that quadratic, without a state, against the complex step."""
    for t, u in enumerate(chain.controls):
        slope = gradient(cost_of_control(chain, t), u)
        for eta in (1e-3, 1.0):
            none = [tf.zeros(shape, tf.float64) for shape in ([0], [0, 0], [len(u), 0])]
            Q = bellman.Expansion(none[0], tf.constant(slope), none[1], none[2], tf.eye(len(u), dtype=tf.float64) / eta)
            yield same(bellman.gains(Q).open_loop, -eta * slope, label="step")


@DDPN.definition(
    "E6",
    "Eq. 6",
    "J_t(x_t, u_t) = l_t(u_t) + J_{t+1}(f_t(x_t, u_t), u_{t+1}), J_T = phi",
    remark="nabla_{u_t} J_t = nabla_{u_t} J, because the costs before t do not depend on u_t.",
    over=chains(running=("none", "control")),
)
def layerwise_objective(chain: Chain):
    """Unrolls it, and compares the gradients of J_t with those of J and with our co-states."""
    states, (ps, slopes) = chain.states(), costates(chain)
    total, scale = chain.terminal_cost(states[-1]), np.linalg.norm(np.concatenate([*ps, *slopes]))
    for t in reversed(range(len(chain.layers))):
        total = chain.running_cost(t, states[t], chain.controls[t]) + total
        yield same(chain.cost_from(t, states[t], chain.controls), total, scale=1.0, label="J_t")

        def layerwise(u, t=t):
            return chain.cost_from(t, states[t], [*chain.controls[:t], u, *chain.controls[t + 1 :]])

        slope = gradient(layerwise, chain.controls[t])
        yield same(slope, gradient(cost_of_control(chain, t), chain.controls[t]), scale=scale, label="dJ_t/du = dJ/du")
        yield same(slopes[t], slope, scale=scale, label="H_u")


P2 = (
    "with Q_ux = 0 at all stages V_x = nabla_{x_t} J, Q_u = nabla_{u_t} J, Q_uu = nabla^2_{u_t} J, du = -(nabla^2 "
    "J)^{-1} nabla J"
)
DDPN.exact(
    "P2",
    "Proposition 2",
    P2,
    assumes=FORCED,
    remark=CAVEAT,
    over=DDP1.claims["DDP1-P5"].over,
    ranges=DDP1.claims["DDP1-P5"].ranges,
)(collapse_and_gauss_newton)
for key, place, statement in (
    ("E7", "Eq. 7", "Q_u = nabla_u J, Q_uu = nabla^2_u J"),
    ("L3", "Lemma 3", "V_x = nabla_{x_t} J and V_xx = nabla^2_{x_t} J"),
    ("E8", "Eq. 8", "V_x = nabla_{x_t} J and V_xx = nabla^2_{x_t} J"),
):
    DDPN.exact(key, place, statement, assumes=FORCED, remark=CAVEAT, over=chains())(collapse)


def propagate(chain: Chain, controls, count):
    """The first `count` layers composed, from x_0."""
    x = chain.inputs[0]
    for layer, u in zip(chain.layers[:count], controls, strict=False):
        x = layer(x, u)
    return x


def closed_loop_states(chain: Chain):
    """The states of the closed-loop forward pass of our recursion are F_{t-1} of the new controls."""
    states = chain.states()
    stages = [
        as_stage(chain.stage(t, states[t], second_order=False), np.eye(layer.size) / 0.1)
        for t, layer in enumerate(chain.layers)
    ]
    policy, _ = bellman.backward_dense(as_value(*chain.terminal_derivatives(states[-1])), stages)
    new, updated = [states[0]], []
    for t, (k, K, _) in enumerate(policy):
        updated.append(chain.controls[t] + k.numpy() + K.numpy() @ (new[t] - states[t]))
        new.append(chain.layers[t](new[t], updated[t]))
    for t, x in enumerate(new):
        yield same(propagate(chain, updated, t), x, label="state after t layers")


def composition_counterexample() -> Counterexample:
    """Two scalar stages."""
    u = [1.0, 2.0]
    F = np.cumsum(u)  # F_0(0, u), F_1(0, u)
    x = [0.0, u[0], u[0] + u[1]]
    return Counterexample(
        "x' = x + u, x_0 = 0, new controls (1, 2): the new state at t = 1", printed=F[1], corrected=F[0], truth=x[1]
    )


DDPN.misprint(
    "FN1",
    "Footnote 1",
    "the new state as a composition of the layers before it",
    printed="xhat_t = F_t(x_0, u + du), F_t = f_t o ... o f_0",
    corrected="xhat_t = F_{t-1}(x_0, u + du), F_{t-1} = f_{t-1} o ... o f_0",
    derivation="x_{t+1} = f_t(x_t, u_t), so f_t o ... o f_0 applied to x_0 is x_{t+1}. The text's \"applied until "
    'layer t - 1" is right.',
    origin="paper",
    remark="DDP1 Sec. 5.3 has the same slip: dx_t by f_{0:t} with u_{0:t} = {u_0, ..., u_t}.",
    over=chains(),
    counterexample=composition_counterexample,
)(closed_loop_states)
