"""Pontryagin and Bellman: Table 1, Theorems 1 and 2, Eqs. 1-5, Lemma 3, Eq. 10, Algorithm 2."""

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import bellman
from verification.claim import Counterexample, same
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
from verification.papers import DDP1
from verification.problems.control import (
    LinearQuadratic,
    arguments,
    as_stage,
    as_value,
    finite_problems,
    linear_quadratics,
)
from verification.problems.networks import Chain, chains
from verification.references import jets

DDP1.definition(
    "TAB1",
    "Table 1",
    "the words: J total loss, x_t activations of layer t, u_t its weights, f the layer, phi end-goal loss, l weight "
    "regularisation",
    remark="Checked on a Keras model that bellman_tf has cut into stages.",
    over=chains(max_batch=3, max_depth=2, activations=("tanh",), terminals=("square",), running=("none",)),
    examples=2,
)(words)


def adjoint(chain: Chain):
    """Our costates against complex-step gradients of J."""
    states = chain.states()
    ps, slopes = costates(chain)
    scale = np.linalg.norm(ps[-1]) + np.linalg.norm(np.concatenate(slopes))
    for t in range(len(chain.layers) + 1):
        truth = gradient(lambda x, t=t: chain.cost_from(t, x, chain.controls), states[t])
        yield same(ps[t], truth, scale=scale, label="p_t = dJ/dx_t")
    for t, slope in enumerate(slopes):
        truth = gradient(cost_of_control(chain, t), chain.controls[t])
        yield same(slope, truth, scale=scale, label="H_u = dJ/du_t")


ARGMIN = {
    "printed": "u_t* = argmin_v H(x_t*, p_{t+1}*, v)",
    "corrected": "nabla_u H(x_t*, p_{t+1}*, u_t*) = 0; argmin if H is convex in u (f affine and l convex in u, say)",
    "assumes": "J differentiable; for the argmin: H convex in u",
    "derivation": (
        "By the chain rule dJ/du_t = l_u + f_u' p_{t+1} = H_u at every trajectory, so an optimum has H_u = 0: that is "
        "all the first-order conditions give. In discrete time the needle variation of the continuous proof is a "
        "finite change of the state, J(u + d) - J(u) = H(u + d) - H(u) + r with r the remainder of the cost-to-go "
        "J_{t+1} behind its linear term p' (f(u + d) - f(u)), and a positive r can make a maximum of H the minimum of "
        "J. If H is convex in u, then H_u = 0 is the argmin."
    ),
    "origin": "paper",
}


def argmin_counterexample() -> Counterexample:
    """Minimises H, J and finds the zero of H_u, over the same grid."""
    grid = np.linspace(-1, 1, 2001)
    J = -0.5 * grid**2 + (0.0 + grid) ** 2
    u = grid[np.argmin(J)]
    p = 2 * (0.0 + u)
    H = p * (0.0 + grid) - 0.5 * grid**2
    stationary = grid[np.argmin(np.abs(p - grid))]
    return Counterexample(
        "T = 1, x_0 = 0, x_1 = x_0 + u, l = -u^2/2, phi = x_1^2, |u| <= 1: J = u^2/2, so u* = 0 and p_1 = 2 x_1 = 0, "
        "where H = -u^2/2 is largest",
        printed=np.abs(grid[np.argmin(H)]),
        corrected=stationary,
        truth=u,
    )


def stationary_at_the_optimum(problem: LinearQuadratic):
    """One pass of our recursion finds the optimum of an LQ problem; its H is convex in u: H_u = 0 is the argmin."""
    controls = [np.zeros(m) for m in problem.sizes]
    terminal, stages = problem.expansions(controls)
    policy, _ = bellman.backward_dense(as_value(*terminal), [as_stage(stage) for stage in stages])
    states, after = problem.states(controls), [np.zeros(problem.stages[0]["f_x"].shape[1])]
    for t, (k, K, _) in enumerate(policy):
        controls[t] = k.numpy() + K.numpy() @ (after[t] - states[t])
        s = problem.stages[t]
        after.append(problem.offsets[t] + s["f_x"] @ after[t] + s["f_u"] @ controls[t])
    _, slope, hessian = jets.expansion(problem.cost, np.concatenate(controls))
    condition = np.linalg.cond(hessian)
    size = np.linalg.norm(hessian, 2) * max(np.linalg.norm(np.concatenate(controls)), 1.0)
    yield same(slope, np.zeros_like(slope), scale=size, condition=condition, label="the optimum")
    p = problem.v + problem.W @ after[-1]
    for t in reversed(range(len(controls))):
        s, x = problem.stages[t], after[t]
        least = -np.linalg.solve(s["l_uu"], s["l_u"] + s["l_ux"] @ x + s["f_u"].T @ p)  # of H, by its convexity
        yield same(least, controls[t], condition=condition * np.linalg.cond(s["l_uu"]), scale=size, label="argmin of H")
        p = s["l_x"] + s["l_xx"] @ x + s["l_ux"].T @ controls[t] + s["f_x"].T @ p


def maximum_principle(problem):
    """The adjoint part at any trajectory of a chain, the stationarity of H at the optimum of an LQ problem."""
    yield from adjoint(problem[0])
    yield from stationary_at_the_optimum(problem[1])


both = st.tuples(chains(), linear_quadratics())
for key, place, statement, check, over in (
    ("T1", "Theorem 1", "an optimal trajectory has co-states with Eqs. 1-3", maximum_principle, both),
    ("E3", "Eq. 3", "the optimal control minimises the Hamiltonian", stationary_at_the_optimum, linear_quadratics()),
):
    DDP1.misprint(
        key,
        place,
        statement,
        remark="Eqs. 1 and 2 hold at every trajectory, optimal or not. Same caveat: DDP1-E19c, DDP1-P6.",
        over=over,
        counterexample=argmin_counterexample,
        **ARGMIN,
    )(check)


@DDP1.exact("E1", "Eq. 1", "x_{t+1} = nabla_p H = f_t(x_t, u_t), x_0 given", over=chains())
def forward(chain: Chain):
    """Differentiates H in p, and compares with the simulated states."""
    states = chain.states()
    for t, layer in enumerate(chain.layers):
        p = np.ones(layer.rows)
        ours = gradient(lambda p, t=t, f=layer: p @ f(states[t], chain.controls[t]), p)
        yield same(ours, states[t + 1], label="x_{t+1}")


DDP1.exact(
    "E2",
    "Eq. 2",
    "p_t = nabla_x H = l_x + f_x' p_{t+1}, p_T = phi_x; hence p_t = nabla_{x_t} J and H_u = nabla_{u_t} J",
    assumes="any trajectory, optimal or not",
    over=chains(),
)(adjoint)

DDP1.exact(
    "L3",
    "Lemma 3",
    "back-propagation is Eq. 2, and gradient descent takes gradient steps for Eq. 3",
    assumes='"iteratively solves" read as: takes gradient steps on H; a limit point is stationary, see DDP1-E3',
    over=chains(),
)(adjoint)


@DDP1.exact("E10", "Eq. 10", "gradient descent on H in u_t is gradient descent on J", over=chains())
def descent(chain: Chain):
    """Our gain with metric I / eta and V_xx = 0, against -eta times the complex-step gradient."""
    eta, states = 0.3, chain.states()
    ps, slopes = costates(chain)
    scale = np.linalg.norm(np.concatenate(slopes))
    for t, layer in enumerate(chain.layers):
        value = as_value(ps[t + 1], np.zeros((layer.rows,) * 2))
        Q = bellman.expand(value, **arguments(chain.stage(t, states[t], second_order=False)))
        k = bellman.gains(Q, tf.eye(layer.size, dtype=tf.float64) / eta).open_loop
        yield same(k, -eta * gradient(cost_of_control(chain, t), chain.controls[t]), scale=eta * scale, label="step")


DDP1.exact("A2", "Algorithm 2", "back-propagation with gradient descent computes u - eta nabla J", over=chains())(
    algorithm_2
)


for key, place in (("T2", "Theorem 2"), ("E4", "Eq. 4")):
    DDP1.exact(key, place, BELLMAN, assumes=FINITE, over=finite_problems())(bellman_recursion)


@DDP1.definition(
    "E5",
    "Eq. 5",
    "the Bellman objective Q_t(x, u) = l_t(x, u) + V_{t+1}(f_t(x, u))",
    remark="For linear f and quadratic l, V our expansion is this function itself, not only its model.",
    over=linear_quadratics(max_depth=1),
)
def bellman_objective(problem: LinearQuadratic):
    """Evaluates Q at distant points from our expansion and from its definition."""
    (v, W), (stage,) = problem.expansions([np.zeros(problem.sizes[0])])
    Q = bellman.expand(as_value(v, W), **arguments(stage))
    rng = np.random.default_rng(0)
    dx, du = 3 * rng.standard_normal(stage["f_x"].shape[1]), 3 * rng.standard_normal(problem.sizes[0])

    def objective(x, u):
        end = problem.offsets[0] + stage["f_x"] @ x + stage["f_u"] @ u
        return problem.running_cost(0, x, u) + problem.v @ end + end @ problem.W @ end / 2

    Q_x, Q_u, Q_xx, Q_ux, Q_uu = (part.numpy() for part in Q)
    ours = Q_x @ dx + Q_u @ du + (dx @ Q_xx @ dx + du @ Q_uu @ du) / 2 + du @ Q_ux @ dx
    truth = objective(dx, du) - objective(0 * dx, 0 * du)
    yield same(ours, truth, scale=np.linalg.norm(Q_xx) * dx @ dx + np.linalg.norm(Q_uu) * du @ du, label="Q")
