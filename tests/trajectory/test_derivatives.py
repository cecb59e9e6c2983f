"""Derivatives along a trajectory against complex steps."""

import numpy as np
import pytest
import tensorflow as tf

from bellman_tf.bellman import Value
from bellman_tf.trajectory import CostDerivatives, Derivatives, DynamicsDerivatives, Problem
from bellman_tf.trajectory.derivatives import model_along
from tests.helpers import assert_close
from tests.trajectory import cases
from tests.trajectory.cases import solve
from verification.references import trajectory as reference


def along(case, U, batch=1):
    """A trajectory `[T + 1, n, B]` and controls `[T, m, B]`, instance b with controls (1 + b / 16) U."""
    controls = [(1 + b / 16) * U for b in range(batch)]
    states = [reference.roll(case.f, case.x0, u) for u in controls]
    return tuple(tf.constant(np.stack(arrays, axis=-1)) for arrays in (states, controls))


@pytest.mark.parametrize("batch", [2, 17])
@pytest.mark.parametrize("make", [cases.curved, cases.unicycle, cases.pendulum])
def test_they_are_those_of_the_functions(rng, make, batch):
    """All stages at once for a few instances, stage by stage for many."""
    case = make(5)
    U = rng.standard_normal(case.u_init.shape)
    states, controls = along(case, U, batch)
    model = model_along(case.problem, states, controls, True)
    plain = model_along(case.problem, states, controls, False)
    found = [[kind.at(tf.constant(t)) for kind in (model, plain)] for t in range(5)]
    assert found[0][1].dynamics_zz is None
    for b in (0, batch - 1):
        stages, v, W = case.stages(states[..., b].numpy(), controls[..., b].numpy(), reference)
        for (g, H, F, D), both in zip(stages, found, strict=True):
            for actual in both:
                assert_close(actual.cost_z[:, b], g, rtol=1e-13, atol=1e-14)
                assert_close(actual.jacobian[..., b], F, rtol=1e-13, atol=1e-15)
                assert_close(actual.cost_zz[..., b], H, rtol=1e-8, atol=1e-8)
            assert_close(both[0].dynamics_zz[..., b], D, rtol=1e-8, atol=1e-8)
        assert_close(model.terminal.V_x[:, b], v, rtol=1e-13, atol=1e-13)
        assert_close(model.terminal.V_xx[..., b], W, rtol=1e-8, atol=1e-8)


def lq_with_its_derivatives(lq, **wrong):
    n = len(lq.v)
    F, g, H = (tf.constant(array) for array in (lq.F, lq.g, lq.H))

    def dynamics(x, u, t):
        jacobian = tf.gather(F, t)
        return DynamicsDerivatives(jacobian[..., :n], jacobian[..., n:])

    def running_cost(x, u, t):
        Hz = tf.gather(H, t)
        gz = tf.gather(g, t) + tf.linalg.matvec(Hz, tf.concat([x, u], -1))
        return CostDerivatives(gz[:, :n], gz[:, n:], Hz[:, :n, :n], Hz[:, n:, :n], Hz[:, n:, n:])

    def terminal_cost(x):
        W = tf.constant(lq.W)
        return Value(lq.v + tf.linalg.matvec(W, x), tf.tile(W[None], [x.shape[0], 1, 1]))

    given = Derivatives(dynamics, running_cost, terminal_cost)
    return lq.problem(derivatives=given._replace(**wrong))


def test_given_ones_are_used_and_give_the_same_solution(rng):
    lq = cases.random_lq(rng, 6, 3, 2)
    x0, u = tf.constant(rng.standard_normal([2, 3])), tf.zeros([2, 6, 2], tf.float64)
    automatic, given = solve(lq.problem(), x0, u), solve(lq_with_its_derivatives(lq), x0, u)
    for actual, expected in zip(tf.nest.flatten(given), tf.nest.flatten(automatic), strict=True):
        if expected is not None:
            assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_given_tensors_of_the_dynamics_are_used_where_asked_for():
    case = cases.curved()

    def dynamics(x, u, t):
        zeros = tf.zeros([x.shape[0], 3, 3, 3], x.dtype)
        ones = tf.ones([x.shape[0], 3, 2, 2], x.dtype)
        return DynamicsDerivatives(zeros[..., 0], zeros[..., :2, 0], dynamics_uu=ones)

    functions = case.problem.dynamics, case.problem.running_cost, case.problem.terminal_cost
    problem = Problem(*functions, 6, derivatives=Derivatives(dynamics=dynamics))
    states, controls = along(case, case.u_init)
    assert model_along(problem, states, controls, False).at(0).dynamics_zz is None
    tensors = model_along(problem, states, controls, True).at(5).dynamics_zz.numpy()
    assert (tensors[:, 3:, 3:] == 1).all() and np.count_nonzero(tensors) == 3 * 4


def test_given_ones_of_wrong_shape_are_refused(rng):
    lq = cases.random_lq(rng, 3, 2, 1)
    x0, u = tf.zeros([2], tf.float64), tf.zeros([3, 1], tf.float64)
    for name, wrong, text in (
        ("dynamics", lambda x, u, t: DynamicsDerivatives(x, u), "dynamics.jacobian_state.shape` must be .3, 2, 2"),
        ("terminal_cost", lambda x: Value(x, x), "terminal_cost.V_xx.shape` must be .1, 2, 2"),
        ("running_cost", lambda x, u, t: (u, u, x, x, x), "running_cost.cost_x.shape` must be .3, 2"),
    ):
        with pytest.raises(ValueError, match=f"`derivatives.{text}"):
            solve(lq_with_its_derivatives(lq, **{name: wrong}), x0, u)
