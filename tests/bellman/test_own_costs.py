"""Players with terminal costs of their own: the linear roll-out against the dense feedback Nash recursion."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf.bellman import own_costs, rollout, sample_space
from tests.bellman.sample_games import EPS, grouped, start, terms
from tests.helpers import assert_close
from verification.problems.own_costs import own_games
from verification.references import own_costs as reference


def terminal_of(problem, size):
    """The values of all players, `[N, G, n]`."""
    a, L = own_costs.side_by_side([start(end, size) for end in problem.ends], problem.widths)
    cost = [cost for _, cost in problem.seats]
    return sample_space.SampleValue(tf.gather(a, cost), tf.gather(L, cost))


def terms_of(problem, size):
    """Gram matrices `[T, N, G, n, n]` and linear terms of all players."""
    whole, G, l = problem.whole, [], []
    for place, cost in problem.seats:
        acts = np.array([len(stage) > place and stage[place] == cost for stage in problem.felt], float)
        own = grouped(whole, *whole.grams(place), size)
        G.append(own[0] * acts[:, None, None, None])
        l.append(own[1] * acts[:, None, None])
    return tf.constant(np.stack(G, axis=1)), tf.constant(np.stack(l, axis=1))


@given(own_games(max_log_condition=4), st.integers(0, 4))
def test_it_is_the_dense_feedback_nash_step(problem, size):
    """Every group of samples plays its own game; a tolerance as in `test_rollout`, stage after stage."""
    size, whole = size or None, problem.whole
    terminal, (G, l) = terminal_of(problem, size), terms_of(problem, size)
    w = rollout.roll_out(terminal, G, l, joint=False, feedback=True, own=True).numpy()
    metrics = max(np.linalg.cond(p.metric) for stage in whole.stages for p in stage.players)
    stiff = np.max(np.abs(terminal.L)) ** 2 * np.linalg.norm(sum(whole.grams()[0]), 2)
    tol = 1e-11 + EPS * (metrics + 1 + stiff) * len(whole.stages)
    b, m = size or whole.batch_size, whole.columns.shape[2]
    for g in range(-(-whole.batch_size // b)):
        samples = slice(g * b, min((g + 1) * b, whole.batch_size))
        part = slice(samples.start * m, samples.stop * m)
        controls, jacobians = problem.controls(samples)
        truth = reference.execute(problem.costs(samples), controls, jacobians, whole.batch_size)
        ours, theirs, unit = [], [], [np.zeros(1)]
        for t, stage in enumerate(truth):
            for n, du in enumerate(stage):
                if du is not None:
                    p = whole.stages[t].players[problem.seats[n][0]]
                    Qc = whole.parameter_columns(t, p)[:, part]
                    ours.append(-np.linalg.solve(p.metric, p.l_u + Qc @ w[t, n, g, : Qc.shape[1]]))
                    theirs.append(du)
                    unit.append(np.linalg.solve(p.metric, p.l_u))
        scale = max(np.abs(np.concatenate([*theirs, *unit])).max(), np.finfo(float).tiny)
        assert_close(np.concatenate(ours) / scale, np.concatenate(theirs) / scale, atol=tol, label="moves")


@given(own_games(max_log_condition=2), st.integers(0, 3))
def test_weights_stay_in_the_columns_of_the_players_own_cost(problem, size):
    size = size or None
    terminal, (G, l) = terminal_of(problem, size), terms_of(problem, size)
    w = rollout.roll_out(terminal, G, l, joint=False, feedback=True, own=True).numpy()
    w = w.reshape(*w.shape[:3], -1, sum(problem.widths))
    for n, (_, cost) in enumerate(problem.seats):
        before = sum(problem.widths[:cost])
        own = slice(before, before + problem.widths[cost])
        assert not np.delete(w[:, n], np.arange(own.start, own.stop), axis=-1).any()


@given(own_games(max_log_condition=2), st.integers(0, 3))
def test_one_cost_for_all_is_the_roll_out_of_a_shared_value(problem, size):
    game, size = problem.ends[0], size or None
    G, l = terms(game, size, joint=False)
    shared = start(game, size)
    each = sample_space.SampleValue(*(tf.stack([x] * G.shape[1]) for x in shared))
    w = rollout.roll_out(each, G, l, joint=False, feedback=True, own=True)
    one = rollout.roll_out(shared, G, l, joint=False, feedback=True)
    assert_close(w, one, rtol=1e-9)


def test_refusals():
    value = sample_space.init(2, beta_squared=tf.ones([2]))
    each, grams = sample_space.SampleValue(value.a[None], value.L[None]), tf.zeros([1, 2, 1, 2, 2])
    with pytest.raises(ValueError, match="one value per player"):
        rollout.roll_out(each, grams, joint=False, feedback=True, own=True)
    with pytest.raises(ValueError, match="`own` must be False unless"):
        rollout.roll_out(each, grams[:, :1], joint=False, feedback=False, own=True)
    with pytest.raises(ValueError, match="one number for each value"):
        own_costs.side_by_side([value], [1, 1])
