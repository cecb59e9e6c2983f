"""Set-up and DDP: Eqs. 1-6, Algorithm 1, Proposition 1, and the remark on the batch size."""

import itertools

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st
from scipy.linalg import solve_discrete_are

from bellman_tf import bellman
from verification.claim import Counterexample, at_most, measured, same
from verification.derivations.quadratic import affine_minimiser, value_of_the_minimiser
from verification.papers import GTDDP
from verification.problems.blocks import Horizon, horizons
from verification.problems.networks import Chain, chains
from verification.problems.quadratics import Quadratic, quadratics
from verification.references import complex_step, dense


@GTDDP.definition(
    "E1",
    "Eq. 1",
    "J(u; x_0) = phi(x_T) + sum_t l_t(x_t, u_t) with x_{t+1} = f_t(x_t, u_t)",
    remark="The check: what our value functions promise is what this sum, evaluated along a roll-out, saves.",
    over=horizons(),
)
def objective(problem: Horizon):
    """J along our policy from x_0 + d and from x_0 differ by V_x' d + d' V_xx d / 2."""
    policies, values = bellman.backward_dense(problem.terminal(), problem.core_stages())
    gains = [(policy.open_loop.numpy(), policy.feedback.numpy()) for policy in policies]
    d = np.linspace(-1, 1, len(values[0].V_x)) + 0.5
    nominal, moved = (problem.follow(x, lambda t, y: gains[t][0] + gains[t][1] @ y) for x in (0 * d, d))
    promised = values[0].V_x.numpy() @ d + d @ values[0].V_xx.numpy() @ d / 2
    size = nominal[2] + moved[2] + problem.size * (d @ d)
    yield same(moved[0] - nominal[0], promised, condition=problem.condition, scale=size)


@GTDDP.exact(
    "E2",
    "Eq. 2",
    "argmin over du of J + J_u' du + du' (I / eta) du / 2 is -eta J_u",
    assumes="eta > 0",
    over=st.tuples(quadratics(), st.floats(-6, 2).map(lambda x: 10.0**x)),
)
def gradient_step(problem: tuple[Quadratic, float]):
    """Our gains with the metric I / eta are the gradient step, and the gradient of the model vanishes there."""
    quadratic, eta = problem
    J_u = quadratic.gradient[quadratic.n :]
    metric = np.eye(len(J_u)) / eta
    step = bellman.gains(quadratic.expansion(), tf.constant(metric)).open_loop.numpy()
    yield same(step, -eta * J_u, label="step")
    yield same(J_u + metric @ step, 0 * J_u, scale=np.linalg.norm(J_u), label="stationarity")


@GTDDP.exact(
    "E3",
    "Eq. 3",
    "J_t(x, u_t) = l_t(u_t) + J_{t+1}(f_t(x, u_t)), J_T = phi; its gradient in x_t obeys back-propagation",
    over=chains(max_depth=4),
)
def backpropagation(chain: Chain):
    """The first-order part of our expansion, stage after stage, against the complex-step gradient of J_t."""
    states = chain.states()
    V_x = chain.terminal_derivatives(states[-1])[0]
    for t in reversed(range(len(states) - 1)):
        value = bellman.Value(tf.constant(V_x), tf.zeros([len(V_x)] * 2, tf.float64))
        s = {name: tf.constant(array) for name, array in chain.stage(t, states[t], second_order=False).items()}
        f_x, f_u = s.pop("f_x"), s.pop("f_u")
        expansion = bellman.expand(value, f_x, f_u, cost_x=s["l_x"], cost_u=s["l_u"])
        V_x = expansion.Q_x.numpy()
        size = 1 + np.linalg.norm(expansion.Q_u)
        truth = complex_step.jacobian(lambda x, t=t: chain.cost_from(t, x, chain.controls), states[t])
        yield same(V_x, truth, scale=size, label="J_x")
        nested = chain.running_cost(t, states[t], chain.controls[t])
        nested += chain.cost_from(t + 1, states[t + 1], chain.controls)
        yield same(nested, chain.cost_from(t, states[t], chain.controls), label="J")


GTDDP.exact(
    "E4",
    "Eq. 4",
    "the quadratic model of Q is minimised over affine policies by k = -Q_uu^{-1} Q_u, K = -Q_uu^{-1} Q_ux",
    assumes="Q_uu positive definite",
    remark="The restriction to affine policies costs nothing: the minimiser over all maps is this one.",
    over=quadratics(),
)(affine_minimiser)


@GTDDP.exact(
    "E5",
    "Eq. 5",
    "Bellman equation V_t(x) = min_u [l_t(u) + V_{t+1}(f_t(x, u))], V_T = phi",
    assumes="the minimum is attained; here: finitely many controls, any dynamics and costs",
    over=st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 3)),
)
def bellman_equation(problem: tuple[int, int, int]):
    """The recursion over a tree of states against the least cost of all sequences of controls."""
    seed, depth, choices = problem
    rng = np.random.default_rng(seed)
    weights, controls = rng.normal(size=(depth, 2)), rng.normal(size=(depth, choices))

    def follow(t, x, u):
        return np.tanh(weights[t, 0] * x + u), weights[t, 1] * u**2

    def value(t, x):
        if t == depth:
            return np.cos(3 * x) * x
        return min(cost + value(t + 1, y) for y, cost in (follow(t, x, u) for u in controls[t]))

    def cost(sequence, x=0.3):
        total = 0.0
        for t, u in enumerate(sequence):
            x, l = follow(t, x, u)
            total += l
        return total + np.cos(3 * x) * x

    yield same(value(0, 0.3), min(map(cost, itertools.product(*controls))), scale=1.0)


GTDDP.exact(
    "E6",
    "Eq. 6",
    "V_x = Q_x + Q_ux' k, V_xx = Q_xx + Q_ux' K",
    assumes="k, K from the same Q_uu, taken constant in x",
    remark="With another positive definite matrix in the gains it is not the value of that policy: OURS-5.",
    over=quadratics(),
)(value_of_the_minimiser)


@GTDDP.exact(
    "A1",
    "Algorithm 1",
    "the backward pass of Eqs. 4-6, then the forward pass u_t <- u_t + k_t + K_t (new x_t - old x_t)",
    assumes="exact in one iteration for linear dynamics and quadratic costs",
    remark="There it is Newton's step in all controls together; without cross terms V_xx is the matrix of Riccati's "
    "equation, and the solution of the algebraic one reproduces itself.",
    over=horizons(),
)
def one_iteration_solves_lq(problem: Horizon):
    """Controls of the roll-out and the first value against the minimiser over all controls; Riccati's equations."""
    condition = problem.condition
    policies, values = bellman.backward_dense(problem.terminal(), problem.core_stages())
    gains = [(policy.open_loop.numpy(), policy.feedback.numpy()) for policy in policies]
    d = np.ones(len(values[0].V_x))
    controls = problem.follow(d, lambda t, x: gains[t][0] + gains[t][1] @ x)[1]
    U_0, U_x, v, W = dense.whole_horizon(problem.v, problem.W, problem.stages)
    size = np.linalg.norm(U_0) + np.linalg.norm(U_x)
    yield same(np.concatenate(controls), U_0 + U_x @ d, condition=condition, scale=size, label="controls")
    size = problem.size
    yield same(values[0].V_xx, W, condition=condition, scale=size, label="V_xx")
    yield same(values[0].V_x, v, condition=condition, scale=np.linalg.norm(v) + size, label="V_x")
    if problem.kind == "invariant":
        s = problem.stages[0]
        A, B, Q, R = s["f_x"], s["f_u"], s["l_xx"], s["l_uu"]
        P = dense.riccati(A, B, Q, R, problem.W, len(problem.stages))
        yield same(values[0].V_xx, P, condition=condition, scale=size, label="Riccati")
        # SciPy's solution loses digits near the stability limit; Riccati's equation contracts them away
        P = dense.riccati(A, B, Q, R, solve_discrete_are(A, B, Q, R), 30)
        start = bellman.Value(tf.zeros([len(P)], tf.float64), tf.constant(P))
        again = bellman.backward_dense(start, problem.core_stages()[:1])[1][0].V_xx
        size = np.linalg.norm(Q) + np.linalg.norm(A, 2) ** 2 * np.linalg.norm(P)
        yield same(again, P, condition=np.linalg.cond(R + B.T @ P @ B), scale=size, label="algebraic Riccati")


def stage_by_stage(chain, second_order):
    """Our recursion with Q_ux set to zero: expansions and values, first stage first."""
    states = chain.states()
    values, expansions = [bellman.Value(*map(tf.constant, chain.terminal_derivatives(states[-1])))], []
    for t in reversed(range(len(states) - 1)):
        s = {name: tf.constant(array) for name, array in chain.stage(t, states[t], second_order=second_order).items()}
        names = {k: k.replace("f_", "dynamics_").replace("l_", "cost_") for k in s if k not in {"f_x", "f_u"}}
        full = bellman.expand(values[0], s["f_x"], s["f_u"], **{names[k]: s[k] for k in names})
        expansion = full._replace(Q_ux=0 * full.Q_ux)
        metric = tf.eye(len(full.Q_u), dtype=tf.float64)
        values.insert(0, bellman.value_update(expansion, bellman.gains(expansion, metric)))
        expansions.insert(0, expansion)
    return expansions, values


@GTDDP.exact(
    "P1",
    "Prop. 1",
    "if Q_ux = 0 at all stages, V_x is the back-propagated gradient J_x and the step is the stage-wise Newton step "
    "-J_uu^{-1} J_u; with Q_uu = I / eta it is gradient descent",
    assumes="Q_ux is set to zero (it does not vanish by itself); for the Hessian also: second-order terms of the "
    "dynamics kept",
    remark="With linearised dynamics, which the paper uses, Q_uu is only the Gauss-Newton block; V_x = J_x survives.",
    over=chains(activations=("tanh", "softplus", "sigmoid")),
    ranges={"relative error of Q_uu without second order": (1e-3, 3.0)},
)
def without_mixed_derivatives(chain: Chain):
    """Values and steps against complex-step derivatives of J."""
    states, J_x, J_u = complex_step.backpropagate(chain)
    expansions, values = stage_by_stage(chain, second_order=True)
    linearised, linearised_values = stage_by_stage(chain, second_order=False)
    for t, expansion in enumerate(expansions):
        n, u = len(states[t]), chain.controls[t]
        size = 1 + np.linalg.norm(expansion.Q_uu)  # of the terms that cancel: costs against dynamics

        def gradient(z, t=t, n=n):
            controls = [z[n:] if s == t else v for s, v in enumerate(chain.controls)]
            _, by_x, by_u = complex_step.backpropagate(chain, controls, t, z[:n])
            return np.concatenate([by_x[0], by_u[0]])

        H = complex_step.jacobian(gradient, np.concatenate([states[t], u]))
        yield same(values[t].V_x, J_x[t], scale=size, label="V_x")
        yield same(linearised_values[t].V_x, J_x[t], scale=size, label="V_x, linearised")
        yield same(values[t].V_xx, H[:n, :n], scale=size, label="V_xx")
        yield same(expansion.Q_uu, H[n:, n:], scale=size, label="Q_uu")
        eigenvalues = np.linalg.eigvalsh(H[n:, n:])
        if eigenvalues[0] > 1e-8 * eigenvalues[-1]:
            condition = eigenvalues[-1] / eigenvalues[0]
            newton = -np.linalg.solve(H[n:, n:], J_u[t])
            yield same(bellman.gains(expansion).open_loop, newton, condition=condition, label="stage-wise Newton")
        descent = bellman.gains(expansion, 4 * tf.eye(len(u), dtype=tf.float64)).open_loop
        yield same(descent, -J_u[t] / 4, scale=size, label="gradient descent")
        if chain.layers[t].activation == "identity":
            continue
        without_cost = np.linalg.norm(H[n:, n:] - chain.running[t][1][n:, n:])
        gap = np.linalg.norm(H[n:, n:] - linearised[t].Q_uu.numpy())
        yield measured(gap / max(without_cost, 1e-12), "relative error of Q_uu without second order")


def growth_with_the_batch():
    """Entries of V_XX for one scalar state: the exponential law through B = 1 and 2 against the count."""
    entries = np.array([B**2 for B in (1, 2, 3, 4)])
    ours = [int(tf.size(bellman.augment_value(tf.ones([B, 1]), tf.ones([B, 1, 1])).V_xx)) for B in (1, 2, 3, 4)]
    law = entries[0] * (entries[1] / entries[0]) ** np.arange(4)
    return Counterexample("entries of V_XX, one state per sample, B = 1, 2, 3, 4", law, np.array(ours), entries)


@GTDDP.misprint(
    "S1",
    "Introduction",
    "how batch DDP scales with the batch size B",
    printed="the existing formulation scales exponentially with the batch size",
    corrected="memory is quadratic and time at most cubic in B",
    derivation="The augmented state stacks B states of size n, so V_X has B n entries and V_XX (B n)^2. One stage "
    "multiplies matrices with sides B n, B n' and m: O(B^3) operations at fixed sizes, O(B^2) if F_X is used as "
    "block-diagonal. Nothing is enumerated over subsets of samples, so nothing is exponential. (With an outer-product "
    "terminal Hessian a B x B matrix carries all of it: OURS-2.)",
    origin="paper",
    counterexample=growth_with_the_batch,
    over=st.tuples(st.integers(1, 8), st.integers(1, 5)),
)
def quadratic_in_the_batch(problem: tuple[int, int]):
    """Sizes of our stacked value, of the stacked Jacobians, and of the B x B form."""
    B, n = problem
    value = bellman.augment_value(tf.ones([B, n]), tf.ones([B, n, n]))
    F_X, F_u = bellman.augment_batch(tf.ones([B, n, n]), tf.ones([B, n, 2]))
    yield same(value.V_xx.shape.num_elements(), B**2 * n**2, label="entries of V_XX")
    yield same([F_X.shape.num_elements(), F_u.shape.num_elements()], [B**2 * n**2, B * n * 2], label="Jacobians")
    L = bellman.sample_space.init(B, beta_squared=tf.ones([B])).L
    yield at_most(L.shape.num_elements(), B**2, label="entries in sample space")
