"""First and second derivatives of all stages at once, by automatic differentiation or as given.

A function that treats its rows independently is differentiated by repeating each row once per output and direction,
so that two nested tapes give every entry of its Hessians in one call: no loop over stages, outputs or directions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf.bellman import Value
from bellman_tf.trajectory import constraints
from bellman_tf.trajectory.constraints import Lagrangian
from bellman_tf.trajectory.given import CostDerivatives, DynamicsDerivatives
from bellman_tf.trajectory.problem import Problem


class Model(NamedTuple):
    """Derivatives along a trajectory in z = (x, u), T stages of B instances.

    Attributes:
        cost_z: `[T, B, z]`.
        cost_zz: `[T, B, z, z]`.
        jacobian: `[T, B, n, z]`.
        dynamics_zz: `[T, B, n, z, z]`, or `None` for the Gauss-Newton model.
        terminal: `Value`, `[B, n]` and `[B, n, n]`.
    """

    cost_z: tf.Tensor
    cost_zz: tf.Tensor
    jacobian: tf.Tensor
    dynamics_zz: tf.Tensor | None
    terminal: Value


def differentiate(
    function: Callable[[tf.Tensor, int], tf.Tensor], z: tf.Tensor, outputs: int, second_order: bool
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Jacobians, and Hessians if wanted, of a function of rows.

    Args:
        function: `(z [copies rows, size], copies) -> [copies rows, outputs]`, each row from its own row alone; copies
            of a row stand next to each other.
        z: `[rows, size]`, sizes static.
        outputs: number of outputs.
        second_order: whether to make the Hessians.

    Returns:
        `[rows, outputs, size]`, and `[rows, outputs, size, size]` or `None`.

    Checked against: `verification/references/trajectory.py`.

    Example:
        >>> J, H = differentiate(lambda z, copies: z**3, tf.constant([[2.0]]), 1, True)
        >>> J.numpy().tolist(), H.numpy().tolist()
        ([[[12.0]]], [[[[12.0]]]])
    """
    rows, size = z.shape
    copies = outputs * (size if second_order else 1)
    z = tf.repeat(z, copies, axis=0)
    output = tf.tile(tf.repeat(tf.eye(outputs, dtype=z.dtype), copies // outputs, axis=0), [rows, 1])
    with tf.GradientTape(watch_accessed_variables=False) as outer:
        outer.watch(z)
        with tf.GradientTape(watch_accessed_variables=False) as inner:
            inner.watch(z)
            chosen = tf.reduce_sum(function(z, copies) * output)
        first = inner.gradient(chosen, z, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        if not second_order:
            return tf.reshape(first, [rows, outputs, size]), None
        direction = tf.tile(tf.eye(size, dtype=z.dtype), [rows * outputs, 1])
        along = tf.reduce_sum(first * direction)
    second = outer.gradient(along, z, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    first = tf.reshape(first, [rows, outputs, size, size])[:, :, 0]
    return first, tf.reshape(second, [rows, outputs, size, size])


def model_along(
    problem: Problem,
    states: tf.Tensor,
    controls: tf.Tensor,
    second_order: bool,
    lagrangian: Lagrangian | None = None,
) -> Model:
    """Derivatives of costs, augmented where a Lagrangian is given, and dynamics along a trajectory.

    Args:
        problem: `Problem`.
        states: `[T + 1, B, n]`.
        controls: `[T, B, m]`.
        second_order: whether to make the tensors of the dynamics and of the inequalities.
        lagrangian: `Lagrangian` or `None`.

    Returns:
        `Model`.

    Raises:
        ValueError: if a given derivative has the wrong shape, or `second_order` is wanted of one without tensors.
    """
    T, B, m = controls.shape
    n = states.shape[-1]
    rows = T * B
    x, u = tf.reshape(states[:-1], [rows, n]), tf.reshape(controls, [rows, m])
    t = tf.repeat(tf.range(T), B)
    cost_z, cost_zz = _of_cost(problem, x, u, t)
    terminal = _of_terminal_cost(problem, states[-1])
    if lagrangian is not None and problem.constrained:
        stage, end = _of_inequalities(problem, x, u, t, states[-1], lagrangian, second_order)
        cost_z, cost_zz = cost_z + stage[0], cost_zz + stage[1]
        terminal = Value(terminal.V_x + end[0], terminal.V_xx + end[1])
    jacobian, dynamics_zz = _of_dynamics(problem, x, u, t, second_order)
    shapes = ([T, B, *array.shape[1:]] for array in (cost_z, cost_zz, jacobian))
    cost_z, cost_zz, jacobian = map(tf.reshape, (cost_z, cost_zz, jacobian), shapes)
    if dynamics_zz is not None:
        dynamics_zz = tf.reshape(dynamics_zz, [T, B, n, n + m, n + m])
    return Model(cost_z, cost_zz, jacobian, dynamics_zz, terminal)


def _of_inequalities(
    problem: Problem,
    x: tf.Tensor,
    u: tf.Tensor,
    t: tf.Tensor,
    last: tf.Tensor,
    lagrangian: Lagrangian,
    second_order: bool,
) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """What the inequalities add to gradients and Hessians, of the stages and at the end; zeros where there are none."""
    rows, n = x.shape
    B = last.shape[0]
    added = []
    for z, function, multipliers, penalty in (
        (
            tf.concat([x, u], axis=1),
            lambda z, copies: problem.inequality_of(z[:, :n], z[:, n:], tf.repeat(t, copies)),
            tf.reshape(lagrangian.multipliers.stage, [rows, lagrangian.multipliers.stage.shape[-1]]),
            tf.tile(lagrangian.penalty, [rows // B]),
        ),
        (
            last,
            lambda z, copies: problem.terminal_inequality_of(z),
            tf.reshape(lagrangian.multipliers.terminal, [B, lagrangian.multipliers.terminal.shape[-1]]),
            lagrangian.penalty,
        ),
    ):
        if multipliers.shape[1] == 0:
            zeros = tf.zeros_like(z)
            added.append((zeros, tf.linalg.diag(zeros)))
            continue
        jacobian, hessian = differentiate(function, z, multipliers.shape[1], second_order)
        g = function(z, 1)
        added.append(constraints.added_derivatives(g, jacobian, hessian, multipliers, penalty))
    return added


def _of_scalar(function: Callable[[tf.Tensor, int], tf.Tensor], z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Gradient `[rows, z]` and Hessian `[rows, z, z]` of a function with one output."""
    gradient, hessian = differentiate(function, z, 1, True)
    assert hessian is not None  # for type checkers
    return gradient[:, 0], hessian[:, 0]


def _of_cost(problem: Problem, x: tf.Tensor, u: tf.Tensor, t: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    n, m = x.shape[1], u.shape[1]
    given = problem.derivatives.running_cost
    if given is None:
        return _of_scalar(
            lambda z, copies: problem.cost_of(z[:, :n], z[:, n:], tf.repeat(t, copies))[:, None],
            tf.concat([x, u], axis=1),
        )
    shapes = {"cost_x": [n], "cost_u": [m], "cost_xx": [n, n], "cost_ux": [m, n], "cost_uu": [m, m]}
    cost = _checked("running_cost", CostDerivatives(*given(x, u, t)), shapes, x)
    return tf.concat([cost.cost_x, cost.cost_u], axis=1), _block(cost.cost_xx, cost.cost_ux, cost.cost_uu)


def _of_dynamics(
    problem: Problem, x: tf.Tensor, u: tf.Tensor, t: tf.Tensor, second_order: bool
) -> tuple[tf.Tensor, tf.Tensor | None]:
    n, m = x.shape[1], u.shape[1]
    given = problem.derivatives.dynamics
    if given is None:
        return differentiate(
            lambda z, copies: problem.next_of(z[:, :n], z[:, n:], tf.repeat(t, copies)),
            tf.concat([x, u], axis=1),
            n,
            second_order,
        )
    shapes = {
        "jacobian_state": [n, n],
        "jacobian_control": [n, m],
        "dynamics_xx": [n, n, n],
        "dynamics_ux": [n, m, n],
        "dynamics_uu": [n, m, m],
    }
    f = _checked("dynamics", DynamicsDerivatives(*given(x, u, t)), shapes, x)
    jacobian = tf.concat([f.jacobian_state, f.jacobian_control], axis=2)
    if not second_order or f.dynamics_xx is f.dynamics_ux is f.dynamics_uu is None:
        return jacobian, None
    blocks = [
        tf.zeros([x.shape[0], *shapes[name]], x.dtype) if block is None else block
        for name, block in list(f._asdict().items())[2:]
    ]
    return jacobian, _block(*blocks)


def _of_terminal_cost(problem: Problem, x: tf.Tensor) -> Value:
    given = problem.derivatives.terminal_cost
    if given is None:
        return Value(*_of_scalar(lambda x, copies: problem.terminal_cost_of(x)[:, None], x))
    n = x.shape[1]
    return _checked("terminal_cost", Value(*given(x)), {"V_x": [n], "V_xx": [n, n]}, x)


def _block(xx: tf.Tensor, ux: tf.Tensor, uu: tf.Tensor) -> tf.Tensor:
    top = tf.concat([xx, tf.linalg.matrix_transpose(ux)], axis=-1)
    return tf.concat([top, tf.concat([ux, uu], axis=-1)], axis=-2)


def _checked(name: str, given: Any, shapes: dict[str, list[int]], x: tf.Tensor) -> Any:
    arrays = []
    for (field, array), shape in zip(given._asdict().items(), shapes.values(), strict=True):
        if array is not None:
            array = tf.convert_to_tensor(array, x.dtype)
            wanted = [x.shape[0], *shape]
            if not array.shape.is_compatible_with(wanted):
                raise _checks.error(f"derivatives.{name}.{field}.shape", f"be {wanted}", array.shape.as_list())
            array = tf.ensure_shape(array, wanted)
        arrays.append(array)
    return type(given)(*arrays)
