"""Pontryagin and Bellman: Table 1, Theorems 1 and 2, Eqs. 1-5, Lemma 3, Eq. 10, Algorithm 2."""

import keras
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import bellman, game
from verification.claim import Counterexample, at_most, same
from verification.papers import DDP1
from verification.problems.control import (
    Finite,
    LinearQuadratic,
    arguments,
    as_stage,
    as_value,
    finite_problems,
    linear_quadratics,
)
from verification.problems.networks import Chain, chains
from verification.references import jets


def costates(chain: Chain, sample=0, controls=None):
    """p_0 ... p_T and H_u at every stage by our `expand` with V_x = p and no curvature."""
    chain = chain if controls is None else chain._replace(controls=controls)
    states = chain.states(sample)
    ps, slopes = [chain.terminal_derivatives(states[-1], sample)[0]], []
    for t in reversed(range(len(chain.layers))):
        value = as_value(ps[0], np.zeros((len(ps[0]),) * 2))
        Q = bellman.expand(value, **arguments(chain.stage(t, states[t], second_order=False)))
        ps.insert(0, Q.Q_x.numpy())
        slopes.insert(0, Q.Q_u.numpy())
    return ps, slopes


def gradient(function, z):
    """Of an analytic function, by the complex step."""
    step = 1e-40j * np.eye(len(z))
    return np.array([function(z + e).imag for e in step]) / 1e-40


def cost_of_control(chain: Chain, t, sample=0):
    """J as a function of u_t."""
    return lambda u: chain.cost([*chain.controls[:t], u, *chain.controls[t + 1 :]], sample)


@DDP1.definition(
    "TAB1",
    "Table 1",
    "the words: J total loss, x_t activations of layer t, u_t its weights, f the layer, phi end-goal loss, l weight "
    "regularisation",
    remark="Checked on a Keras model that bellman_tf has cut into stages.",
    over=chains(max_batch=3, max_depth=2, activations=("tanh",), terminals=("square",), running=("none",)),
    examples=2,
)
def words(chain: Chain):
    """Cuts a Keras model into stages and compares its layers, weights and loss with the chain of controls."""
    sizes, decay = [layer.rows for layer in chain.layers], 0.125
    layers = [
        keras.layers.Dense(n, activation="tanh", kernel_regularizer=keras.regularizers.L2(decay), dtype="float64")
        for n in sizes
    ]
    model = keras.Sequential([keras.Input([chain.layers[0].cols], dtype="float64"), *layers])
    for made, layer, u in zip(layers, chain.layers, chain.controls, strict=True):
        W, b = layer.split(u)
        made.set_weights([W.T, b])
    cut = game.Game(model)
    yield same([len(stage) for stage in cut.stages], [1] * len(layers), label="one player per stage")
    for stage, layer in zip(cut.stages, chain.layers, strict=True):
        yield same(stage[0].parameters, layer.size, label="controls of a stage")
    outputs = model(chain.inputs)
    ends = np.array([chain.states(i)[-1] for i in range(len(chain.inputs))])
    yield same(outputs, ends, label="activations")
    ours = np.mean([chain.terminal_cost(x, i) for i, x in enumerate(ends)])
    ours += sum(decay * np.sum(layer.split(u)[0] ** 2) for layer, u in zip(chain.layers, chain.controls, strict=True))
    loss = tf.reduce_mean(tf.reduce_sum((outputs - chain.targets) ** 2, axis=1)) / 2 + tf.add_n(model.losses)
    yield same(loss, ours, label="J")


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


@DDP1.exact("A2", "Algorithm 2", "back-propagation with gradient descent computes u - eta nabla J", over=chains())
def algorithm_2(chain: Chain):
    """The algorithm letter by letter, and our backward pass without curvature, against the complex step."""
    eta, states = 0.1, chain.states()
    p, updated = chain.terminal_derivatives(states[-1])[0], list(chain.controls)
    stages = []
    for t in reversed(range(len(chain.layers))):
        s = chain.stage(t, states[t], second_order=False)
        updated[t] = chain.controls[t] - eta * (s["f_u"].T @ p + s["l_u"])
        p = s["f_x"].T @ p + s["l_x"]
        first_order = {name: s[name] for name in ("f_x", "f_u", "l_x", "l_u")}
        stages.insert(0, as_stage(first_order, np.eye(chain.layers[t].size) / eta))
    end = chain.terminal_derivatives(states[-1])[0]
    policy, values = bellman.backward_dense(as_value(end, np.zeros((len(end),) * 2)), stages)
    slopes = [gradient(cost_of_control(chain, t), u) for t, u in enumerate(chain.controls)]
    scale = np.linalg.norm(np.concatenate(slopes))
    for u, new, slope, (k, _, _) in zip(chain.controls, updated, slopes, policy, strict=True):
        yield same(new, u - eta * slope, scale=scale, label="u")
        yield same(k, -eta * slope, scale=eta * scale, label="k")
    yield same(values[0].V_x, p, scale=scale, label="p_0")


def bellman_recursion(problem: Finite):
    """V_0 from the recursion over tables, and the cost of its policy, against all sequences of controls."""
    V, policy = [problem.end], []
    for after, running in zip(reversed(problem.after), reversed(problem.running), strict=True):
        Q = running + V[0][after]
        V.insert(0, Q.min(axis=1))
        policy.insert(0, Q.argmin(axis=1))
    for state in range(len(problem.end)):
        best, x, controls = problem.optimum(state), state, []
        for t, rule in enumerate(policy):
            controls.append(rule[x])
            x = problem.after[t, x, controls[-1]]
        size = np.abs(problem.running).sum() + np.abs(problem.end).max()
        yield same(V[0][state], best, scale=size, label="V_0 = J*")
        yield same(problem.cost(state, controls), best, scale=size, label="cost of the policy")
        yield at_most(V[0][state], best, scale=size, label="V_0 <= J")


BELLMAN = (
    "V_t(x) = min_u l_t(x, u) + V_{t+1}(f_t(x, u)), V_T = phi, gives V_0 = J*, and its minimisers an optimal policy"
)
FINITE = "the minima exist; checked with finitely many states and controls, by enumeration"
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
