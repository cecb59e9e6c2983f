"""The update: Algorithm 1, Eqs. 9-13."""

import numpy as np
from hypothesis import strategies as st

from bellman_tf import bellman
from verification.claim import Counterexample, relative_error, same
from verification.claims.dgnopt.principles import whole_horizon
from verification.derivations.equilibria import best_responses, decoupled
from verification.derivations.recursions import cooperate, roll_out, separate, separate_gains, spread, value_of
from verification.papers import DGN
from verification.problems.dynamic_games import LinearGame, linear_games, random_linear_game
from verification.problems.objectives import objectives, random_objective
from verification.references import dense, players


@DGN.misprint(
    "E9",
    "Eq. 9",
    "the FNE update of player n is k_n + K_n dx, k_n = Q_theta,theta^{-1} Q_theta, K_n = Q_theta,theta^{-1} Q_theta,x",
    assumes="no private running cost, or one stage; a joint curvature that is regular",
    remark="(9) minimises the model in (x, theta_n) exactly, so structurally it is N single-player recursions"
    " (checked). The Nash equilibrium of the quadratic game for a shared cost is group rationality with phi counted"
    " once. 'distance' is from (9) to it, relative; catalogue 0.83.",
    printed="(9) solves the feedback Nash recursion (6)",
    corrected="(9) leaves the others' reactions out; the equilibrium solves (Q_n)_{u_n} + (Q_n)_{u_n x} dx + sum_m"
    " (Q_n)_{u_n u_m} u_m = 0 for all n together",
    derivation=(
        "In (6) the others play pi*_{not n}(x), which is neither zero nor constant: delta theta_{not n} belongs in the"
        " expansion of Q_{t,n}. Player n's stationarity then has the terms (Q_n)_{u_n u_m} delta u_m, m != n. With"
        " V_{t+1,n} = V for all n, (Q_n)_{u_n u_m} is the block of one symmetric matrix, whose joint stationarity is"
        " that of sum_n l_n + V o F: group rationality with V counted once. If l = 0 or t = T-1 the values agree, and"
        " the argument goes on. Private running costs make the values differ at earlier stages."
    ),
    origin="paper",
    over=st.tuples(linear_games(running=("none", "full"), max_log_condition=2), st.integers(0, 2**32 - 1)),
    counterexample=lambda: Counterexample(
        "two scalar players, x' = u + v, x' = 1, phi = x'^2 / 2, l_n = theta_n^2 / 2; the step of both",
        printed=[1 / (1 + 1), 1 / (1 + 1)],
        corrected=np.linalg.solve([[2.0, 1.0], [1.0, 2.0]], [1.0, 1.0]),
        truth=[1 / 3, 1 / 3],
    ),
    ranges={"distance": (0.3, 1.2)},
    examples=25,
)
def printed_nash(drawn):
    """Ours is N single-player recursions; the true equilibrium is our cooperative solution with phi once."""
    game, seed = drawn
    yield from decoupled(game)
    yield from spread(seed, distance_to_nash, "distance")


def distance_to_nash(rng):
    """Gains of the first stage, (9) against the equilibrium, two or three players and one to three stages."""
    game = random_linear_game(rng, int(rng.integers(2, 4)), int(rng.integers(1, 4)))
    _, _, k, K, _, _ = best_responses(game)[0]
    return relative_error(np.column_stack(separate_gains(game)), np.column_stack([k, K]))


@DGN.exact(
    "E10",
    "Eq. 10",
    "V_x = Q_x - Q_x,theta k, V_xx = Q_xx - Q_x,theta K",
    assumes="the model in (x, theta_n) only, as in (9); gains with the papers' positive sign",
    over=linear_games(),
)
def own_value(game: LinearGame):
    """Ours against the policy inserted in the restricted model, player by player."""
    _, values = separate(game)
    for t, stage in enumerate(game.stages):
        for p, V in enumerate(values[t + 1]):
            f_u, v, W = stage.f_us[p], V.V_x.numpy(), V.V_xx.numpy()
            gradient, hessian = dense.expand(v, W, stage.f_x, f_u, l_u=stage.l_us[p], l_uu=stage.l_uus[p])
            n = stage.f_x.shape[1]
            v_0, W_0 = dense.follow(gradient, hessian, *dense.minimise(gradient, hessian, n))
            condition = np.linalg.cond(hessian[n:, n:])
            yield same(values[t][p].V_x, v_0, condition=condition, scale=np.linalg.norm(gradient), label="V_x")
            yield same(values[t][p].V_xx, W_0, condition=condition, scale=np.linalg.norm(hessian), label="V_xx")


@DGN.misprint(
    "E11",
    "Eq. 11",
    "cooperative gains of player 1: k~ = P~_uu^{-1} (P_u - P_uv I), K~ = P~_uu^{-1} (P_ux - P_uv L)",
    remark="The appendix has P_uv. With players of different sizes the printed product does not even exist.",
    printed="k~ = P~_uu^{-1} (P_u - P_uu I), K~ = P~_uu^{-1} (P_ux - P_uu L)",
    corrected="k~ = P~_uu^{-1} (P_u - P_uv I), K~ = P~_uu^{-1} (P_ux - P_uv L), I = P_vv^{-1} P_v, L = P_vv^{-1} P_vx",
    derivation=(
        "The second row of the joint system gives v = -I - L dx - P_vv^{-1} P_vu u. Inserted in the first row: (P_uu -"
        " P_uv P_vv^{-1} P_vu) u = -(P_u - P_uv I) - (P_ux - P_uv L) dx."
    ),
    origin="likely OCR",
    over=linear_games(players=(2,), max_depth=1, max_log_condition=6),
    counterexample=lambda: Counterexample(
        "scalars P_uu = P_vv = 2, P_uv = 1, P_u = P_v = 1: I = 1/2, P~_uu = 3/2; the open gain",
        printed=(1 - 2 * 0.5) / 1.5,
        corrected=(1 - 1 * 0.5) / 1.5,
        truth=np.linalg.solve([[2.0, 1.0], [1.0, 2.0]], [1.0, 1.0])[0],
    ),
)
def cooperative_gains(game: LinearGame):
    """Ours against the Schur form with P_uv, and against the joint minimiser."""
    (stage,) = game.stages
    (ours, other), condition = cooperate(game)[0][0], game.condition()
    problem = (game.v, game.W, stage.f_x, stage.f_us, stage.l_us, stage.l_uus)
    k, K = players.schur_form(*problem)
    joint, _ = players.joint(*problem)
    for gains, (k_joint, K_joint) in zip((ours, other), joint, strict=True):
        yield same(gains.open_loop, k_joint, condition=condition, label="k~, joint")
        yield same(gains.feedback, K_joint, condition=condition, label="K~, joint")
    yield same(ours.open_loop, k, condition=condition, scale=np.linalg.norm(joint[0][0]), label="k~, Schur form")
    yield same(ours.feedback, K, condition=condition, scale=np.linalg.norm(joint[0][1]), label="K~, Schur form")


@DGN.misprint(
    "E12",
    "Eq. 12",
    "dx_t is the change of the state when all earlier updates are applied",
    assumes="linear dynamics in the check; there the printed form is -dx_t exactly, otherwise to first order",
    printed="dx_t = (F_{t-1} o ... o F_0)(x_0, {theta + delta pi*}) - x_t",
    corrected="dx_t = (F_{t-1} o ... o F_0)(x_0, {theta - delta pi*}) - x_t",
    derivation=(
        "Algorithm 1 applies theta <- theta - delta pi*, and dx_t is the difference to the states of that same"
        " roll-out. With theta + delta pi* every state moves the other way, F(theta + d) - F(theta) = F_theta d ="
        " -(F(theta - d) - F(theta)) to first order, and the feedback K dx pushes away from the optimum."
    ),
    origin="paper",
    over=linear_games(),
    counterexample=lambda: Counterexample(
        "x_1 = theta = 1, phi = x^2 / 2, l = 0: delta pi = 1 and the update moves to theta = 0; dx_1",
        printed=(1.0 + 1.0) - 1.0,
        corrected=(1.0 - 1.0) - 1.0,
        truth=-1.0,
    ),
)
def state_differential(game: LinearGame):
    """With our policies: the differential of the composed dynamics at theta - delta pi is that of the optimum."""
    N, n = game.players, game.stages[0].f_x.shape[1]
    changes, deviations = roll_out(game, cooperate(game, N)[0], np.zeros(n))  # changes = -delta pi
    forward, backward = np.zeros(n), np.zeros(n)
    U_0, position, condition = whole_horizon(game, N)[0], 0, game.condition(N)
    truth, size = np.zeros(n), 1.0
    for t, (stage, change) in enumerate(zip(game.stages, changes, strict=True)):
        f_u = np.hstack(stage.f_us)
        yield same(deviations[t], truth, condition=condition, scale=size, label="dx_t at the optimum")
        yield same(-backward, forward, scale=size, label="theta + delta pi gives -dx_t")
        forward, backward = stage.f_x @ forward + f_u @ change, stage.f_x @ backward - f_u @ change
        truth = stage.f_x @ truth + f_u @ U_0[position : position + f_u.shape[1]]
        position += f_u.shape[1]
        size = np.linalg.norm(stage.f_x) * size + np.linalg.norm(f_u) * np.linalg.norm(U_0)


@DGN.exact(
    "A1",
    "Algorithm 1",
    "backward pass by (9) or (11) with (10) or (24), then theta <- theta - delta pi*(dx) along the new states",
    assumes="linear dynamics, exact curvature; the sign of (12) corrected",
    remark="One iteration of the GR form ends at the minimum of sum_n L_n.",
    over=linear_games(max_log_condition=3),
)
def algorithm(game: LinearGame):
    """One iteration from a disturbed first state against the minimiser over the whole horizon."""
    N, n = game.players, game.stages[0].f_x.shape[1]
    deviation = np.linspace(-1, 1, n)
    U = np.concatenate(roll_out(game, cooperate(game, N)[0], deviation)[0])
    U_0, U_x, _, _ = whole_horizon(game, N)
    yield same(U, U_0 + U_x @ deviation, condition=game.condition(N), label="controls")


@DGN.approximation(
    "E13",
    "Eq. 13",
    "Q_theta,theta ~ Q_theta Q_theta' or diag(sqrt(Q_theta o Q_theta)), averaged over the batch",
    remark="Exact with the terminal Hessian g g' at the last stage of one sample, without running cost (checked)."
    " 'outer product' is |mean q q' - mean f_u' phi_xx f_u| / |mean f_u' phi_xx f_u| at the last stage.",
    over=st.tuples(objectives(max_batch=6, decays=(0.0,), shortcuts=(False,)), st.integers(0, 2**32 - 1)),
    ranges={"outer product": (0.2, 3.0)},
)
def gauss_newton(drawn):
    """The exact case, and the error against the Gauss-Newton matrix with the true terminal Hessian."""
    problem, seed = drawn
    states, jacobians = problem.network.forward(problem.inputs)
    g, H = problem.terminal_derivatives(states[-1])
    f_x, (f_u, *_) = jacobians[-1]
    Q = bellman.expand(value_of(g[0], np.outer(g[0], g[0])), f_x[0], f_u[0])
    yield same(Q.Q_uu, np.outer(Q.Q_u, Q.Q_u), scale=(np.linalg.norm(f_u[0]) * np.linalg.norm(g[0])) ** 2, label="g g'")
    yield from spread(seed, outer_product_error, "outer product")


def outer_product_error(rng):
    """|mean q q' - mean f_u' phi_xx f_u|, relative, last stage of a chain with a softmax behind it."""
    problem = random_objective(rng, ["plain"] * 2, 16, decay=0.0, terminal="cross_entropy", size=5)
    states, jacobians = problem.network.forward(problem.inputs)
    g, H = problem.terminal_derivatives(states[-1])
    f_u = jacobians[-1][1][0]
    q = np.einsum("bij,bi->bj", f_u, g)
    truth = np.mean(f_u.transpose(0, 2, 1) @ H @ f_u, axis=0)
    return relative_error(q.T @ q / len(q), truth) if truth.any() else None
