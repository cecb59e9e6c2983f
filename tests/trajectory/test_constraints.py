"""Inequalities beyond limits of the controls: dense programs, exact solutions, degenerate cases, refusals."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bellman_tf import trajectory
from bellman_tf.trajectory import AugmentedLagrangian, Inequalities, Problem, constraints, forward
from bellman_tf.trajectory.constraints import Lagrangian
from bellman_tf.trajectory.derivatives import differentiate
from tests.helpers import assert_close, slow_row
from tests.trajectory import cases
from tests.trajectory.cases import double_integrator, solve, square, status
from verification.references import constrained
from verification.references import trajectory as reference

T, N, M, P, Q = 4, 2, 2, 2, 1


class Linear:
    """One compiled problem whose arrays are variables, so that every example runs the same program."""

    def __init__(self):
        z = N + M
        shapes = {"F": [T, N, z], "c": [T, N], "g": [T, z], "H": [T, z, z], "v": [N], "W": [N, N]}
        shapes |= {"A": [T, P, z], "b": [T, P], "A_end": [Q, N], "b_end": [Q]}
        self.arrays = {name: tf.Variable(tf.zeros(shape, tf.float64)) for name, shape in shapes.items()}
        V = self.arrays

        def affine(matrix, vector, x, u, t):
            return tf.linalg.matvec(tf.gather(matrix, t), tf.concat([x, u], 1)) + tf.gather(vector, t)

        def cost(x, u, t):
            z = tf.concat([x, u], 1)
            return tf.reduce_sum(z * (tf.gather(V["g"], t) + 0.5 * tf.linalg.matvec(tf.gather(V["H"], t), z)), 1)

        self.problem = Problem(
            lambda x, u, t: affine(V["F"], V["c"], x, u, t),
            cost,
            lambda x: tf.reduce_sum(x * (V["v"] + 0.5 * tf.linalg.matvec(V["W"], x)), 1),
            T,
            inequality=lambda x, u, t: affine(V["A"], -V["b"], x, u, t),
            terminal_inequality=lambda x: tf.linalg.matvec(V["A_end"], x) - V["b_end"],
        )

    def __call__(self, x, arrays):
        for name, array in arrays.items():
            self.arrays[name].assign(array)
        return trajectory.solve(self.problem, tf.constant(x), tf.zeros([T, M], tf.float64), max_iterations=300)


linear = functools.cache(Linear)


@given(
    seed=st.integers(0, 2**32 - 1),
    slack=st.sampled_from([0.0, 0.1, 1.0, 100.0]),
    condition=st.sampled_from([1.0, 10.0, 100.0]),
)
@settings(max_examples=20)
def test_random_convex_programs_against_the_dense_solution(seed, slack, condition):
    """From none to all inequalities active; with slack 0 all of them at once, at one feasible point."""
    rng = np.random.default_rng(seed)
    lq = cases.random_lq(rng, T, N, M, condition)
    x, point = rng.standard_normal(N), rng.standard_normal([T, M])
    A, A_end = rng.standard_normal([T, P, N + M]), rng.standard_normal([Q, N])
    states = [x]
    for t in range(T):
        states.append(lq.F[t] @ np.append(states[-1], point[t]) + lq.c[t])
    b = np.array([A[t] @ np.append(states[t], point[t]) for t in range(T)]) + slack * rng.exponential(size=[T, P])
    b_end = A_end @ states[-1] + slack * rng.exponential(size=Q)
    arrays = dict(zip("FcgHvW", lq, strict=True)) | {"A": A, "b": b, "A_end": A_end, "b_end": b_end}
    controls, stage, terminal = constrained.linear_quadratic(x, **arrays)
    largest = max(stage.max(), terminal.max())
    assume(largest < 1e4)  # nearly dependent inequalities: no multipliers to speak of
    found = linear()(x, arrays)
    assert found.converged.numpy(), status(found)
    assert found.violation.numpy() <= 1.5e-8
    # The controls minimise the Lagrangian, convex with modulus 1, up to the gradient tolerance; the gap of 1.5e-8 in
    # the inequalities moves the optimal cost by that times the multipliers, the controls by the root of that at most.
    allowed = 1e-6 * (1.0 + abs(found.cost.numpy())) + 2.0 * np.sqrt((T * P + Q) * 1.5e-8 * (1.0 + largest))
    assert_close(found.controls, controls, atol=allowed, label="controls")
    if slack > 0.0:  # else any share of the multipliers among the active rows may do
        assert found.multipliers.stage.numpy().min() >= 0.0 and found.multipliers.terminal.numpy().min() >= 0.0
        inside = np.einsum("tpz,tz->tp", A, np.concatenate([found.states.numpy()[:-1], found.controls.numpy()], 1)) - b
        assert (found.multipliers.stage.numpy()[inside < -1e-6] == 0.0).all()


def line(**options):
    """x' = x + u from 0 towards 4 in three stages, and three numbers that a state carries for the inequalities."""
    return Problem(
        lambda x, u, t: tf.concat([x[:, :1] + u, x[:, 1:]], axis=1),
        lambda x, u, t: square(u),
        lambda x: (x[:, 0] - 4.0) ** 2,
        3,
        **options,
    )


def three(x, u, t):
    """No state beyond `top`, no control beyond `most` or below `least`."""
    position, top, most, least = tf.unstack(x, axis=1)
    return tf.stack([position + u[:, 0] - top, u[:, 0] - most, least - u[:, 0]], axis=1)


def test_exact_solutions_degenerate_cases_and_contradictions_side_by_side():
    cases = {
        (2.0, 9.0, -9.0): [2 / 3, 2 / 3, 2 / 3],  # the end: 2 u + 2 (x_3 - 4) + y = 0, so that y = 8 / 3
        (9.0, 9.0, -9.0): [1.0, 1.0, 1.0],  # inactive
        (0.0, 9.0, -9.0): [0.0, 0.0, 0.0],  # always active
        (9.0, 0.5, 0.5): [0.5, 0.5, 0.5],  # an equality in two inequalities
        (9.0, 1.0, 3.0): [2.0, 2.0, 2.0],  # a contradiction by 2, halved
        (np.nan, 1.0, 1.0): None,
    }
    x0 = tf.constant([(0.0, *numbers) for numbers in cases], tf.float64)
    found = trajectory.solve(line(inequality=three), x0, tf.zeros([6, 3, 1], tf.float64))
    assert status(found)[:1] == ["CONVERGED_GRADIENT"] and status(found)[4:] == ["INFEASIBLE", "NON_FINITE"]
    assert found.converged.numpy().tolist() == [True] * 4 + [False] * 2
    for b, controls in enumerate(list(cases.values())[:5]):
        assert_close(found.controls[b, :, 0], controls, atol=1e-7 if b < 4 else 1e-3, label=str(b))
    assert_close(found.violation[:5], [0.0, 0.0, 0.0, 0.0, 1.0], atol=1e-6)
    assert_close(found.multipliers.stage[0, :, 0], [0.0, 0.0, 8 / 3], atol=1e-6)
    assert not found.multipliers.stage[0, :, 1:].numpy().any() and found.multipliers.terminal.shape == [6, 0]
    assert_close(found.cost[0], 16 / 3, rtol=1e-6)
    assert found.iterations.numpy()[1] == 1 and not found.multipliers.stage[1].numpy().any()
    # a renewal of the multipliers is an iteration without a step, and every step lowers the augmented cost
    cost, step = (array[0].numpy() for array in (found.history.cost, found.history.step))
    used = int(found.iterations[0]) + 1
    assert ((cost[1:] - cost[:-1])[step[1:] > 0.0] <= 1e-12).all() and (step[1:used] == 0.0).any()


def test_the_end_has_inequalities_too_and_limits_go_with_them():
    """u <= 0.5 leaves 1.5 to go: an end before 1 is met by 1/3 each, one before 2 by the limits alone."""
    problem = line(upper=0.5, terminal_inequality=lambda x: x[:, :1] - x[:, 1:2])
    x0 = tf.constant([[0.0, 1.0], [0.0, 2.0]], tf.float64)
    found = solve(problem, x0, tf.zeros([2, 3, 1], tf.float64))
    assert found.converged.numpy().all() and found.multipliers.stage.shape == [2, 3, 0]
    assert_close(found.controls[:, :, 0], [[1 / 3] * 3, [0.5] * 3], atol=1e-7)
    assert_close(found.multipliers.terminal, [[16 / 3], [0.0]], atol=1e-6)  # 2 / 3 + 2 (1 - 4) + y = 0


def test_what_ends_the_search_for_multipliers():
    x0, u = tf.constant([0.0, 2.0, 9.0, -9.0], tf.float64), tf.zeros([3, 1], tf.float64)
    problem = line(inequality=three)
    few = solve(problem, x0, u, max_iterations=2)
    weak = solve(problem, x0, u, augmented_lagrangian=AugmentedLagrangian(initial=1e-3, largest=1e-3))
    assert status(few) + status(weak) == ["MAX_ITERATIONS", "INFEASIBLE"]
    assert few.violation.numpy() > 0.1 and weak.violation.numpy() > 0.1


def disc(x, xp):
    """Out of the disc of radius 1/2 around (1, 1)."""
    return xp.stack([0.25 - (x[..., 0] - 1.0) ** 2 - (x[..., 1] - 1.0) ** 2], axis=-1)


def obstacle():
    """From (0, 0.1) to (2, 2) around the disc."""

    def f(x, u, t, xp):
        return x + 0.2 * u

    def cost(x, u, t, xp):
        return 0.1 * (u[..., 0] ** 2 + u[..., 1] ** 2)

    def terminal(x, xp):
        return 50.0 * ((x[..., 0] - 2.0) ** 2 + (x[..., 1] - 2.0) ** 2)

    return cases.both(f, cost, terminal, 2, (0.0, 0.1), np.ones([10, 2]), inequality=lambda x, u, t: disc(x, tf))


@pytest.mark.parametrize(("second_order", "most"), [(True, 30), slow_row(False, 45)])
def test_a_way_around_an_obstacle_is_that_of_a_dense_program(second_order, most):
    case = obstacle()
    found = solve(case.problem, *case.solve_inputs(), second_order=second_order)
    assert found.converged.numpy() and found.violation.numpy() <= 1.5e-8 and int(found.iterations) <= most
    assert (disc(found.states.numpy(), np) > -1e-6).sum() >= 1, "no state touches it"
    controls, value = constrained.nonlinear_program(
        case.f, case.cost, case.terminal, lambda z, t: disc(z[:2], np), case.x0, case.u_init
    )
    assert_close(found.cost, value, rtol=1e-6)
    assert_close(found.controls, controls, atol=1e-4)


@pytest.mark.slow
def test_minimising_to_the_last_digit_before_every_renewal_takes_longer_and_ends_at_the_same_place():
    """Gauss-Newton leaves out the curvature of the inequalities, times their multipliers, and so converges linearly."""
    case = obstacle()
    options = {"second_order": False, "max_iterations": 150}
    few, many = (
        solve(case.problem, *case.solve_inputs(), augmented_lagrangian=AugmentedLagrangian(**chosen), **options)
        for chosen in ({}, {"inexact": 0.0})
    )
    assert few.converged.numpy() and many.converged.numpy()
    assert int(many.iterations) > 100 and 2 * int(few.iterations) < int(many.iterations)
    assert_close(few.controls, many.controls, atol=1e-5)
    assert_close(few.multipliers.stage, many.multipliers.stage, atol=1e-5)
    gradient, step = (array.numpy() for array in (many.history.gradient, many.history.step))
    falls = (gradient[1:] / gradient[:-1])[(step[1:] == 1.0) & (gradient[:-1] < 1e-3) & (gradient[1:] > 1e-6)]
    assert len(falls) > 20 and 0.3 < np.median(falls) < 0.9, "the rate is not linear"


def test_derivatives_and_cost_of_the_augmented_lagrangian(rng):
    """Against the least over slacks, differentiated by complex steps, on both sides of the kink."""

    def g(z):
        return np.array([np.sin(z[0]) * z[1] - 0.3, z[0] ** 2 - z[2], z[1] * z[2] + 1.5, z[0] - 5.0])

    def rows(z, copies):
        a, b, c = tf.unstack(z, axis=1)
        return tf.stack([tf.sin(a) * b - 0.3, a**2 - c, b * c + 1.5, a - 5.0], axis=1)

    z = rng.standard_normal([6, 3])
    multipliers, penalty = rng.exponential(size=[6, 4]), rng.exponential(size=6) + 0.5
    multipliers[:, 3] = 0.0
    jacobian, hessian = differentiate(rows, tf.constant(z), 4, True)
    values = rows(tf.constant(z), 1)
    arrays = tf.constant(multipliers), tf.constant(penalty)
    first, second = constraints.added_derivatives(values, jacobian, hessian, *arrays)
    gauss_newton = constraints.added_derivatives(values, jacobian, None, *arrays)[1]
    nothing = tf.zeros([0, 6], tf.float64)
    found = Inequalities(tf.transpose(values)[None], nothing)
    lagrangian = Lagrangian(Inequalities(tf.transpose(arrays[0])[None], nothing), arrays[1])
    added = constraints.added_cost(found, lagrangian)
    for i in range(6):
        y, rho = multipliers[i], penalty[i]
        active = y + rho * g(z[i]) > 0.0

        def smooth(z, y=y, rho=rho, active=active):  # the piece that holds here; complex numbers have no order
            return np.sum(np.where(active, y * g(z) + 0.5 * rho * g(z) ** 2, -0.5 * y**2 / rho))

        assert_close(added[i], constrained.augmented_cost(g(z[i]), y, rho), rtol=1e-12, atol=1e-12)
        assert_close(first[i], reference.jacobian(smooth, z[i])[0], rtol=1e-10, atol=1e-10)
        assert_close(second[i], reference.hessian(smooth, z[i])[0], rtol=1e-6, atol=1e-6)
        assert np.linalg.eigvalsh(gauss_newton[i].numpy()).min() >= -1e-12


def test_the_augmented_cost_of_a_trajectory():
    problem = line(inequality=lambda x, u, t: x + u - 2.0)
    controls = tf.ones([3, 1, 1], tf.float64)
    states = forward.roll(problem, tf.zeros([1, 1], tf.float64), controls).states
    nothing = tf.zeros([0, 1], tf.float64)
    one = Lagrangian(Inequalities(tf.ones([3, 1, 1], tf.float64), nothing), tf.constant([2.0], tf.float64))
    # values -1, 0, 1 with multipliers 1 and penalty 2 add -1/4, 0 and 1 + 1 to 3 + 1
    assert forward.total_cost(problem, states, controls, one).numpy().tolist() == [4.0 - 0.25 + 2.0]


@pytest.mark.parametrize(
    ("g", "multiplier", "expected"),
    [(0.3, 2.0, 0.3), (0.0, 2.0, 0.0), (-1.0, 0.0, 0.0), (-0.1, 2.0, 0.1), (-1.0, 2.0, 0.5), (-0.1, 1e-6, 2.5e-7)],
)
def test_an_inequality_with_room_and_a_multiplier_is_no_solution(g, multiplier, expected):
    """|max(g, -lambda / rho)|: what is violated counts, and room where there is a multiplier, which the next renewal
    lowers by so much times rho."""
    none = tf.fill([1, 1], tf.constant(-1.0, tf.float64))
    penalty = tf.constant([4.0], tf.float64)
    at = tf.constant([[[g]]], tf.float64)
    price = tf.constant([[[multiplier]]], tf.float64)
    found, lagrangian = Inequalities(at, none), Lagrangian(Inequalities(price, 0.0 * none), penalty)
    assert_close(constraints.gap(found, lagrangian), [expected], rtol=1e-14)
    lowered = price - constraints.multipliers_of(found, lagrangian).stage
    assert_close(abs(lowered[0, 0]) / penalty, [expected], atol=1e-15)


def test_wrong_inequalities_are_refused():
    for name in ("inequality", "terminal_inequality"):
        with pytest.raises(ValueError, match=f"`{name}` must be callable or None. Received: {name}=0.5"):
            line(**{name: 0.5})
    for options, text in (
        (
            {"inequality": lambda x, u, t: x[:, 0]},
            r"`inequality` must return the shape \[3, p\]. Received: inequality=\[3\]",
        ),
        ({"terminal_inequality": lambda x: x[:, 0]}, r"`terminal_inequality` must return the shape \[1, q\]"),
        ({"inequality": lambda x, u, t: tf.cast(x, tf.float32)}, r"`inequality` must return the dtype of its state"),
    ):
        with pytest.raises(ValueError, match=text):
            solve(line(**options), tf.zeros([1], tf.float64), tf.zeros([3, 1], tf.float64))
    with pytest.raises(ValueError, match=r"`augmented_lagrangian` must be a `AugmentedLagrangian` or None"):
        solve(line(), tf.zeros([1]), tf.zeros([3, 1]), augmented_lagrangian=1.0)
    for options, text in (
        ({"initial": 0.0}, r"`initial` must be a finite number > 0.0"),
        ({"factor": 1.0}, r"`factor` must be a finite number > 1.0"),
        ({"progress": 1.0}, r"`progress` must be a finite number > 0.0 and < 1.0"),
        ({"largest": 0.5}, r"`largest` must be a finite number >= 1.0"),
        ({"tolerance": 0.0}, r"`tolerance` must be a finite number > 0.0"),
        ({"inexact": -1.0}, r"`inexact` must be a finite number >= 0.0"),
    ):
        with pytest.raises(ValueError, match=text):
            AugmentedLagrangian(**options)


@pytest.mark.parametrize("far", [20.0, 150.0])
def test_limits_do_not_make_a_far_start_infeasible(far):
    """Their room bounds the projected gradient, which once passed for the end beside a violation of 150 m."""
    h, T = 0.5, 60
    move, reach = double_integrator(h, T)
    at_rest = lambda x: tf.concat([x, -x], 1)
    effort = lambda x, u, t: 0.5 * h * u[:, 0] ** 2
    problem = Problem(move, effort, lambda x: 0.0 * x[:, 0], T, lower=-1.0, upper=1.0, terminal_inequality=at_rest)
    found = solve(problem, np.array([far, 0.0]), np.zeros([T, 1]))
    least = -np.linalg.pinv(reach) @ [far, 0.0]  # of all that end at rest; within the limits
    assert np.abs(least).max() < 1.0
    assert status(found) == ["CONVERGED_GRADIENT"] and float(found.violation) < 2e-8
    assert_close(found.controls[:, 0], least, atol=1e-6)
    assert_close(found.cost, 0.5 * h * least @ least, rtol=1e-6)


def test_what_is_out_of_reach_is_approached_before_it_is_given_up():
    problem = Problem(
        lambda x, u, t: x + u, lambda x, u, t: 0.5 * u[:, 0] ** 2, lambda x: 0.0 * x[:, 0], 4,
        lower=-1.0, upper=1.0, terminal_inequality=lambda x: x - 1.0,
    )  # fmt: skip
    found = solve(problem, np.array([100.0]), np.zeros([4, 1]))
    assert status(found) == ["INFEASIBLE"]
    assert_close(found.controls, -np.ones([4, 1]), atol=1e-9)
    assert_close(found.violation, 95.0, rtol=1e-9)


@pytest.mark.parametrize("jit", [False, True])
def test_a_violation_that_is_not_a_number_is_not_hidden(jit):
    """XLA's maximum passes over NaN."""

    @tf.function(jit_compile=jit)
    def largest(values):
        return constraints.violation(Inequalities(values, tf.zeros([0, 2], tf.float64)))

    found = largest(tf.constant([[[np.nan, 1.0], [0.5, -1.0]]], tf.float64)).numpy()
    assert np.isnan(found[0]) and found[1] == 1.0
