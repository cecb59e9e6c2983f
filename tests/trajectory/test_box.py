"""Projected Newton against all active sets."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf.trajectory import solve_box
from tests.helpers import assert_close
from tests.trajectory.cases import random_spd
from verification.references import trajectory as reference

seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.integers(1, 4), st.integers(0, 4))
def test_it_finds_the_minimiser_and_what_is_free(seed, m, log_condition):
    rng = np.random.default_rng(seed)
    H = np.stack([random_spd(rng, m, 10.0**log_condition) for _ in range(5)])
    g = rng.standard_normal([5, m]) * 10.0 ** rng.uniform(-2, 2)
    lower, upper = -rng.uniform(0, 1, [5, m]), rng.uniform(0, 1, [5, m])
    lower[0], upper[1] = -np.inf, np.inf
    found = solve_box(*map(tf.constant, (H, g, lower, upper)))
    for b in range(5):
        step, free = reference.box_minimum(H[b], g[b], lower[b], upper[b])
        assert_close(found.step[b], step, rtol=1e-9, atol=1e-12)
        assert (found.step[b].numpy() >= lower[b]).all() and (found.step[b].numpy() <= upper[b]).all()
        at_a_limit = (found.step[b] == lower[b]) | (found.step[b] == upper[b])
        assert ((found.free[b].numpy() == free) | at_a_limit.numpy()).all()
        slope = g[b] + H[b] @ found.step[b].numpy()
        assert np.abs(slope[found.free[b].numpy()]).max(initial=0.0) <= 1e-11 * (1 + np.abs(H[b]).max())


def test_an_indefinite_hessian_is_no_obstacle_where_it_is_definite_on_the_free_entries():
    H = tf.constant([[[1.0, 0.0], [0.0, -1.0]]], tf.float64)
    g = tf.constant([[1.0, 3.0]], tf.float64)
    box = tf.constant([[2.0, 2.0]], tf.float64)
    held = solve_box(H, g, tf.constant([[-2.0, 0.0]], tf.float64), box)
    assert_close(held.step, [[-1.0, 0.0]], atol=1e-14)
    assert held.free.numpy().tolist() == [[True, False]]
    given_up = solve_box(H, g, -box, box)
    assert np.isnan(given_up.factor.lower.numpy()).any() and np.isfinite(given_up.step.numpy()).all()


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_compiled_and_eager_agree(rng, dtype):
    H = tf.constant(np.stack([random_spd(rng, 3, 10.0) for _ in range(4)]), dtype)
    g = tf.constant(3 * rng.standard_normal([4, 3]), dtype)
    box = tf.ones([4, 3], dtype)
    eager = solve_box(H, g, -box, box)
    for jit in (None, True):
        compiled = tf.function(solve_box, jit_compile=jit, autograph=False)(H, g, -box, box)
        assert_close(compiled.step, eager.step, rtol=1e-5 if dtype == tf.float32 else 1e-13)
        assert (compiled.free.numpy() == eager.free.numpy()).all()
