"""An optimal control problem: what moves, what it costs, how long, within which limits."""

import numpy as np
import tensorflow as tf

from bellman_tf import _checks
from bellman_tf.trajectory.derivatives import Derivatives


class Problem:
    """Minimise sum_{t < T} l(x_t, u_t, t) + phi(x_T) with x_{t+1} = f(x_t, u_t, t), lower_t <= u_t <= upper_t.

    The functions see rows: `x [rows, n]`, `u [rows, m]` and `t [rows]`, an int32 time from 0 to T - 1 per row. They
    must treat every row by itself (no mean over rows), keep the dtype, and be written in TensorFlow. Rows are
    instances in a rollout, and instances times stages where derivatives are taken; data that varies with time is
    `tf.gather(data, t)`.

    Args:
        dynamics: f, `(x, u, t) -> [rows, n]`.
        running_cost: l, `(x, u, t) -> [rows]`.
        terminal_cost: phi, `(x) -> [rows]`.
        horizon: T, the number of stages.
        lower: least controls, a number or an array that broadcasts to `[T, m]`; `None` is no limit, an entry may be
            -inf.
        upper: largest controls, likewise.
        derivatives: `Derivatives` to use instead of automatic differentiation.

    Raises:
        ValueError: if a function cannot be called, the horizon is not a positive integer, a limit is NaN, or the
            limits cross.

    Example:
        >>> double = Problem(lambda x, u, t: x + u, lambda x, u, t: tf.reduce_sum(u**2, 1),
        ...                  lambda x: tf.reduce_sum((x - 1.0)**2, 1), horizon=3)
        >>> double.horizon
        3
    """

    def __init__(
        self,
        dynamics,
        running_cost,
        terminal_cost,
        horizon,
        *,
        lower=None,
        upper=None,
        derivatives=None,
    ):
        functions = {"dynamics": dynamics, "running_cost": running_cost, "terminal_cost": terminal_cost}
        for name, function in functions.items():
            if not callable(function):
                raise _checks.error(name, "be callable", function)
        _checks.check_integer("horizon", horizon, least=1)
        derivatives = Derivatives() if derivatives is None else derivatives
        if not isinstance(derivatives, Derivatives):
            raise _checks.error("derivatives", "be a `Derivatives` or None", derivatives)
        self.dynamics, self.running_cost, self.terminal_cost = functions.values()
        self.horizon = horizon
        self.derivatives = derivatives
        self.lower, self.upper = _limits(lower, upper, horizon)
        self.compiled = {}  # the loops that `solve` compiled, by options, shapes and dtype

    def limits(self, controls):
        """Limits of the controls, as tensors.

        Args:
            controls: `[T, B, m]`, for its shape and dtype.

        Returns:
            Lower and upper limits `[T, 1, m]`, or `None` where there are none.

        Raises:
            ValueError: if the limits do not broadcast to `[T, m]`.
        """
        if self.lower is None:
            return None
        T, _, m = controls.shape
        for name in ("lower", "upper"):
            if getattr(self, name).shape not in {(1, 1), (1, m), (T, 1), (T, m)}:
                raise _checks.error(f"{name}.shape", f"broadcast to [T, m] = {[T, m]}", getattr(self, name).shape)
        return tuple(
            tf.constant(np.broadcast_to(limit, [T, m])[:, None], controls.dtype) for limit in (self.lower, self.upper)
        )

    def next_of(self, x, u, t):
        """The dynamics, with their result checked.

        Args:
            x: `[rows, n]`.
            u: `[rows, m]`.
            t: `[rows]`.

        Returns:
            `[rows, n]`.

        Raises:
            ValueError: if the shape or dtype is wrong.
        """
        return _result("dynamics", self.dynamics(x, u, t), x, list(x.shape))

    def cost_of(self, x, u, t):
        """The running cost, with its result checked.

        Args:
            x: `[rows, n]`.
            u: `[rows, m]`.
            t: `[rows]`.

        Returns:
            `[rows]`.

        Raises:
            ValueError: if the shape or dtype is wrong.
        """
        return _result("running_cost", self.running_cost(x, u, t), x, [x.shape[0]])

    def terminal_cost_of(self, x):
        """The terminal cost, with its result checked.

        Args:
            x: `[rows, n]`.

        Returns:
            `[rows]`.

        Raises:
            ValueError: if the shape or dtype is wrong.
        """
        return _result("terminal_cost", self.terminal_cost(x), x, [x.shape[0]])


def _limits(lower, upper, horizon):
    if lower is None and upper is None:
        return None, None
    both = []
    for name, limit, none in (("lower", lower, -np.inf), ("upper", upper, np.inf)):
        array = np.asarray(none if limit is None else limit, np.float64)
        if array.ndim > 2 or np.isnan(array).any():
            raise _checks.error(name, f"be free of NaN and broadcast to [T, m] with T = {horizon}", limit)
        both.append(np.atleast_2d(array))
    lower, upper = both
    try:
        crossed = lower > upper
    except ValueError:
        raise _checks.error("lower.shape", "fit that of `upper`", (lower.shape, upper.shape)) from None
    if crossed.any():
        raise _checks.error("lower", "be at most `upper` everywhere", (lower.tolist(), upper.tolist()))
    return lower, upper


def _result(name, result, x, shape):
    result = tf.convert_to_tensor(result)
    if result.dtype != x.dtype:
        raise _checks.error(name, f"return the dtype of its state, {x.dtype.name}", result.dtype.name)
    if not result.shape.is_compatible_with(shape):
        hint = "Functions see rows: x [rows, n], u [rows, m], t [rows]."
        raise _checks.error(name, f"return the shape {shape}", result.shape.as_list(), hint)
    return tf.ensure_shape(result, shape)
