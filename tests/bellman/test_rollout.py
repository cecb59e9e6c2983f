"""The linear roll-out against the dense batch recursion executed on linearised dynamics, and what must hold for it."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf.bellman import rollout, sample_space
from tests.bellman.sample_games import EPS, columns_of_group, few, start, terms
from tests.helpers import assert_close
from verification.problems.games import Player, StageData, games, random_game
from verification.references import rollout as reference

STRUCTURES = [(True, True), (True, False), (False, True), (False, False)]


def condition(game, terminal):
    """Of the solves with the metrics and of the one with I + S Gamma, added: both enter the weights once."""
    metrics = max(np.linalg.cond(p.metric) for stage in game.stages for p in stage.players)
    return metrics + 1 + np.max(terminal.L.numpy()) ** 2 * np.linalg.norm(sum(game.grams()[0]), 2)


def tolerance(game, terminal):
    """Backward stable solves err by eps times the condition: 1e-10 at 1e6, with 1e-11 for the products around them."""
    return 1e-11 + 0.4 * EPS * condition(game, terminal)


def players_of(game):
    return [(t, i, p) for t, stage in enumerate(game.stages) for i, p in enumerate(stage.players)]


# The dense twin


@given(games(), st.integers(0, 4), st.sampled_from(STRUCTURES))
def test_it_is_the_dense_step_on_the_linearised_dynamics(game, size, structure):
    """Moves of every player, deviation at every cut, decrease of the model; every group plays its own game."""
    joint, feedback = structure
    size, terminal = size or None, start(game, size or None)
    G, l = terms(game, size, joint=joint)
    w = rollout.roll_out(terminal, G, l, joint=joint, feedback=feedback, diagonal=game.root is None)
    own = tf.constant(game.own_cost(), tf.float64)
    decrease = rollout.predicted_reduction(terminal, G, w, l, own, joint=joint).numpy()
    tol, cuts, b = tolerance(game, terminal), game.all_columns(), size or game.batch_size
    for g in range(-(-game.batch_size // b)):
        samples, part = slice(g * b, min((g + 1) * b, game.batch_size)), columns_of_group(game, g, b)
        n = part.stop - part.start
        step = reference.execute(
            game.gradient[samples], game.hessian[samples], game.stacked_stages(samples), joint=joint, feedback=feedback,
            batch_size=game.batch_size,
        )  # fmt: skip
        given_w, ours, unit = w.numpy()[..., g, :n], [], []
        for t, i, p in players_of(game):
            Qc = game.parameter_columns(t, p)[:, part]
            ours.append(-np.linalg.solve(p.metric, p.l_u + Qc @ (given_w[t] if joint else given_w[t, i])))
            unit.append(np.linalg.solve(p.metric, p.l_u))
        theirs = np.concatenate([du for moves in step.moves for du in moves])
        scale = max(np.abs(np.concatenate([theirs, *unit])).max(), np.finfo(float).tiny)
        assert_close(np.concatenate(ours) / scale, theirs / scale, atol=tol, label="moves")
        d, moved = None, np.zeros(n)
        for t in range(len(game.stages)):
            d = rollout.advance(d, G[t], w[t], l[t], joint=joint)
            columns = np.zeros((step.deviations[t + 1].size, n))
            height, m = cuts[t + 1].shape[1:]
            for i, block in enumerate(cuts[t + 1][samples]):
                columns[i * height : (i + 1) * height, i * m : (i + 1) * m] = block
            moved = columns.T @ step.deviations[t + 1]
            size_d = np.linalg.norm(columns) * (scale + np.linalg.norm(step.deviations[t + 1]))
            assert_close(d[g, :n], moved, atol=tol * size_d, label=f"C' dX behind stage {t}")
        S = terminal.L.numpy()[g] @ terminal.L.numpy()[g].T
        pieces = own.numpy() + abs(moved) @ abs(terminal.a.numpy()[g, :n]) + moved @ S[:n, :n] @ moved
        assert_close(decrease[g], step.decrease, atol=tol * pieces, label="decrease")


def test_the_dense_twin_minimises_its_own_model(rng):
    """The moves of the cooperative twin against random others: its decrease is the largest, and its gradient zero."""
    game = random_game(rng, 3, ["open", "close_parametrised", "parallel"], terminal="rank", rank=2)
    stages = game.stacked_stages()
    step = reference.execute(game.gradient, game.hessian, stages, joint=True, feedback=True)
    slopes = []
    for _ in range(20):
        other = [[rng.standard_normal(du.shape) for du in moves] for moves in step.moves]

        def along(h, other=other):
            moved = [[u + h * v for u, v in zip(*pair, strict=True)] for pair in zip(step.moves, other, strict=True)]
            return reference.decrease(game.gradient, game.hessian, stages, moved, 3)

        slopes.append((along(1e-3) - along(-1e-3)) / 2e-3)
        assert along(1e-3) < step.decrease
    assert_close(slopes, np.zeros(20), atol=1e-9 * abs(step.decrease) + 1e-10)


# Telescoping


def stage_by_stage(terminal, G, l):
    """The joint policy, a value and a deviation at a time, by `backward`, `weights` and `advance` alone."""
    values = [terminal]
    for t in reversed(range(len(G))):
        values.insert(0, sample_space.backward(values[0], G[t], l[t]))
    w, d = [], None
    for t in range(len(G)):
        w.append(sample_space.weights(values[t], d))
        d = rollout.advance(d, G[t], w[t], l[t])
    return tf.stack(w)


@given(games(), st.integers(0, 4))
def test_one_solve_is_the_stages_one_by_one(game, size):
    terminal, (G, l) = start(game, size or None), terms(game, size or None)
    expected = stage_by_stage(terminal, G, l)
    w = rollout.roll_out(terminal, G, l, joint=True, feedback=True)
    one = rollout.cooperative_weights(terminal, tf.reduce_sum(G, 0), tf.reduce_sum(l, 0), diagonal=game.root is None)
    S = terminal.L.numpy() @ terminal.L.numpy().swapaxes(-1, -2)
    dense = [
        np.linalg.solve(np.eye(len(a)) + S_g @ G_g, a - S_g @ l_g)
        for a, S_g, G_g, l_g in zip(terminal.a.numpy(), S, G.numpy().sum(0), l.numpy().sum(0), strict=True)
    ]
    scale = 1 / game.batch_size + np.max(np.abs(S) @ np.abs(l.numpy()).sum(0)[..., None])
    stiffness = 1 + np.max(S) * np.linalg.norm(G.numpy().sum(0), axis=(1, 2)).max()
    for t in range(len(G)):
        for other in (expected[t], one, np.array(dense)):
            assert_close(w[t], other, atol=(1e-13 + 10 * EPS * stiffness) * scale)


@few
@given(games(), st.integers(0, 2**32 - 1))
def test_the_order_of_the_stages_does_not_matter_to_the_cooperative_weights(game, seed):
    terminal, (G, l) = start(game), terms(game)
    order = np.random.default_rng(seed).permutation(len(G))
    w = rollout.roll_out(terminal, G, l, joint=True, feedback=True)
    other = rollout.roll_out(terminal, tf.gather(G, order), tf.gather(l, order), joint=True, feedback=True)
    assert_close(other, w, rtol=1e-13 + EPS * condition(game, terminal), atol=1e-14)


@few
@given(games(), st.booleans())
def test_a_player_alone_in_a_nash_game_plays_the_cooperative_one(game, absent):
    """With one player by dispatch, beside one that never acts through the stages of the loop: the same weights."""
    terminal, (G, l) = start(game), terms(game)
    w = rollout.roll_out(terminal, G, l, joint=True, feedback=True)
    G, l = (tf.stack([x, tf.zeros_like(x)], axis=1) if absent else x[:, None] for x in (G, l))
    alone = rollout.roll_out(terminal, G, l, joint=False, feedback=True)
    assert alone.shape == l.shape
    size = np.max(np.abs(w)) + 1 / game.batch_size
    assert_close(alone[:, 0], w, atol=(1e-12 + 10 * EPS * condition(game, terminal)) * size)


@few
@given(games())
def test_the_prediction_is_that_of_the_policy_and_no_other_weights_promise_more(game):
    terminal, (G, l), own = start(game), terms(game), tf.constant(game.own_cost(), tf.float64)
    w = rollout.roll_out(terminal, G, l, joint=True, feedback=True)
    first = sample_space.backward(terminal, tf.reduce_sum(G, 0), tf.reduce_sum(l, 0))
    expected = sample_space.predicted_reduction(terminal, first, G, l, own).numpy()
    at_once = rollout.predicted_reduction(terminal, tf.reduce_sum(G, 0)[None], w[:1], tf.reduce_sum(l, 0)[None], own)
    size = np.max(np.abs(expected)) + own.numpy()
    atol = size * (1e-12 + 10 * EPS * condition(game, terminal))
    assert_close(rollout.predicted_reduction(terminal, G, w, l, own), expected, atol=atol)
    assert_close(at_once, expected, atol=atol)
    for other in (rollout.roll_out(terminal, G, l, joint=True, feedback=False), w * 0.5, tf.zeros_like(w)):
        assert (rollout.predicted_reduction(terminal, G, other, l, own).numpy() <= expected + atol).all()


@few
@given(games(), st.integers(0, 2**32 - 1))
def test_a_displacement_known_before_the_step_is_a_linear_term(game, seed):
    """w = (I + S Gamma)^{-1} (a - S lambda + S d) for d = C' dX of the end of the network."""
    terminal, (G, l) = start(game), terms(game)
    d = np.random.default_rng(seed).standard_normal(l.shape[-1])
    w = rollout.cooperative_weights(terminal, tf.reduce_sum(G, 0), tf.reduce_sum(l, 0) - d)
    S = terminal.L.numpy()[0] @ terminal.L.numpy()[0].T
    right = terminal.a.numpy()[0] - S @ l.numpy().sum((0, 1)) + S @ d
    expected = np.linalg.solve(np.eye(len(S)) + S @ G.numpy().sum((0, 1)), right)
    assert_close(w[0], expected, atol=(1e-13 + 10 * EPS * condition(game, terminal)) * (1 + np.abs(right).max()))


# Degenerate games


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("terminal_kind", ["collinear", "rank"])
@pytest.mark.parametrize(("batch_size", "depth"), [(1, 1), (1, 3), (3, 3)])  # the last: as many stages as samples
def test_small_games_equal_the_dense_twin(rng, structure, terminal_kind, batch_size, depth):
    joint, feedback = structure
    game = random_game(rng, batch_size, ["parallel"] * depth, terminal=terminal_kind)
    G, l = terms(game, joint=joint)
    w = rollout.roll_out(start(game), G, l, joint=joint, feedback=feedback)
    step = reference.execute(game.gradient, game.hessian, game.stacked_stages(), joint=joint, feedback=feedback)
    for t, i, p in players_of(game):
        used = (w[t, 0] if joint else w[t, i, 0]).numpy()
        du = -np.linalg.solve(p.metric, p.l_u + game.parameter_columns(t, p) @ used)
        assert_close(du, step.moves[t][i], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_games_without_gradients_keep_the_terminal_weights(structure):
    joint, feedback = structure
    terminal = sample_space.init(4, beta_squared=tf.ones([4], tf.float64), group_size=2)
    G = tf.zeros([3, 2, 2, 2] if joint else [3, 2, 2, 2, 2], tf.float64)
    w = rollout.roll_out(terminal, G, joint=joint, feedback=feedback)
    assert_close(w, np.full(G.shape[:-1], 0.25))
    assert_close(rollout.predicted_reduction(terminal, G, w, joint=joint), np.zeros(2))


def test_identical_players_share_one_weight_and_cooperate_like_one_player_of_all_their_parameters(rng):
    game = random_game(rng, 4, ["plain", "plain"], terminal="rank", rank=2)
    game.stages = [StageData(stage.f_x, stage.players * 3) for stage in game.stages]
    G, l = terms(game, joint=False)
    w = rollout.roll_out(start(game), G, l, joint=False, feedback=True).numpy()
    assert_close(w[:, 1], w[:, 0], rtol=1e-13)
    assert_close(w[:, 2], w[:, 0], rtol=1e-13)
    merged = []
    for stage in game.stages:
        p = stage.players[0]
        joined = Player(np.concatenate([p.f_u] * 3, 2), np.kron(np.eye(3), p.metric), np.tile(p.l_u, 3))
        merged.append(StageData(stage.f_x, (joined,)))
    together = rollout.roll_out(start(game), *terms(game), joint=True, feedback=True)
    game.stages = merged
    assert_close(together, rollout.roll_out(start(game), *terms(game), joint=True, feedback=True), rtol=1e-12)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_gram_matrices_of_one_direction_are_a_game_of_numbers(rng, structure):
    """G = c q q': all that counts is q' w, the weight of a game with the value (q' a, q' S q) and the numbers c."""
    joint, feedback = structure
    q, beta, c = rng.standard_normal(5), rng.uniform(0.5, 2, 5), rng.exponential(2.0, (4,) if joint else (4, 3))
    terminal = sample_space.init(5, beta_squared=tf.constant(beta))
    G = tf.constant(c[..., None, None, None] * np.outer(q, q))
    w = rollout.roll_out(terminal, G, joint=joint, feedback=feedback).numpy()
    S = beta / 5
    number = sample_space.SampleValue(tf.constant([[q.sum() / 5]]), tf.constant([[[np.sqrt(q @ (S * q))]]]))
    along = rollout.roll_out(number, tf.constant(c[..., None, None, None]), joint=joint, feedback=feedback).numpy()
    assert_close(w @ q, along[..., 0], rtol=1e-12)
    assert_close(w, 0.2 - S * q * (q.sum() / 5 - along) / (q @ (S * q)), rtol=1e-12)
