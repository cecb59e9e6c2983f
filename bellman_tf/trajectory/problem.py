"""An optimal control problem: what moves, what it costs, how long, within which limits and inequalities."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from bellman_tf import _checks
from bellman_tf.trajectory.given_derivatives import Derivatives

OfStage: TypeAlias = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]  # (x, u, t) of rows
OfState: TypeAlias = Callable[[tf.Tensor], tf.Tensor]  # (x) of rows
Limit: TypeAlias = float | np.ndarray | Sequence[float] | Sequence[Sequence[float]] | None


class Problem:
    """Minimise sum_{t < T} l(x_t, u_t, t) + phi(x_T) with x_{t+1} = f(x_t, u_t, t), lower_t <= u_t <= upper_t.

    With inequalities also g(x_t, u_t, t) <= 0 for t < T and h(x_T) <= 0, entry by entry.

    The functions see rows: `x [rows, n]`, `u [rows, m]` and `t [rows]`, an int32 time from 0 to T - 1 per row. They
    must treat every row by itself (no mean over rows), keep the dtype, and be written in TensorFlow without `if` and
    `while` on tensors; they are traced once, so what changes between solves belongs into a `tf.Variable`. Rows are
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
        derivatives: `Derivatives` to use instead of automatic differentiation; inequalities are always differentiated
            automatically.
        inequality: g, `(x, u, t) -> [rows, p]`, or `None`. Limits of controls are cheaper as `lower`
            and `upper`.
        terminal_inequality: h, `(x) -> [rows, q]`, or `None`.

    Raises:
        ValueError: if a function cannot be called, the horizon is not a positive integer, a limit is NaN, or the
            limits cross.

    Example:
        >>> double = Problem(lambda x, u, t: x + u, lambda x, u, t: tf.reduce_sum(u**2, 1),
        ...                  lambda x: tf.reduce_sum((x - 1.0)**2, 1), horizon=3)
        >>> double.horizon
        3
        >>> slow = Problem(double.dynamics, double.running_cost, double.terminal_cost, horizon=3,
        ...                inequality=lambda x, u, t: tf.abs(u) - 0.1)
        >>> slow.constrained
        True
    """

    def __init__(
        self,
        dynamics: OfStage,
        running_cost: OfStage,
        terminal_cost: OfState,
        horizon: int,
        *,
        lower: Limit = None,
        upper: Limit = None,
        derivatives: Derivatives | None = None,
        inequality: OfStage | None = None,
        terminal_inequality: OfState | None = None,
    ) -> None:
        functions = {"dynamics": dynamics, "running_cost": running_cost, "terminal_cost": terminal_cost}
        for name, function in functions.items():
            if not callable(function):
                raise _checks.error(name, "be callable", function)
        inequalities = {"inequality": inequality, "terminal_inequality": terminal_inequality}
        for name, function in inequalities.items():
            if function is not None and not callable(function):
                raise _checks.error(name, "be callable or None", function)
        _checks.check_integer("horizon", horizon, least=1)
        derivatives = Derivatives() if derivatives is None else derivatives
        if not isinstance(derivatives, Derivatives):
            raise _checks.error("derivatives", "be a `Derivatives` or None", derivatives)
        for name, function in derivatives._asdict().items():
            if function is not None and not callable(function):
                raise _checks.error(f"derivatives.{name}", "be callable or None", function)
        self.dynamics, self.running_cost, self.terminal_cost = dynamics, running_cost, terminal_cost
        self.inequality, self.terminal_inequality = inequality, terminal_inequality
        self.horizon = horizon
        self.derivatives = derivatives
        self.lower, self.upper = _limits(lower, upper, horizon)
        # The programs that `solve` compiled, of (x0, u_init), by options, shapes and dtype.
        self.compiled: dict[Hashable, Callable[[tf.Tensor, tf.Tensor], Any]] = {}

    @property
    def constrained(self) -> bool:
        """Whether there is an inequality beyond the limits of the controls."""
        return self.inequality is not None or self.terminal_inequality is not None

    def limits(self, controls: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor] | None:
        """Limits of the controls, as tensors.

        Args:
            controls: `[T, m, B]`, for its shape and dtype.

        Returns:
            Lower and upper limits `[T, m, 1]`, or `None` where there are none.

        Raises:
            ValueError: if the limits do not broadcast to `[T, m]`.
        """
        arrays = self.limit_arrays(controls.shape[1])
        if arrays is None:
            return None
        lower, upper = (tf.constant(limit[:, :, None], controls.dtype) for limit in arrays)
        return lower, upper

    def limit_arrays(self, controls: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Limits of the controls, as float64 arrays.

        Args:
            controls: m, their number.

        Returns:
            Lower and upper limits `[T, m]`, or `None` where there are none.

        Raises:
            ValueError: if the limits do not broadcast to `[T, m]`.
        """
        if self.lower is None or self.upper is None:
            return None
        wanted = (self.horizon, controls)
        for name, limit in (("lower", self.lower), ("upper", self.upper)):
            if any(size not in {1, full} for size, full in zip(limit.shape, wanted, strict=True)):
                raise _checks.error(f"{name}.shape", f"broadcast to [T, m] = {list(wanted)}", limit.shape)
        return np.broadcast_to(self.lower, wanted), np.broadcast_to(self.upper, wanted)

    def next_of(self, x: tf.Tensor, u: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
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

    def cost_of(self, x: tf.Tensor, u: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
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

    def terminal_cost_of(self, x: tf.Tensor) -> tf.Tensor:
        """The terminal cost, with its result checked.

        Args:
            x: `[rows, n]`.

        Returns:
            `[rows]`.

        Raises:
            ValueError: if the shape or dtype is wrong.
        """
        return _result("terminal_cost", self.terminal_cost(x), x, [x.shape[0]])

    def inequality_of(self, x: tf.Tensor, u: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
        """The inequalities of a stage, with their result checked.

        Args:
            x: `[rows, n]`.
            u: `[rows, m]`.
            t: `[rows]`.

        Returns:
            `[rows, p]`, p = 0 where there are none.

        Raises:
            ValueError: if the shape or dtype is wrong.
        """
        if self.inequality is None:
            return tf.zeros([x.shape[0], 0], x.dtype)
        return _result("inequality", self.inequality(x, u, t), x, [x.shape[0], "p"])

    def terminal_inequality_of(self, x: tf.Tensor) -> tf.Tensor:
        """The inequalities at the end, with their result checked.

        Args:
            x: `[rows, n]`.

        Returns:
            `[rows, q]`, q = 0 where there are none.

        Raises:
            ValueError: if the shape or dtype is wrong.
        """
        if self.terminal_inequality is None:
            return tf.zeros([x.shape[0], 0], x.dtype)
        return _result("terminal_inequality", self.terminal_inequality(x), x, [x.shape[0], "q"])


def _limits(lower: Limit, upper: Limit, horizon: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    if lower is None and upper is None:
        return None, None
    both = []
    for name, limit, none in (("lower", lower, -np.inf), ("upper", upper, np.inf)):
        wrong = _checks.error(name, f"be free of NaN and broadcast to [T, m] with T = {horizon}", limit)
        try:
            array = np.asarray(none if limit is None else limit, np.float64)
        except (TypeError, ValueError) as cause:
            raise wrong from cause
        if array.ndim > 2 or np.isnan(array).any():
            raise wrong
        both.append(np.atleast_2d(array))
    least, most = both
    try:
        crossed = least > most
    except ValueError:
        received = {"lower.shape": least.shape, "upper.shape": most.shape}
        raise _checks.misfit("lower.shape", "fit that of `upper`", received) from None
    if crossed.any():
        received = {"lower": least.tolist(), "upper": most.tolist()}
        raise _checks.misfit("lower", "be at most `upper` everywhere", received)
    return least, most


def _result(name: str, result: tf.Tensor, x: tf.Tensor, shape: list[int | str]) -> tf.Tensor:
    """The result of a function of rows, checked; a letter in `shape` is an axis of any size that is known."""
    try:
        result = tf.convert_to_tensor(result)
    except (TypeError, ValueError) as cause:
        raise _checks.error(name, f"return a tensor [{', '.join(map(str, shape))}]", result) from cause
    sizes = [None if isinstance(size, str) else size for size in shape]
    if result.dtype != x.dtype:
        raise _checks.error(name, f"return the dtype of its state, {x.dtype.name}", result.dtype.name)
    if not result.shape.is_compatible_with(sizes) or (None in sizes and result.shape[-1] is None):
        hint = "Functions see rows: x [rows, n], u [rows, m], t [rows]."
        raise _checks.error(name, f"return the shape [{', '.join(map(str, shape))}]", result.shape.as_list(), hint)
    return tf.ensure_shape(result, sizes)
