"""The papers' scalar recursion (OURS-1) and the bound that keeps its batch form real (OURS-3)."""

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf.bellman import outer_product, sample_space
from verification.claim import at_most, same
from verification.derivations.recursions import spread
from verification.papers import OURS
from verification.problems.games import Game, Network, games
from verification.references import dense
from verification.references import outer_product as reference


def stage_terms(game: Game, t, players, alpha):
    """Of the acting players together: q [P, B], k, <q_i, k>, q_i' M^{-1} q_i, and the acting stage."""
    stage = game.stages[t]._replace(players=tuple(players))
    q = np.concatenate([game.parameter_columns(t, p) for p in players])
    solved = np.linalg.solve(stage.metric, np.concatenate([q, stage.l_u[:, None]], axis=1))
    k = -(solved[:, -1] + solved[:, :-1] @ alpha / game.batch_size)
    return q, k, q.T @ k, np.einsum("pi,pi->i", q, solved[:, :-1]), stage


def scalars(game: Game, factor, player=None, start=1.0):
    """Our recursion; one player only if asked, who keeps its numbers where it does not act.

    Yields:
        Last stage first: t, the acting stage or None, the values behind and before, q, the amplification of errors.
    """
    beta_squared = tf.constant(start * game.beta_squared)
    value = outer_product.init(game.batch_size, beta_squared)
    value = value._replace(alpha=start * value.alpha)
    growth = 1.0
    for t in reversed(range(len(game.stages))):
        players = [p for i, p in enumerate(game.stages[t].players) if player in {None, i}]
        if not players:
            yield t, None, value, value, None, growth
            continue
        q, k, inner_k, quad, stage = stage_terms(game, t, players, value.alpha.numpy())
        reach = np.max(np.linalg.norm(q, axis=0)) ** 2 * np.linalg.norm(np.linalg.inv(stage.metric), 2)
        growth *= 1 + float(np.max(value.beta_squared)) * reach
        growth *= 1 + np.linalg.norm(stage.l_u) * np.linalg.norm(k)
        before, _ = outer_product.backward(value, *map(tf.constant, (inner_k, quad)), batch_factor=factor)
        yield t, stage, value, before, q, growth
        value = before


def compare(game: Game, factor, player=None, start=1.0):
    """Our numbers times the back-propagated gradient against the samples' value matrices kept as matrices."""
    cuts, label = game.all_columns(), "GR" if player is None else "FNE"
    v, W = start * game.gradient, start * game.hessian
    for t, stage, behind, before, q, growth in scalars(game, factor, player, start):
        g = cuts[t][:, :, 0]
        if stage is None:
            f_x = game.stages[t].f_x
            v, W = np.einsum("bij,bi->bj", f_x, v), f_x.transpose(0, 2, 1) @ W @ f_x
        else:
            d = np.linspace(-1, 1, game.batch_size)
            w = outer_product.weights(behind, tf.constant(d)).numpy()
            ours = -np.linalg.solve(stage.metric, stage.l_u + q @ w / game.batch_size)
            moves = [d_i * g_i / ((g_i @ g_i) or 1.0) for d_i, g_i in zip(d, cuts[t + 1][:, :, 0], strict=True)]
            blocks = zip(stage.f_u, v, W, moves, strict=True)
            along = np.mean([f.T @ (v_i + W_i @ dx_i) for f, v_i, W_i, dx_i in blocks], axis=0)
            truth = -np.linalg.solve(stage.metric, stage.l_u + along)
            v, W, _, _ = reference.backward(v, W, stage.f_x, stage.f_u, stage.metric, stage.l_u, factor)
            condition = np.linalg.cond(stage.metric) * growth
            unit = np.linalg.norm(np.linalg.inv(stage.metric), 2) * (np.linalg.norm(q) + np.linalg.norm(stage.l_u))
            yield same(ours, truth, condition=condition, scale=unit, label=f"{label}: update")
        size = max(1.0, start) * np.linalg.norm(g)
        condition = growth * max(np.linalg.cond(s.metric) for s in game.stages)
        alpha, beta_squared = before.alpha.numpy(), before.beta_squared.numpy()
        yield same(alpha[:, None] * g, v, condition=condition, scale=size, label=f"{label}: V_x = alpha g")
        truth = np.einsum("b,bi,bj->bij", beta_squared, g, g)
        scale = size * np.linalg.norm(g) * max(1.0, np.max(game.beta_squared))
        yield same(truth, W, condition=condition, scale=scale, label=f"{label}: V_xx = beta^2 g g'")


def batch_form(game: Game):
    """C' = 1/B from the stacked recursion: gains with M, Schur update, the diagonal blocks kept at every stage."""
    B, cuts = game.batch_size, game.all_columns()
    v, W = game.gradient / B, game.hessian / B
    for t, stage, _, before, _, growth in scalars(game, 1 / B):
        F_X, F_u = dense.stack(stage.f_x, stage.f_u)
        stacked = dense.block_diag(*W)
        gradient, hessian = dense.expand(np.concatenate(list(v)), stacked, F_X, F_u, l_u=stage.l_u)
        n, m = F_X.shape[1], F_X.shape[1] // B
        v_t, W_t = dense.schur_value(gradient, hessian, *dense.minimise(gradient, hessian, n, stage.metric))
        v = v_t.reshape(B, m)
        W = np.stack([W_t[i * m : (i + 1) * m, i * m : (i + 1) * m] for i in range(B)])
        if (np.einsum("bii->b", W) < 0).any():  # where the bracket is clamped the matrices are not
            return
        g = cuts[t][:, :, 0]
        condition, size = growth * np.linalg.cond(stage.metric), np.linalg.norm(g)
        ours = before.alpha.numpy()[:, None] * g
        yield same(ours, B * v, condition=condition, scale=size, label="batch form: c = 1")
        ours = np.einsum("b,bi,bj->bij", before.beta_squared.numpy(), g, g)
        scale = size**2 * max(1.0, np.max(game.beta_squared))
        yield same(ours, B * W, condition=condition, scale=scale, label="batch form: c' = 1/B")


@OURS.exact(
    "1",
    "GTDDP Prop. 5, 6, DDPN Prop. 4",
    "v_i = alpha_i g_i, W_ii = beta_i^2 g_i g_i' with alpha <- alpha + beta^2 <q, k>, beta^2 <- beta^2 - c' beta^4 q'"
    " M^{-1} q, k = -M^{-1} (l_u + mean_i alpha_i q_i), du = -M^{-1} (l_u + mean_i (alpha_i + beta_i^2 <g_i, dx_i>)"
    " q_i)",
    assumes="terminal Hessian along the gradient, running cost independent of the state, linear dynamics, sample-wise"
    " layers, the value Hessian kept block-diagonal over the samples, any positive definite M, joint states",
    remark="c = 1 in every normalisation; c' = 1/B is the diagonal block of the batch form, c' = 1 the papers'"
    " per-sample form. FNE: one pair per player, who keeps it where it does not act. GR: the players' q and M stacked;"
    " alpha_T = beta_T^2 = N if phi is counted N times. With every sample's own gain and l_u = 0, alpha = beta^2."
    " After one stage it is a truncation of OURS-2. With a full-rank terminal Hessian W_ii is not along g g': 'off the"
    " line'.",
    over=games(terminals=("collinear",), max_log_condition=3, max_log_stiffness=1),
    ranges={"off the line": (0.1, 1.0)},
    examples=25,
)
def collinear(game: Game):
    """Ours against matrices, c' = 1 and 1/B, GR, GR with phi twice, and every player alone; and what breaks it."""
    for factor in (1.0, 1 / game.batch_size):
        yield from compare(game, factor)
    yield from compare(game, 1.0, start=2.0)
    for player in range(max(len(stage.players) for stage in game.stages)):
        yield from compare(game, 1.0, player)
    yield from batch_form(game)
    yield from own_gains(game)
    yield from spread(len(game.stages), off_the_line, "off the line")


def off_the_line(rng):
    """Part of f_x' f_x, the value Hessian that the full terminal Hessian I makes, that is not along f_x' g."""
    f_x, g = rng.standard_normal((3, 3)), rng.standard_normal(3)
    W, u = f_x.T @ f_x, f_x.T @ g / np.linalg.norm(f_x.T @ g)
    return np.linalg.norm(W - (u @ W @ u) * np.outer(u, u)) / np.linalg.norm(W)


def own_gains(game: Game):
    """DDPN Alg. 3 read with each sample's own gain: alpha = beta^2 when both start at 1 and nothing decays."""
    value, growth = outer_product.init(game.batch_size, tf.ones(game.batch_size, tf.float64)), 1.0
    for t in reversed(range(len(game.stages))):
        players = [p._replace(l_u=0 * p.l_u) for p in game.stages[t].players]
        quad = stage_terms(game, t, players, value.alpha.numpy())[3]
        if (value.beta_squared.numpy() * quad >= 1).any():
            return
        growth *= 1 + np.max(quad)
        value, _ = outer_product.backward(value, -value.alpha * quad, tf.constant(quad))
        yield same(value.alpha, value.beta_squared, condition=growth, scale=1.0, label="own gains: alpha = beta^2")


@st.composite
def gradients(draw):
    """Per-sample gradients [m, B], wide and tall, and a damping."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    B, m = draw(st.integers(1, 30), label="B"), draw(st.integers(1, 40), label="m")
    Q = rng.standard_normal((m, B)) * 10.0 ** rng.uniform(-1, 1, B)
    if draw(st.booleans(), label="identical samples"):
        Q = np.tile(Q[:, :1], B)
    return Q, 10.0 ** draw(st.integers(-8, 0), label="log10 damping"), draw(st.integers(0, 2**32 - 1))


@OURS.exact(
    "3",
    "DDP1 Eq. 37, GTDDP Eqs. 21-23",
    "with M = mean q q' + lambda I the leverage h_i = (1/B) q_i' M^{-1} q_i is in [0, 1), at most s / (1 + s) with s ="
    " |q_i|^2 / (B lambda), and sum h_i = d_eff = tr(M^{-1} (M - lambda I)) <= min(B, m)",
    assumes="lambda > 0",
    remark="So the root sqrt(1 - h_i) is real, and for every larger M. The per-sample radicand 1 - B h_i has the mean"
    " 1 - d_eff: 'negative' is the share of samples of a three-layer tanh network, B = 16, lambda = 1e-4, where it is"
    " below zero; catalogue 0.997 to 1. With m >= B and lambda -> 0, h_i -> 1: one stage wipes out the value Hessian.",
    over=gradients(),
    ranges={"negative": (0.9, 1.0)},
)
def leverage(problem):
    """1 - h_i = B S_ii after one stage of our exact recursion with the metric lambda I; every bound."""
    Q, damping, seed = problem
    m, B = Q.shape
    start = sample_space.init(B, beta_squared=tf.ones(B, tf.float64))
    L = sample_space.backward(start, tf.constant((Q.T @ Q / damping)[None])).L.numpy()[0]
    h = 1 - B * np.einsum("ij,ij->i", L, L)
    _, sigma, V = np.linalg.svd(Q, full_matrices=False)
    spectrum = sigma**2 / B
    condition = 1 + spectrum.max() / damping  # Gram matrix Q'Q / damping is known to eps times its norm
    yield same(h, (V.T**2) @ (spectrum / (spectrum + damping)), condition=condition, scale=np.sqrt(B), label="h")
    s = np.sum(Q**2, axis=0) / (B * damping)
    yield at_most(0.0, h, label="h >= 0")
    yield at_most(h, 1.0, label="h <= 1")
    yield at_most(h, s / (1 + s), condition=condition, label="h <= s / (1 + s)")
    effective = np.sum(spectrum / (spectrum + damping))
    yield same(h.sum(), effective, condition=condition, scale=B, label="sum of h = d_eff")
    yield same(np.mean(1 - B * h), 1 - effective, condition=condition, scale=B, label="mean of 1 - B h")
    yield at_most(h.sum(), min(B, m), scale=min(B, m), label="d_eff <= min(B, m)")
    if m >= B and sigma[-1] > 1e-6 * sigma[0]:
        yield at_most(1 - h, B * damping / sigma[-1] ** 2, label="1 - h <= B lambda / sigma_min^2")
    yield from spread(seed, negative_share, "negative", count=3)


def negative_share(rng):
    """Share of samples with B h_i > 1 over the layers of a network."""
    network = Network(rng, ["plain"] * 3, size=8)
    states, jacobians = network.forward(rng.standard_normal((16, network.n)))
    p = np.exp(states[-1]) / np.exp(states[-1]).sum(axis=1, keepdims=True)
    g, shares = p - np.eye(p.shape[1])[rng.integers(p.shape[1], size=16)], []
    for f_x, (f_u,) in reversed(jacobians):
        Q, g = np.einsum("bij,bi->jb", f_u, g), np.einsum("bij,bi->bj", f_x, g)
        M = Q @ Q.T / 16 + 1e-4 * np.eye(len(Q))
        shares.append(np.mean(np.einsum("mi,mi->i", Q, np.linalg.solve(M, Q)) > 1))
    return float(np.mean(shares))
