"""The papers' two numbers per sample against per-sample value matrices."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf.bellman import outer_product, sample_space
from tests.helpers import assert_close
from verification.problems.games import games, random_game
from verification.references import outer_product as reference


def stage_terms(game, t, alpha, stage):
    """q [P, B], k, <q, k> and q' M^{-1} q, made with the alpha behind the stage."""
    q = np.concatenate([game.parameter_columns(t, p) for p in stage.players])
    solved = np.linalg.solve(stage.metric, np.concatenate([q, stage.l_u[:, None]], axis=1))
    k = -(solved[:, -1] + solved[:, :-1] @ alpha / game.batch_size)
    return q, k, q.T @ k, np.einsum("pi,pi->i", q, solved[:, :-1])


@given(games(terminals=("collinear",), max_log_condition=3), st.sampled_from(["papers", "batch"]))
def test_it_is_the_recursion_of_the_samples_value_matrices(game, form):
    """claims OURS-1 and GTDDP Prop. 5, 6: v = alpha g, W = beta^2 g g', joint states and several players included."""
    factor = 1.0 if form == "papers" else 1 / game.batch_size
    value = outer_product.init(game.batch_size, tf.constant(game.beta_squared))
    cuts = game.all_columns()
    v, W = game.gradient, game.hessian
    for t in reversed(range(len(game.stages))):
        stage = game.stages[t]
        q, k, inner_k, quad = stage_terms(game, t, value.alpha.numpy(), stage)
        d = np.linspace(-1, 1, game.batch_size)
        w = outer_product.weights(value, tf.constant(d)).numpy()
        ours = -np.linalg.solve(stage.metric, stage.l_u + q @ w / game.batch_size)
        blocks = zip(stage.f_u, v, W, cuts[t + 1][:, :, 0], d, strict=True)
        along = [f.T @ (v_i + W_i @ g * d_i / max(g @ g, 1e-300)) for f, v_i, W_i, g, d_i in blocks]  # dx = d g / |g|^2
        expected = -np.linalg.solve(stage.metric, stage.l_u + np.mean(along, axis=0))
        assert_close(ours, expected, rtol=1e-10, atol=1e-12)
        margin = 1 - factor * value.beta_squared.numpy() * quad
        v, W, k_dense, replaced = reference.backward(v, W, stage.f_x, stage.f_u, stage.metric, stage.l_u, factor)
        assert_close(k, k_dense, rtol=1e-9, atol=1e-12)
        value, clamped = outer_product.backward(
            value, tf.constant(inner_k), tf.constant(quad), batch_factor=tf.constant(factor, tf.float64)
        )
        if np.abs(margin).min() > 1e-9 and not (cuts[t + 1] == 0).all(axis=1).any():
            assert int(clamped) == replaced
        g = cuts[t][:, :, 0]
        scale = max(1.0, np.abs(v).max())
        assert_close(value.alpha.numpy()[:, None] * g, v, rtol=1e-9, atol=1e-11 * scale)
        assert_close(np.einsum("b,bi,bj->bij", value.beta_squared, g, g), W, rtol=1e-8, atol=1e-10)


@given(games(terminals=("collinear",), max_log_condition=3))
def test_beta_squared_is_the_diagonal_of_the_coupled_recursion_after_one_stage(game):
    """First-order: with c = 1 / B and a metric that already holds the model curvature, one stage gives diag(R S)."""
    stage = game.stages[-1]
    B = game.batch_size
    q = np.concatenate([game.parameter_columns(len(game.stages) - 1, p) for p in stage.players])
    M = stage.metric
    Q_uu = M + (q * game.beta_squared) @ q.T / B
    quad = np.einsum("pi,pi->i", q, np.linalg.solve(Q_uu, q))
    value = outer_product.init(B, tf.constant(game.beta_squared))
    value, clamped = outer_product.backward(value, tf.zeros([B], tf.float64), tf.constant(quad), batch_factor=1 / B)
    start = sample_space.init(B, beta_squared=tf.constant(game.beta_squared))
    L = sample_space.backward(start, tf.constant((q.T @ np.linalg.solve(M, q))[None])).L.numpy()[0]
    assert_close(value.beta_squared, B * np.einsum("ij,ij->i", L, L), rtol=1e-9)
    assert int(clamped) == 0


def test_the_samples_own_gain_keeps_alpha_equal_to_beta_squared(rng):
    """claims OURS-1: DDPN Alg. 3 read with each sample's own gain and no running cost; then alpha = beta^2."""
    game = random_game(rng, 4, ["plain"] * 3, decay=False, scale=100.0)
    value = outer_product.init(4, tf.ones([4], tf.float64))
    for t in reversed(range(3)):
        *_, quad = stage_terms(game, t, value.alpha.numpy(), game.stages[t])
        value, _ = outer_product.backward(value, -value.alpha * quad, tf.constant(quad))
        assert_close(value.alpha, value.beta_squared, rtol=1e-14)


def test_with_a_stiff_metric_it_is_the_coupled_recursion_to_second_order():
    """Both expand to alpha = 1 + <q, k>: the gap shrinks with the square of the step."""
    gaps = []
    for scale in (1e3, 1e4):
        game = random_game(np.random.default_rng(3), 4, ["plain"], decay=False, scale=scale)
        *_, inner_k, quad = stage_terms(game, 0, np.ones(4), game.stages[0])
        value, _ = outer_product.backward(outer_product.init(4, dtype=tf.float64), inner_k, quad)
        G = game.grams()[0][0]
        start = sample_space.init(4, beta_squared=tf.ones([4], tf.float64))
        gaps.append(np.abs(value.alpha - 4 * sample_space.backward(start, G[None]).a[0]).max())
    assert 50 < gaps[0] / gaps[1] < 200


def test_a_negative_bracket_is_clamped_and_counted_per_player():
    """Counterexample of claims GTDDP-P5 with Q_uu = 1/2: 1 - q' M^{-1} q = -1."""
    one = tf.ones([2, 3])  # two players, three samples
    quad = tf.constant([[0.5, 2.0, 3.0], [0.0, 0.5, 1.0]])
    value, clamped = outer_product.backward(outer_product.OuterValue(one, one), -one, quad)
    assert_close(value.beta_squared, [[0.5, 0, 0], [1, 0.5, 0]])
    assert_close(value.alpha, np.zeros((2, 3)))
    assert clamped.numpy().tolist() == [2, 0]


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_compiled_and_eager_agree(rng, dtype):
    inner_k, quad = (tf.constant(rng.standard_normal((2, 5)) ** 2, dtype) for _ in range(2))

    def step(inner_k, quad):
        value = outer_product.init(5, 2.0, dtype=dtype)
        value, clamped = outer_product.backward(value, inner_k, quad)
        return *value, clamped, outer_product.weights(value, inner_k), outer_product.weights(value)

    for compiled in (tf.function(step), tf.function(step, jit_compile=True)):
        for x, y in zip(compiled(inner_k, quad), step(inner_k, quad), strict=True):
            assert x.dtype == y.dtype
            assert_close(x, y, rtol=1e-6)


def test_extreme_float32_stays_finite():
    value, clamped = outer_product.backward(outer_product.init(3), tf.constant([0.0, -1e12, 1e12]), tf.fill([3], 3e38))
    assert np.isfinite(value.alpha).all()
    assert_close(value.beta_squared, np.zeros(3))
    assert int(clamped) == 3


def test_wrong_arguments_are_refused_in_the_house_form():
    with pytest.raises(
        ValueError, match=r"`quad.shape` must have one entry per sample of the value. Received: quad.shape"
    ):
        outer_product.backward(outer_product.init(3), tf.ones([3]), tf.ones([2]))
    with pytest.raises(ValueError, match=r"`beta_squared.dtype` must be one of"):
        outer_product.init(3, tf.constant(1))
