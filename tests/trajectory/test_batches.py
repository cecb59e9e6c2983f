"""An instance of a batch is solved as if it were alone."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

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
