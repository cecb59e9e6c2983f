"""First and second derivatives of stages, by automatic differentiation or as given.

A function that treats its rows independently is differentiated for all rows at once: by one backward pass per output
and direction through one evaluation, or, where those are many, by repeating each row once per output and direction, so
that two nested tapes give every entry of its Hessians in one call.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf.bellman import Value
from bellman_tf.trajectory import constraints
from bellman_tf.trajectory.constraints import Lagrangian
from bellman_tf.trajectory.given_derivatives import CostDerivatives, DynamicsDerivatives
from bellman_tf.trajectory.problem import Problem
from bellman_tf.trajectory.small_matrices import last, of_rows, rows_of, transposed_last

_UNROLLED = 8  # backward passes that are traced one by one
_MANY = 16  # instances from which on a stage is differentiated when the sweep comes to it


class Stages(NamedTuple):
    """Derivatives in z = (x, u), T stages of B instances, or one stage without the first axis.

    Attributes:
        cost_z: `[T, z, B]`.
        cost_zz: `[T, z, z, B]`.
        jacobian: `[T, n, z, B]`.
        dynamics_zz: `[T, n, z, z, B]`, or `None` for the Gauss-Newton model.
    """

    cost_z: tf.Tensor
    cost_zz: tf.Tensor
    jacobian: tf.Tensor
    dynamics_zz: tf.Tensor | None


class Model(NamedTuple):
    """Derivatives along a trajectory.

    Attributes:
        at: `(t) -> Stages` of one stage, t a scalar.
        terminal: `Value`, `[n, B]` and `[n, n, B]`.
    """

    at: Callable[[tf.Tensor], Stages]
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
    if copies <= _UNROLLED:
        return _one_by_one(function, z, outputs, second_order)
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


def _one_by_one(
    function: Callable[[tf.Tensor, int], tf.Tensor], z: tf.Tensor, outputs: int, second_order: bool
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """The same with one backward pass per output and direction, all through one evaluation of the function."""
    zero = tf.UnconnectedGradients.ZERO
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as outer:
        outer.watch(z)
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as inner:
            inner.watch(z)
            values = tf.unstack(function(z, 1), num=outputs, axis=1)
        first = [inner.gradient(value, z, unconnected_gradients=zero) for value in values]
        entries = [tf.unstack(gradient, axis=1) for gradient in first] if second_order else []
    second = [
        tf.stack([outer.gradient(entry, z, unconnected_gradients=zero) for entry in row], axis=1) for row in entries
    ]
    return tf.stack(first, axis=1), tf.stack(second, axis=1) if second_order else None


def model_along(
    problem: Problem,
    states: tf.Tensor,
    controls: tf.Tensor,
    second_order: bool,
    lagrangian: Lagrangian | None = None,
) -> Model:
    """Derivatives of costs, augmented where a Lagrangian is given, and dynamics along a trajectory.

    Few instances: all stages at once, before the first is asked for. Many instances: a stage when it is asked for, so
    that the sweep finds its derivatives in the cache; those of all stages are megabytes that would be written, moved
    and read.

    Args:
        problem: `Problem`.
        states: `[T + 1, n, B]`.
        controls: `[T, m, B]`.
        second_order: whether to make the tensors of the dynamics and of the inequalities.
        lagrangian: `Lagrangian` or `None`.

    Returns:
        `Model`.

    Raises:
        ValueError: if a given derivative has the wrong shape.
    """
    lagrangian = lagrangian if problem.constrained else None
    terminal = _at_the_end(problem, states[-1], second_order, lagrangian)
    if controls.shape[2] >= _MANY:

        def made(t: tf.Tensor) -> Stages:
            multipliers = None if lagrangian is None else tf.gather(lagrangian.multipliers.stage, t)[None]
            penalty = None if lagrangian is None else lagrangian.penalty
            x, u = (tf.gather(array, t)[None] for array in (states, controls))
            stage = _of_stages(problem, x, u, t, second_order, multipliers, penalty)
            return Stages._make(None if array is None else array[0] for array in stage)

        return Model(made, terminal)
    multipliers, penalty = (None, None) if lagrangian is None else (lagrangian.multipliers.stage, lagrangian.penalty)
    stages = _of_stages(problem, states[:-1], controls, tf.constant(0), second_order, multipliers, penalty)
    return model_of(stages, terminal)


def model_of(stages: Stages, terminal: Value) -> Model:
    """A model of derivatives that are there.

    Args:
        stages: `Stages`, of all stages.
        terminal: `Value`, `[n, B]` and `[n, n, B]`.

    Returns:
        `Model`.
    """
    return Model(
        lambda t: Stages._make(None if array is None else tf.gather(array, t) for array in stages),
        terminal,
    )


def _of_stages(
    problem: Problem,
    states: tf.Tensor,
    controls: tf.Tensor,
    start: tf.Tensor,
    second_order: bool,
    multipliers: tf.Tensor | None,
    penalty: tf.Tensor | None,
) -> Stages:
    """Derivatives of stages from `start` on, with states `[T, n, B]` and multipliers `[T, p, B]` or `None`."""
    T = controls.shape[0]
    x, u, t = rows_of(states, controls, start)
    cost_z, cost_zz = _of_cost(problem, x, u, t)
    if multipliers is not None and penalty is not None and multipliers.shape[1] > 0:
        n = x.shape[1]
        more_z, more_zz = _of_inequalities(
            lambda z, copies: problem.inequality_of(z[:, :n], z[:, n:], tf.repeat(t, copies)),
            tf.concat([x, u], axis=1),
            tf.reshape(transposed_last(multipliers), [x.shape[0], multipliers.shape[1]]),
            tf.tile(penalty, [T]),
            second_order,
        )
        cost_z, cost_zz = cost_z + more_z, cost_zz + more_zz
    jacobian, dynamics_zz = _of_dynamics(problem, x, u, t, second_order)
    return Stages._make(
        None if array is None else of_rows(array, T) for array in (cost_z, cost_zz, jacobian, dynamics_zz)
    )


def _of_inequalities(
    function: Callable[[tf.Tensor, int], tf.Tensor],
    z: tf.Tensor,
    multipliers: tf.Tensor,
    penalty: tf.Tensor,
    second_order: bool,
) -> tuple[tf.Tensor, tf.Tensor]:
    """What the inequalities of rows z add to gradients and Hessians; multipliers `[rows, p]`, penalty `[rows]`."""
    jacobian, hessian = differentiate(function, z, multipliers.shape[1], second_order)
    return constraints.added_derivatives(function(z, 1), jacobian, hessian, multipliers, penalty)


def _at_the_end(problem: Problem, state: tf.Tensor, second_order: bool, lagrangian: Lagrangian | None) -> Value:
    """Gradient `[n, B]` and Hessian `[n, n, B]` of the terminal cost, augmented."""
    x = transposed_last(state)
    V_x, V_xx = _of_terminal_cost(problem, x)
    if lagrangian is not None and lagrangian.multipliers.terminal.shape[0] > 0:
        multipliers = transposed_last(lagrangian.multipliers.terminal)
        more_x, more_xx = _of_inequalities(
            lambda x, copies: problem.terminal_inequality_of(x), x, multipliers, lagrangian.penalty, second_order
        )
        V_x, V_xx = V_x + more_x, V_xx + more_xx
    return Value(last(V_x), last(V_xx))


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
