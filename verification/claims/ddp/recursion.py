"""The DDP recursion: Eqs. 6-9, Algorithm 1, and its rate of convergence (Sec. 2.2)."""

import keras
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import bellman, linalg
from verification.claim import Counterexample, at_most, measured, same
from verification.derivations.expansion import blocks, one_iteration
from verification.derivations.quadratic import affine_minimiser, value_of_the_minimiser
from verification.papers import DDP1
from verification.problems.control import (
    Behind,
    arguments,
    as_stage,
    as_value,
    behinds,
    linear_quadratics,
    minimised_chains,
)
from verification.problems.networks import Chain, chains
from verification.problems.quadratics import quadratics
from verification.references import jets


def part_of_expansion(name):
    """The check that one part of our expansion of l + V' o f is what twice differentiating it gives."""

    def check(problem: Behind):
        """Our `expand` against forward differentiation of the composition."""
        (derivatives,) = problem.derivatives()
        ours = bellman.expand(as_value(problem.v, problem.W), **arguments(derivatives))
        _, gradient, hessian = jets.expansion(problem.bellman_objective, problem.point())
        scale = np.linalg.norm(gradient) if len(name) == 3 else np.linalg.norm(hessian)
        truth = blocks(gradient, hessian, problem.layer.cols)[name]
        yield same(getattr(ours, name), truth, scale=scale, label=name)

    return check


for letter, name, formula in zip(
    "abcde",
    ("Q_x", "Q_u", "Q_xx", "Q_uu", "Q_ux"),
    (
        "Q_x = l_x + f_x' V'_x",
        "Q_u = l_u + f_u' V'_x",
        "Q_xx = l_xx + f_x' V'_xx f_x + V'_x . f_xx",
        "Q_uu = l_uu + f_u' V'_xx f_u + V'_x . f_uu",
        "Q_ux = l_ux + f_u' V'_xx f_x + V'_x . f_ux",
    ),
    strict=True,
):
    DDP1.exact(
        f"E6{letter}", f"Eq. 6{letter}", formula, assumes="twice differentiable (relu: off its kinks)", over=behinds()
    )(part_of_expansion(name))


def open_gain_counterexample() -> Counterexample:
    """The smallest quadratic whose Q_u and Q_ux differ."""
    Q_u, Q_ux, Q_uu = 1.0, 2.0, 1.0
    grid = np.linspace(-4, 4, 8001)
    return Counterexample(
        "scalars Q_u = 1, Q_ux = 2, Q_uu = 1 at dx = 0: du + du^2/2 is least at du = -1",
        printed=-Q_ux / Q_uu,
        corrected=-Q_u / Q_uu,
        truth=np.round(grid[np.argmin(Q_u * grid + Q_uu * grid**2 / 2)], 9),
    )


DDP1.misprint(
    "E7",
    "Eq. 7",
    "the gains of the minimiser of the quadratic model in u",
    assumes="Q_uu positive definite",
    printed="k = -Q_uu^{-1} Q_ux, K = -Q_uu^{-1} Q_ux",
    corrected="k = -Q_uu^{-1} Q_u, K = -Q_uu^{-1} Q_ux",
    derivation=(
        "Stationarity in du of Q_x' dx + Q_u' du + (dx' Q_xx dx + 2 du' Q_ux dx + du' Q_uu du) / 2 is Q_u + Q_ux dx "
        "+ Q_uu du = 0, so du = -Q_uu^{-1} Q_u - Q_uu^{-1} Q_ux dx. The printed k has the shape [m, n] of K."
    ),
    origin="likely OCR",
    remark="Eq. 8 has Q_uu^{-1} Q_u in the same role.",
    over=quadratics(),
    counterexample=open_gain_counterexample,
)(affine_minimiser)

DDP1.exact(
    "E8",
    "Eq. 8",
    "V_x = Q_x - Q_ux' Q_uu^{-1} Q_u, V_xx = Q_xx - Q_ux' Q_uu^{-1} Q_ux",
    assumes="Q_uu positive definite, taken constant in x",
    over=quadratics(),
)(value_of_the_minimiser)


DDP1.exact(
    "A1",
    "Algorithm 1",
    "backward pass by Eqs. 6-8, closed-loop forward pass; on a linear-quadratic problem one iteration is the minimum",
    assumes="linear dynamics, quadratic costs, joint Hessian positive definite",
    remark="As printed it has neither regularisation nor a line search; nonlinear problems need them.",
    over=linear_quadratics(),
)(one_iteration)


def ddp_step(chain: Chain, controls, second_order):
    """One full iteration of our dense recursion with the closed-loop forward pass."""
    chain = chain._replace(controls=controls)
    states = chain.states()
    stages = [as_stage(chain.stage(t, states[t], second_order)) for t in range(len(controls))]
    policy, _ = bellman.backward_dense(as_value(*chain.terminal_derivatives(states[-1])), stages)
    x, updated = states[0], []
    for t, (k, K, _) in enumerate(policy):
        updated.append(controls[t] + k.numpy() + K.numpy() @ (x - states[t]))
        x = chain.layers[t](x, updated[t])
    return updated


@DDP1.exact(
    "S2.2",
    "Sec. 2.2",
    "DDP converges quadratically near a minimiser",
    assumes="smooth dynamics, Hessian of J positive definite there, full second-order dynamics, full steps",
    remark=(
        "The order is log10 of the ratio of the errors after one step from distances 1e-3 and 1e-4. With linearised "
        "dynamics (what the paper runs, Sec. 4.2) it is 1: the error is multiplied by a factor that grows with the "
        'residual. "Numerically superior to Newton\'s method" is an experiment; open.'
    ),
    over=minimised_chains(),
    ranges={"order": (1.9, 2.1), "order, linearised dynamics": (0.9, 1.1)},
)
def quadratic_convergence(chain: Chain):
    """The order of one step of our recursion, from two distances."""
    rng = np.random.default_rng(0)
    direction = [rng.standard_normal(len(u)) for u in chain.controls]
    size = np.sqrt(sum(d @ d for d in direction))
    for second_order, label in ((True, "order"), (False, "order, linearised dynamics")):
        errors = []
        for distance in (1e-3, 1e-4):
            start = [u + distance * d / size for u, d in zip(chain.controls, direction, strict=True)]
            after = ddp_step(chain, start, second_order)
            errors.append(np.sqrt(sum(np.sum((a - u) ** 2) for a, u in zip(after, chain.controls, strict=True))))
        yield measured(np.log10(errors[0] / errors[1]), label)
        if second_order:
            yield at_most(errors[1], 1e-1 * 1e-4, scale=1e-4, label="contraction from 1e-4")


@DDP1.definition(
    "E9",
    "Eq. 9",
    "x_{t+1} = sigma_t(h_t), h_t = W_t x_t + b_t, u_t = [vec(W_t); b_t]",
    remark="vec stacks columns: Eq. 26 fixes the order.",
    over=st.tuples(chains(max_depth=1, terminals=("square",))),
)
def layer(problem):
    """The activations of Keras on our `unvec` of the control, against the layer of the chain."""
    (chain,) = problem
    f, u, x = chain.layers[0], chain.controls[0], chain.inputs[0]
    weights = tf.constant(u[: f.rows * f.cols])
    h = tf.linalg.matvec(linalg.unvec(weights, f.rows, f.cols), tf.constant(x)) + u[f.rows * f.cols :]
    kind = {"identity": "linear"}.get(f.activation, f.activation)
    yield same(keras.activations.get(kind)(h), f(x, u), label="x_{t+1}")
    yield same(linalg.vec(tf.constant(f.split(u)[0])), weights, label="vec(W)")
