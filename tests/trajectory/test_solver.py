"""The whole solve: Riccati, optimality, orders of convergence, batches, limits, float32, XLA."""

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import tensorflow as tf

from bellman_tf import trajectory
from bellman_tf.trajectory import (
    Problem,
    Regularization,
)
from tests.helpers import assert_close, slow_row
from tests.trajectory import cases
from tests.trajectory.cases import finite, solve, square, status
from verification.references import dense
from verification.references import trajectory as reference


def test_a_time_varying_lq_problem_takes_one_step_to_the_minimiser(rng):
    T, n, m = 12, 4, 3
    lq = cases.random_lq(rng, T, n, m, constant=False)
    x0 = rng.standard_normal(n)
    found = solve(lq.problem(), x0, rng.standard_normal([T, m]), gradient_tolerance=1e-9)
    U, change = reference.whole_horizon_step(lq.stages(), lq.v, lq.W, x0)
    assert status(found) == ["CONVERGED_GRADIENT"] and int(found.iterations) == 1
    assert_close(found.controls, U, rtol=1e-8, atol=1e-9)
    assert_close(found.cost, change, rtol=1e-10, atol=1e-11)
    _, K, _, W, _ = reference.sweep(lq.stages(), lq.v, lq.W)
    assert_close(found.gains.feedback, K, rtol=1e-10)
    assert_close(found.value.V_xx, W, rtol=1e-10)


def test_constant_lq_problems_follow_riccati_to_the_algebraic_equation(rng):
    A, B = rng.standard_normal([4, 4]), rng.standard_normal([4, 2])
    Q, R, P = cases.random_spd(rng, 4, 10.0), cases.random_spd(rng, 2, 10.0), cases.random_spd(rng, 4, 5.0)
    T = 60
    tA, tB, tQ, tR, tP = map(tf.constant, (A, B, Q, R, P))

    def quadratic(M, x):
        return 0.5 * tf.reduce_sum(x * tf.linalg.matvec(M, x), -1)

    problem = Problem(
        lambda x, u, t: tf.linalg.matvec(tA, x) + tf.linalg.matvec(tB, u),
        lambda x, u, t: quadratic(tQ, x) + quadratic(tR, u),
        lambda x: quadratic(tP, x),
        T,
    )
    x0 = rng.standard_normal([3, 4])
    found = solve(problem, x0, np.zeros([3, T, 2]))
    assert found.converged.numpy().all()
    for steps in (1, 5, T):
        assert_close(found.value.V_xx[0, T - steps], dense.riccati(A, B, Q, R, P, steps), rtol=1e-10)
    stationary = scipy.linalg.solve_discrete_are(A, B, Q, R)
    assert_close(found.value.V_xx[0, 0], stationary, rtol=1e-10)
    K = -np.linalg.solve(R + B.T @ stationary @ B, B.T @ stationary @ A)
    for b in range(3):
        assert_close(found.gains.feedback[b, 0], K, rtol=1e-10)
        assert_close(found.controls[b, 0], K @ x0[b], rtol=1e-10)
        assert_close(found.cost[b], 0.5 * x0[b] @ stationary @ x0[b], rtol=1e-10)
        assert_close(found.value.V_x[b, 0], stationary @ x0[b], rtol=1e-10)


@pytest.mark.parametrize("second_order", [True, slow_row(False)])
def test_it_finds_what_scipy_finds(second_order):
    case = cases.curved(8)
    found = solve(case.problem, *case.solve_inputs(), second_order=second_order)
    assert found.converged.numpy() and finite(found)
    shape = case.u_init.shape

    def cost(u):
        return reference.total_cost(case.f, case.cost, case.terminal, case.x0, u.reshape(shape))

    def gradient(u):
        return reference.total_gradient(case.f, case.cost, case.terminal, case.x0, u.reshape(shape)).ravel()

    scipys = scipy.optimize.minimize(cost, case.u_init.ravel(), jac=gradient, method="BFGS", options={"gtol": 1e-7})
    assert_close(found.cost, scipys.fun, rtol=1e-10)
    assert_close(found.controls, scipys.x.reshape(shape), atol=1e-4)
    assert_close(found.cost, cost(found.controls.numpy().ravel()), rtol=1e-13)
    assert np.abs(gradient(found.controls.numpy().ravel())).max() <= 1e-5 * (1 + abs(scipys.fun))
    assert_close(found.history.gradient[-1], np.abs(gradient(found.controls.numpy().ravel())).max(), atol=1e-11)


def test_second_order_converges_quadratically_and_gauss_newton_linearly():
    case = cases.pendulum()
    options = {"gradient_tolerance": 1e-13, "cost_tolerance": 0.0, "max_iterations": 60}
    full = solve(case.problem, *case.solve_inputs(), **options).history
    plain = solve(case.problem, *case.solve_inputs(), second_order=False, **options).history
    g = full.gradient.numpy()
    g = g[np.flatnonzero(g > 1e-2)[-1] :]  # from where it last was large
    g = g[g > 1e-11]
    assert len(g) <= 6
    orders = np.log(g[1:]) / np.log(g[:-1])
    assert (orders[1:] > 1.6).any(), g
    assert (g[1:] <= 30.0 * g[:-1] ** 2 + 1e-11).all(), g
    h = plain.gradient.numpy()
    rates = (h[1:] / h[:-1])[(h[1:] > 1e-9) & (h[1:] < 1e-3)]
    assert len(rates) >= 5 and (rates > 0.05).all() and (rates < 0.9).all(), rates
    assert rates.max() / rates.min() < 1.5, "the rate of linear convergence is not constant"


def test_an_instance_of_a_batch_is_solved_as_if_alone_and_stays_put_when_it_has_stopped(rng):
    case = cases.pendulum()
    x0 = np.array([[np.pi, 0.0], [0.3, 0.0], [np.nan, 0.0], [1.5, -2.0]])
    u = np.broadcast_to(case.u_init, [4, 40, 1])
    together = solve(case.problem, x0, u)
    assert status(together) == ["CONVERGED_GRADIENT"] * 2 + ["NON_FINITE", "CONVERGED_GRADIENT"]
    iterations = together.iterations.numpy()
    assert len(set(iterations[[0, 1, 3]])) > 1 and iterations[2] == 0
    for b in (0, 1, 3):
        alone = solve(case.problem, x0[b], u[b])
        assert int(alone.iterations) == iterations[b]
        last = iterations[b] + 1
        for name in ("states", "controls", "cost"):
            assert_close(getattr(together, name)[b], getattr(alone, name), rtol=1e-9, atol=1e-9, label=name)
        for name in ("cost", "regularization"):
            history = getattr(together.history, name)[b].numpy()
            assert_close(history[:last], getattr(alone.history, name), rtol=1e-6, atol=1e-9, label=name)
            assert (history[last:] == history[last - 1]).all()
        assert_close(together.gains.feedback[b], alone.gains.feedback, rtol=1e-6)
    assert not together.gains.feedback[2].numpy().any() and np.isfinite(together.value.V_xx.numpy()).all()


def test_the_cost_never_rises_and_the_expansion_belongs_to_the_trajectory_returned():
    case = cases.pendulum()
    found = solve(case.problem, *case.solve_inputs(), max_iterations=12)
    assert status(found) == ["MAX_ITERATIONS"] and int(found.iterations) == 12
    cost = found.history.cost.numpy()
    assert (np.diff(cost) <= 0.0).all() and cost[-1] == found.cost.numpy() < cost[0]
    X, U = found.states.numpy(), found.controls.numpy()
    assert_close(X, reference.roll(case.f, case.x0, U), rtol=1e-11)
    stages, v, W = case.stages(X, U, reference)
    mu = float(found.history.regularization[-1])
    k, K, vs, Ws, change = reference.sweep(stages, v, W, mu_state=mu, mu_control=mu)
    assert_close(found.gains.open_loop, k, rtol=1e-6, atol=1e-7)
    assert_close(found.gains.feedback, K, rtol=1e-6)
    assert_close(found.value.V_x, vs, rtol=1e-6)
    assert_close(found.value.V_xx, Ws, rtol=1e-6)
    assert_close(found.history.expected[-1], -change, rtol=1e-5)


def test_limited_controls_are_optimal_within_limits_that_vary_with_time():
    lower, upper = np.array([-0.15, -np.inf]), np.linspace(-0.3, 0.2, 8)[:, None] + np.array([0.35, 0.1])
    case = cases.curved(8, lower=lower, upper=upper)
    x0, u = case.solve_inputs()
    u = tf.clip_by_value(u, lower, upper)
    found = solve(case.problem, x0, u)
    assert found.converged.numpy()
    controls = found.controls.numpy()
    lower = np.broadcast_to(lower, controls.shape)
    assert (controls >= lower).all() and (controls <= upper).all()
    gradient = reference.total_gradient(case.f, case.cost, case.terminal, case.x0, controls)
    assert np.abs(controls - np.clip(controls - gradient, lower, upper)).max() < 1e-6
    held = (controls == lower) | (controls == upper)
    assert held.any() and not held.all()
    assert not found.gains.feedback.numpy()[held & (np.abs(gradient) > 1e-6)].any()
    assert found.gains.feedback.numpy()[~held].any(axis=-1).all()

    def cost(u):
        return reference.total_cost(case.f, case.cost, case.terminal, case.x0, u.reshape(controls.shape))

    def slope(u):
        return reference.total_gradient(case.f, case.cost, case.terminal, case.x0, u.reshape(controls.shape)).ravel()

    bounds = scipy.optimize.Bounds(lower.ravel(), upper.ravel())
    options = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 1000}
    scipys = scipy.optimize.minimize(
        cost, np.asarray(u).ravel(), jac=slope, method="L-BFGS-B", bounds=bounds, options=options
    )
    assert_close(found.cost, scipys.fun, rtol=1e-9)
    assert_close(controls, scipys.x.reshape(controls.shape), atol=1e-4)


def test_a_regularised_policy_is_valued_as_what_it_is():
    """claims OURS-5: V of the value update is the cost of following the policy, whatever mu made its gains."""
    case = cases.curved()
    schedule = Regularization(initial=5.0)
    found = solve(case.problem, *case.solve_inputs(), second_order=False, max_iterations=0, regularization=schedule)
    assert status(found) == ["MAX_ITERATIONS"] and found.history.cost.shape == [1]
    X, U = found.states.numpy(), found.controls.numpy()
    stages, v, W = case.stages(X, U, reference)
    k, K = found.gains.open_loop.numpy(), found.gains.feedback.numpy()

    def model_cost(x):
        total = 0.0
        for t, (g, H, F, _) in enumerate(stages):
            z = np.concatenate([x, k[t] + K[t] @ x])
            total, x = total + g @ z + 0.5 * z @ H @ z, F @ z
        return total + v @ x + 0.5 * x @ W @ x

    base = model_cost(np.zeros(3))
    assert_close(-found.history.expected[0], base, rtol=1e-7)
    for x in np.eye(3):
        value = found.value.V_x[0].numpy() @ x + 0.5 * x @ found.value.V_xx[0].numpy() @ x
        assert_close(model_cost(x) - base, value, rtol=1e-7)


def test_a_second_solve_does_not_trace_and_a_long_horizon_costs_no_larger_graph():
    calls = []

    def dynamics(x, u, t):
        calls.append(1)
        return x + 0.1 * u

    def build(T):
        return Problem(dynamics, lambda x, u, t: square(u) + square(x), square, T)

    counts, sizes = [], []
    for T in (5, 1000):
        problem = build(T)
        for scale in (1.0, 2.0, 3.0):
            calls.clear()
            found = solve(problem, scale * tf.ones([2, 1]), scale * tf.zeros([2, T, 1]))
            assert found.converged.numpy().all()
            counts.append(len(calls))
        assert len(problem.compiled) == 1
        (loop,) = problem.compiled.values()
        definition = loop.graph.as_graph_def()
        sizes.append(len(definition.node) + sum(len(f.node_def) for f in definition.library.function))
        assert found.states.shape == [2, T + 1, 1]
    assert counts[1:3] == [0, 0] == counts[4:]
    assert counts[0] == counts[3] and abs(sizes[0] - sizes[1]) < 50


def test_it_works_in_float32_and_inside_a_tf_function():
    case = cases.curved(lower=-0.2, upper=0.05)
    x0, u = case.solve_inputs()
    u = 0.0 * u
    exact = solve(case.problem, x0, u)
    assert exact.converged.numpy() and (exact.controls.numpy() == 0.05).any()
    inside = tf.function(lambda x0, u: solve(case.problem, x0, u).controls)
    assert_close(inside(x0, u), exact.controls, rtol=1e-12)
    assert_close(inside(x0, u + 10.0), exact.controls, atol=1e-6, label="clipped")
    single = solve(case.problem, tf.cast(x0, tf.float32), tf.cast(u, tf.float32))
    assert single.converged.numpy() and single.controls.dtype == tf.float32
    assert_close(single.controls, exact.controls, atol=5e-3)
    assert_close(single.cost, exact.cost, rtol=1e-5)


@pytest.mark.slow
def test_a_jitted_caller_compiles_one_program_for_all_initial_states():
    """With a history cut to the iterations done, XLA took the states for constants: one program for each."""
    case = cases.curved(lower=-0.2, upper=0.05)
    x0, u = case.solve_inputs()
    u = 0.0 * u
    found = solve(case.problem, x0, u, max_iterations=40)

    @tf.function(jit_compile=True)
    def inside(x0, u):
        return solve(case.problem, x0, u, max_iterations=40)

    entry = inside.experimental_get_compiler_ir(x0, u)(stage="hlo").split("entry_computation_layout={(")[1]
    assert entry.split(")->")[0].count("f64[") == 2
    history, done = inside(x0, u).history, len(found.history.cost)
    assert 1 < done < 41
    for name, expected, value in zip(history._fields, found.history, history, strict=True):
        last = 0.0 if name == "step" else expected.numpy()[-1]
        assert_close(value, [*expected.numpy(), *[last] * (41 - done)], rtol=1e-9, atol=1e-12, label=name)


def test_a_limited_swing_up_is_optimal_and_the_same_by_xla():
    """Regularised, limited, and with an instance that is not finite."""
    case = cases.pendulum(60, lower=-1.2, upper=1.2)
    x0 = np.array([[np.pi, 0.0], [np.nan, 0.0], [1.0, 0.0]])
    u = np.broadcast_to(case.u_init, [3, 60, 1])
    xla, graph = trajectory.solve(case.problem, x0, u), solve(case.problem, x0, u)
    assert status(graph) == ["CONVERGED_GRADIENT", "NON_FINITE", "CONVERGED_GRADIENT"] == status(xla)
    assert graph.history.regularization.numpy().max() > 1.0
    assert 0 < np.count_nonzero(np.abs(graph.controls[0].numpy()) == 1.2) < 60
    assert xla.iterations.numpy().tolist() == graph.iterations.numpy().tolist()
    for b in (0, 2):
        controls = graph.controls[b].numpy()
        assert np.abs(controls).max() <= 1.2
        gradient = reference.total_gradient(case.f, case.cost, case.terminal, x0[b], controls)
        assert np.abs(controls - np.clip(controls - gradient, -1.2, 1.2)).max() <= 1e-5
        for name in ("states", "controls", "cost"):
            assert_close(getattr(xla, name)[b], getattr(graph, name)[b], rtol=1e-9, atol=1e-9, label=name)
