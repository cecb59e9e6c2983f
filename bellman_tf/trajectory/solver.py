"""Differential dynamic programming: the arguments of a solve, and the program compiled for them."""

import numpy as np
import tensorflow as tf

from bellman_tf import _checks
from bellman_tf.trajectory.loop import Options, run
from bellman_tf.trajectory.options import AugmentedLagrangian, LineSearch, Regularization
from bellman_tf.trajectory.parallel import Program, in_parts
from bellman_tf.trajectory.problem import Problem
from bellman_tf.trajectory.small_matrices import first, last, transposed_last
from bellman_tf.trajectory.solution import History, Solution, continued


def solve(
    problem: Problem,
    x0: tf.Tensor | np.ndarray,
    u_init: tf.Tensor | np.ndarray,
    *,
    second_order: bool = True,
    max_iterations: int = 100,
    gradient_tolerance: float | None = None,
    cost_tolerance: float | None = None,
    regularization: Regularization | None = None,
    line_search: LineSearch | None = None,
    augmented_lagrangian: AugmentedLagrangian | None = None,
    jit_compile: bool = True,
    threads: int = 1,
) -> Solution:
    """Minimises the cost of a problem over its controls by differential dynamic programming.

    An iteration follows the current policy, backtracking until the cost falls as the quadratic model expects, takes
    derivatives along the new trajectory, and sweeps back for a new policy. With `second_order` the model has the
    tensors of the dynamics and convergence is quadratic; without them it is the Gauss-Newton form (iLQR), cheaper per
    iteration and linear. Instances of a batch do not see each other: each has its own regularisation, step size and
    status, and one that has stopped does not change any more.

    Inequalities of the problem enter by an augmented Lagrangian: an instance that has converged, or is near enough for
    the violation that is left, renews its multipliers and, where they settle too slowly, its penalty, and goes on from
    there, until its inequalities hold as well. Such a renewal is an iteration of its own.

    The loop is compiled once per set of options, shapes and dtype; its size does not depend on the horizon.

    Args:
        problem: `Problem`.
        x0: initial states, `[n]` or `[B, n]`, float32 or float64.
        u_init: first controls, `[T, m]` or `[B, T, m]`. They must be within the limits; inside a `tf.function`, where
            that cannot be seen, they are clipped.
        second_order: whether to use second derivatives of the dynamics.
        max_iterations: line searches and renewals of multipliers per instance.
        gradient_tolerance: on the largest entry of the projected gradient, and on the reduction that a full step
            promises, relative to 1 + |cost|; `None` is the square root of the machine precision.
        cost_tolerance: on the reduction of a full step that needed no regularisation, relative to 1 + |cost|; `None`
            is the machine precision to the power 3/4.
        regularization: `Regularization`.
        line_search: `LineSearch`.
        augmented_lagrangian: `AugmentedLagrangian`, for problems with inequalities.
        jit_compile: compile with XLA, which takes some seconds once and makes an iteration many times faster
            (`benchmarks/trajectory.py`). `False` for callables that XLA cannot compile, or to solve once.
        threads: the initial states of a batch are divided into so many equal parts, which run side by side where
            TensorFlow's inter-op and intra-op pools have as many threads (by default, one per core). Rounding may
            differ between numbers of threads, as it may between sizes of a batch.

    Returns:
        `Solution`, with batch axis if `x0` had one.

    Raises:
        ValueError: if a shape, dtype or option is wrong, or `u_init` is outside the limits.

    Numerics: what depends on data is in `Solution.status`, never an exception: a cost that is not finite, an
        indefinite Q_uu beyond the largest regularisation, a line search that fails, inequalities that cannot be met.
        NaN is returned only as the states, cost and violation of a `NON_FINITE` first trajectory.
    Source: Tassa, Erez, Todorov (2012); Tassa, Mansard, Todorov (2014); with inequalities Howell, Jackson, Manchester
        (2019).
    Checked against: `verification/references/trajectory.py`, `verification/references/constrained.py`, and a published
        optimum in `verification/references/bryson_denham.py`.

    Example:
        >>> double = Problem(lambda x, u, t: x + u, lambda x, u, t: tf.reduce_sum(u**2, 1),
        ...                  lambda x: tf.reduce_sum((x - 4.0)**2, 1), horizon=3)
        >>> solution = solve(double, tf.zeros([1]), tf.zeros([3, 1]))
        >>> solution.controls.numpy().round(3).tolist(), bool(solution.converged)
        ([[1.0], [1.0], [1.0]], True)

        The same with no state behind a stage beyond 2:

        >>> limited = Problem(double.dynamics, double.running_cost, double.terminal_cost, horizon=3,
        ...                   inequality=lambda x, u, t: x + u - 2.0)
        >>> solution = solve(limited, tf.zeros([1], tf.float64), tf.zeros([3, 1], tf.float64))
        >>> solution.controls.numpy().round(3).tolist(), bool(solution.converged)
        ([[0.667], [0.667], [0.667]], True)
    """
    regularization = Regularization() if regularization is None else regularization
    line_search = LineSearch() if line_search is None else line_search
    augmented_lagrangian = AugmentedLagrangian() if augmented_lagrangian is None else augmented_lagrangian
    if not isinstance(problem, Problem):
        raise _checks.error("problem", "be a `Problem`", problem)
    for name, value, kind in (
        ("regularization", regularization, Regularization),
        ("line_search", line_search, LineSearch),
        ("augmented_lagrangian", augmented_lagrangian, AugmentedLagrangian),
    ):
        if not isinstance(value, kind):
            raise _checks.error(name, f"be a `{kind.__name__}` or None", value)
    _checks.check_integer("max_iterations", max_iterations, least=0)
    _checks.check_integer("threads", threads, least=1)
    for name, value in (("second_order", second_order), ("jit_compile", jit_compile)):
        _checks.check_flag(name, value)
    for name, value in (("gradient_tolerance", gradient_tolerance), ("cost_tolerance", cost_tolerance)):
        if value is not None:
            _checks.check_real(name, value, least=0.0)
    x0, u_init = _inputs(problem, x0, u_init)
    options = Options(
        second_order,
        max_iterations,
        gradient_tolerance,
        cost_tolerance,
        regularization,
        line_search,
        augmented_lagrangian,
        jit_compile,
    )
    key = (options, threads, tuple(x0.shape), u_init.shape[-1], x0.dtype)
    if key not in problem.compiled:
        problem.compiled[key] = _compiled(problem, options, x0, u_init, threads)
    solution, history, begin, size = problem.compiled[key](x0, u_init)
    # Nothing but this depends on how long it took. The raw operations: tf.slice makes tensors of lists anew.
    if tf.executing_eagerly():
        history = tf.raw_ops.Slice(input=history, begin=begin, size=size)
    else:  # a slice of a size that depends on x0 makes XLA take x0 for a constant, and compile again for every other
        history = continued(history, size[-1])
    return solution._replace(history=History(*tf.raw_ops.Unpack(value=history, num=len(History._fields))))


def _compiled(problem: Problem, options: Options, x0: tf.Tensor, u_init: tf.Tensor, threads: int) -> Program:
    """The whole solve as one program, from and to arrays with the batch axis first or without one.

    It returns a `Solution` without history, `[fields, ..., max_iterations + 1]` of the history, and begin and size
    of the part that is used. One program, because TensorFlow spends more time on thirty operations outside it than
    the program on an iteration.

    Returns:
        The program, `(x0, u_init)`.
    """

    def program(x0: tf.Tensor, u_init: tf.Tensor) -> tuple[Solution, tf.Tensor, tf.Tensor, tf.Tensor]:
        batched = x0.shape.rank == 2
        if not batched:
            x0, u_init = x0[None], u_init[None]
        x0, controls = transposed_last(x0), last(u_init)
        limits = problem.limits(controls)
        if limits is not None:
            controls = tf.clip_by_value(controls, *limits)
        solution, history = run(problem, options, x0, controls)
        entries = tf.reduce_max(solution.iterations) + 1
        solution = tf.nest.map_structure(lambda x: None if x is None else first(x), solution)
        history = tf.transpose(history, [0, 2, 1])
        used = history.shape[:2] if batched else history.shape[:1]
        size = tf.stack([*used, entries])
        if not batched:
            solution = tf.nest.map_structure(lambda x: None if x is None else x[0], solution)
            history = history[:, 0]
        return solution, history, tf.zeros_like(size), size

    function = tf.function(program, jit_compile=True if options.jit_compile else None, autograph=False)
    if x0.shape.rank == 2 and min(threads, x0.shape[0]) > 1:
        return in_parts(function, x0, u_init, threads)
    return function.get_concrete_function(*(tf.TensorSpec(array.shape, array.dtype) for array in (x0, u_init)))


def _inputs(
    problem: Problem, state: tf.Tensor | np.ndarray, controls: tf.Tensor | np.ndarray
) -> tuple[tf.Tensor, tf.Tensor]:
    """The initial states and controls as tensors, checked."""
    x0, u_init = tf.convert_to_tensor(state), tf.convert_to_tensor(controls)
    _checks.check_float_dtype("x0", x0)
    if u_init.dtype != x0.dtype:
        raise _checks.error("u_init.dtype", f"be that of `x0`, {x0.dtype.name}", u_init.dtype.name)
    if x0.shape.rank not in {1, 2} or not x0.shape.is_fully_defined() or 0 in x0.shape:
        raise _checks.error("x0.shape", "be [n] or [B, n], not empty and known while tracing", x0.shape)
    lead = list(x0.shape[:-1])
    wanted = [*lead, problem.horizon, None]
    if not u_init.shape.is_compatible_with(wanted) or u_init.shape[-1] in {None, 0}:
        rule = f"be [T, m] or [B, T, m] as `x0` is [n] or [B, n], here {[*lead, problem.horizon, 'm']}"
        raise _checks.error("u_init.shape", rule, u_init.shape.as_list() if u_init.shape.rank is not None else None)
    if not u_init.shape.is_fully_defined():
        u_init = tf.ensure_shape(u_init, [*lead, problem.horizon, u_init.shape[-1]])
    limits = problem.limit_arrays(u_init.shape[-1])
    if limits is not None and tf.executing_eagerly():
        array = u_init.numpy()
        lower, upper = (limit.astype(array.dtype) for limit in limits)
        gap = float(np.abs(np.clip(array, lower, upper) - array).max())
        if gap > 0.0:
            hint = "Clip it first: that changes where the search starts."
            raise _checks.error("u_init", "be within the limits of the problem", f"outside by up to {gap:g}", hint)
    return x0, u_init
