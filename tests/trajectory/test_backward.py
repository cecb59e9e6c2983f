"""The backward sweep against quadratics with the policy inserted, and the gradient of the total cost."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf.bellman import Value
from bellman_tf.trajectory import Regularization, regularisation
from bellman_tf.trajectory import backward as ours
from bellman_tf.trajectory.derivatives import Stages, model_along, model_of
from tests.helpers import assert_close
from tests.trajectory import cases
from verification.references import trajectory as reference

seeds = st.integers(0, 2**32 - 1)


def random_model(rng, T, B, n, m, tensors=0.02):
    """Stages per instance for the reference, and all of them as arrays; joint cost Hessians are positive definite."""
    per_instance = []
    for _ in range(B):
        lq = cases.random_lq(rng, T, n, m)
        half = tensors * rng.standard_normal((T, n, n + m, n + m))
        D = half + half.transpose(0, 1, 3, 2)
        per_instance.append((list(zip(lq.g, lq.H, lq.F, D, strict=True)), lq.v, lq.W))
    arrays = (
        np.stack([np.stack([stage[i] for stage in stages]) for stages, *_ in per_instance], axis=-1) for i in range(4)
    )
    v, W = (tf.constant(np.stack([entry[i] for entry in per_instance], axis=-1)) for i in (1, 2))
    return per_instance, Stages._make(map(tf.constant, arrays)), Value(v, W)


@given(seeds, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.booleans(), st.booleans())
def test_gains_value_and_expected_change_are_those_of_the_quadratics(seed, T, n, m, state, control, limited):
    rng = np.random.default_rng(seed)
    B = 2
    instances, stages, terminal = random_model(rng, T, B, n, m)
    mu_state, mu_control = rng.uniform(0.1, 10.0, [2, B]) * np.array([[state], [control]])
    u = rng.uniform(-0.1, 0.1, [T, m, B])
    lower, upper = (sign * rng.uniform(0.1, 1.0, [T, m, 1]) for sign in (-1, 1))
    limits = (tf.constant(lower), tf.constant(upper)) if limited else None
    model = model_of(stages, terminal)
    found = ours.sweep(model, tf.constant(u), limits, tf.constant(mu_state), tf.constant(mu_control))
    assert found.definite.numpy().all()
    for b, (stages, v, W) in enumerate(instances):
        room = [(lower[t, :, 0] - u[t, :, b], upper[t, :, 0] - u[t, :, b]) for t in range(T)] if limited else None
        k, K, vs, Ws, change = reference.sweep(
            stages, v, W, mu_state=mu_state[b], mu_control=mu_control[b], limits=room
        )
        assert_close(found.open_loop[..., b], k, rtol=1e-9, atol=1e-10)
        assert_close(found.feedback[..., b], K, rtol=1e-9, atol=1e-10)
        assert_close(found.V_x[..., b], vs, rtol=1e-9, atol=1e-10)
        assert_close(found.V_xx[..., b], Ws, rtol=1e-9, atol=1e-10)
        assert_close(found.slope[b] + 0.5 * found.curvature[b], change, rtol=1e-9, atol=1e-10)


@given(seeds, st.integers(1, 6), st.integers(1, 3), st.integers(1, 3))
def test_without_tensors_it_is_the_newton_step_of_the_whole_horizon(seed, T, n, m):
    rng = np.random.default_rng(seed)
    ((stages, v, W),), arrays, terminal = random_model(rng, T, 1, n, m)
    zero = tf.zeros([1], tf.float64)
    model = model_of(arrays._replace(dynamics_zz=None), terminal)
    found = ours.sweep(model, tf.zeros([T, m, 1], tf.float64), None, zero, zero)
    x = rng.standard_normal(n)
    U, change = reference.whole_horizon_step(stages, v, W, x)
    state = x
    for t in range(T):
        u = found.open_loop[t, :, 0].numpy() + found.feedback[t, ..., 0].numpy() @ state
        assert_close(u, U[t], rtol=1e-8, atol=1e-9)
        state = stages[t][2] @ np.concatenate([state, u])
    V_x, V_xx = found.V_x[0, :, 0].numpy(), found.V_xx[0, ..., 0].numpy()
    promised = found.slope[0] + 0.5 * found.curvature[0] + V_x @ x + 0.5 * x @ V_xx @ x
    assert_close(promised, change, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("limited", [False, True])
def test_its_gradient_is_that_of_the_total_cost(rng, limited):
    case = cases.curved()
    U = rng.uniform(-0.5, 0.5, case.u_init.shape)
    X = reference.roll(case.f, case.x0, U)
    gradient = reference.total_gradient(case.f, case.cost, case.terminal, case.x0, U)
    loose = reference.difference_gradient(case.f, case.cost, case.terminal, case.x0, U)
    assert_close(gradient, loose, rtol=1e-6)
    limits, expected = None, gradient
    if limited:
        limits = tuple(tf.constant(sign * 0.5, tf.float64, [6, 2, 1]) for sign in (-1.0, 1.0))
        expected = U - np.clip(U - gradient, -0.5, 0.5)
    states, controls = tf.constant(X[..., None]), tf.constant(U[..., None])
    for second_order in (True, False):
        model = model_along(case.problem, states, controls, second_order)
        mu = tf.constant([3.0], tf.float64)
        found = ours.sweep(model, controls, limits, mu, mu)
        assert_close(found.gradient[0], np.abs(expected).max(), rtol=1e-12)


def test_each_instance_is_regularised_as_much_as_it_needs():
    """Q_uu = c: -5 needs mu > 5, 1 needs none, NaN-free; -1e9 exceeds the largest mu and stops."""
    c = tf.constant([1.0, -5.0, -1e9], tf.float64)
    one = tf.ones([1, 1, 3], tf.float64)
    hessian = tf.stack([tf.stack([one[0, 0], 0 * c]), tf.stack([0 * c, c])])[None]
    jacobian = tf.concat([one, 0 * one], 1)[:, None]
    stages = Stages(tf.concat([one, one], 1), hessian, jacobian, None)
    model = model_of(stages, Value(one[0], one[0][None]))
    zeros, ones = tf.zeros([3], tf.float64), tf.ones([3], tf.float64)
    for on in ("control", "both"):
        schedule = Regularization(on=on, largest=1e6)
        found, mu, _ = ours.regularised_sweep(model, 0 * one, None, zeros, ones, ones > 0, schedule)
        assert found.definite.numpy().tolist() == [True, True, False]
        mu = mu.numpy()
        assert mu[0] == 0 and 5 < mu[1] < 5 * 2**6 and mu[2] > 1e6
        assert_close(found.open_loop[0, 0], [-1.0, -1.0 / (mu[1] - 5.0), 0.0], rtol=1e-12)
    schedule = Regularization(on="state")  # the dynamics do not see this control
    found, mu, _ = ours.regularised_sweep(model, 0 * one, None, zeros, ones, ones > 0, schedule)
    assert found.definite.numpy().tolist() == [True, False, False]


def test_the_schedule_goes_up_ever_faster_and_comes_down_to_zero():
    schedule = Regularization(factor=2.0, smallest=1e-6)
    mu, rate, ups = tf.zeros([1]), tf.ones([1]), []
    for _ in range(4):
        mu, rate = regularisation.stronger(mu, rate, schedule)
        ups.append(float(mu[0]) / 1e-6)
    assert_close(ups, [1.0, 4.0, 32.0, 512.0], rtol=1e-6)
    downs = []
    for _ in range(4):
        mu, rate = regularisation.weaker(mu, rate, schedule)
        downs.append(float(mu[0]) / 1e-6)
    assert_close(downs, [256.0, 64.0, 8.0, 0.0], rtol=1e-6)
