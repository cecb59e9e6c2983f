"""What must hold in sample coordinates: invariances, limits, and claims OURS-2, OURS-3, OURS-4."""

import numpy as np
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf.bellman import sample_space
from tests.bellman.sample_games import few, roll_out, start, tolerance, values_of
from tests.helpers import assert_close
from verification.problems.games import Game, Player, StageData, games, random_game


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
