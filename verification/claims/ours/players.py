"""Several players: exact Kronecker solve, identical players, FNE and GR, counting phi, placement: OURS-6, 8, 10-12."""

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import bellman, linalg
from bellman_tf.bellman import sample_space
from verification.claim import at_most, relative_error, same
from verification.derivations.equilibria import best_responses, decoupled
from verification.derivations.recursions import cooperate, group_expansion, spread, stacked, value_of
from verification.papers import OURS
from verification.problems.dynamic_games import LinearGame, linear_games, random_linear_game
from verification.problems.games import random_spd
from verification.problems.pairs import Pair, pairs
from verification.problems.placements import Placed, placed, random_placed
from verification.references import dense, kronecker, players


@OURS.exact(
    "6",
    "in place of GTDDP Thm. 3, DGN Prop. 5",
    "whitened, with C_A = L_uu^{-1} A_uv L_vv^{-T} = U_a S_a V_a' and C_B likewise, the joint system of two players"
    " with blocks A_nm (x) B_nm falls into 2 x 2 systems [[1, s], [s, 1]], s = s_b s_a: x_u = (q_u - s q_v) / (1 -"
    " s^2)",
    assumes="damping on the diagonal factors, so that s < 1",
    remark="At the cost of K-FAC. Any sizes; singular values beyond the smaller size are zero.",
    over=pairs(),
)
def two_player_kronecker(problem: Pair):
    """Ours against the dense joint solve, and the 2 x 2 systems against ours."""
    (A, B), gradients = problem.blocks(), problem.gradients
    tensors = [[[tf.constant(block) for block in row] for row in M] for M in (A, B)]
    ours = [x.numpy() for x in linalg.kronecker_cooperative_solve(*tensors, list(map(tf.constant, gradients)))]
    truth = kronecker.kronecker_cooperative_solve(A, B, gradients)
    H = kronecker.block_khatri_rao(A, B)
    condition = np.linalg.cond(H) + sum(np.linalg.cond(M[n][n]) for M in (A, B) for n in (0, 1))
    size = np.linalg.norm(np.concatenate([x.ravel() for x in truth]))
    canonical = by_canonical_coordinates(A, B, gradients)
    for n in (0, 1):
        yield same(ours[n], truth[n], condition=condition, scale=size, label=f"player {n + 1}")
        yield same(canonical[n], truth[n], condition=condition, scale=size, label=f"2 x 2 systems, player {n + 1}")


def by_canonical_coordinates(A, B, gradients):
    """The claim letter by letter, the singular vectors completed to bases."""
    (L_Au, L_Av), (L_Bu, L_Bv) = ([np.linalg.cholesky(M[n][n]) for n in (0, 1)] for M in (A, B))
    (U_a, s_a, V_a), (U_b, s_b, V_b) = (
        np.linalg.svd(np.linalg.solve(L_u, M[0][1]) @ np.linalg.inv(L_v).T)
        for M, L_u, L_v in ((A, L_Au, L_Av), (B, L_Bu, L_Bv))
    )
    q_u = U_b.T @ np.linalg.solve(L_Bu, gradients[0]) @ np.linalg.inv(L_Au).T @ U_a
    q_v = V_b @ np.linalg.solve(L_Bv, gradients[1]) @ np.linalg.inv(L_Av).T @ V_a.T
    x_u, x_v = q_u.copy(), q_v.copy()
    b, a = len(s_b), len(s_a)  # both players have these coordinates; the others are alone
    s = np.outer(s_b, s_a)
    x_u[:b, :a] = (q_u[:b, :a] - s * q_v[:b, :a]) / (1 - s**2)
    x_v[:b, :a] = (q_v[:b, :a] - s * q_u[:b, :a]) / (1 - s**2)
    first = np.linalg.solve(L_Bu.T, U_b @ x_u @ U_a.T) @ np.linalg.inv(L_Au)
    return first, np.linalg.solve(L_Bv.T, V_b.T @ x_v @ V_a) @ np.linalg.inv(L_Av)


@OURS.exact(
    "8",
    "in place of GTDDP Cor. 7",
    "N identical players with curvature lambda and damping gamma each: the Schur complement of one is gamma + lambda"
    " gamma / (gamma + (N-1) lambda), in [gamma, gamma N / (N-1)); the exact step of each is 1 / (gamma + N lambda),"
    " of all together 1 / (lambda + gamma / N)",
    remark="Two players: with the wrong sign of the cross block each steps 1/gamma, the curvature cancels; the Schur"
    " complement on the plain gradient gives (gamma + lambda) / (gamma (gamma + 2 lambda)) each. N players: together N"
    " (gamma + (N-1) lambda) / (gamma (gamma + N lambda)), which tends to (N-1) / gamma.",
    over=st.tuples(st.integers(2, 6), st.integers(1, 4), st.integers(-3, 2), st.integers(0, 2**32 - 1)),
)
def identical_players(problem):
    """Our Schur complement and our N-player solve per eigenvalue of a full curvature matrix."""
    N, m, log_damping, seed = problem
    rng, gamma = np.random.default_rng(seed), 10.0**log_damping
    C = random_spd(rng, m, 100.0)
    spectrum, basis = np.linalg.eigh(C)
    damped, q = C + gamma * np.eye(m), rng.standard_normal((m, 1))
    rest = np.kron(np.ones((N - 1, N - 1)), C) + gamma * np.eye(m * (N - 1))
    condition = 1 + N * spectrum[-1] / gamma
    S = linalg.schur_complement(*map(tf.constant, (damped, np.tile(C, N - 1), rest))).numpy()
    eigenvalues = gamma + spectrum * gamma / (gamma + (N - 1) * spectrum)
    truth = (basis * eigenvalues) @ basis.T
    yield same(S, truth, condition=condition, scale=np.linalg.norm(damped), label="Schur complement")
    unit = np.linalg.norm(damped)
    yield at_most(gamma, np.linalg.eigvalsh(S)[0], scale=unit, condition=condition, label="at least gamma")
    yield at_most(
        np.linalg.eigvalsh(S)[-1], gamma * N / (N - 1), scale=unit, condition=condition, label="at most gamma N/(N-1)"
    )
    blocks = [[damped if n == k else C for k in range(N)] for n in range(N)]
    steps = [x.numpy() for x in linalg.cooperative_solve([list(map(tf.constant, row)) for row in blocks], [q] * N)]
    exact = basis @ (basis.T @ q / (gamma + N * spectrum)[:, None])
    scale = np.linalg.norm(q) / gamma
    for x in steps:
        yield same(x, exact, condition=condition, scale=scale, label="step of each")
    yield same(
        sum(steps), np.linalg.solve(C + gamma / N * np.eye(m), q), condition=condition, scale=scale, label="together"
    )
    plain = linalg.solve_spd(linalg.factor_spd(tf.constant(truth)), tf.constant(q)).numpy()
    total = (gamma + (N - 1) * spectrum) / (gamma * (gamma + N * spectrum))
    label = "Schur complement on the plain gradient"
    yield same(plain, basis @ (basis.T @ q * total[:, None]), condition=2.0, scale=scale, label=label)
    wrong = linalg.cooperative_solve([[tf.constant(damped), None], [tf.constant(-C), tf.constant(damped)]], [q, q])
    yield same(wrong[0], q / gamma, condition=condition, scale=scale, label="wrong sign of the cross block")


@OURS.exact(
    "10",
    "in place of DGN Eq. 9, Thm. 6",
    "FNE as published is N decoupled single-player recursions; the feedback Nash equilibrium of the quadratic game for"
    " a shared cost is GR with phi counted once, at all stages iff there is no private running cost",
    remark="FNE ignores the companions' reactions, GR includes them. 'private' is the distance of equilibrium and GR"
    " at the first of three stages with private running costs: not zero.",
    over=st.tuples(linear_games(running=("none", "full"), max_log_condition=2), st.integers(0, 2**32 - 1)),
    ranges={"private": (1e-3, 1.0)},
    examples=20,
)
def nash_and_group(problem):
    """The check of DGN-E9; and that private costs part the two."""
    game, seed = problem
    yield from decoupled(game)
    yield from spread(seed, private_distance, "private")


def private_distance(rng):
    """Feedback gains of the first of three stages, equilibrium against group rationality, both dense."""
    game = random_linear_game(rng, 2, 3, size=4)
    _, _, _, K, _, _ = best_responses(game)[0]
    value = (game.v, game.W)
    for stage in reversed(game.stages):
        gains, value = players.joint(*value, *stage)
    return relative_error(K, np.vstack([K_n for _, K_n in gains]))


def with_metric(game: LinearGame, count, scale):
    """Our cooperative recursion with the running costs' Hessians, times `scale`, in place of P_theta,theta."""
    value, policies = value_of(count * game.v, count * game.W), []
    for stage in reversed(game.stages):
        P = group_expansion(value, stage)
        every = range(game.players)
        metric = [[scale * stage.l_uus[n] if n == m else 0 * P.Q_uu[n][m] for m in every] for n in every]
        policies.insert(0, bellman.cooperative_gains(P, metric))
        value = bellman.cooperative_update(P, policies[0])
    return policies


@OURS.exact(
    "11",
    "DGN Eqs. 4, 7",
    "GR with W_T = N phi is GR with W_T = phi and the running cost l / N; with a fixed preconditioner it multiplies"
    " the learning rate by N, with exact curvature and l = 0 the factor cancels",
    assumes="for the learning rate: running costs at their minimum, l_u = 0",
    over=st.tuples(linear_games(max_log_condition=3), linear_games(running=("none",))),
    examples=25,
)
def counting(problem):
    """Our cooperative gains at all stages, three ways."""
    game, free = problem
    N = game.players
    condition = game.condition(N)
    for ours, other in zip(cooperate(game, N)[0], cooperate(game.scaled(1 / N))[0], strict=True):
        for label, x, y in zip("kK", stacked(ours), stacked(other), strict=True):
            yield same(x, y, condition=condition, label=f"l / N: {label}")
    still = game.without_gradients()
    growth = reach(still, N)
    for ours, other in zip(with_metric(still, N, 1.0), with_metric(still, 1.0, 1 / N), strict=True):
        for label, x, y in zip("kK", stacked(ours), stacked(other), strict=True):
            yield same(x, y, condition=growth, label=f"rate N: {label}")
    stage, n = still.stages[-1], still.stages[-1].f_x.shape[1]
    gradient, hessian = dense.expand(N * still.v, N * still.W, **stage.joint())
    truth = dense.minimise(gradient, hessian, n, stage.joint()["l_uu"])
    for label, x, y in zip("kK", stacked(with_metric(still, 1.0, 1 / N)[-1]), truth, strict=True):
        yield same(x, y, condition=growth, label=f"rate N, last stage: {label}")
    condition = free.condition()
    for ours, other in zip(cooperate(free, free.players)[0], cooperate(free)[0], strict=True):
        for label, x, y in zip("kK", stacked(ours), stacked(other), strict=True):
            yield same(x, y, condition=condition, label=f"l = 0: {label}")


def reach(game: LinearGame, count):
    """How rounding may grow in the recursion with a fixed metric: W <- W - W f M^{-1} f' W."""
    growth, size = 1.0, count * (np.linalg.norm(game.W, 2) + np.linalg.norm(game.v))
    for stage in reversed(game.stages):
        inverse = max(np.linalg.norm(np.linalg.inv(l), 2) for l in stage.l_uus)
        gain = inverse * np.linalg.norm(np.hstack(stage.f_us), 2) ** 2
        growth *= (1 + 2 * size * gain) * max(np.linalg.cond(l) for l in stage.l_uus)
        size *= (1 + size * gain) * max(1.0, np.linalg.norm(stage.f_x, 2) ** 2)
    return growth


def executed(problem: Placed, position, *, linear):
    """Updates of all players for a placement by our sample-space recursion, on linear dynamics or on the network."""
    states, jacobians = problem.forward(position)
    B = len(problem.inputs)
    g = [states[-1] - problem.targets]
    for f_x, _ in reversed(jacobians):
        g.insert(0, np.einsum("bij,bi->bj", f_x, g[0]))
    grams, linears, columns = [], [], []
    for (_, acting), behind in zip(jacobians, g[1:], strict=True):
        q = {p: np.einsum("bij,bi->jb", f_u, behind) for p, f_u in acting.items()}
        solved = {p: np.linalg.solve(problem.metrics[p], np.column_stack([problem.costs[p], q[p]])) for p in q}
        grams.append(sum(q[p].T @ solved[p][:, 1:] for p in q))
        linears.append(sum(q[p].T @ solved[p][:, 0] for p in q))
        columns.append(solved)
    start = sample_space.init(B, beta_squared=tf.ones(B, tf.float64))
    values = sample_space.backward_all(
        start, tf.constant(np.array(grams)[:, None]), tf.constant(np.array(linears)[:, None])
    )
    updates, state, dx = {}, problem.inputs, np.zeros_like(problem.inputs)
    for t, (f_x, acting) in enumerate(jacobians):
        d = np.einsum("bi,bi->b", g[t], dx)
        value = sample_space.SampleValue(values.a[t, 0], values.L[t, 0])
        w = sample_space.weights(value, tf.constant(d)).numpy()
        for p in acting:
            updates[p] = -columns[t][p] @ np.append(1.0, w)
        if linear:
            dx = np.einsum("bij,bj->bi", f_x, dx) + sum(f_u @ updates[p] for p, f_u in acting.items())
        else:
            controls = [u + updates.get(p, 0 * u) for p, u in enumerate(problem.controls)]
            state = problem.step(t, position, state, controls)[0]
            dx = state - states[t + 1]
    condition = max(map(np.linalg.cond, problem.metrics)) * (1 + np.linalg.norm(sum(grams), 2) / B)
    return np.concatenate([updates[p] for p in range(len(problem.controls))]), condition


def gauss_newton(problem: Placed):
    """Minimiser of the model over all controls: per-sample gradients do not depend on the placement."""
    states, jacobians = problem.forward(0)
    g, q, B = states[-1] - problem.targets, {}, len(problem.inputs)
    for f_x, acting in reversed(jacobians):
        q |= {p: np.einsum("bij,bi->jb", f_u, g) for p, f_u in acting.items()}
        g = np.einsum("bij,bi->bj", f_x, g)
    Q = np.vstack([q[p] for p in range(len(problem.controls))])
    M = np.zeros((len(Q), len(Q)))
    at = 0
    for metric in problem.metrics:
        M[at : at + len(metric), at : at + len(metric)] = metric
        at += len(metric)
    return -np.linalg.solve(M + Q @ Q.T / B, np.concatenate(problem.costs) + Q.sum(axis=1) / B), Q, M


@OURS.exact(
    "12",
    "GTDDP Sec. 3.2, DGN Sec. 5.2",
    "placing a trainable shortcut at another stage changes the gains; the update executed on the linearised dynamics"
    " is the same for every placement, the Gauss-Newton step of the whole block",
    assumes="exact curvature; the terminal Hessian g g'",
    remark="See GTDDP-R1. With the nonlinear forward pass the updates differ: 'nonlinear', relative, first against"
    " last placement; catalogue 0.11.",
    over=st.tuples(placed(), st.integers(0, 2**32 - 1)),
    ranges={"nonlinear": (0.01, 0.3)},
)
def placement(drawn):
    """Our recursion for every placement against one solve for all controls; two placements on the tanh network."""
    problem, seed = drawn
    truth, Q, M = gauss_newton(problem)
    scale = np.linalg.norm(np.linalg.inv(M), 2) * (np.linalg.norm(Q) + np.linalg.norm(np.concatenate(problem.costs)))
    for position in range(problem.depth):
        ours, condition = executed(problem, position, linear=True)
        yield same(ours, truth, condition=condition, scale=scale, label="update on the linear dynamics")
    yield from spread(seed, placement_effect, "nonlinear", count=2)


def placement_effect(rng):
    """Updates on the tanh network, first against last of three placements, metric I."""
    problem = random_placed(rng, 2, 3, 3)
    first, last = (executed(problem, position, linear=False)[0] for position in (0, 2))
    return relative_error(first, last)
