"""Cooperative and feedback Nash stages against the joint solve, the papers' Schur form, and one-player recursions."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf import bellman
from tests.helpers import assert_close
from verification.problems.games import random_spd
from verification.references import players as reference


def random_stage(rng, count, n, n_next, condition=10.0):
    """v, W, f_x and per-player lists f_u, l_u, l_uu."""
    ms = rng.integers(1, 4, size=count)
    return (
        rng.standard_normal(n_next),
        random_spd(rng, n_next, 10.0),
        rng.standard_normal((n_next, n)),
        [rng.standard_normal((n_next, m)) for m in ms],
        [rng.standard_normal(m) for m in ms],
        [random_spd(rng, m, condition) for m in ms],
    )


def cooperate(v, W, f_x, f_us, l_us, l_uus):
    value = bellman.Value(tf.constant(v), tf.constant(W))
    Q = bellman.expand_players(value, tf.constant(f_x), list(map(tf.constant, f_us)), cost_u=l_us, cost_uu=l_uus)
    gains = bellman.cooperative_gains(Q)
    return Q, gains, bellman.cooperative_update(Q, gains)


stages = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))


@given(stages, st.integers(0, 6))
def test_cooperation_is_the_joint_minimiser(stage, log_condition):
    """DGN Eqs. 21-24, for any number of players."""
    seed, *shape = stage
    data = random_stage(np.random.default_rng(seed), *shape, condition=10.0**log_condition)
    expected, (V_x, V_xx) = reference.joint(*data)
    _, gains, value = cooperate(*data)
    for p, (gain, (k, K)) in enumerate(zip(gains, expected, strict=True)):
        assert_close(gain.open_loop, k, rtol=1e-9, atol=1e-10, label=f"k of {p}")
        assert_close(gain.feedback, K, rtol=1e-9, atol=1e-10, label=f"K of {p}")
    assert_close(value.V_x, V_x, rtol=1e-9, atol=1e-9)
    assert_close(value.V_xx, V_xx, rtol=1e-9, atol=1e-9)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 4))
def test_two_players_have_the_schur_gains_of_the_papers(seed, n, n_next):
    data = random_stage(np.random.default_rng(seed), 2, n, n_next)
    _, gains, _ = cooperate(*data)
    v, W, f_x, *lists = data
    for p in range(2):
        k, K = reference.schur_form(v, W, f_x, *(x[:: 1 if p == 0 else -1] for x in lists))
        assert_close(gains[p].open_loop, k, rtol=1e-9, atol=1e-10)
        assert_close(gains[p].feedback, K, rtol=1e-9, atol=1e-10)


@given(stages)
def test_the_halves_of_dgn_24_are_equal(stage):
    """W_x = P_x - 1/2 (P_xu k + K' P_u summed over players), positive gains there."""
    seed, *shape = stage
    Q, gains, value = cooperate(*random_stage(np.random.default_rng(seed), *shape))
    left = sum(Q_ux.numpy().T @ g.open_loop.numpy() for Q_ux, g in zip(Q.Q_ux, gains, strict=True))
    right = sum(g.feedback.numpy().T @ Q_u.numpy() for Q_u, g in zip(Q.Q_u, gains, strict=True))
    assert_close(left, right, rtol=1e-9, atol=1e-10)
    assert_close(value.V_x, Q.Q_x.numpy() + (left + right) / 2, rtol=1e-9, atol=1e-10)


@given(stages)
def test_cooperation_never_lowers_the_quadratic_model_less_than_playing_alone(stage):
    seed, *shape = stage
    data = random_stage(np.random.default_rng(seed), *shape)
    _, gains, _ = cooperate(*data)
    v, W, f_x, f_us, l_us, l_uus = data
    F, l = np.hstack(f_us), np.concatenate(l_us)
    alone = np.concatenate([reference.alone(v, W, f_x, *x)[0][0] for x in zip(f_us, l_us, l_uus, strict=True)])
    together = np.concatenate([g.open_loop for g in gains])

    def model(u):
        own = sum(
            part @ M @ part for part, M in zip(np.split(u, np.cumsum(list(map(len, l_us)))[:-1]), l_uus, strict=True)
        )
        return l @ u + v @ F @ u + 0.5 * (F @ u) @ W @ (F @ u) + 0.5 * own

    assert model(together) <= model(alone) + 1e-10 * (1 + abs(model(alone)))


@given(stages, st.integers(0, 2**32 - 1))
def test_feedback_nash_is_one_recursion_per_player(stage, mask):
    """DGN Eqs. 9, 10; who does not act carries its value by the chain rule."""
    seed, count, n, n_next = stage
    rng = np.random.default_rng(seed)
    _, _, f_x, f_us, l_us, l_uus = random_stage(rng, count, n, n_next)
    values = [(rng.standard_normal(n_next), random_spd(rng, n_next, 10.0)) for _ in range(count)]
    f_us = [f_u if mask >> p & 1 else None for p, f_u in enumerate(f_us)]
    gains, before = bellman.feedback_nash(
        [bellman.Value(*map(tf.constant, value)) for value in values],
        tf.constant(f_x),
        f_us,
        cost_u=l_us,
        cost_uu=l_uus,
    )
    for p, value in enumerate(values):
        expected, (V_x, V_xx) = reference.alone(*value, f_x, f_us[p], l_us[p], l_uus[p])
        if expected is None:
            assert gains[p] is None
        else:
            assert_close(gains[p].open_loop, expected[0], rtol=1e-10, atol=1e-11)
            assert_close(gains[p].feedback, expected[1], rtol=1e-10, atol=1e-11)
        assert_close(before[p].V_x, V_x, rtol=1e-9, atol=1e-9)
        assert_close(before[p].V_xx, V_xx, rtol=1e-9, atol=1e-9)


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_with_one_player_or_without_cross_curvature_the_two_games_agree(seed, alone):
    rng = np.random.default_rng(seed)
    v, W, f_x, f_us, l_us, l_uus = random_stage(rng, 1 if alone else 2, 2, 4)
    if not alone:  # the players move different parts of the state and V_xx does not couple them: Q_uv = 0
        W[:2, 2:] = W[2:, :2] = 0
        f_us[0][2:], f_us[1][:2] = 0, 0
    _, gains, _ = cooperate(v, W, f_x, f_us, l_us, l_uus)
    value = bellman.Value(tf.constant(v), tf.constant(W))
    nash, _ = bellman.feedback_nash([value] * len(f_us), tf.constant(f_x), f_us, cost_u=l_us, cost_uu=l_uus)
    for one, other in zip(gains, nash, strict=True):
        assert_close(one.open_loop, other.open_loop, rtol=1e-10)
        assert_close(one.feedback, other.feedback, rtol=1e-10)


def test_the_weight_of_the_cost_is_the_inverse_weight_of_the_decay(rng):
    """claims OURS-11: GR with W_T = N phi is GR with W_T = phi and running costs divided by N."""
    v, W, f_x, f_us, l_us, l_uus = random_stage(rng, 3, 2, 3)
    _, loud, _ = cooperate(3 * v, 3 * W, f_x, f_us, l_us, l_uus)
    _, quiet, _ = cooperate(v, W, f_x, f_us, [l / 3 for l in l_us], [M / 3 for M in l_uus])
    for one, other in zip(loud, quiet, strict=True):
        assert_close(one.open_loop, other.open_loop, rtol=1e-12)
        assert_close(one.feedback, other.feedback, rtol=1e-12)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_compiled_and_eager_agree_with_batch_axes(rng, dtype):
    f_x, f_u, f_v = (tf.constant(rng.standard_normal((2, 3, size)), dtype) for size in (3, 2, 1))
    value = bellman.Value(tf.ones([2, 3], dtype), 2 * tf.eye(3, batch_shape=[2], dtype=dtype))
    metrics = [tf.eye(2, dtype=dtype), 2 * tf.eye(1, dtype=dtype)]

    def step(f_x, f_u, f_v):
        Q = bellman.expand_players(value, f_x, [f_u, f_v], cost_uu=metrics)
        gains = bellman.cooperative_gains(Q)
        nash = bellman.feedback_nash([value, value], f_x, [f_u, f_v], metrics=metrics)
        given_metric = bellman.cooperative_gains(Q, metric=[[metrics[0], None], [tf.zeros([1, 2], dtype), metrics[1]]])
        return gains, bellman.cooperative_update(Q, gains), nash, given_metric

    eager = step(f_x, f_u, f_v)
    for jit in (None, True):
        compiled = tf.function(step, jit_compile=jit)(f_x, f_u, f_v)
        for x, y in zip(tf.nest.flatten(compiled), tf.nest.flatten(eager), strict=True):
            if y is not None:
                assert x.dtype == dtype
                assert_close(x, y, rtol=1e-4 if dtype == tf.float32 else 1e-12)
    for nash, cooperative in zip(eager[2][0], eager[3], strict=True):  # a block-diagonal metric: nobody answers
        assert_close(nash.open_loop, cooperative.open_loop, rtol=1e-5)


def test_wrong_arguments_are_refused_in_the_house_form():
    value, eye = bellman.Value(tf.ones([2]), tf.eye(2)), tf.eye(2)
    with pytest.raises(ValueError, match=r"`jacobian_controls` must hold one Jacobian per player. Received"):
        bellman.expand_players(value, eye, [])
    with pytest.raises(ValueError, match=r"`cost_uu` must hold one entry per player, 2. Received: cost_uu=1"):
        bellman.expand_players(value, eye, [eye, eye], cost_uu=[eye])
    with pytest.raises(ValueError, match=r"`values` must hold one entry per player"):
        bellman.feedback_nash([value], eye, [eye, eye])
    with pytest.raises(ValueError, match=r"`jacobian_state.shape` must end in"):
        bellman.feedback_nash([value], tf.eye(3), [None])
    with pytest.raises(ValueError, match=r"`gains` must hold one entry per player, 1"):
        bellman.cooperative_update(bellman.expand_players(value, eye, [eye], cost_uu=[eye]), [])
