"""Derivatives that a user gives in place of automatic differentiation."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from bellman_tf.bellman import Value


class DynamicsDerivatives(NamedTuple):
    """Derivatives of x' = f(x, u, t), row by row.

    Attributes:
        jacobian_state: `[rows, n, n]`.
        jacobian_control: `[rows, n, m]`.
        dynamics_xx: `[rows, n, n, n]`, output first, or `None` for zero.
        dynamics_ux: `[rows, n, m, n]` or `None`.
        dynamics_uu: `[rows, n, m, m]` or `None`.

    Example:
        >>> given = DynamicsDerivatives(tf.ones([2, 1, 1]), tf.ones([2, 1, 1]))  # of x' = x + u, for two rows
        >>> given.dynamics_uu is None
        True
    """

    jacobian_state: tf.Tensor
    jacobian_control: tf.Tensor
    dynamics_xx: tf.Tensor | None = None
    dynamics_ux: tf.Tensor | None = None
    dynamics_uu: tf.Tensor | None = None


class CostDerivatives(NamedTuple):
    """Derivatives of the running cost, row by row.

    Attributes:
        cost_x: `[rows, n]`.
        cost_u: `[rows, m]`.
        cost_xx: `[rows, n, n]`.
        cost_ux: `[rows, m, n]`.
        cost_uu: `[rows, m, m]`.

    Example:
        >>> u, zero = tf.constant([[3.0]]), tf.zeros([1, 1, 1])
        >>> CostDerivatives(0 * u, 2 * u, zero, zero, zero + 2).cost_u.numpy().tolist()  # of u^2
        [[6.0]]
    """

    cost_x: tf.Tensor
    cost_u: tf.Tensor
    cost_xx: tf.Tensor
    cost_ux: tf.Tensor
    cost_uu: tf.Tensor


class Derivatives(NamedTuple):
    """Callables that replace automatic differentiation, each where it is not `None`.

    Attributes:
        dynamics: `(x, u, t) -> DynamicsDerivatives`.
        running_cost: `(x, u, t) -> CostDerivatives`.
        terminal_cost: `(x) -> bellman.Value`, gradient `[rows, n]` and Hessian `[rows, n, n]`.

    Example:
        >>> given = Derivatives(terminal_cost=lambda x: Value(2 * x, 2 * tf.ones([len(x), 1, 1])))  # of x^2
        >>> given.terminal_cost(tf.constant([[3.0]])).V_x.numpy().tolist(), given.dynamics is None
        ([[6.0]], True)
    """

    dynamics: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], DynamicsDerivatives] | None = None
    running_cost: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], CostDerivatives] | None = None
    terminal_cost: Callable[[tf.Tensor], Value] | None = None
