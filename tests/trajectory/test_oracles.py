"""The same problems given to Crocoddyl (C++; `u = u_nom - k - K dx`) and to quantecon; skipped where not installed."""

import numpy as np
import pytest
import tensorflow as tf

from bellman_tf import bellman
from bellman_tf.trajectory import backward
from bellman_tf.trajectory.derivatives import model_along
from tests.helpers import assert_close
from tests.trajectory import cases
from tests.trajectory.cases import solve
from verification.references import trajectory as reference


def shooting(x0, stages, terminal):
    """A Crocoddyl problem from functions (x, u) -> next state, cost, g, H, F, and (x) -> cost, v, W at the end."""
    crocoddyl = pytest.importorskip("crocoddyl")

    class Action(crocoddyl.ActionModelAbstract):
        def __init__(self, n, m, function):
            super().__init__(crocoddyl.StateVector(n), m, 0)
            self.n, self.function = n, function

        def calc(self, data, x, u=None):
            if u is None or self.function is terminal:
                data.cost = float(terminal(x)[0])
                return
            xnext, cost, *_ = self.function(x, u)
            data.xnext, data.cost = xnext, float(cost)

        def calcDiff(self, data, x, u=None):
            n = self.n
            if u is None or self.function is terminal:
                _, data.Lx, data.Lxx = terminal(x)
                return
            _, _, g, H, F = self.function(x, u)
            data.Fx, data.Fu = np.asfortranarray(F[:, :n]), np.asfortranarray(F[:, n:])
            data.Lx, data.Lu = g[:n], g[n:]
            data.Lxx, data.Luu = np.asfortranarray(H[:n, :n]), np.asfortranarray(H[n:, n:])
            data.Lxu = np.asfortranarray(H[:n, n:])

    n, m = len(x0), stages[0].controls
    actions = [Action(n, m, stage) for stage in stages]
    return crocoddyl, crocoddyl.ShootingProblem(x0, actions, Action(n, m, terminal))


class Stage:
    """A stage of `shooting` from functions of (z, t), with Hessians changed by `extra [T, z, z]`."""

    def __init__(self, case, t, extra=None):
        self.case, self.t, self.extra, self.controls = case, t, extra, case.u_init.shape[1]

    def __call__(self, x, u):
        z = np.concatenate([x, u])

        def cost(z):
            return self.case.cost(z, self.t)

        def f(z):
            return self.case.f(z, self.t)

        H = reference.hessian(cost, z)[0] + (0.0 if self.extra is None else self.extra[self.t])
        return f(z), cost(z), reference.jacobian(cost, z)[0], H, reference.jacobian(f, z)


def gauss_newton(case):
    def terminal(x):
        return case.terminal(x), reference.jacobian(case.terminal, x)[0], reference.hessian(case.terminal, x)[0]

    return shooting(case.x0, [Stage(case, t) for t in range(len(case.u_init))], terminal)


def swept(crocoddyl, problem, X, U):
    """A solver after one unregularised backward pass along a trajectory."""
    solver = crocoddyl.SolverDDP(problem)
    solver.preg = solver.dreg = 0.0
    solver.setCandidate(list(X), list(U), True)
    problem.calc(list(X), list(U))
    problem.calcDiff(list(X), list(U))
    solver.backwardPass()
    return solver


def compare(solver, sweep, rtol):
    """Gains and value, whose signs are opposite and the same."""
    T = len(sweep.open_loop)
    for name, theirs, ours in (
        ("k", -np.array([np.array(solver.k[t]) for t in range(T)]), sweep.open_loop[..., 0]),
        ("K", -np.array([np.array(solver.K[t]) for t in range(T)]), sweep.feedback[..., 0]),
        ("V_x", np.array([np.array(V) for V in solver.Vx]), sweep.V_x[..., 0]),
        ("V_xx", np.array([np.array(V) for V in solver.Vxx]), sweep.V_xx[..., 0]),
    ):
        assert_close(ours, theirs, rtol=rtol, label=name)


class Linear:
    """A stage of `shooting` from a linear-quadratic problem."""

    def __init__(self, lq, t):
        self.lq, self.t, self.controls = lq, t, lq.F.shape[2] - lq.F.shape[1]

    def __call__(self, x, u):
        z = np.concatenate([x, u])
        g, H, F = (array[self.t] for array in (self.lq.g, self.lq.H, self.lq.F))
        return F @ z + self.lq.c[self.t], g @ z + 0.5 * z @ H @ z, g + H @ z, H, F


def linear_quadratic(lq, x0):
    def terminal(x):
        return lq.v @ x + 0.5 * x @ lq.W @ x, lq.v + lq.W @ x, lq.W

    return shooting(x0, [Linear(lq, t) for t in range(len(lq.F))], terminal)


@pytest.mark.parametrize(("T", "n", "m"), [(1, 1, 1), (10, 3, 2), (40, 4, 2), (25, 6, 3)])
def test_gains_of_random_time_varying_lq_problems(rng, T, n, m):
    lq = cases.random_lq(rng, T, n, m)
    x0, U = rng.standard_normal(n), rng.standard_normal([T, m])
    crocoddyl, problem = linear_quadratic(lq, x0)
    X = problem.rollout(list(U))
    zero = tf.zeros([1], tf.float64)
    states, controls = tf.constant(np.array(X)[..., None]), tf.constant(U[..., None])
    model = model_along(lq.problem(), states, controls, True)
    compare(swept(crocoddyl, problem, X, U), backward.sweep(model, controls, None, zero, zero), 1e-12)


def test_the_second_order_recursion(rng):
    """Crocoddyl has no tensors of the dynamics: V_x . f_zz of our sweep is added to its cost Hessians."""
    case = cases.curved(8)
    U = 0.3 * rng.standard_normal(case.u_init.shape)
    X = reference.roll(case.f, case.x0, U)
    zero = tf.zeros([1], tf.float64)
    states, controls = tf.constant(X[..., None]), tf.constant(U[..., None])
    model = model_along(case.problem, states, controls, True)
    sweep = backward.sweep(model, controls, None, zero, zero)
    without = model._replace(at=lambda t: model.at(t)._replace(dynamics_zz=None))
    plain = backward.sweep(without, controls, None, zero, zero)
    assert np.abs((sweep.feedback - plain.feedback).numpy()).max() > 1e-2
    stages = [model.at(tf.constant(t)) for t in range(8)]
    tensors = np.stack([stage.dynamics_zz.numpy() for stage in stages])
    extra = np.einsum("ti,tijk->tjk", sweep.V_x[1:, :, 0].numpy(), tensors[..., 0])

    class Given(Stage):  # our own derivatives: the recursion is what is compared, to rounding
        def __call__(self, x, u):
            g, H, F = (array[..., 0].numpy() for array in stages[self.t][:3])
            z = np.concatenate([x, u])
            return self.case.f(z, self.t), self.case.cost(z, self.t), g, H + self.extra[self.t], F

    def terminal(x):
        return case.terminal(x), *(array[..., 0].numpy() for array in model.terminal)

    crocoddyl, problem = shooting(case.x0, [Given(case, t, extra) for t in range(8)], terminal)
    compare(swept(crocoddyl, problem, X, U), sweep, 1e-12)


@pytest.mark.parametrize("second_order", [True, False])
def test_the_unicycle_of_crocoddyl(second_order):
    crocoddyl = pytest.importorskip("crocoddyl")
    case = cases.unicycle(20)
    unicycle = crocoddyl.ActionModelUnicycle()
    solver = crocoddyl.SolverDDP(crocoddyl.ShootingProblem(case.x0, [unicycle] * 20, unicycle))
    solver.th_stop = 1e-14
    solver.solve([], [], 200)
    found = solve(case.problem, *case.solve_inputs(), second_order=second_order)
    assert found.converged.numpy()
    assert_close(found.cost, solver.cost, rtol=1e-10)
    assert_close(found.controls, np.array(solver.us), atol=1e-4)


def test_a_pendulum_swing_up():
    case = cases.pendulum(40)
    crocoddyl, problem = gauss_newton(case)
    solver = crocoddyl.SolverDDP(problem)
    solver.th_stop = 1e-12
    U = list(case.u_init)
    solver.solve(problem.rollout(U), U, 300, True)
    found = solve(case.problem, *case.solve_inputs())
    assert found.converged.numpy()
    assert abs(float(found.states[-1, 0])) < 0.2, "it does not stand"
    assert_close(found.cost, solver.cost, rtol=1e-9)


def boxed(crocoddyl, problem, U, limit):
    """Crocoddyl's control-limited solver after convergence, with the same limit on every control."""
    for model in problem.runningModels:
        model.u_lb, model.u_ub = np.full(U.shape[1], -limit), np.full(U.shape[1], limit)
    solver = crocoddyl.SolverBoxDDP(problem)
    solver.th_stop = 1e-13
    solver.solve(problem.rollout(list(U)), list(U), 500, True)
    return solver


@pytest.mark.parametrize(("T", "n", "m", "limit"), [(10, 3, 2, 0.3), (20, 4, 3, 0.1), (10, 3, 2, 100.0)])
def test_control_limits_of_random_lq_problems(rng, T, n, m, limit):
    lq = cases.random_lq(rng, T, n, m)
    x0, U = rng.standard_normal(n), np.zeros([T, m])
    solver = boxed(*linear_quadratic(lq, x0), U, limit)
    found = solve(lq.problem(lower=-limit, upper=limit), tf.constant(x0), tf.constant(U))
    assert found.converged.numpy()
    held = np.abs(found.controls.numpy()) == limit
    assert held.any() == (limit < 100.0) and not held.all()
    assert_close(found.cost, solver.cost, rtol=1e-10)
    assert_close(found.controls, np.array(solver.us), atol=1e-5)


def test_a_limited_pendulum():
    case = cases.pendulum(40, lower=-1.5, upper=1.5)
    crocoddyl, problem = gauss_newton(case)
    solver = boxed(crocoddyl, problem, case.u_init, 1.5)
    found = solve(case.problem, *case.solve_inputs(), second_order=False, max_iterations=300)
    assert found.converged.numpy() and (np.abs(found.controls.numpy()) == 1.5).any()
    assert_close(found.cost, solver.cost, rtol=1e-6)


@pytest.mark.parametrize("seed", range(2))
def test_feedback_nash_of_two_players_with_one_cost_is_the_joint_solution(seed):
    """quantecon's equilibrium of the infinite game, the players' cooperative recursion here, and the joint solve."""
    quantecon = pytest.importorskip("quantecon")
    rng = np.random.default_rng(seed)
    n, m = 3, (2, 1)
    A = rng.standard_normal((n, n)) / 2
    B = [rng.standard_normal((n, size)) for size in m]
    Q = cases.random_spd(rng, n, 10.0)
    R = [cases.random_spd(rng, size, 4.0) for size in m]
    none = [np.zeros((size, n)) for size in m]
    cross = [np.zeros((m[1], m[0])), np.zeros((m[0], m[1]))]
    # player i: x'Qx + u_i' R_i u_i + u_j' R_j u_j; quantecon's arguments are R, own Q, the other's S, W, M
    F_1, F_2, P_1, P_2 = quantecon.nnash(
        A, *B, Q, Q, R[0], R[1], R[1], R[0], none[0].T, none[1].T, cross[0], cross[1], tol=1e-13, max_iter=5000
    )
    T = 80
    tA, tQ, tB, tR = tf.constant(A), tf.constant(Q), list(map(tf.constant, B)), list(map(tf.constant, R))
    value = bellman.Value(tf.zeros([n], tf.float64), tQ)
    for _ in range(T):
        Q_players = bellman.expand_players(value, tA, tB, cost_uu=tR)
        Q_players = Q_players._replace(Q_xx=Q_players.Q_xx + tQ)
        gains = bellman.cooperative_gains(Q_players)
        value = bellman.cooperative_update(Q_players, gains)
    for F, gain in zip((F_1, F_2), gains, strict=True):
        assert_close(gain.feedback, -F, rtol=1e-9, atol=1e-10)
    for P in (P_1, P_2):
        assert_close(value.V_xx, P, rtol=1e-9)

    def quadratic(x, u):
        parts = [(x, tQ), (u[:, : m[0]], tR[0]), (u[:, m[0] :], tR[1])]
        return sum(0.5 * tf.reduce_sum(z * tf.linalg.matvec(M, z), -1) for z, M in parts)

    problem = cases.Problem(
        lambda x, u, t: tf.linalg.matvec(tA, x) + tf.linalg.matvec(tf.concat(tB, 1), u),
        lambda x, u, t: quadratic(x, u),
        lambda x: 0.5 * tf.reduce_sum(x * tf.linalg.matvec(tQ, x), -1),
        T,
    )
    found = solve(problem, tf.ones([n], tf.float64), tf.zeros([T, sum(m)], tf.float64))
    assert_close(found.gains.feedback[0], -np.vstack([F_1, F_2]), rtol=1e-9, atol=1e-10)
    assert_close(found.value.V_xx[0], P_1, rtol=1e-9)
