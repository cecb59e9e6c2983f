"""L-BFGS against SciPy's, and its compact form against the inverse BFGS matrix written out."""

import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf.linalg.lbfgs import inverse_times, minimise
from tests.helpers import assert_close
from verification.problems.matrices import seeds
from verification.references.lbfgs import inverse_bfgs

EPS = np.finfo(np.float64).eps


def quadratic(H, b):
    def function(x):
        Hx = tf.linalg.matvec(H, x)
        return tf.tensordot(x, Hx / 2 - b, 1), Hx - b

    return function


def rosenbrock(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.reduce_sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)
    return value, tape.gradient(value, x)


def spd(rng, n, condition):
    Q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    return (Q * np.geomspace(1, 1 / condition, n)) @ Q.T


@given(seeds, st.integers(1, 6), st.integers(1, 4), st.integers(0, 2))
def test_the_compact_form_is_the_inverse_bfgs_matrix(seed, n, pairs, unused):
    rng = np.random.default_rng(seed)
    H = spd(rng, n, 100.0)
    S = rng.normal(size=(pairs, n))
    Y = S @ H
    g = rng.normal(size=n)
    padding = np.zeros((unused, n))
    parts = np.vstack([padding, S]), np.vstack([padding, Y]), np.float64(0.7), g
    ours = inverse_times(*map(tf.constant, parts))
    dense = inverse_bfgs(S, Y, 0.7)
    growth = np.prod([1 + np.linalg.norm(s) * np.linalg.norm(y) / (s @ y) for s, y in zip(S, Y, strict=True)]) ** 2
    assert np.linalg.norm(ours - dense @ g) <= 100 * EPS * growth * np.linalg.norm(g) * (1 + np.linalg.norm(dense, 2))


@tf.function(input_signature=[tf.TensorSpec([None, None], tf.float64), *[tf.TensorSpec([None], tf.float64)] * 2])
def minimised(H, b, start):
    return minimise(quadratic(H, b), start, iterations=100)


@given(seeds, st.integers(1, 5), st.sampled_from([1.0, 10.0, 1e3]))
def test_a_quadratic_is_minimised(seed, n, condition):
    rng = np.random.default_rng(seed)
    H, b = spd(rng, n, condition), rng.normal(size=n)
    found = minimised(*map(tf.constant, (H, b, rng.normal(size=n))))
    best = np.linalg.solve(H, b)
    # the value is known to eps |value|, so the point to the root of that times the condition
    assert np.linalg.norm(found.point - best) <= 10 * np.sqrt(EPS * condition) * (1 + np.linalg.norm(best))
    assert_close(found.gradient, H @ found.point.numpy() - b, atol=1e-10 * (1 + np.linalg.norm(best)))


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("start", [(-1.2, 1.0), (2.0, -1.0, 0.5)])
def test_rosenbrock_as_scipy(start, jit):
    function = tf.function(lambda x: minimise(rosenbrock, x, iterations=100), jit_compile=jit)
    found = function(tf.constant(start, tf.float64))
    theirs = scipy.optimize.minimize(
        lambda x: tuple(np.array(part) for part in rosenbrock(tf.constant(x))), start, jac=True, method="L-BFGS-B",
        options={"ftol": 0, "gtol": 1e-10},
    )  # fmt: skip
    assert_close(found.point, theirs.x, rtol=1e-6)
    assert found.iterations <= 2 * theirs.nit


def test_the_value_never_rises():
    start = tf.constant([-1.2, 1.0])
    values = [float(minimise(rosenbrock, start, iterations=k).value) for k in (1, 2, 3, 5, 8)]
    assert values == sorted(values, reverse=True) and values[-1] < values[0]


def test_it_stands_still_at_a_minimum_and_where_the_value_is_not_finite():
    still = minimise(quadratic(tf.eye(2), tf.zeros(2)), tf.zeros(2), iterations=5)
    assert int(still.iterations) == 0 and not np.any(still.point)
    lost = minimise(lambda x: (tf.reduce_sum(x) * float("nan"), x * float("nan")), tf.ones(2), iterations=5)
    assert np.all(lost.point == 1) and np.isnan(lost.value)


def test_a_trial_outside_the_domain_is_shortened():
    def barrier(x):  # not finite for x >= 1
        return -tf.math.log(1 - x[0]) - 1.5 * x[0], 1 / (1 - x) - 1.5

    found = minimise(barrier, tf.constant([-50.0], tf.float64), iterations=60)
    assert_close(found.point, [1 / 3], rtol=1e-6)


@pytest.mark.parametrize("argument", ["iterations", "history", "trials"])
def test_counts_are_checked(argument):
    with pytest.raises(ValueError, match=f"`{argument}` must be an integer >= 1"):
        minimise(rosenbrock, tf.zeros(2), **{"iterations": 1, argument: 0})
