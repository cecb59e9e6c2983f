"""The floors of a damping: no matrix that a moment can be is refused by its Cholesky factorisation."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf.curvature import config as options
from bellman_tf.curvature.damping import diagonal_damping, factor_damping
from bellman_tf.curvature.gram import FORMS, gram
from bellman_tf.curvature.inverses import damped_inverses
from bellman_tf.curvature.registry import make_block, player_layout
from bellman_tf.layers.registry import coverage
from tests.curvature.players import initial_state, step
from tests.helpers import assert_close, thinned
from tests.layers.cases import CASES, draw
from verification.problems.matrices import seeds

DAMPINGS = [0.0, 1e-38, 1e-16, 1e-12, 1e-8, 1e-4, 1.0, 1e4]


@st.composite
def moments(draw):
    """Products of float32 rows: few or many of them, alike or not, of any scale."""
    rng = np.random.default_rng(draw(seeds))
    n, rows = draw(st.integers(1, 120)), draw(st.sampled_from([1, 2, 7, 500]))
    spread = draw(st.sampled_from([0.0, 1.0, 4.0]))
    x = rng.normal(size=(rows, n)) * 10.0 ** (-spread * rng.uniform(size=n))
    x += draw(st.sampled_from([0.0, 1.0, 100.0]))
    x = tf.constant(x * draw(st.sampled_from([1e-6, 1.0, 1e6])), tf.float32)
    x = x @ tf.constant(np.linalg.qr(rng.normal(size=(n, n)))[0], tf.float32)
    return tf.matmul(x, x, transpose_a=True) / rows


@given(moments(), st.sampled_from(DAMPINGS))
def test_every_damping_gives_a_finite_positive_inverse(A, damping):
    [(inverse, used, _)] = damped_inverses([(A[None], tf.constant([damping], tf.float32))])
    assert np.all(np.isfinite(inverse))
    assert np.all(np.diagonal(inverse[0]) > 0)
    assert used[0] >= damping
    floor = (A.shape[0] + 64) * 2.0**-23 * np.trace(A.numpy().astype("float64"))
    assert used[0] == np.float32(damping) or used[0] <= max(floor, 1e-12) * (1 + 1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_at_all_is_damped_too(dtype):
    [(inverse, used, _)] = damped_inverses([(tf.zeros([2, 3, 3], dtype), tf.zeros([2], dtype))])
    assert np.all(np.isfinite(inverse))
    assert np.all(np.isfinite(tf.square(inverse)))
    assert np.all(used.numpy() > 0)


def test_a_damping_above_the_floor_stays_as_it_is(rng):
    x = tf.constant(rng.normal(size=(50, 8)), tf.float32)
    A = tf.matmul(x, x, transpose_a=True) / 50
    assert float(factor_damping(A, tf.constant(1e-2))) == np.float32(1e-2)
    assert float(diagonal_damping([tf.linalg.diag_part(A)], 1e-2)) == np.float32(1e-2)


def test_without_the_floor_the_factorisation_fails():
    """Why it is there: a rank-one moment in float32."""
    x = tf.constant(np.random.default_rng(0).normal(size=(1, 60)) * 30, tf.float32)
    A = tf.matmul(x, x, transpose_a=True)
    assert not np.all(np.isfinite(tf.linalg.cholesky(A + 1e-6 * tf.eye(60)).numpy()))


CONFIGS = [
    options.KFAC(damping=0.0), options.KFAC(damping=1e-12, convolution="patches"), options.EKFAC(damping=0.0),
    options.Full(damping=0.0), options.Full(damping=1e-8), options.EKFAC(damping=0.0, convolution="patches"),
]  # fmt: skip


NAMES = ["dense", "conv 1d", "conv 1d groups", "layer norm", "embedding"]


@pytest.mark.parametrize(("name", "config", "batch"), thinned(NAMES, CONFIGS, [1, 4], every=3))
def test_every_metric_is_finite_with_hardly_any_damping(name, config, batch, rng):
    sample = draw(CASES[name], rng, batch=batch, dtype="float32")
    block = make_block(config, player_layout(name, sample.shapes, coverage(sample.layer)))
    state = initial_state(block, tf.float32)
    for t in range(2):
        gradient = sample.capture.gradient(sample.capture.mean_weights())
        state, metric = block.update(state, sample.capture, gradient, step(t, tf.float32))
    for tensor in [*state, *metric.solve(gradient)]:
        assert np.all(np.isfinite(tensor))
    for form in FORMS:
        assert np.all(np.isfinite(gram(sample.capture, metric, None, form)))


def test_a_dead_direction_does_not_run_away(rng):
    """Without damping, a gradient in a direction that has no second moment but rounding moves by a bounded step."""
    s = tf.constant([1.0, 1e-20, 0.0])
    assert_close(diagonal_damping([s], 0.0), 2.0**-23)
