"""The recursion in sample coordinates against batch DDP with every matrix written out."""

import numpy as np
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf.bellman import sample_space
from tests.bellman.sample_games import columns_of_group, few, grouped, roll_out, start, tolerance, values_of
from tests.helpers import assert_close
from verification.problems.games import Network, games, network_game, random_kinds
from verification.references import dense
from verification.references import sample_space as reference


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
