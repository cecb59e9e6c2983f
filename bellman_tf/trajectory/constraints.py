"""Inequality constraints g(x, u, t) <= 0 by an augmented Lagrangian: what it adds to cost, derivatives and loop.

With a multiplier lambda >= 0 per inequality and a penalty rho > 0 the cost gains, per inequality,

    (max(0, lambda + rho g)^2 - lambda^2) / (2 rho).

Its gradient is y g_z with y = max(0, lambda + rho g), so at a minimiser of the augmented cost y is a multiplier of the
constrained problem, and |y - lambda| / rho says how far the trajectory is from meeting its conditions.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from bellman_tf.linalg.products import matmul, matvec
from bellman_tf.trajectory.problem import Problem
from bellman_tf.trajectory.small_matrices import last, of_rows, rows_of, transposed_last


class Inequalities(NamedTuple):
    """One number per inequality: its value or its multiplier. An axis of size 0 stands for no inequality.

    Attributes:
        stage: `[..., T, p]`, of `inequality`; inside the solver `[T, p, B]`.
        terminal: `[..., q]`, of `terminal_inequality`; inside the solver `[q, B]`.

    Example:
        >>> none = Inequalities(stage=tf.zeros([5, 0]), terminal=tf.zeros([1]))  # five stages without, one at the end
        >>> none.stage.shape.as_list(), none.terminal.shape.as_list()
        ([5, 0], [1])
    """

    stage: tf.Tensor
    terminal: tf.Tensor


class Lagrangian(NamedTuple):
    """What the augmented cost depends on next to the trajectory.

    Attributes:
        multipliers: `Inequalities`, not negative, `[T, p, B]` and `[q, B]`.
        penalty: `[B]`, rho.
    """

    multipliers: Inequalities
    penalty: tf.Tensor


def values(problem: Problem, states: tf.Tensor, controls: tf.Tensor) -> Inequalities:
    """Values of all inequalities along a trajectory.

    Args:
        problem: `Problem`.
        states: `[T + 1, n, B]`.
        controls: `[T, m, B]`.

    Returns:
        `Inequalities`, `[T, p, B]` and `[q, B]`.
    """
    stage = of_rows(problem.inequality_of(*rows_of(states[:-1], controls)), controls.shape[0])
    return Inequalities(stage, last(problem.terminal_inequality_of(transposed_last(states[-1]))))


def multipliers_of(found: Inequalities, lagrangian: Lagrangian) -> Inequalities:
    """The multipliers y = max(0, lambda + rho g) that a trajectory implies.

    Args:
        found: values of the inequalities.
        lagrangian: `Lagrangian`.

    Returns:
        `Inequalities`, not negative.
    """
    old, rho = lagrangian.multipliers, lagrangian.penalty
    return Inequalities(*(tf.nn.relu(y + rho * g) for y, g in zip(old, found, strict=True)))


def added_cost(found: Inequalities, lagrangian: Lagrangian) -> tf.Tensor:
    """What the augmented Lagrangian adds to the cost.

    Args:
        found: values of the inequalities.
        lagrangian: `Lagrangian`.

    Returns:
        `[B]`.
    """
    total = tf.zeros_like(lagrangian.penalty)
    new = multipliers_of(found, lagrangian)
    for y, old, axes in zip(new, lagrangian.multipliers, ((0, 1), (0,)), strict=True):
        total += tf.reduce_sum((y - old) * (y + old), axis=axes)
    return 0.5 * total / lagrangian.penalty


def _largest(parts: Inequalities) -> tf.Tensor:
    """The largest entry per instance, at least 0, and NaN where one is, `[B]`: XLA's maximum passes over NaN."""
    both = list(zip(parts, ((0, 1), (0,)), strict=True))
    stage, terminal = (tf.reduce_max(x, axis=axes) for x, axes in both)
    unknown = [tf.reduce_any(tf.math.is_nan(x), axis=axes) for x, axes in both]
    largest = tf.nn.relu(tf.maximum(stage, terminal))
    return tf.where(unknown[0] | unknown[1], tf.constant(np.nan, largest.dtype), largest)


def violation(found: Inequalities) -> tf.Tensor:
    """The largest violation.

    Args:
        found: values of the inequalities.

    Returns:
        `[B]`, 0 where all hold, NaN where a value is.
    """
    return _largest(found)


def gap(found: Inequalities, lagrangian: Lagrangian) -> tf.Tensor:
    """How far a minimiser of the augmented cost is from one of the constrained problem.

    Args:
        found: values of the inequalities.
        lagrangian: `Lagrangian`.

    Returns:
        `[B]`, the largest |max(g, -lambda / rho)|: zero where every inequality holds, with equality or without a
        multiplier. NaN where a value is.
    """
    rho = lagrangian.penalty
    sides = (tf.abs(tf.maximum(g, -y / rho)) for g, y in zip(found, lagrangian.multipliers, strict=True))
    return _largest(Inequalities(*sides))


def added_derivatives(
    g: tf.Tensor,
    jacobian: tf.Tensor,
    hessian: tf.Tensor | None,
    multipliers: tf.Tensor,
    penalty: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """What the augmented Lagrangian adds to the gradient and Hessian of a cost, row by row.

    Args:
        g: `[rows, p]`, values.
        jacobian: `[rows, p, z]`.
        hessian: `[rows, p, z, z]`, or `None` for the Gauss-Newton form, which is positive semidefinite.
        multipliers: `[rows, p]`.
        penalty: `[rows]`.

    Returns:
        J' y, `[rows, z]`, and rho J_a' J_a + sum_i y_i hessian_i, `[rows, z, z]`, where J_a has the rows of the
        inequalities with y > 0.

    Checked against: `verification/references/constrained.py`.
    """
    y = tf.nn.relu(multipliers + penalty[:, None] * g)
    weight = tf.where(y > 0.0, penalty[:, None], tf.zeros_like(y))
    second = matmul(jacobian, weight[..., None] * jacobian, transpose_a=True)
    if hessian is not None:
        second += tf.reduce_sum(y[..., None, None] * hessian, axis=1)
    return matvec(jacobian, y, transpose_a=True), second
