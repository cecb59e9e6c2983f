"""What the core promises beyond the papers: predicted decrease, groups, absent players, factorisations that hold."""

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import bellman, linalg
from bellman_tf.bellman import sample_space
from verification.claim import EPS, Measurement, at_most, same
from verification.papers import OURS
from verification.problems.games import Game, games
from verification.problems.matrices import gram_matrices, partition, seeds, symmetric_matrices
from verification.problems.moments import KroneckerGame, kronecker_games
from verification.references import cooperative, dense, players, symmetric


def condition_of(game: Game):
    """Of the metrics and of I + S G together: the worst spread of curvature that a stage sees."""
    grams, _ = game.grams()
    worst = max((np.linalg.cond(p.metric) for stage in game.stages for p in stage.players), default=1.0)
    return worst * (1 + sum(np.linalg.norm(G, 2) for G in grams) * np.linalg.norm(game.hessian.reshape(-1)))


def terminal(game: Game, samples=slice(None), group_size=None):
    """Our value at the end, of some of the samples, with the whole batch's 1/B."""
    part = game.pick(samples)
    if part.root is None:
        value = sample_space.init(part.batch_size, beta_squared=tf.constant(part.beta_squared), group_size=group_size)
    else:
        rank = part.root.shape[2]
        value = sample_space.init(part.batch_size, rank=rank, group_size=group_size, dtype=tf.float64)
    share = part.batch_size / game.batch_size
    return sample_space.SampleValue(value.a * share, value.L * np.sqrt(share))


@OURS.exact(
    "14",
    "the decrease that step control compares with",
    "the policy lowers the quadratic model by sum_t Q_u' Q_uu^{-1} Q_u / 2, which telescopes to (c + lambda' a_T +"
    " (Gamma a_T + lambda)' a_0) / 2 with Gamma, lambda, c the sums of Q' M^{-1} Q, Q' M^{-1} l_u, l_u' M^{-1} l_u",
    assumes="one group of samples",
    over=games(max_log_condition=4),
)
def predicted_decrease(game: Game):
    """Ours against the sum over the stages of the dense recursion."""
    grams, linears = game.grams()
    own = sum(p.l_u @ np.linalg.solve(p.metric, p.l_u) for stage in game.stages for p in stage.players)
    G, l = tf.constant(np.array(grams)[:, None]), tf.constant(np.array(linears)[:, None])
    end = terminal(game)
    values = sample_space.backward_all(end, G, l)
    first = sample_space.SampleValue(values.a[0], values.L[0])
    truth = sum(step[-1] for step in dense.backward_batch(game.gradient, game.hessian, game.dense_stages()))
    ours = sample_space.predicted_reduction(end, first, G, l, tf.constant([own]))[0]
    B = game.batch_size
    pulls = sum(np.linalg.norm(g) for g in grams) / B**2 + sum(np.linalg.norm(x) for x in linears) / B + own
    yield same(ours, truth, condition=condition_of(game), scale=pulls, label="decrease")
    if own == 0:
        plain = sample_space.predicted_reduction(end, first, G)[0]
        yield same(plain, truth, condition=condition_of(game), scale=pulls, label="decrease without own costs")


@OURS.exact(
    "15",
    "eigenbases of EKFAC under XLA",
    "|A V - V diag(w)| <= 100 n eps |A| and |V' V - I| <= 100 n eps in every mode, repeated eigenvalues included",
    remark="Compiled by XLA the library's own routine stops at 1e-7; Jacobi rotations finish it.",
    over=st.tuples(symmetric_matrices(sizes=st.sampled_from([3, 2, 5, 1])), st.just(None)),
    examples=6,
)
def eigenbasis(problem):
    """Eager and compiled; compiled anew each time, so that nothing is remembered from another problem."""
    A, _ = problem
    A = A.astype(np.float64)
    n, norm = len(A), np.linalg.norm(A, 2) or 1.0
    for name, function in (
        ("eager", linalg.eigh),
        ("XLA", tf.function(linalg.eigh, jit_compile=True, autograph=False)),
    ):
        w, V = (x.numpy() for x in function(tf.constant(A)))
        bound = 100 * n * EPS
        residual, skew = symmetric.eigen_residual(A, w, V)
        yield Measurement(float(residual), bound, f"residual, {name}")
        yield Measurement(float(skew), bound, f"orthogonality, {name}")
        yield at_most(w[:-1], w[1:], scale=norm, label=f"order, {name}") if n > 1 else same(w[0], A[0, 0])
        yield same(w, symmetric.eigh(A)[0], scale=norm, condition=float(n), label=f"eigenvalues, {name}")


@OURS.exact(
    "16",
    "samples coupled in groups",
    "with samples coupled inside groups only, each group follows the exact recursion of its own samples, with the 1/B"
    " of the whole batch; the last group may be short",
    over=st.tuples(games(max_log_condition=4), st.integers(1, 4)),
)
def groups(problem):
    """The grouped recursion against a recursion for each group alone."""
    game, size = problem
    m = game.columns.shape[2]
    grams, linears = game.grams()
    width = size * m
    count = -(-game.batch_size // size)
    end = terminal(game, group_size=size)
    padded = np.zeros((len(grams), count, width, width)), np.zeros((len(grams), count, width))
    for g in range(count):
        own = slice(g * width, min((g + 1) * width, game.batch_size * m))
        k = own.stop - own.start
        padded[0][:, g, :k, :k] = [G[own, own] for G in grams]
        padded[1][:, g, :k] = [l[own] for l in linears]
    values = sample_space.backward_all(end, *map(tf.constant, padded))
    weights = bellman.from_groups(values.a[0], game.batch_size, m).numpy().reshape(-1)
    condition = condition_of(game)
    for g in range(count):
        samples = slice(g * size, min((g + 1) * size, game.batch_size))
        k = (samples.stop - samples.start) * m
        G, l = tf.constant(padded[0][:, g : g + 1, :k, :k]), tf.constant(padded[1][:, g : g + 1, :k])
        alone = sample_space.backward_all(terminal(game, samples), G, l)
        first = samples.start * m
        yield same(weights[first : first + k], alone.a[0, 0], condition=condition, scale=1.0, label="a of a group")
        ours = values.L[0, g, :k].numpy()
        yield same(ours @ ours.T, alone.L[0, 0] @ tf.transpose(alone.L[0, 0]), condition=condition, label="S")


@OURS.exact(
    "17",
    "DGN Eqs. 9, 10 where a player does not act",
    "a player without a control at a stage hands its value on: V_x <- f_x' V_x, V_xx <- f_x' V_xx f_x",
    over=games(max_depth=1, terminals=("rank",)),
)
def absent_player(game: Game):
    """Ours against the reference, for a stage's first sample with the first player acting and another absent."""
    stage, H = game.stages[0], game.hessian[0]
    f_x, acting = stage.f_x[0], stage.players[0]
    value = bellman.Value(tf.constant(game.gradient[0]), tf.constant(H))
    costs = [tf.constant(acting.l_u), None]
    gains, before = bellman.feedback_nash(
        [value, value], tf.constant(f_x), [tf.constant(acting.f_u[0]), None], cost_u=costs,
        cost_uu=[tf.constant(acting.metric), None],
    )  # fmt: skip
    condition = np.linalg.cond(acting.metric + acting.f_u[0].T @ H @ acting.f_u[0])
    truths = [
        players.alone(game.gradient[0], H, f_x, acting.f_u[0], acting.l_u, acting.metric),
        players.alone(game.gradient[0], H, f_x, None, None, None),
    ]
    scale = [np.linalg.norm(f_x) * np.linalg.norm(game.gradient[0]), np.linalg.norm(f_x) ** 2 * np.linalg.norm(H)]
    for (policy, (v, W)), ours, found in zip(truths, before, gains, strict=True):
        yield same(ours.V_x, v, condition=condition, scale=scale[0] + 1, label="V_x")
        yield same(ours.V_xx, W, condition=condition, scale=scale[1], label="V_xx")
        yield Measurement(float((policy is None) != (found is None)), 0.5, "who acts")


@OURS.exact(
    "18",
    "the sample-space recursion, numerics",
    "the factorisation of I + A cannot fail for a positive semi-definite A, however large or rank-deficient, in either"
    " precision, and its error is at most 8 n^2 eps |A|",
    over=st.tuples(gram_matrices(), seeds),
)
def factorisation(problem):
    """`factor_gram` of Gram matrices up to 1e12, and of numbers."""
    A, seed = problem
    n, eps = len(A), float(np.finfo(A.dtype).eps)
    L = linalg.factor_gram(tf.constant(A)).lower.numpy().astype(np.float64)
    size = 1 + np.trace(A.astype(np.float64))
    yield Measurement(float(not np.isfinite(L).all()), 0.5, "finite")
    error = np.linalg.norm(L @ L.T - np.eye(n) - A.astype(np.float64), 2) / size
    yield Measurement(float(error) if np.isfinite(error) else np.inf, 8 * n**2 * eps, "L L' = I + A")
    number = np.random.default_rng(seed).exponential(10.0)
    yield same(linalg.factor_gram(tf.constant([[number]], tf.float64)).lower, [[np.sqrt(1 + number)]], label="n = 1")


def split(game: KroneckerGame, u: np.ndarray) -> list[np.ndarray]:
    """A stacked vec as the players' matrices."""
    sizes = [a * b for a, b in zip(game.inputs, game.outputs, strict=True)]
    parts = np.split(u, np.cumsum(sizes)[:-1])
    return [part.reshape(a, b).T for part, a, b in zip(parts, game.inputs, game.outputs, strict=True)]


@OURS.exact(
    "19",
    "OURS-6 factored once and for any number of players; DGN Eqs. 15, 30",
    "the joint matrix with blocks A_nm (x) B_nm is solved for two players by canonical correlations, for more by"
    " conjugate gradients on the whitened blocks; the papers' form is [A^-1]_nm (x) [B^-1]_nm with either sign",
    assumes="positive definite joint factors",
    over=kronecker_games(players=(2, 4)),
)
def players_solved_jointly(game: KroneckerGame):
    """Factor and apply, against the dense Khatri-Rao matrix."""
    *lower, gradients = game.tensors()
    sizes = game.inputs, game.outputs
    H = cooperative.khatri_rao(game.A, game.B, *sizes)
    truth, condition = np.linalg.solve(H, game.q), game.factor_condition
    scale = np.linalg.norm(game.q) * np.linalg.norm(np.linalg.inv(H), 2)
    solved = linalg.solve_game(linalg.factor_game(*lower), gradients, 1e-13, 400)
    for ours, exact in zip(solved, split(game, truth), strict=True):
        yield same(ours, exact, condition=condition, scale=scale, label="conjugate gradients")
    if len(gradients) == 2:
        for ours, exact in zip(
            linalg.solve_pair(linalg.factor_pair(*lower), gradients), split(game, truth), strict=True
        ):
            yield same(ours, exact, condition=condition, scale=scale, label="canonical correlations")
    inverses = [partition(x, part) for x, part in zip(linalg.factor_block_form(*lower), sizes, strict=True)]
    for sign in (1, -1):
        P = cooperative.khatri_rao(np.linalg.inv(game.A), np.linalg.inv(game.B), *sizes, sign)
        reach = np.linalg.norm(P, 2) * np.linalg.norm(game.q)
        found = linalg.solve_block_form(*inverses, gradients, sign)
        for ours, exact in zip(found, split(game, P @ game.q), strict=True):
            yield same(ours, exact, condition=condition, scale=reach, label=f"published, sign {sign}")
