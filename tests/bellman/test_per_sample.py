"""The papers' recursion with a small matrix per sample, against value matrices in the state."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf.bellman import outer_product, per_sample
from tests.helpers import assert_close
from verification.problems.games import games
from verification.references.published import positive_part, root


def solved(game, t):
    """q [P, B, m] and M^{-1} q of a stage."""
    q = np.concatenate([game.parameter_columns(t, p) for p in game.stages[t].players])
    q = q.reshape(len(q), game.batch_size, -1)
    return q, np.linalg.solve(game.stages[t].metric, q.reshape(len(q), -1)).reshape(q.shape)


@given(games(terminals=("factor",), max_log_condition=3), st.sampled_from(["papers", "batch"]))
def test_it_is_the_recursion_of_the_samples_value_matrices(game, form):
    """claims OURS-4: v = C a, W = C S C', joint states and several players included."""
    B, cuts = game.batch_size, game.all_columns()
    c = 1.0 if form == "papers" else 1 / B
    value = per_sample.init(B, rank=cuts[-1].shape[2] - 1, dtype=tf.float64)
    v, W = list(game.gradient), list(game.hessian)
    for t in reversed(range(len(game.stages))):
        stage, (q, q_solved) = game.stages[t], solved(game, t)
        own = np.linalg.solve(stage.metric, stage.l_u)
        k = -own - np.einsum("pbm,bm->p", q_solved, value.a) / B
        inner, gram = np.einsum("pbm,p->bm", q, k), np.einsum("pbm,pbn->bmn", q, q_solved)
        value, clamped = per_sample.backward(value, tf.constant(inner), tf.constant(gram), batch_factor=c)
        replaced, margin = 0, 1.0
        for i, (F_x, F_u) in enumerate(zip(stage.f_x, stage.f_u, strict=True)):
            N, M_inv_F = root(W[i]), np.linalg.solve(stage.metric, F_u.T)
            bracket = np.eye(len(N)) - c * N @ F_u @ M_inv_F @ N
            kept, negative = positive_part(bracket)
            replaced, margin = replaced + negative, min(margin, np.abs(np.linalg.eigvalsh(bracket)).min())
            v[i] = F_x.T @ (v[i] + W[i] @ F_u @ k)
            W[i] = F_x.T @ N @ kept @ N @ F_x
        if margin > 1e-7:
            assert int(clamped) == replaced
        C = cuts[t]
        scale = max(1.0, max(np.abs(part).max() for part in v))
        assert_close(np.einsum("bnm,bm->bn", C, value.a), np.array(v), rtol=1e-8, atol=1e-9 * scale)
        ours = np.einsum("bnm,bmk->bnk", C, value.L)
        size = max(1.0, max(np.abs(part).max() for part in W))
        assert_close(np.einsum("bnk,bmk->bnm", ours, ours), np.array(W), rtol=1e-7, atol=1e-7 * size)


@given(
    st.lists(st.floats(0, 3), min_size=1, max_size=4),
    st.lists(st.floats(0, 2), min_size=4, max_size=4),
    st.floats(0.1, 1),
)
def test_one_column_is_the_recursion_of_two_numbers(beta_squared, quad, c):
    B = len(beta_squared)
    beta_squared, quad = tf.constant(beta_squared, tf.float64), tf.constant(quad[:B], tf.float64)
    inner = tf.constant(np.linspace(-1, 1, B))
    numbers, clamps = outer_product.backward(outer_product.init(B, beta_squared), inner, quad, batch_factor=c)
    value = per_sample.init(B, beta_squared=beta_squared)
    matrices, clamped = per_sample.backward(value, inner[:, None], quad[:, None, None], batch_factor=c)
    assert_close(matrices.a[:, 0], numbers.alpha, rtol=1e-12, atol=1e-12)
    assert_close(matrices.L[:, 0, 0] ** 2, numbers.beta_squared, rtol=1e-12, atol=1e-12)
    if np.abs(1 - c * beta_squared * quad).min() > 1e-12:
        assert int(clamped) == int(clamps)
    d = tf.constant(np.linspace(2, 1, B))
    ours = per_sample.weights(matrices, d[:, None])[:, 0]
    assert_close(ours, outer_product.weights(numbers, d), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_tikhonov_term_stays_in_its_columns(rank, rng):
    """Columns of a later state are still empty after a stage; then they get exactly the term."""
    beta_squared = tf.constant([0.5, 2.0], tf.float64) if rank == 0 else None
    value = per_sample.init(2, beta_squared=beta_squared, rank=rank, units=3, dtype=tf.float64)
    m = 4 + rank
    q = rng.normal(size=(2, 5, m))
    q[:, :, 1 + rank :] = 0  # unit vectors of a state in front of the stage
    gram = tf.constant(np.einsum("bpm,bpn->bmn", q, q))
    value, _ = per_sample.backward(value, tf.constant(rng.normal(size=(2, m))), gram, batch_factor=0.1)
    damped = per_sample.damped(value, 2 + rank, 2, 0.3)
    difference = [tf.matmul(x.L, x.L, transpose_b=True) for x in (damped, value)]
    expected = np.diag([0.0] * (2 + rank) + [0.3, 0.3])
    assert_close(difference[0] - difference[1], np.stack([expected] * 2), rtol=1e-12, atol=1e-12)
    assert_close(damped.a, value.a, rtol=1e-15)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: per_sample.init(2), "`beta_squared` must be given exactly when `rank` is 0"),
        (lambda: per_sample.init(2, rank=-1), "`rank` must be an integer >= 0"),
        (
            lambda: per_sample.backward(per_sample.init(2, rank=1), tf.zeros([2, 3]), tf.zeros([2, 2, 2])),
            "`inner_k.shape` must end in the columns of the value",
        ),
        (
            lambda: per_sample.backward(per_sample.init(2, rank=1), tf.zeros([2, 2]), tf.zeros([2, 3, 2])),
            "`gram.shape` must end in the columns of the value",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
