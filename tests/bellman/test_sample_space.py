"""The recursion in sample coordinates against batch DDP with every matrix written out."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from bellman_tf.bellman import sample_space
from tests.helpers import assert_close
from verification.problems.games import Game, Network, Player, StageData, games, network_game, random_game, random_kinds
from verification.references import dense
from verification.references import sample_space as reference

EPS = np.finfo(np.float64).eps
few = settings(max_examples=max(5, settings().max_examples // 2))


def tolerance(game):
    """Both sides solve with the metrics: eps cond(M), beside what cancels in the values."""
    condition = max(np.linalg.cond(p.metric) for s in game.stages for p in s.players)
    return 1e-10 + EPS * condition


def start(game, group_size=None):
    if game.root is None:
        value = sample_space.init(game.batch_size, beta_squared=tf.constant(game.beta_squared), group_size=group_size)
    else:
        value = sample_space.init(game.batch_size, rank=game.root.shape[2], group_size=group_size, dtype=tf.float64)
    return value


def columns_of_group(game, g, size):
    m = game.columns.shape[2]
    return slice(g * size * m, min((g + 1) * size, game.batch_size) * m)


def grouped(game, grams, linears, size=None):
    """Gram matrices [T, G, n, n] and linear terms [T, G, n] of each group, padded with zeros."""
    size = game.batch_size if size is None else size
    n, count = size * game.columns.shape[2], -(-game.batch_size // size)
    G, l = np.zeros((len(grams), count, n, n)), np.zeros((len(grams), count, n))
    for g in range(count):
        part = columns_of_group(game, g, size)
        width = part.stop - part.start
        for t in range(len(grams)):
            G[t, g, :width, :width], l[t, g, :width] = grams[t][part, part], linears[t][part]
    return G, l


def values_of(game, size=None, player=None):
    G, l = grouped(game, *game.grams(player), size)
    return sample_space.backward_all(start(game, size), G, tf.constant(l), diagonal=game.root is None)


def check_against_dense(game, values, size, player, rng):
    """Value and policy of every stage and group, where player=None is the joint control of the stage."""
    cuts = game.all_columns()
    size = game.batch_size if size is None else size
    for g in range(-(-game.batch_size // size)):
        samples = slice(g * size, min((g + 1) * size, game.batch_size))
        steps = dense.backward_batch(
            game.gradient[samples],
            game.hessian[samples],
            game.dense_stages(samples, player),
            batch_size=game.batch_size,
        )
        width = columns_of_group(game, g, size).stop - columns_of_group(game, g, size).start
        scale_v, scale_W = np.abs(cuts[-1]).max() ** np.array([1, 2]) / game.batch_size
        for t, (k, K, v, W, _) in enumerate(steps):
            C = np.zeros((v.size, width))
            m, n_t = cuts[t].shape[2], cuts[t].shape[1]
            for i, block in enumerate(cuts[t][samples]):
                C[i * n_t : (i + 1) * n_t, i * m : (i + 1) * m] = block
            a, L = values.a[t, g].numpy()[:width], values.L[t, g].numpy()[:width]
            tol = tolerance(game)
            size_C = max(1.0, np.abs(C).max())
            assert_close(C @ a, v, rtol=tol, atol=tol * scale_v * size_C, label=f"V_X at {t}")
            assert_close(C @ (L @ L.T) @ C.T, W, rtol=tol, atol=tol * scale_W * size_C**2, label=f"V_XX at {t}")
            deviation = rng.standard_normal(v.size)
            padded = np.zeros(values.a.shape[-1])
            padded[:width] = C.T @ deviation
            w = sample_space.weights(sample_space.SampleValue(values.a[t, g], values.L[t, g]), tf.constant(padded))
            players = [p for i, p in enumerate(game.stages[t].players) if player in {None, i}]
            du = [
                -np.linalg.solve(
                    p.metric,
                    p.l_u + game.parameter_columns(t, p)[:, columns_of_group(game, g, size)] @ w.numpy()[:width],
                )
                for p in players
            ]
            expected = k + K @ deviation
            assert_close(np.concatenate([*du, np.zeros(0)]), expected, rtol=tol, atol=tol, label=f"du at {t}")


# The dense reference


@given(games(), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_it_is_the_dense_batch_recursion_inside_every_group(game, size, seed):
    size = None if size == 0 else size
    check_against_dense(game, values_of(game, size), size, None, np.random.default_rng(seed))


@few
@given(games(max_depth=3), st.integers(0, 2**32 - 1))
def test_each_player_of_the_feedback_nash_recursion_is_a_game_of_its_own(game, seed):
    count = max(len(stage.players) for stage in game.stages)
    terms = [grouped(game, *game.grams(player)) for player in range(count)]
    G, l = (np.stack(x, axis=1) for x in zip(*terms, strict=True))  # [T, N, 1, ...]: leading axes broadcast
    values = sample_space.backward_all(start(game), G, tf.constant(l))
    for player in range(count):
        one = sample_space.SampleValue(values.a[:, player], values.L[:, player])
        check_against_dense(game, one, None, player, np.random.default_rng(seed))


@given(games(), st.integers(0, 5))
def test_all_stages_at_once_are_the_stages_one_by_one_and_the_reference(game, size):
    size = game.batch_size if size == 0 else size
    grams, linears = game.grams()
    G, l = grouped(game, grams, linears, size)
    at_once = sample_space.backward_all(start(game, size), G, tf.constant(l))
    flagged = values_of(game, size)
    value = start(game, size)
    roots = game.beta_squared if game.root is None else game.root.shape[2]
    a_0, S_0 = reference.start(game.batch_size, roots)
    tol = 1e-9  # the Gram matrices are given: nothing is worse than cond(I + L' Gamma L) eps, which is < 1e4 eps here
    for t in reversed(range(len(grams))):
        value = sample_space.backward(value, G[t], l[t])
        for other in (at_once, flagged):
            assert_close(other.a[t], value.a, rtol=tol, atol=tol)
            assert_close(other.L[t], value.L, rtol=tol, atol=tol)
    for g in range(G.shape[1]):
        part = columns_of_group(game, g, size)
        own = [x[part, part] for x in grams], [x[part] for x in linears]
        for recursion in (reference.recursion, reference.closed_form):
            for t, (a, S) in enumerate(recursion(a_0[part], S_0[part, part], *own)):
                L = at_once.L[t, g].numpy()[: len(a)]
                assert_close(at_once.a[t, g].numpy()[: len(a)], a, rtol=tol, atol=tol)
                assert_close(L @ L.T, S, rtol=tol, atol=tol)


# The executed step


def roll_out(game, values, player=None):
    """Updates of every player when the closed loop runs on the linearised stages."""
    cuts, updates = game.all_columns(), []
    deviation = np.zeros_like(cuts[0][:, :, 0])
    for t, stage in enumerate(game.stages):
        d = np.einsum("bnm,bn->bm", cuts[t], deviation).ravel()
        value = sample_space.SampleValue(values.a[t, 0], values.L[t, 0])
        w = sample_space.weights(value, tf.constant(d)).numpy()
        updates.append([-np.linalg.solve(p.metric, p.l_u + game.parameter_columns(t, p) @ w) for p in stage.players])
        deviation = np.einsum("bij,bj->bi", stage.f_x, deviation) + stage.f_u @ np.concatenate(updates[-1])
    return updates


def gauss_newton(game):
    """The whole network at once: minimises 1/B sum_i (g' dx + 1/2 dx' H dx) + sum l' u + 1/2 u' M u, dx = J u."""
    through, parts = np.eye(game.gradient.shape[1])[None], []
    for stage in reversed(game.stages):
        parts.insert(0, through @ stage.f_u)
        through = through @ stage.f_x
    J = np.concatenate(parts, axis=2)
    g, H, B = game.gradient, game.hessian, game.batch_size
    curvature = np.einsum("bip,bij,bjq->pq", J, H, J) / B
    at = 0
    for stage in game.stages:
        m = len(stage.l_u)
        curvature[at : at + m, at : at + m] += stage.metric
        at += m
    slope = np.einsum("bip,bi->p", J, g) / B + np.concatenate([stage.l_u for stage in game.stages])
    solution = -np.linalg.solve(curvature, slope)
    return solution, -0.5 * slope @ solution


@given(games(max_log_condition=4))
def test_one_closed_loop_step_of_linear_stages_is_the_gauss_newton_step_of_the_whole_network(game):
    expected, _ = gauss_newton(game)
    updates = np.concatenate([u for stage in roll_out(game, values_of(game)) for u in stage])
    assert_close(updates, expected, rtol=1e-9, atol=1e-10)


@given(games(max_log_condition=4))
def test_the_predicted_reduction_is_the_decrease_of_the_quadratic_model(game):
    grams, linears = game.grams()
    own = sum(p.l_u @ np.linalg.solve(p.metric, p.l_u) for stage in game.stages for p in stage.players)
    G, l = grouped(game, grams, linears)
    values = values_of(game)
    initial = sample_space.SampleValue(values.a[0], values.L[0])
    predicted = sample_space.predicted_reduction(start(game), initial, G, l, tf.constant([own])).numpy()[0]
    _, expected = gauss_newton(game)
    assert_close(predicted, expected, rtol=1e-9, atol=1e-11)
    steps = dense.backward_batch(game.gradient, game.hessian, game.dense_stages())
    assert_close(predicted, sum(step[-1] for step in steps), rtol=1e-9, atol=1e-11)
    if own == 0:
        assert_close(
            sample_space.predicted_reduction(start(game), initial, G).numpy()[0], expected, rtol=1e-9, atol=1e-11
        )


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_the_nonlinear_forward_pass_of_a_tanh_network_follows_batch_ddp(seed, batch_size, depth, shortcuts):
    rng = np.random.default_rng(seed)
    network = Network(rng, random_kinds(rng, depth, shortcuts))
    game, states = network_game(rng, network, rng.standard_normal((batch_size, network.n)))
    values, cuts = values_of(game), game.all_columns()
    steps = dense.backward_batch(game.gradient, game.hessian, game.dense_stages())
    ours, theirs = states[0], states[0]
    for t, stage in enumerate(game.stages):
        d = np.einsum("bnm,bn->bm", cuts[t], ours - states[t]).ravel()
        w = sample_space.weights(sample_space.SampleValue(values.a[t, 0], values.L[t, 0]), tf.constant(d)).numpy()
        du = [-np.linalg.solve(p.metric, p.l_u + game.parameter_columns(t, p) @ w) for p in stage.players]
        k, K, *_ = steps[t]
        expected = k + K @ (theirs - states[t]).ravel()
        assert_close(np.concatenate(du), expected, rtol=1e-10, atol=1e-11, label=f"du at {t}")
        cut = np.cumsum([len(u) for u in du])[:-1]
        old = network.parameters[t]
        ours = network.stage(t, ours, [u + step for u, step in zip(old, du, strict=True)])[0]
        theirs = network.stage(t, theirs, [u + s for u, s in zip(old, np.split(expected, cut), strict=True)])[0]
    assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


def test_the_jacobians_of_the_tanh_networks_are_those_of_finite_differences(rng):
    for kinds in (["plain", "parallel"], ["open", "inner", "close"], ["open", "close_parametrised", "plain"]):
        network = Network(rng, kinds)
        states, jacobians = network.forward(rng.standard_normal((2, network.n)))
        for t, (f_x, f_us) in enumerate(jacobians):
            dx = rng.standard_normal(states[t].shape)
            dus = [rng.standard_normal(len(u)) for u in network.parameters[t]]
            ahead, behind = (
                network.stage(
                    t, states[t] + h * dx, [u + h * du for u, du in zip(network.parameters[t], dus, strict=True)]
                )[0]
                for h in (1e-5, -1e-5)
            )
            expected = np.einsum("bij,bj->bi", f_x, dx) + sum(f_u @ du for f_u, du in zip(f_us, dus, strict=True))
            assert_close((ahead - behind) / 2e-5, expected, rtol=1e-8)


# What must hold


@few
@given(games(), st.integers(0, 2**32 - 1))
def test_the_order_of_the_samples_does_not_matter(game, seed):
    order = np.random.default_rng(seed).permutation(game.batch_size)
    shuffled = game.pick(order)
    for ours, theirs in zip(roll_out(game, values_of(game)), roll_out(shuffled, values_of(shuffled)), strict=True):
        for u, v in zip(ours, theirs, strict=True):
            assert_close(u, v, rtol=tolerance(game), atol=1e-11)


@few
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 3))
def test_one_stage_with_the_full_hessian_is_a_damped_newton_step_of_the_linear_model(seed, batch_size, classes):
    """The loss sum_i log sum exp(x_i) - x_iy of x = W z, written as one quadratic in vec(W); not via our stages."""
    rng = np.random.default_rng(seed)
    z, W = rng.standard_normal((batch_size, 2)), rng.standard_normal((classes, 2))
    p = np.exp(z @ W.T) / np.exp(z @ W.T).sum(axis=1, keepdims=True)
    g = p - np.eye(classes)[rng.integers(classes, size=batch_size)]
    newton = 0.1 * np.eye(2 * classes)
    for z_i, p_i in zip(z, p, strict=True):
        newton += np.kron(np.diag(p_i) - np.outer(p_i, p_i), np.outer(z_i, z_i)) / batch_size
    expected = -np.linalg.solve(newton, np.einsum("bc,bd->cd", g, z).ravel() / batch_size)
    root = np.sqrt(p)[:, :, None] * np.eye(classes) - p[:, :, None] * np.sqrt(p)[:, None, :]
    f_u = np.einsum("ca,bd->bcad", np.eye(classes), z).reshape(batch_size, classes, 2 * classes)
    player = Player(f_u, 0.1 * np.eye(2 * classes), np.zeros(2 * classes))
    game = Game([StageData(np.tile(W, (batch_size, 1, 1)), (player,))], g, root=root)
    assert_close(roll_out(game, values_of(game))[0][0], expected, rtol=1e-11, atol=1e-13)


@few
@given(games())
def test_groups_of_one_and_of_the_batch_agree_for_one_sample(game):
    one = game.pick([0])
    whole, single = values_of(one), values_of(one, 1)
    assert_close(whole.a, single.a, rtol=1e-12)
    assert_close(whole.L, single.L, rtol=1e-12)


@few
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.booleans())
def test_cooperation_changes_nothing_for_one_player_or_orthogonal_grams(seed, batch_size, alone):
    """Orthogonal: two players move different halves of the samples' losses, so G_1 S G_2 = 0."""
    rng = np.random.default_rng(seed)
    game = random_game(rng, 2 * batch_size, ["plain"], terminal="collinear", decay=False)
    if not alone:
        stage = game.stages[0]
        first = np.arange(2 * batch_size)[:, None, None] < batch_size
        f_u = stage.players[0].f_u
        players = tuple(stage.players[0]._replace(f_u=f_u * part) for part in (first, ~first))
        game.stages = [StageData(stage.f_x, players)]
    together = values_of(game)
    for i, player in enumerate(game.stages[0].players):
        own = values_of(game, player=i)
        Qc = game.parameter_columns(0, player)
        assert_close(Qc @ own.a[0, 0].numpy(), Qc @ together.a[0, 0].numpy(), rtol=1e-12, atol=1e-14)


# claims OURS-2, OURS-3, OURS-4


@few
@given(games(terminals=("collinear",), max_log_condition=3))
def test_without_decay_the_weights_are_R_applied_to_ones_and_the_kernel_of_the_losses(game):
    """OURS-2 (a), (b), with beta = 1: B S = R for any metrics, R_t = (I + sum G_s / B)^{-1}, a_t = R_t 1 / B."""
    game.beta_squared = np.ones(game.batch_size)
    grams, _ = game.grams()
    B = game.batch_size
    values = sample_space.backward_all(start(game), np.array(grams)[:, None])
    for t in range(len(grams)):
        S = values.L[t, 0].numpy() @ values.L[t, 0].numpy().T
        assert_close(values.a[t, 0], S @ np.ones(B), rtol=1e-10)
        assert_close(B * S, np.linalg.inv(np.eye(B) + sum(grams[t:]) / B), rtol=1e-9)


@few
@given(games(terminals=("collinear",), max_log_condition=3))
def test_every_layer_receives_the_same_weights_along_linear_stages(game):
    """OURS-2 (c): on the linearised dynamics w_t is the same vector at every stage, R_0 1."""
    for stage in game.stages:
        for player in stage.players:
            player.l_u[:] = 0
    values, cuts = values_of(game), game.all_columns()
    updates = roll_out(game, values)
    deviation = np.zeros_like(cuts[0][:, :, 0])
    for t, stage in enumerate(game.stages):
        d = np.einsum("bnm,bn->bm", cuts[t], deviation).ravel()
        w = sample_space.weights(sample_space.SampleValue(values.a[t, 0], values.L[t, 0]), tf.constant(d))
        assert_close(w, values.a[0, 0], rtol=1e-9, atol=1e-12)
        deviation = np.einsum("bij,bj->bi", stage.f_x, deviation) + stage.f_u @ np.concatenate(updates[t])


@given(games(), st.integers(0, 5))
def test_S_shrinks_from_stage_to_stage_and_stays_positive(game, size):
    """OURS-2 (d), with the curvature of the model in Q_uu: 0 <= S_t <= S_{t+1}, whatever the metric."""
    values = values_of(game, size or None)
    L = [*values.L.numpy(), start(game, size or None).L.numpy()]
    S = np.stack([factor @ factor.swapaxes(-1, -2) for factor in L])
    assert (np.linalg.eigvalsh(S[1:] - S[:-1]) >= -1e-12 * (1 + np.abs(S).max())).all()
    assert (np.linalg.eigvalsh(S) >= -1e-12 * (1 + np.abs(S).max())).all()


@few
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 10), st.floats(-8, 0))
def test_leverages_stay_below_one_and_sum_to_the_effective_dimension(seed, batch_size, size, log_damping):
    """OURS-3: M = mean q q' + damping: h_i = G_ii / B < 1, sum h_i = tr(M^{-1} (M - damping)) <= min(B, m)."""
    q = np.random.default_rng(seed).standard_normal((size, batch_size))
    damping = 10.0**log_damping
    M = q @ q.T / batch_size + damping * np.eye(size)
    h = np.diag(q.T @ np.linalg.solve(M, q)) / batch_size
    bound = (q**2).sum(axis=0) / (batch_size * damping)
    assert (h <= bound / (1 + bound) + 1e-7).all()
    assert_close(h.sum(), np.trace(np.linalg.solve(M, M - damping * np.eye(size))), rtol=1e-6)
    assert h.sum() <= min(batch_size, size) + 1e-7
    # and so one uncoupled stage leaves 1 / (1 + h) of each sample's S, more than the half that 1 - h could undercut
    G = tf.constant((batch_size * h)[:, None, None])
    value = sample_space.init(batch_size, beta_squared=tf.ones([batch_size], tf.float64), group_size=1)
    kept = batch_size * sample_space.backward(value, G).L.numpy()[:, 0, 0] ** 2
    assert_close(kept, 1 / (1 + h), rtol=1e-12)
    assert (kept >= 0.5 - 1e-7).all()


@few
@given(games(terminals=("rank",)))
def test_a_terminal_hessian_of_rank_r_keeps_the_affine_form_of_the_gradient(game):
    """OURS-4: v_i = (g_i + Z_i a_i) / B: the gradient's own coefficient never moves, and S never touches it."""
    values = values_of(game)
    m = game.columns.shape[2]
    assert_close(values.a.numpy()[..., ::m] * game.batch_size, np.ones_like(values.a.numpy()[..., ::m]), rtol=1e-14)
    assert not values.L.numpy()[..., ::m, :].any()


# Groups


@given(st.integers(1, 7), st.integers(1, 9), st.integers(1, 3))
def test_groups_come_back_and_pad_with_zeros(batch_size, group_size, columns):
    x = np.arange(1.0, batch_size * columns + 1).reshape(batch_size, columns)
    x = x[:, 0] if columns == 1 else x
    grouped_x = sample_space.to_groups(x, group_size)
    assert grouped_x.shape == (-(-batch_size // group_size), group_size * columns)
    assert_close(sample_space.from_groups(grouped_x, batch_size, columns), x)
    assert np.count_nonzero(grouped_x) == x.size


@pytest.mark.parametrize("group_size", [None, 1, 2, 3])
def test_padding_is_inert_and_the_rest_is_the_terminal_value(group_size):
    for value, m in (
        (sample_space.init(5, beta_squared=tf.constant([4.0, 1.0, 0.0, 9.0, 1.0]), group_size=group_size), 1),
        (sample_space.init(5, rank=2, group_size=group_size), 3),
    ):
        a = sample_space.from_groups(value.a, 5, m).numpy().reshape(5, m)
        S = np.asarray(value.L) @ np.asarray(value.L).swapaxes(1, 2)
        diagonal = sample_space.from_groups(tf.linalg.diag_part(S), 5, m).numpy().reshape(5, m)
        assert_close(a, np.tile(np.eye(m)[0] / 5, (5, 1)), rtol=1e-6)
        assert_close(
            diagonal, np.array([[4.0], [1], [0], [9], [1]]) / 5 if m == 1 else np.tile([0, 0.2, 0.2], (5, 1)), rtol=1e-6
        )
        assert_close(np.sum(np.abs(S)), np.sum(diagonal), rtol=1e-6)  # nothing off the diagonal, nothing in the padding
        assert_close(np.sum(value.a), 1.0, rtol=1e-6)


@pytest.mark.parametrize("group_size", [None, 1, 2])
@pytest.mark.parametrize("rank", [0, 2])
def test_a_batch_of_unknown_size_gives_the_same_values(group_size, rank, rng):
    beta = tf.constant(rng.uniform(size=5))

    def make(n, beta):
        beta = None if rank else beta
        return sample_space.init(n, beta_squared=beta, rank=rank, group_size=group_size, dtype=tf.float64)

    size = (group_size or 5) * (1 + rank)
    Qc = rng.standard_normal((2, -(-5 // (group_size or 5)), 4, size))
    grams = tf.constant(Qc.swapaxes(-1, -2) @ Qc)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float64), tf.TensorSpec([2, None, None, None], tf.float64)])
    def unknown(beta, grams):
        value = sample_space.backward_all(make(tf.shape(beta)[0], beta), grams)
        columns = sample_space.to_groups(tf.ones([tf.shape(beta)[0], 3], tf.float64), group_size)
        return value, columns, sample_space.from_groups(value.a[0], tf.shape(beta)[0], 1 + rank)

    value, columns, a = unknown(beta, grams)
    expected = sample_space.backward_all(make(5, beta), grams)
    assert_close(value.a, expected.a, rtol=1e-13)
    assert_close(value.L, expected.L, rtol=1e-13)
    assert_close(a, sample_space.from_groups(expected.a[0], 5, 1 + rank), rtol=1e-13)
    assert_close(tf.reduce_sum(columns), 15.0)


# Number formats


def test_several_threads_do_not_break_the_broadcast_of_one_group_over_the_stages():
    """A product [3, 1, n, n] @ [1, n, k] corrupts memory under oneDNN; the other tests run in one thread."""
    code = (
        "import numpy as np, tensorflow as tf; from bellman_tf import bellman as b; L = b.init(8, rank=1);"
        "G = tf.eye(16, batch_shape=[3, 1]); v = [b.backward_all(L, G) for _ in range(20)];"
        "w = [b.weights(x, tf.ones([1, 16])).numpy() for x in v]; assert all((x == w[0]).all() for x in w);"
        "assert np.allclose(w[0][:, 0, 1], [1 / 11, 1 / 10, 1 / 9])"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


def fixed_case(rng, rank, group_size, batch_size, dtype):
    size, m = group_size or batch_size, 1 + rank
    value = (
        sample_space.init(batch_size, rank=rank, group_size=group_size, dtype=dtype)
        if rank
        else sample_space.init(batch_size, beta_squared=tf.ones([batch_size], dtype), group_size=group_size)
    )
    Qc = rng.standard_normal((3, -(-batch_size // size), 6, size * m))
    return (
        value,
        tf.constant(Qc.swapaxes(-1, -2) @ Qc, dtype),
        tf.constant(rng.standard_normal(Qc[:, :, 0].shape), dtype),
    )


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
@pytest.mark.parametrize(("rank", "group_size", "batch_size"), [(0, None, 6), (0, 1, 4), (2, 2, 5)])
def test_compiled_and_eager_agree_in_both_precisions(rng, rank, group_size, batch_size, dtype):
    value, grams, linear = fixed_case(rng, rank, group_size, batch_size, dtype)

    def step(value, grams, linear):
        values = sample_space.backward_all(value, grams, linear, diagonal=rank == 0)
        one = sample_space.backward(value, grams[-1], linear[-1])
        return (
            values,
            one,
            sample_space.weights(values, values.a),
            sample_space.predicted_reduction(value, one, grams, linear),
        )

    eager = tf.nest.flatten(step(value, grams, linear))
    for compiled in (tf.function(step), tf.function(step, jit_compile=True)):
        for x, y in zip(tf.nest.flatten(compiled(value, grams, linear)), eager, strict=True):
            assert x.dtype == dtype
            assert_close(x, y, rtol=2e-5 if dtype == tf.float32 else 1e-13)
    double = fixed_case(np.random.default_rng(0), rank, group_size, batch_size, tf.float64)
    for x, y in zip(eager, tf.nest.flatten(step(*double)), strict=True):
        assert_close(x, y, rtol=2e-5 if dtype == tf.float32 else 1e-13)


@pytest.mark.parametrize(("rank", "group_size"), [(0, None), (0, 1), (3, None), (1, 4)])
@pytest.mark.parametrize("scale", [1e12, 1e6, 1.0, 1e-12, 0.0])
def test_huge_tiny_and_rank_deficient_grams_stay_finite_in_float32(rng, rank, group_size, scale):
    B, m = 8, 1 + rank
    size = group_size or B
    Qc = np.float32(rng.standard_normal((4, B // size, 2, size * m)) * np.sqrt(scale))  # rank 2: singular
    grams = tf.constant(Qc.swapaxes(-1, -2) @ Qc)
    linear = tf.constant(Qc[:, :, 0])
    value = sample_space.init(B, rank=rank, group_size=group_size, beta_squared=None if rank else tf.ones([B]))

    def at_once():
        return sample_space.backward_all(value, grams, linear, diagonal=rank == 0)

    results = [at_once(), value]
    for t in reversed(range(4)):
        results.append(sample_space.backward(results[-1], grams[t], linear[t]))
    if scale > 1e11 and rank != 1:
        results.append(tf.function(at_once, jit_compile=True)())
    for x in tf.nest.flatten(results):
        assert np.isfinite(x).all()


# Errors


def test_wrong_arguments_are_refused_in_the_house_form():
    value = sample_space.init(3, beta_squared=tf.ones([3]))
    cases = [
        (
            r"`gram.shape` must end in \[n, n\] with n the rows of `value.L`. Received",
            "backward",
            value,
            tf.ones([2, 2]),
        ),
        (r"`grams` must be a matrix or a batch of matrices", "backward_all", value, tf.ones([3])),
        (r"`gram.dtype` must be that of the value, float32", "backward", value, tf.ones([3, 3], tf.float64)),
        (r"`columns` must have the axes \[B\] or \[B, m\]", "to_groups", tf.ones([2, 2, 2])),
        (r"`group_size` must be an integer >= 1. Received: group_size=0", "to_groups", tf.ones([2]), 0),
        (r"`x` must have the axes", "from_groups", tf.ones([2]), 2),
        (r"`columns` must be an integer >= 1", "from_groups", tf.ones([2, 1]), 2, 0),
        (r"`beta_squared` must be given exactly when `rank` is 0. Received: beta_squared=None", "init", 3),
    ]
    for message, name, *arguments in cases:
        with pytest.raises(ValueError, match=message):
            getattr(sample_space, name)(*arguments)
    cases = [
        (r"`beta_squared` must be given exactly", {"rank": 1, "beta_squared": tf.ones([3])}),
        (r"`beta_squared.dtype` must be one of", {"beta_squared": tf.ones([3], tf.float16)}),
        (r"`rank` must be an integer >= 0", {"rank": -1}),
        (r"`group_size` must be an integer >= 1", {"rank": 1, "group_size": 0}),
    ]
    for message, options in cases:
        with pytest.raises(ValueError, match=message):
            sample_space.init(3, **options)
    with pytest.raises(ValueError, match=r"`value.L` must be square when `diagonal=True`"):
        sample_space.backward(sample_space.init(2, rank=1), tf.ones([4, 4]), diagonal=True)
