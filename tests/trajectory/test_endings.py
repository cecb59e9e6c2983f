"""Why a solve ends: the status of every instance, what it leaves behind, and what is not an end."""

import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf

from bellman_tf.trajectory import Derivatives, DynamicsDerivatives, Problem, Regularization
from tests.helpers import assert_close
from tests.trajectory.cases import double_integrator, finite, solve, square, status


def test_an_instance_stops_for_its_own_reason():
    """The state holds a position and two constants: c, the curvature of the cost in u, and d, whose root is paid."""

    def dynamics(x, u, t):
        return tf.concat([x[:, :1] + u, x[:, 1:]], axis=1)

    def cost(x, u, t):
        return x[:, 1] * u[:, 0] ** 2 + tf.sqrt(x[:, 2])

    problem = Problem(dynamics, cost, lambda x: x[:, 0] ** 2, 3)
    x0 = np.array([[1.0, 1.0, 1.0], [1.0, -1e5, 1.0], [1.0, np.nan, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, -1.0]])
    schedule = Regularization(largest=1e3)
    found = solve(problem, x0, np.ones([5, 3, 1]), regularization=schedule)
    # fine, concave beyond the largest mu, cost NaN, derivative of the root of 0 infinite, cost NaN by the root
    assert status(found) == ["CONVERGED_GRADIENT", "INDEFINITE", "NON_FINITE", "NON_FINITE", "NON_FINITE"]
    assert found.converged.numpy().tolist() == [True] + 4 * [False]
    assert found.iterations.numpy().tolist() == [1, 0, 0, 0, 0]
    assert found.history.regularization.numpy()[1, 0] > 1e3
    for array in (*found.gains[:2], *found.value):
        assert np.isfinite(array.numpy()).all() and array.numpy()[0].any() and not array.numpy()[1:].any()
    assert_close(found.cost.numpy()[[1, 3]], [16.0 - 3e5 + 3.0, 19.0])


def test_a_wrong_derivative_fails_the_line_search():
    wrong = Derivatives(dynamics=lambda x, u, t: DynamicsDerivatives(x[..., None] * 0 + 1, u[..., None] * 0 - 1))
    problem = Problem(lambda x, u, t: x + u, lambda x, u, t: 0 * u[:, 0], square, 3, derivatives=wrong)
    x0, u = tf.ones([1], tf.float64), tf.ones([3, 1], tf.float64)
    found = solve(problem, x0, u, regularization=Regularization(largest=1e4))
    assert status(found) == ["LINE_SEARCH_FAILED"] and finite(found)
    assert float(found.cost) == float(found.history.cost[0])
    assert not found.history.step.numpy().any()


def test_slow_progress_ends_by_the_cost():
    quartic = Problem(lambda x, u, t: x + u, lambda x, u, t: u[:, 0] ** 4, square, 3)
    options = {"gradient_tolerance": 0.0, "cost_tolerance": 1e-3}
    found = solve(quartic, tf.ones([1], tf.float64), tf.ones([3, 1], tf.float64), **options)
    assert status(found) == ["CONVERGED_COST"] and finite(found)
    cost = found.history.cost.numpy()
    reductions = -np.diff(cost) / (1 + cost[:-1])
    assert reductions[-1] <= 1e-3 < reductions[:-1].min()


def _kinked(x):
    """No derivative at 0, where its minimum is."""
    return tf.abs(x) + 0.5 * x**2


def _steep(x):
    """An infinite derivative at 2, to the left of which it is flat."""
    return 0.1 * x**4 + tf.sqrt(tf.nn.relu(x - 2.0))


def _wavy(x):
    return 0.1 * x**4 + 3.0 * tf.cos(2.0 * x)


@pytest.mark.parametrize(
    ("end", "x", "options", "ending"),
    [
        (_kinked, 3.0, {}, "LINE_SEARCH_FAILED"),
        (_steep, 9.0, {}, "NON_FINITE"),
        (_wavy, 8.0, {"regularization": Regularization(largest=1e-6)}, "INDEFINITE"),
    ],
)
def test_what_has_stopped_keeps_its_policy_however_the_last_one_ends(end, x, options, ending):
    """The second state says which terminal cost an instance has."""

    def terminal(x):
        own = tf.where(x[:, 1] > 0.5, x[:, 0], 3.0 * tf.ones_like(x[:, 0]))
        return (1.0 - x[:, 1]) * 0.5 * (x[:, 0] - 0.5) ** 2 + x[:, 1] * end(own)

    move = lambda x, u, t: tf.stack([x[:, 0] + u[:, 0], x[:, 1]], 1)
    problem = Problem(move, lambda x, u, t: 0.005 * u[:, 0] ** 2, terminal, 5)
    x0, u = np.array([[0.0, 0.0], [x, 1.0]]), np.zeros([2, 5, 1])
    together, alone = solve(problem, x0, u, **options), solve(problem, x0[0], u[0], **options)
    assert status(together) == ["CONVERGED_GRADIENT", ending]
    assert int(together.iterations[0]) < int(together.iterations[1])
    assert np.abs(alone.gains.feedback[:, 0, 0]).min() > 0.1
    for name in ("gains", "value"):
        for ours, expected in zip(*(tf.nest.flatten(getattr(each, name)) for each in (together, alone)), strict=True):
            if ours is not None:
                assert_close(ours[0], expected, rtol=1e-12, atol=1e-15, label=name)
    assert_close(together.history.gradient[0, -1], alone.history.gradient[-1], atol=1e-12)
    if ending == "LINE_SEARCH_FAILED":  # its policy is that of the trajectory it has come to
        last = together.states[1, :, 0].numpy()
        assert np.abs(last[-1]) < 1e-6
        assert np.abs(together.gains.feedback[1, :, 0, 0]).min() > 0.1
        assert together.history.gradient[1, -1] > 0.5


@pytest.mark.parametrize(("dtype", "lower", "far"), [(np.float32, None, 200.0), (np.float64, -1e-3, 1e4)])
def test_far_from_the_optimum_no_small_gradient_is_the_end(dtype, lower, far):
    """A cost of 1e8 makes a gradient small beside it, and limits of 1e-3 every projected gradient."""
    h, T = (0.02, 50) if lower is None else (100.0, 30)
    move, reach = double_integrator(h, T)
    weights = np.array([1.0, 1e-4 if lower is None else 1e6])
    terminal = lambda x: tf.reduce_sum(tf.constant(weights, x.dtype) * x**2, 1)
    problem = Problem(move, lambda x, u, t: 1e-6 * u[:, 0] ** 2, terminal, T, lower=lower, upper=lower and -lower)
    x0 = np.array([far, 0.0], dtype)
    found = solve(problem, x0, np.zeros([T, 1], dtype))
    rows = np.concatenate([np.sqrt(weights)[:, None] * reach, 1e-3 * np.eye(T)])
    target = -np.concatenate([np.sqrt(weights) * x0, np.zeros(T)])
    bounds = (-np.inf, np.inf) if lower is None else (lower, -lower)
    best = scipy.optimize.lsq_linear(rows, target, bounds, method="bvls", tol=1e-14)
    assert status(found) == ["CONVERGED_GRADIENT"] and int(found.iterations) > 0
    assert_close(found.cost, 2.0 * best.cost, rtol=1e-4 if dtype is np.float32 else 1e-6)


def test_a_cost_without_a_minimum_never_converges():
    problem = Problem(lambda x, u, t: x + u, lambda x, u, t: -u[:, 0], lambda x: 0.0 * x[:, 0], 10)
    for dtype in (np.float32, np.float64):
        found = solve(problem, np.zeros(1, dtype), np.zeros([10, 1], dtype), max_iterations=120)
        assert status(found)[0] in {"MAX_ITERATIONS", "NON_FINITE"}
