"""The forward pass: the policy's sign, the expected reduction, backtracking instance by instance."""

import numpy as np
import pytest
import tensorflow as tf

from bellman_tf.trajectory import LineSearch, Problem, forward
from bellman_tf.trajectory.backward import Sweep, sweep
from bellman_tf.trajectory.derivatives import model_along
from tests.helpers import assert_close
from tests.trajectory import cases
from verification.references import trajectory as reference


def swept(problem, x0, u, second_order=False):
    """The rollout of controls `[T, m, B]` from `[n, B]` and the sweep along it."""
    nominal = forward.roll(problem, tf.constant(x0), tf.constant(u))
    mu = tf.zeros([x0.shape[1]], tf.float64)
    model = model_along(problem, nominal.states, nominal.controls, second_order)
    return nominal, sweep(model, nominal.controls, problem.limits(nominal.controls), mu, mu)


def test_a_rollout_and_its_cost_are_those_of_the_functions(rng):
    case = cases.pendulum()
    u = rng.standard_normal([40, 1, 3])
    x0 = rng.standard_normal([2, 3])
    found = forward.roll(case.problem, tf.constant(x0), tf.constant(u))
    for b in range(3):
        assert_close(found.states[..., b], reference.roll(case.f, x0[:, b], u[..., b]), rtol=1e-12)
        expected = reference.total_cost(case.f, case.cost, case.terminal, x0[:, b], u[..., b])
        assert_close(found.cost[b], expected, rtol=1e-13)


def test_the_expected_reduction_of_an_lq_problem_is_the_reduction_for_every_step(rng):
    lq = cases.random_lq(rng, 7, 3, 2)
    problem = lq.problem()
    nominal, policy = swept(problem, rng.standard_normal([3, 2]), rng.standard_normal([7, 2, 2]))
    for step in (1.0, 0.5, 0.1, 1.7):
        found = forward.follow(problem, nominal, policy, tf.fill([2], tf.constant(step, tf.float64)), None)
        expected = forward.expected_reduction(policy, tf.constant(step, tf.float64))
        assert_close(nominal.cost - found.cost, expected, rtol=1e-10, atol=1e-11)


def test_the_policy_answers_deviations_with_the_house_sign(rng):
    T, B, n, m = 4, 2, 3, 2
    gains = rng.standard_normal([T, m, n + 1, B])
    K, k = gains[:, :, :n], gains[:, :, n]
    policy = Sweep(tf.constant(gains), *[tf.zeros([B], tf.float64)] * 7)
    assert (policy.open_loop.numpy() == k).all() and (policy.feedback.numpy() == K).all()
    drift = Problem(lambda x, u, t: x + tf.concat([u, u[:, :1]], 1), lambda x, u, t: x[:, 0], lambda x: x[:, 0], T)
    nominal = forward.roll(drift, tf.constant(rng.standard_normal([n, B])), tf.constant(rng.standard_normal([T, m, B])))
    found = forward.follow(drift, nominal, policy, tf.constant([0.5, 0.25], tf.float64), None)
    for b, step in enumerate((0.5, 0.25)):
        x = nominal.states[0, :, b].numpy()
        for t in range(T):
            assert_close(found.states[t, :, b], x, rtol=1e-12)
            u = nominal.controls[t, :, b].numpy() + step * k[t, :, b]
            u += K[t, ..., b] @ (x - nominal.states[t, :, b].numpy())
            assert_close(found.controls[t, :, b], u, rtol=1e-12)
            x = x + np.array([u[0], u[1], u[0]])


def scalar(cost):
    """One stage, x' = x, u moves nothing: the cost is cost(u)."""
    return Problem(lambda x, u, t: x, lambda x, u, t: cost(u[:, 0]), lambda x: 0.0 * x[:, 0], 1)


def made_sweep(k, slope, curvature):
    k = tf.constant(k, tf.float64)
    zeros = tf.zeros_like(k)
    sums = (tf.constant(value, tf.float64) for value in (slope, curvature))
    return Sweep(tf.stack([zeros, k])[None, None], zeros, zeros, *sums, zeros, zeros, zeros)


def test_it_halves_the_step_until_the_cost_falls_by_the_promised_share():
    """Cost |u| from u = 1, the model promising a fall of 2 step - step^2."""
    problem = scalar(tf.abs)
    nominal = forward.roll(problem, tf.zeros([1, 4], tf.float64), tf.ones([1, 1, 4], tf.float64))
    policy = made_sweep([-1.0, -4.0, -16.0, 1.0], [-2.0] * 4, [2.0] * 4)
    wanted = tf.constant([True] * 4)
    found = forward.search(problem, nominal, policy, wanted, None, LineSearch(ratio=1e-4, trials=6))
    # 1: |0|; 1/4: |0| (1/2 gives |-1|, no fall); 1/16: |0| (1/8 gives |-1|); never: the fall is negative
    assert found.step.numpy().tolist() == [1.0, 0.25, 0.0625, 0.0]
    assert_close(found.reduction, [1.0, 1.0, 1.0, 0.0])
    strict = forward.search(problem, nominal, policy, wanted, None, LineSearch(ratio=0.99, trials=2))
    assert strict.step.numpy().tolist() == [1.0, 0.0, 0.0, 0.0]
    assert_close(strict.rollout.controls[0, 0], [0.0, 1.0, 1.0, 1.0])


def test_a_fall_below_the_share_is_refused():
    problem = scalar(lambda u: u)
    nominal = forward.roll(problem, tf.zeros([1, 1], tf.float64), tf.ones([1, 1, 1], tf.float64))
    policy = made_sweep([-0.3], [-2.0], [2.0])  # falls by 0.3 step where 2 step - step^2 was promised
    for ratio, step in ((0.29, 1.0), (0.31, 0.0)):
        found = forward.search(problem, nominal, policy, tf.constant([True]), None, LineSearch(ratio=ratio))
        assert float(found.step[0]) == step


def test_infinite_costs_are_backed_away_from_and_unwanted_instances_stay():
    problem = scalar(lambda u: -tf.math.log(u))
    nominal = forward.roll(problem, tf.zeros([1, 2], tf.float64), tf.ones([1, 1, 2], tf.float64))
    policy = made_sweep([-1.5, -1.5], [-1.0, -1.0], [0.0, 0.0])
    found = forward.search(problem, nominal, policy, tf.constant([True, False]), None, LineSearch())
    assert found.step.numpy().tolist() == [0.0, 0.0]  # the cost rises wherever it is finite
    policy = made_sweep([3.0, 3.0], [-3.0, -3.0], [3.0, 3.0])
    found = forward.search(problem, nominal, policy, tf.constant([True, False]), None, LineSearch())
    assert found.step.numpy().tolist() == [1.0, 0.0]
    assert_close(found.rollout.controls[0, 0], [4.0, 1.0])


@pytest.mark.parametrize("limit", [0.3, np.array([0.2, 0.5])])
def test_controls_stay_within_the_limits(rng, limit):
    case = cases.curved(lower=-limit, upper=limit)
    limit = np.reshape(limit, [-1, 1])
    u = np.clip(rng.standard_normal([6, 2, 2]), -limit, limit)
    nominal, policy = swept(case.problem, rng.standard_normal([3, 2]), u, True)
    limits = case.problem.limits(nominal.controls)
    found = forward.follow(case.problem, nominal, policy, tf.ones([2], tf.float64), limits)
    assert (np.abs(found.controls.numpy()) <= limit + 0 * u).all()
    plus = nominal.controls + policy.open_loop
    assert (np.abs(plus.numpy()) <= limit * (1 + 1e-15)).all()
