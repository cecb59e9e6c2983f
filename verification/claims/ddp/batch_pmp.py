"""Pontryagin for a batch: Propositions 4 and 6, Eqs. 11 and 17-23."""

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import bellman
from verification.claim import Counterexample, same
from verification.claims.ddp.optimality import ARGMIN, argmin_counterexample, stationary_at_the_optimum
from verification.derivations.pontryagin import cost_of_control, costates, gradient
from verification.papers import DDP1
from verification.problems.control import Behind, batches_of_linear_quadratics, behinds
from verification.problems.networks import Chain, chains
from verification.references import batch, jets

batches = chains(max_batch=4)


def stacked(chain: Chain, t):
    """Our augmented Jacobians of stage t, and its per-sample derivatives."""
    samples = [chain.stage(t, chain.states(i)[t]) for i in range(len(chain.inputs))]
    F = bellman.augment_batch(*[tf.constant(np.array([s[name] for s in samples])) for name in ("f_x", "f_u")])
    return F, samples


def augmented_costates(chain: Chain):
    """P_0 ... P_T and H_u of the augmented problem, by our stacked recursion without curvature."""
    ends = np.array([chain.terminal_derivatives(chain.states(i)[-1], i)[0] for i in range(len(chain.inputs))])
    end = bellman.augment_value(tf.constant(ends), tf.zeros([*ends.shape, ends.shape[1]], tf.float64))
    Ps, slopes, value = [end.V_x], [], end
    for t in reversed(range(len(chain.layers))):
        F, samples = stacked(chain, t)
        L = batch.costs(samples)
        Q = bellman.expand(value, *F, cost_x=tf.constant(L["l_x"]), cost_u=tf.constant(L["l_u"]))
        value = bellman.Value(Q.Q_x, tf.zeros([len(Q.Q_x), len(Q.Q_x)], tf.float64))
        Ps.insert(0, Q.Q_x)
        slopes.insert(0, Q.Q_u)
    return Ps, slopes


def mean_cost(chain: Chain, t):
    """The batch objective as a function of u_t."""
    costs = [cost_of_control(chain, t, i) for i in range(len(chain.inputs))]
    return lambda u: sum(cost(u) for cost in costs) / len(costs)


def collected(chain: Chain):
    """P_t of our stacked recursion against the samples' co-states over B."""
    Ps, _ = augmented_costates(chain)
    single = [costates(chain, i)[0] for i in range(len(chain.inputs))]
    scale = np.linalg.norm(np.concatenate([p[-1] for p in single]))
    for t, P in enumerate(Ps):
        truth = np.concatenate([p[t] for p in single]) / len(single)
        yield same(P, truth, scale=scale, label="P_t")


def minibatch_gradient(chain: Chain):
    """H_u of our stacked recursion against the complex-step gradient of the mean cost."""
    _, slopes = augmented_costates(chain)
    truth = [gradient(mean_cost(chain, t), u) for t, u in enumerate(chain.controls)]
    scale = np.linalg.norm(np.concatenate(truth))
    for ours, slope in zip(slopes, truth, strict=True):
        yield same(ours, slope, scale=scale, label="H_u")


def batch_principle(chain: Chain):
    """Co-states and gradients of the augmented problem."""
    yield from collected(chain)
    yield from minibatch_gradient(chain)


MEAN = "nabla_u H(X_t, P_{t+1}, u_t) = (1/B) sum_i nabla_u J(u; x_0^(i)), P_t = (1/B) [p_t^(1); ...; p_t^(B)]"
for key, place in (("P4", "Proposition 4"), ("E11", "Eq. 11")):
    DDP1.exact(key, place, MEAN, over=batches)(batch_principle)


def batch_principle_and_optimum(problem):
    """Co-states and gradients at any trajectory, and the stationary H at the optimum of a batch of LQ problems."""
    yield from batch_principle(problem[0])
    yield from stationary_at_the_optimum(problem[1])


AUGMENTED_ARGMIN = ARGMIN | {
    "printed": "u_t* = argmin_v H(X_t*, P_{t+1}*, v)",
    "corrected": "nabla_u H(X_t*, P_{t+1}*, u_t*) = 0; argmin if H is convex in u",
}
optima = batches_of_linear_quadratics()
for key, place, statement, check, over in (
    (
        "P6",
        "Proposition 6",
        "an optimal trajectory of the batch has co-states with Eqs. 19a-c",
        batch_principle_and_optimum,
        st.tuples(batches, optima),
    ),
    ("E19c", "Eq. 19c", "the optimal control minimises the augmented Hamiltonian", stationary_at_the_optimum, optima),
):
    DDP1.misprint(
        key,
        place,
        statement,
        remark="The augmented problem is itself of the form of Theorem 1, so DDP1-E3 applies (its counterexample is "
        "B = 1). Eqs. 19a, 19b and the last sentence of Prop. 6 are exact.",
        over=over,
        counterexample=argmin_counterexample,
        **AUGMENTED_ARGMIN,
    )(check)


@DDP1.definition(
    "E17", "Eq. 17", "the batch problem: stacked states X_t, mean costs L_t and Phi, one control for all", over=batches
)
def batch_problem(chain: Chain):
    """Simulates the stacked states; our terminal value is that of the mean loss, and J the mean of the J^(i)."""
    B = len(chain.inputs)
    X, J = np.concatenate(list(chain.inputs)), 0.0
    for t, (layer, u) in enumerate(zip(chain.layers, chain.controls, strict=True)):
        rows = X.reshape(B, -1)
        J += sum(chain.running_cost(t, x, u) for x in rows) / B
        X = np.concatenate([layer(x, u) for x in rows])
    J += sum(chain.terminal_cost(x, i) for i, x in enumerate(X.reshape(B, -1))) / B
    yield same(J, np.mean([chain.cost(sample=i) for i in range(B)]), scale=1.0, label="J")
    ends = np.array([chain.terminal_derivatives(x, i)[0] for i, x in enumerate(X.reshape(B, -1))])
    ours = bellman.augment_value(tf.constant(ends), tf.zeros([*ends.shape, ends.shape[1]], tf.float64)).V_x

    def end(X):
        return sum(chain.terminal_cost(x, i) for i, x in enumerate(np.split(X, B))) / B

    yield same(ours, gradient(end, X), scale=np.linalg.norm(X) / B, label="Phi_X")


@DDP1.exact(
    "E18",
    "Eq. 18",
    "F_u stacks the samples' f_u, F_X and F_uX, F_XX are block-diagonal, F_uu is stacked",
    remark="F_XX lives on B n' x B n x B n; the index (i) of the first block is lost in the stored text.",
    over=behinds(max_batch=3),
)
def block_structure(problem: Behind):
    """Our stacked Jacobians and the blockwise tensors against twice differentiating the stacked map."""
    B, n = problem.states()[0].shape

    def stack(z):
        return np.concatenate([problem.layer(z[i * n : (i + 1) * n], z[B * n :]) for i in range(B)])

    _, J, H = jets.expansion(stack, problem.point())
    (F_X, F_u), samples = stacked(problem.chain, problem.stage)
    F_XX, F_uX, F_uu = batch.tensors(samples)
    N, slope, curvature = B * n, np.linalg.norm(J), np.linalg.norm(H)
    yield same(F_X, J[:, :N], scale=slope, label="F_X")
    yield same(F_u, J[:, N:], scale=slope, label="F_u")
    yield same(F_XX, H[:, :N, :N], scale=curvature, label="F_XX")
    yield same(F_uX, H[:, N:, :N], scale=curvature, label="F_uX")
    yield same(F_uu, H[:, N:, N:], scale=curvature, label="F_uu")


@DDP1.exact("E19a", "Eq. 19a", "X_{t+1} = nabla_P H, X_0 given", over=batches)
def batch_forward(chain: Chain):
    """Differentiates the augmented H in P."""
    states = [chain.states(i) for i in range(len(chain.inputs))]
    for t, (layer, u) in enumerate(zip(chain.layers, chain.controls, strict=True)):
        F = np.concatenate([layer(x[t], u) for x in states])
        ours = gradient(lambda P, F=F: P @ F, np.ones(len(F)))
        yield same(ours, np.concatenate([x[t + 1] for x in states]), label="X_{t+1}")


DDP1.exact(
    "E19b",
    "Eq. 19b",
    "P_t = nabla_X H, P_T = nabla Phi; every P_t collects the samples' co-states over B",
    over=batches,
)(collected)


@DDP1.definition(
    "E20", "Eq. 20", "the augmented Hamiltonian H(X, P, u) = P' F(X, u) + L(X, u)", over=behinds(max_batch=3)
)
def augmented_hamiltonian(problem: Behind):
    """Differentiates it in (X, u), against our expansion with V_X = P and no curvature."""
    flat = problem._replace(W=np.zeros_like(problem.W))
    _, gradient_, _ = jets.expansion(flat.bellman_objective, problem.point())
    F, samples = stacked(problem.chain, problem.stage)
    L = batch.costs(samples)
    value = bellman.Value(tf.constant(flat.v), tf.constant(flat.W))
    Q = bellman.expand(value, *F, cost_x=tf.constant(L["l_x"]), cost_u=tf.constant(L["l_u"]))
    yield same(np.concatenate([Q.Q_x, Q.Q_u]), gradient_, label="H_X, H_u")


@DDP1.exact("E21", "Eq. 21", "P_T = nabla Phi = (1/B) [phi_x^(1); ...; phi_x^(B)]", over=batches)
def terminal_costate(chain: Chain):
    """Our terminal value against the complex step."""
    B, Ps = len(chain.inputs), augmented_costates(chain)[0]
    X = np.concatenate([chain.states(i)[-1] for i in range(B)])

    def end(X):
        return sum(chain.terminal_cost(x, i) for i, x in enumerate(np.split(X, B))) / B

    yield same(Ps[-1], gradient(end, X), scale=np.linalg.norm(X) / B, label="P_T")


TRANSPOSE_REMARK = (
    "The notation paragraph gives Jacobians as X x U, for which no transpose is needed, but Eq. 18 fixes F_u as [B "
    "n', m] and the following lines of the same display write f_x' p and f_u' p."
)


def state_transpose_counterexample() -> Counterexample:
    """A Jacobian that is not symmetric."""
    F_X, P = np.array([[0.0, 1.0], [0.0, 0.0]]), np.array([1.0, 0.0])
    truth = gradient(lambda x: P @ (F_X @ x), np.zeros(2))
    setting = "B = 1, l = 0, f_x = [[0, 1], [0, 0]], P_{t+1} = (1, 0)"
    return Counterexample(setting, printed=F_X @ P, corrected=F_X.T @ P, truth=truth)


def control_transpose_counterexample() -> Counterexample:
    """Two scalar samples with two controls, so that the printed product has a shape at all."""
    F_u, P = np.array([[0.0, 1.0], [0.0, 0.0]]), np.array([1.0, 0.0])
    truth = gradient(lambda u: P @ (F_u @ u), np.zeros(2))
    setting = "B = 2, scalar states, m = 2, l = 0, f_u^(1) = [0, 1], f_u^(2) = [0, 0], P_{t+1} = (1, 0)"
    return Counterexample(setting, printed=F_u @ P, corrected=F_u.T @ P, truth=truth)


DDP1.misprint(
    "E22",
    "Eq. 22",
    "the adjoint dynamics keep P_t = (1/B) [p_t^(1); ...; p_t^(B)]",
    printed="P_t = L_X + F_X P_{t+1}",
    corrected="P_t = L_X + F_X' P_{t+1}",
    derivation=(
        "H = P' F + L, so dH/dX = L_X + F_X' P with F_X of shape [B n', B n]. F_X is block-diagonal, hence block i "
        "of P_t is (1/B) (l_x^(i) + f_x^(i)' p_{t+1}^(i)) = (1/B) p_t^(i)."
    ),
    origin="notation",
    remark=TRANSPOSE_REMARK,
    over=batches,
    counterexample=state_transpose_counterexample,
)(collected)
DDP1.misprint(
    "E23",
    "Eq. 23",
    "H_u is the mini-batch gradient",
    printed="nabla_u H = L_u + F_u P_{t+1}",
    corrected="nabla_u H = L_u + F_u' P_{t+1}",
    derivation=(
        "H = P' F + L, so dH/du = L_u + F_u' P. F_u stacks the f_u^(i) and P the p^(i) / B, hence F_u' P = (1/B) "
        "sum_i f_u^(i)' p_{t+1}^(i), and the sum with L_u is (1/B) sum_i nabla_u J^(i) by Eq. 10."
    ),
    origin="notation",
    remark=TRANSPOSE_REMARK + " The printed F_u P has no shape unless B n' = m.",
    over=batches,
    counterexample=control_transpose_counterexample,
)(minibatch_gradient)
