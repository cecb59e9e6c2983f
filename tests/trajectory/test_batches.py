"""An instance of a batch is solved as if it were alone."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from bellman_tf import trajectory
from bellman_tf.trajectory import Problem, Status
from tests.helpers import assert_close
from tests.trajectory import cases
from tests.trajectory.cases import solve

T, N, M, B = 4, 2, 2, 17  # from 16 instances on derivatives are made stage by stage


class Quartic:
    """A linear system with a convex cost, 1/4 q |z|_4^4 on top of a quadratic; arrays in variables: traced once."""

    def __init__(self):
        z = N + M
        shapes = {"F": [T, N, z], "c": [T, N], "g": [T, z], "H": [T, z, z], "v": [N], "W": [N, N], "q": []}
        self.arrays = {name: tf.Variable(tf.zeros(shape, tf.float64)) for name, shape in shapes.items()}
        V = self.arrays

        def dynamics(x, u, t):
            return tf.linalg.matvec(tf.gather(V["F"], t), tf.concat([x, u], 1)) + tf.gather(V["c"], t)

        def cost(x, u, t):
            z = tf.concat([x, u], 1)
            quadratic = z * (tf.gather(V["g"], t) + 0.5 * tf.linalg.matvec(tf.gather(V["H"], t), z))
            return tf.reduce_sum(quadratic + 0.25 * V["q"] * z**4, 1)

        self.problem = Problem(
            dynamics, cost, lambda x: tf.reduce_sum(x * (V["v"] + 0.5 * tf.linalg.matvec(V["W"], x)), 1), T
        )

    def set(self, lq, q):
        for name, array in (lq._asdict() | {"q": q}).items():
            self.arrays[name].assign(array)
        return self.problem


quartic = functools.cache(Quartic)


@given(
    seed=st.integers(0, 2**32 - 1),
    condition=st.sampled_from([1.0, 10.0, 100.0]),
    q=st.sampled_from([0.0, 0.1, 10.0]),
    spread=st.sampled_from([0.0, 1e-8, 1.0, 10.0]),
)
@settings(max_examples=12)
def test_it_is_the_solution_of_a_single_solve(seed, condition, q, spread):
    """The Hessian of the total cost in the controls is at least the identity, so that |U - U*| <= |gradient|."""
    rng = np.random.default_rng(seed)
    problem = quartic().set(cases.random_lq(rng, T, N, M, condition), q)
    x0 = rng.standard_normal(N) + spread * rng.standard_normal([B, N])
    u = rng.standard_normal([B, T, M])
    together = solve(problem, x0, u)
    assert together.converged.numpy().all()
    for b in rng.choice(B, 2, replace=False):
        alone = solve(problem, x0[b], u[b])
        assert alone.converged.numpy()
        slopes = [float(found.gradient.numpy().flat[-1]) for found in (alone.history, _one(together.history, b))]
        scale = 1.0 + abs(float(alone.cost))
        allowed = np.sqrt(T * M) * sum(slopes) + 1e3 * condition * np.finfo(float).eps * scale
        assert_close(together.controls[b], alone.controls, atol=allowed, label="controls")
        # cost: at most |gradient|^2 / 2 above the minimum
        assert_close(together.cost[b], alone.cost, atol=allowed**2 + 1e-13 * scale, label="cost")
        assert abs(int(together.iterations[b]) - int(alone.iterations)) <= 1


def _one(history, b):
    return type(history)(*(array[b] for array in history))


def test_a_batch_of_one_is_a_single_solve():
    case = cases.pendulum()
    x0, u = case.solve_inputs()
    alone, one = solve(case.problem, x0, u), solve(case.problem, x0[None], u[None])
    for actual, expected in zip(tf.nest.flatten(one), tf.nest.flatten(alone), strict=True):
        if expected is not None:
            assert actual.shape == [1, *expected.shape]
            np.testing.assert_array_equal(actual[0].numpy(), expected.numpy())


@pytest.mark.parametrize("second_order", [True, False])
def test_what_one_instance_does_changes_no_bit_of_the_others(second_order):
    """Equal starts are equal to the last bit, whatever stands between them and however long it takes."""
    case = cases.pendulum(20)
    odd = {"easy": [0.1, 0.0], "hard": [3.0, -1.0], "not finite": [np.nan, 0.0], "diverging": [1e200, 1e200]}
    x0 = np.full([B, 2], 0.0)
    x0[:] = 1.5, -2.0
    u = np.broadcast_to(case.u_init, [B, 20, 1])
    iterations, reference = set(), None
    for start in odd.values():
        x0[7] = start
        found = solve(case.problem, x0, u, second_order=second_order)
        iterations.add(int(found.iterations[7]))
        others = [np.delete(array.numpy(), 7, 0) for array in (*found[:2], *found.gains[:2], *found.value, found.cost)]
        assert all((array == array[:1]).all() for array in others)
        reference = reference or others
        for actual, expected in zip(others, reference, strict=True):
            np.testing.assert_array_equal(actual, expected)
        assert Status(int(found.status[0])).name.startswith("CONVERGED")
    assert Status(int(found.status[7])) == Status.NON_FINITE and len(iterations) >= 3


def test_a_contradiction_in_one_instance_changes_no_bit_of_the_others():
    def top(x, u, t):
        """No state beyond the second entry, which may be out of reach."""
        return tf.stack([x[:, 0] + u[:, 0] - x[:, 1], x[:, 2] - u[:, 0]], axis=1)

    problem = Problem(
        lambda x, u, t: tf.concat([x[:, :1] + u, x[:, 1:]], axis=1),
        lambda x, u, t: tf.reduce_sum(u**2, axis=1),
        lambda x: (x[:, 0] - 4.0) ** 2,
        3,
        inequality=top,
    )
    x0 = np.array([[0.0, 2.0, -9.0], [0.0, 1.0, 3.0], [0.0, 2.0, -9.0], [0.0, 9.0, -9.0]])
    u = np.zeros([4, 3, 1])
    bad = solve(problem, x0, u)
    assert Status(int(bad.status[1])) == Status.INFEASIBLE
    x0[1] = x0[3]
    good = solve(problem, x0, u)
    assert good.converged.numpy().all() and int(bad.iterations[1]) > int(good.iterations[1])
    for name in ("states", "controls", "cost", "status", "iterations", "violation"):
        actual, expected = (np.delete(getattr(found, name).numpy(), 1, 0) for found in (bad, good))
        np.testing.assert_array_equal(actual, expected, err_msg=name)
    for actual, expected in zip(bad.multipliers, good.multipliers, strict=True):
        np.testing.assert_array_equal(np.delete(actual.numpy(), 1, 0), np.delete(expected.numpy(), 1, 0))
    np.testing.assert_array_equal(good.controls[0].numpy(), good.controls[2].numpy())


def _arrays(solution):
    return [array for array in tf.nest.flatten(solution) if array is not None]


def _rows(solution, first, end):
    return tf.nest.map_structure(lambda array: None if array is None else array[first:end], solution)


def test_threads_change_nothing_but_the_time():
    """Parts are solved as batches of their size are, to the last bit; their histories go on as in one batch.

    Five starts on two threads are three and two, with a copy of the last that is left out.
    """
    case = cases.pendulum(10)
    x0 = np.array([[0.5, 1.0], [3.0, -1.0], [0.0, 0.0], [np.nan, 0.0], [0.1, 0.0]])
    u = np.tile(case.u_init, [5, 1, 1])
    whole, parted = solve(case.problem, x0, u), solve(case.problem, x0, u, threads=2)
    for actual, expected in zip(_arrays(parted), _arrays(whole), strict=True):
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual.numpy(), expected.numpy(), rtol=1e-6, atol=1e-7)
    for rows, kept in (([0, 1, 2], 3), ([3, 4, 4], 2)):
        part = solve(case.problem, x0[rows], u[rows])
        found = _rows(parted, rows[0], rows[0] + kept)
        entries = part.history.cost.shape[1]
        assert not found.history.step[:, entries:].numpy().any()
        found = found._replace(history=trajectory.History(*(array[:, :entries] for array in found.history)))
        for actual, expected in zip(_arrays(found), _arrays(part), strict=True):
            np.testing.assert_array_equal(actual.numpy(), expected[:kept].numpy())
    lengths = whole.iterations.numpy()
    assert lengths[:3].max() > lengths[3:].max() + 2  # so that the second history had to be continued


@pytest.mark.slow
def test_threads_by_xla_inside_a_tf_function():
    problem = Problem(lambda x, u, t: x + u, lambda x, u, t: u[:, 0] ** 2, lambda x: (x[:, 0] - 4.0) ** 2, 3)
    x0, u = tf.constant([[0.0], [0.5], [1.0]], tf.float64), tf.zeros([3, 3, 1], tf.float64)
    inside = tf.function(lambda x0, u: trajectory.solve(problem, x0, u, threads=2))(x0, u)
    assert inside.converged.numpy().all()
    assert_close(inside.controls[:, :, 0], np.tile([[1.0], [0.875], [0.75]], 3), rtol=1e-12)


def test_an_error_in_a_part_reaches_the_caller_and_one_start_is_not_divided():
    problem = Problem(
        lambda x, u, t: tf.debugging.check_numerics(x + u, "left the table"),
        lambda x, u, t: u[:, 0] ** 2,
        lambda x: x[:, 0] ** 2,
        3,
    )
    x0, u = np.array([[1.0], [2.0], [3.0], [np.inf]]), np.zeros([4, 3, 1])
    with pytest.raises(tf.errors.InvalidArgumentError, match="left the table"):
        solve(problem, x0, u, threads=2)
    assert solve(problem, x0[:1], u[:1], threads=2).states.shape == [1, 4, 1]
    with pytest.raises(ValueError, match=r"`threads` must be an integer >= 1. Received: threads=0"):
        solve(problem, x0, u, threads=0)
