"""Which setting gives which method: Theorem 6, Eq. 16, and the example of Appendix E.1."""

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import bellman
from verification.claim import Counterexample, relative_error, same
from verification.claims.dgnopt.lemmas import cooperate_uncoupled, first_gains, two_scalars, uncoupled
from verification.claims.dgnopt.open_loop import first_order
from verification.derivations.recursions import group_expansion, separate, separate_gains, spread, stacked, value_of
from verification.papers import DGN
from verification.problems.dynamic_games import linear_games, random_linear_game
from verification.problems.games import random_spd
from verification.problems.objectives import Objective, objectives
from verification.problems.quadratics import Quadratic, quadratics
from verification.references import dense


def update_without_cross() -> Counterexample:
    """Open gains of (9), of (9) with l / N, and of (11) with P_uv = 0."""
    Q_u, Q_uu, P_u, P_uu = two_scalars(1.0)
    return Counterexample(
        "two scalar players, one stage, x' = u + v = 1, phi = x'^2 / 2, l = theta^2 / 2: the open gain of (11)",
        printed=Q_u / Q_uu,
        corrected=Q_u / (Q_uu - 1.0 + 1.0 / 2),
        truth=P_u / P_uu,
    )


@DGN.misprint(
    "T6i",
    "Theorem 6, first statement",
    "the cooperative update (11) with P_uv := 0 is the FNE update (9)",
    assumes="as a statement about the two algorithms",
    remark="Catalogue: the first stage's open gains differ by 0.16 for one stage, 2.5 and 7 for three stages without"
    " and with running cost; here, with other random problems, about 0.3, 2 and 1 (reported). As a formula in the"
    " derivatives of P the statement is exact, and one stage without running cost is equal, the factor N cancels (both"
    " checked). With P_uv := 0 W is not a minimum and mostly indefinite after one stage (share reported): then P_uu"
    " may be indefinite too and the recursion does not go on.",
    printed="(11) with P_uv := 0 gives (9)",
    corrected="(11) with P_uv := 0 is (9) in the derivatives of P. One stage: (9) with the running cost divided by N",
    derivation=(
        "With P_uv = 0: P~_uu = P_uu and k~ = P_uu^{-1} P_u, the form of (9). But P's derivatives are not Q's (L9). At"
        " T-1 they are N times as large up to the running cost: k~ = (N C + l_uu)^{-1} (N q + l_u) = (C + l_uu/N)^{-1}"
        " (q + l_u/N). Before that W holds the reactions of all players, V_n those of one."
    ),
    origin="paper",
    over=st.tuples(linear_games(), linear_games(running=("none",), max_depth=1), st.integers(0, 2**32 - 1)),
    counterexample=update_without_cross,
    ranges={
        "one stage": (0.1, 0.6),
        "three stages, l = 0": (0.5, 5.0),
        "three stages": (0.4, 10.0),
        "W indefinite after one stage": (1.0, 1.0),
    },
    examples=20,
)
def no_cross_terms(drawn):
    """Formula, one stage, and the distance of the two algorithms."""
    game, free, seed = drawn
    N, stage = game.players, game.stages[-1]
    P = uncoupled(group_expansion(value_of(N * game.v, N * game.W), stage))
    last = game._replace(stages=[stage])
    divided, _ = separate(last.scaled(1 / N))
    for n, gains in enumerate(bellman.cooperative_gains(P)):
        P_nn, condition = P.Q_uu[n][n].numpy(), np.linalg.cond(P.Q_uu[n][n])
        formula = -np.linalg.solve(P_nn, np.column_stack([P.Q_u[n], P.Q_ux[n]]))
        yield same(gains.open_loop, formula[:, 0], condition=condition, label="k~ = P_uu^{-1} P_u")
        yield same(gains.feedback, formula[:, 1:], condition=condition, label="K~ = P_uu^{-1} P_ux")
        yield same(gains.open_loop, divided[0][n].open_loop, condition=condition, label="one stage: (9) with l / N")
    both = cooperate_uncoupled(free, free.players)[0][0], separate(free)[0][0]
    condition = max(1.0, free.condition())
    yield same(*[stacked(gains)[0] for gains in both], condition=condition, label="one stage, l = 0: (9)")
    for label, depth, running in SETTINGS:
        yield from spread(seed, lambda rng, d=depth, r=running: update_distance(rng, d, r), label)
    yield from spread(seed, indefinite, "W indefinite after one stage")


SETTINGS = (("one stage", 1, "full"), ("three stages, l = 0", 3, "none"), ("three stages", 3, "full"))


def update_distance(rng, depth, running):
    """Open gains of the first stage, (11) with P_uv := 0 against (9)."""
    game = random_linear_game(rng, 2, depth, running=running, size=4)
    return relative_error(first_gains(game)[0], separate_gains(game)[0])


def indefinite(rng):
    """Whether W has a negative eigenvalue at T-1."""
    W = first_gains(random_linear_game(rng, 2, 1, size=4))[2][1]
    return float(np.linalg.eigvalsh(W)[0] < 0)


@DGN.exact(
    "T6ii",
    "Theorem 6, second statement",
    "the FNE update (9) with Q_theta,x := 0 and Q_theta,theta := I is SGD",
    over=objectives(),
)
def descent(problem: Objective):
    """Our gains against minus the gradient by the complex step, on residual networks."""
    for _, gradient, gains, _, _, scale in first_order(problem):
        yield same(gains.open_loop, -gradient, scale=scale, label="k = gradient")
        yield same(gains.feedback, np.zeros(gains.feedback.shape), label="K = 0")


@DGN.misprint(
    "T6iii",
    "Theorem 6, third statement",
    "the GR update (11) without couplings and with P_uu = P_vv = I is SGD",
    assumes="phi_n = phi; l = 0 for the rate, else the decay counts once and the loss N times",
    remark="The stored text repeats P_ux; P_ux = P_vx = 0 and P_vv = I are needed.",
    printed="(11) with (P_uv, P_ux, P_uu) := (0, 0, I) gives SGD",
    corrected="it gives SGD with the learning rate times N",
    derivation="W_T = sum_n phi = N phi. Without couplings W_x = F_x' W_x is N times the back-propagated gradient, and"
    " k~ = P_u = l_u + N f_u' p.",
    origin="paper",
    over=objectives(),
    counterexample=lambda: Counterexample(
        "two scalar players, x' = u + v = 1, phi = x'^2 / 2, l = 0, learning rate 1: the step of each",
        printed=[-two_scalars(0.0)[0]] * 2,
        corrected=[-2 * two_scalars(0.0)[0]] * 2,
        truth=[-two_scalars(0.0)[2]] * 2,
    ),
)
def group_descent(problem: Objective):
    """Our cooperative gains against the gradient of N phi + sum l by the complex step."""
    N = max(len(stage) for stage in problem.parameters)
    gradients = problem.gradient(count=N)
    states, jacobians = problem.network.forward(problem.inputs)
    g, H = problem.terminal_derivatives(states[-1])
    value = value_of(N * g[0], N * H[0])
    for t in reversed(range(len(jacobians))):
        f_x, f_us = jacobians[t][0][0], [f_u[0] for f_u in jacobians[t][1]]
        own = [problem.decay * u for u in problem.parameters[t]]
        P = uncoupled(bellman.expand_players(value, f_x, f_us, cost_u=own))
        P = P._replace(Q_ux=[0 * Q for Q in P.Q_ux])
        identity = [
            [tf.eye(len(q), dtype=tf.float64) if n == m else 0 * P.Q_uu[n][m] for m, q in enumerate(P.Q_u)]
            for n in range(len(own))
        ]
        gains = bellman.cooperative_gains(P, identity)
        for k, gradient, f_u in zip(gains, gradients[t], f_us, strict=True):
            scale = np.linalg.norm(f_u) * np.linalg.norm(value.V_x) + max(map(np.linalg.norm, own))
            yield same(k.open_loop, -gradient, scale=scale, label="step = N dphi + dl")
        value = bellman.cooperative_update(P, gains)


@DGN.exact(
    "T6",
    "Theorem 6, last sentence",
    "with Q_theta,x := 0, Q_theta,theta set to another preconditioner recovers the method it comes from",
    assumes="terminal cost counted once; the mean loss of a batch",
    remark="Through several steps and with running averages: GTDDP-P4.",
    over=objectives(max_batch=3),
    examples=25,
)
def other_baselines(problem: Objective):
    """RMSprop, dense empirical Fisher and K-FAC shapes on the stacked batch; the gradient by the complex step."""
    states, jacobians = problem.network.forward(problem.inputs)
    gradients, B = problem.gradient(), len(problem.inputs)
    value = bellman.augment_value(*map(tf.constant, problem.terminal_derivatives(states[-1])))
    rng = np.random.default_rng(B)
    for t in reversed(range(len(jacobians))):
        f_x, f_us = jacobians[t]
        for n, f_u in enumerate(f_us):
            F_X, F_u = bellman.augment_batch(tf.constant(f_x), tf.constant(f_u))
            Q = bellman.expand(value, F_X, F_u, cost_u=problem.decay * problem.parameters[t][n])
            Q = Q._replace(Q_ux=0 * Q.Q_ux)
            V = value.V_x.numpy().reshape(B, -1) * B
            q = np.einsum("bij,bi->bj", f_u, V)
            metrics = {
                "RMSprop": np.diag(np.sqrt(np.mean(q**2, axis=0)) + 0.1),
                "Fisher": q.T @ q / B + 0.1 * np.eye(q.shape[1]),
                "Kronecker": np.kron(*[random_spd(rng, size, 10.0) for size in (1, q.shape[1])]),
            }
            scale = np.linalg.norm(F_u) * np.linalg.norm(value.V_x) + np.linalg.norm(problem.parameters[t][n])
            for label, M in metrics.items():
                step = bellman.gains(Q, tf.constant(M))
                truth = -np.linalg.solve(M, gradients[t][n])
                unit = scale * np.linalg.norm(np.linalg.inv(M), 2)
                yield same(step.open_loop, truth, condition=np.linalg.cond(M), scale=unit, label=label)
        value = bellman.Value(bellman.expand(value, F_X, F_u).Q_x, tf.eye(F_X.shape[1], dtype=tf.float64))


@DGN.definition(
    "E16",
    "Eq. 16",
    "fictitious players: F_t(z, theta_1, ..., theta_N) = f_t(z, theta), sum_n theta_n = theta",
    remark="Exact consequences (checked): with the curvature C + gamma I per player the total step is -(C + gamma/N"
    " I)^{-1} q: the damping is divided by N, and by N^2 if W_T = N phi. Without cross blocks it is N times the step"
    " of one.",
    over=quadratics(),
)
def fictitious_players(problem: Quadratic):
    """Our cooperative gains for N players with one Jacobian."""
    n, gamma = problem.n, 0.1
    W, v = problem.hessian, problem.gradient
    f_x, f_u = np.eye(len(W))[:, :n], np.eye(len(W))[:, n:]
    C, q = W[n:, n:], v[n:]
    damping = gamma * np.eye(len(C))
    for N in (2, 3):
        for count, divisor in ((1, N), (N, N**2)):
            P = bellman.expand_players(value_of(count * v, count * W), f_x, [f_u] * N, cost_uu=[damping] * N)
            total = sum(gain.open_loop.numpy() for gain in bellman.cooperative_gains(P))
            condition = 1 + N * count * np.linalg.norm(C, 2) / gamma
            truth = -np.linalg.solve(C + damping / divisor, q)
            scale = np.linalg.norm(q) * divisor / gamma
            yield same(
                total, truth, condition=condition, scale=scale, label=f"damping / {'N' if count == 1 else 'N^2'}"
            )
        alone = sum(gain.open_loop.numpy() for gain in bellman.cooperative_gains(uncoupled(P)))
        truth = -N * np.linalg.solve(C + damping / N, q)
        yield same(alone, truth, condition=condition, scale=N * scale, label="without cross blocks: N steps")


@DGN.misprint(
    "APPE1",
    "Appendix E.1",
    "a baseline with learning rate 0.01 is lifted to DGNOpt by putting the rate into Q_theta,theta",
    printed="Q_theta,theta ~ 0.01 Q_theta Q_theta'",
    corrected="Q_theta,theta ~ (1 / 0.01) Q_theta Q_theta'",
    derivation="The update is Q_theta,theta^{-1} Q_theta. A learning rate eta multiplies the step, so it divides the"
    " matrix; the printed one steps 1 / eta^2 = 10^4 times as far.",
    origin="paper",
    over=quadratics(),
    counterexample=lambda: Counterexample(
        "scalar Q_theta = 1, so Q_theta Q_theta' = 1, rate 0.01: the step",
        printed=1 / (0.01 * 1),
        corrected=1 / (1 / 0.01),
        truth=0.01,
    ),
)
def learning_rate(problem: Quadratic):
    """Our gains with M / eta against eta times the dense gains with M."""
    Q, M = problem.expansion(), problem.expansion().Q_uu  # any positive definite matrix would do
    k, K = dense.minimise(problem.gradient, problem.hessian, problem.n)
    scaled = bellman.gains(Q, M / 0.01)
    yield same(scaled.open_loop, 0.01 * k, condition=problem.condition, label="k")
    yield same(scaled.feedback, 0.01 * K, condition=problem.condition, label="K")
