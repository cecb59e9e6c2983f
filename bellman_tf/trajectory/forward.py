"""The forward pass: rolling out a policy, and backtracking until the cost falls as expected."""

from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from bellman_tf._typing import Batch, Matrix, Scalar
from bellman_tf.trajectory import constraints
from bellman_tf.trajectory.backward import Sweep
from bellman_tf.trajectory.constraints import Lagrangian
from bellman_tf.trajectory.options import LineSearch
from bellman_tf.trajectory.problem import Problem
from bellman_tf.trajectory.small_matrices import finite, rows_of, transposed_last

Limits: TypeAlias = tuple[tf.Tensor, tf.Tensor] | None


class Rollout(NamedTuple):
    """A trajectory and its cost.

    Attributes:
        states: `[T + 1, n, B]`.
        controls: `[T, m, B]`.
        cost: `[B]`.
    """

    states: tf.Tensor
    controls: tf.Tensor
    cost: tf.Tensor


class SearchResult(NamedTuple):
    """What the line search found.

    Attributes:
        rollout: `Rollout`, the nominal one where nothing was accepted.
        step: `[B]`, step size, 0 where nothing was accepted.
        reduction: `[B]`, of the cost.
    """

    rollout: Rollout
    step: tf.Tensor
    reduction: tf.Tensor


def total_cost(
    problem: Problem, states: tf.Tensor, controls: tf.Tensor, lagrangian: Lagrangian | None = None
) -> tf.Tensor:
    """Cost of trajectories, augmented where a Lagrangian is given.

    Args:
        problem: `Problem`.
        states: `[T + 1, n, B]`.
        controls: `[T, m, B]`.
        lagrangian: `Lagrangian` or `None`.

    Returns:
        `[B]`.
    """
    T, _, B = controls.shape
    running = problem.cost_of(*rows_of(states[:-1], controls))
    total = tf.reduce_sum(tf.reshape(running, [T, B]), axis=0) + problem.terminal_cost_of(transposed_last(states[-1]))
    if lagrangian is None or not problem.constrained:
        return total
    return total + constraints.added_cost(constraints.values(problem, states, controls), lagrangian)


def roll(problem: Problem, state: tf.Tensor, controls: tf.Tensor, lagrangian: Lagrangian | None = None) -> Rollout:
    """Follows given controls.

    Args:
        problem: `Problem`.
        state: `[n, B]`, the first.
        controls: `[T, m, B]`.
        lagrangian: `Lagrangian` or `None`.

    Returns:
        `Rollout`.
    """
    T, _, B = controls.shape

    def advance(t: Scalar, x: Matrix, states: tf.TensorArray) -> tuple[Scalar, Matrix, tf.TensorArray]:
        x = _next(problem, x, tf.gather(controls, t), t)
        return t + 1, x, states.write(t + 1, x)

    states = tf.TensorArray(controls.dtype, T + 1, element_shape=state.shape).write(0, state)
    *_, states = tf.while_loop(lambda t, *_: t < T, advance, (tf.constant(0), state, states), maximum_iterations=T)
    states = states.stack()
    return Rollout(states, controls, total_cost(problem, states, controls, lagrangian))


def _next(problem: Problem, x: Matrix, u: Matrix, t: Scalar) -> Matrix:
    """The dynamics, instances last."""
    return transposed_last(problem.next_of(transposed_last(x), transposed_last(u), tf.fill([x.shape[1]], t)))


def follow(
    problem: Problem,
    nominal: Rollout,
    sweep: Sweep,
    step: tf.Tensor,
    limits: Limits,
    lagrangian: Lagrangian | None = None,
) -> Rollout:
    """Follows the policy `control + step open_loop + feedback @ (state - nominal_state)`, clipped to the limits.

    Args:
        problem: `Problem`.
        nominal: `Rollout`.
        sweep: `Sweep`.
        step: `[B]`.
        limits: of the controls, `[T, m, 1]` each, or `None`.
        lagrangian: `Lagrangian` or `None`.

    Returns:
        `Rollout`.
    """
    T, m, B = nominal.controls.shape
    n = nominal.states.shape[1]
    start = nominal.states[0]

    def advance(
        t: Scalar, x: Matrix, states: tf.TensorArray, controls: tf.TensorArray
    ) -> tuple[Scalar, Matrix, tf.TensorArray, tf.TensorArray]:
        moved = tf.concat([x - tf.gather(nominal.states, t), step[None]], axis=0)
        u = tf.gather(nominal.controls, t) + tf.reduce_sum(tf.gather(sweep.gains, t) * moved, axis=1)
        if limits is not None:
            u = tf.clip_by_value(u, *(tf.gather(limit, t) for limit in limits))
        x = _next(problem, x, u, t)
        return t + 1, x, states.write(t + 1, x), controls.write(t, u)

    states = tf.TensorArray(start.dtype, T + 1, element_shape=[n, B]).write(0, start)
    controls = tf.TensorArray(start.dtype, T, element_shape=[m, B])
    loop = (tf.constant(0), start, states, controls)
    *_, states, controls = tf.while_loop(lambda t, *_: t < T, advance, loop, maximum_iterations=T)
    states, controls = states.stack(), controls.stack()
    return Rollout(states, controls, total_cost(problem, states, controls, lagrangian))


def is_finite(rollout: Rollout) -> tf.Tensor:
    """Whether a trajectory and its cost are finite.

    Args:
        rollout: `Rollout`.

    Returns:
        `[B]`, bool.
    """
    return finite(*rollout)


def expected_reduction(sweep: Sweep, step: tf.Tensor | float) -> tf.Tensor:
    """Reduction of the cost that the quadratic model expects.

    Args:
        sweep: `Sweep`.
        step: `[B]` or a number.

    Returns:
        `[B]`, -(step slope + step^2 / 2 curvature).

    Source: Tassa, Erez, Todorov (2012), Section II-E.
    """
    return -step * (sweep.slope + 0.5 * step * sweep.curvature)


def choose(chosen: tf.Tensor, new: Rollout, old: Rollout) -> Rollout:
    """`new` for the chosen instances, `old` for the others.

    Args:
        chosen: `[B]`, bool.
        new: `Rollout`.
        old: `Rollout`.

    Returns:
        `Rollout`.
    """
    return Rollout._make(tf.where(chosen, x, y) for x, y in zip(new, old, strict=True))


def search(
    problem: Problem,
    nominal: Rollout,
    sweep: Sweep,
    wanted: tf.Tensor,
    limits: Limits,
    options: LineSearch,
    lagrangian: Lagrangian | None = None,
) -> SearchResult:
    """Backtracks, each instance for itself, until all that are wanted have been accepted or the steps are used up.

    Where the expected reduction is lost in the rounding of the cost, a step is accepted if the cost does not visibly
    rise.

    Args:
        problem: `Problem`.
        nominal: `Rollout`.
        sweep: `Sweep`.
        wanted: `[B]`, bool.
        limits: of the controls, or `None`.
        options: `LineSearch`.
        lagrangian: `Lagrangian` or `None`.

    Returns:
        `SearchResult`.
    """
    eps = np.finfo(nominal.cost.dtype.as_numpy_dtype).eps
    rounding = 10.0 * eps * (1.0 + tf.abs(nominal.cost))

    def trial(
        i: Scalar, size: Scalar, pending: Batch, best: Rollout, step: Batch
    ) -> tuple[Scalar, Scalar, Batch, Rollout, Batch]:
        new = follow(problem, nominal, sweep, tf.fill(tf.shape(step), size), limits, lagrangian)
        reduction = nominal.cost - new.cost
        expected = expected_reduction(sweep, size)
        good = (expected > 0.0) & (reduction >= options.ratio * expected)
        good |= (tf.abs(expected) <= rounding) & (reduction >= -rounding)
        good &= pending & is_finite(new)
        step = tf.where(good, size, step)
        return i + 1, size * options.factor, pending & ~good, choose(good, new, best), step

    one = tf.ones([], nominal.cost.dtype)
    start = (tf.constant(0), one, wanted, nominal, tf.zeros_like(nominal.cost))
    *_, best, step = tf.while_loop(
        lambda i, size, pending, *_: (i < options.trials) & tf.reduce_any(pending), trial, start
    )
    return SearchResult(best, step, nominal.cost - best.cost)
