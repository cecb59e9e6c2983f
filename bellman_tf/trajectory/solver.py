"""Differential dynamic programming: the loop around the backward sweep and the forward pass."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from bellman_tf import _checks
from bellman_tf.bellman import Gains, Value
from bellman_tf.trajectory import backward, forward
from bellman_tf.trajectory.backward import Sweep
from bellman_tf.trajectory.derivatives import model_along
from bellman_tf.trajectory.forward import Rollout
from bellman_tf.trajectory.options import LineSearch, Regularization
from bellman_tf.trajectory.problem import Problem
from bellman_tf.trajectory.solution import History, Solution, Status


class Options(NamedTuple):
    """What a compiled loop depends on, next to problem, shapes and dtype; the arguments of `solve`."""

    second_order: bool
    max_iterations: int
    gradient_tolerance: float | None
    cost_tolerance: float | None
    regularization: Regularization
    line_search: LineSearch
    jit_compile: bool


class _Loop(NamedTuple):
    # everything that an iteration changes
    iteration: tf.Tensor
    nominal: Rollout
    sweep: Sweep
    mu: tf.Tensor  # [B]
    rate: tf.Tensor  # [B]
    status: tf.Tensor  # [B]
    iterations: tf.Tensor  # [B]
    history: tuple  # a TensorArray per field of History


def solve(
    problem,
    x0,
    u_init,
    *,
    second_order=True,
    max_iterations=100,
    gradient_tolerance=None,
    cost_tolerance=None,
    regularization=None,
    line_search=None,
    jit_compile=True,
):
    """Minimises the cost of a problem over its controls by differential dynamic programming.

    An iteration follows the current policy, backtracking until the cost falls as the quadratic model expects, takes
    derivatives along the new trajectory, and sweeps back for a new policy. With `second_order` the model has the
    tensors of the dynamics and convergence is quadratic; without them it is the Gauss-Newton form (iLQR), cheaper per
    iteration and linear. Instances of a batch do not see each other: each has its own regularisation, step size and
    status, and one that has stopped does not change any more.

    The loop is compiled once per set of options, shapes and dtype; its size does not depend on the horizon.

    Args:
        problem: `Problem`.
        x0: initial states, `[n]` or `[B, n]`, float32 or float64.
        u_init: first controls, `[T, m]` or `[B, T, m]`. They must be within the limits; inside a `tf.function`, where
            that cannot be seen, they are clipped.
        second_order: whether to use second derivatives of the dynamics.
        max_iterations: line searches per instance.
        gradient_tolerance: on the largest entry of the projected gradient, relative to 1 + |cost|; `None` is the
            square root of the machine precision.
        cost_tolerance: on the reduction of a full step that needed no regularisation, relative to 1 + |cost|; `None`
            is the machine precision to the power 3/4.
        regularization: `Regularization`.
        line_search: `LineSearch`.
        jit_compile: compile with XLA, which takes some seconds once and makes an iteration many times faster
            (`benchmarks/trajectory.py`). `False` for callables that XLA cannot compile, or to solve once.

    Returns:
        `Solution`, with batch axis if `x0` had one.

    Raises:
        ValueError: if a shape, dtype or option is wrong, or `u_init` is outside the limits.

    Numerics: what depends on data is in `Solution.status`, never an exception: a cost that is not finite, an
        indefinite Q_uu beyond the largest regularisation, a line search that fails. NaN is returned only as the
        states and cost of a `NON_FINITE` first trajectory.
    Source: Tassa, Erez, Todorov (2012); Tassa, Mansard, Todorov (2014).
    Checked against: `verification/references/trajectory.py`.

    Example:
        >>> double = Problem(lambda x, u, t: x + u, lambda x, u, t: tf.reduce_sum(u**2, 1),
        ...                  lambda x: tf.reduce_sum((x - 4.0)**2, 1), horizon=3)
        >>> solution = solve(double, tf.zeros([1]), tf.zeros([3, 1]))
        >>> solution.controls.numpy().round(3).tolist(), Status(int(solution.status)).name
        ([[1.0], [1.0], [1.0]], 'CONVERGED_GRADIENT')
    """
    regularization = Regularization() if regularization is None else regularization
    line_search = LineSearch() if line_search is None else line_search
    if not isinstance(problem, Problem):
        raise _checks.error("problem", "be a `Problem`", problem)
    for name, value, kind in (
        ("regularization", regularization, Regularization),
        ("line_search", line_search, LineSearch),
    ):
        if not isinstance(value, kind):
            raise _checks.error(name, f"be a `{kind.__name__}` or None", value)
    _checks.check_integer("max_iterations", max_iterations, least=0)
    for name, value in (("second_order", second_order), ("jit_compile", jit_compile)):
        _checks.check_flag(name, value)
    for name, value in (("gradient_tolerance", gradient_tolerance), ("cost_tolerance", cost_tolerance)):
        if value is not None:
            _checks.check_real(name, value, least=0.0)
    x0, u_init, batched = _inputs(problem, x0, u_init)
    options = Options(
        second_order, max_iterations, gradient_tolerance, cost_tolerance, regularization, line_search, jit_compile
    )
    controls = tf.transpose(u_init, [1, 0, 2])
    key = (options, tuple(x0.shape), controls.shape[2], x0.dtype)
    if key not in problem.compiled:
        run = tf.function(
            lambda x0, controls: _run(problem, options, x0, controls),
            jit_compile=True if jit_compile else None,
            autograph=False,
        )
        problem.compiled[key] = run.get_concrete_function(
            *(tf.TensorSpec(array.shape, array.dtype) for array in (x0, controls))
        )
    nominal, sweep, status, iterations, history = problem.compiled[key](x0, controls)
    last = tf.reduce_max(iterations) + 1
    solution = Solution(
        _batch_first(nominal.states),
        _batch_first(nominal.controls),
        Gains(_batch_first(sweep.open_loop), _batch_first(sweep.feedback)),
        Value(_batch_first(sweep.V_x), _batch_first(sweep.V_xx)),
        nominal.cost,
        status,
        iterations,
        History(*(tf.transpose(array[:last]) for array in history)),
    )
    return solution if batched else tf.nest.map_structure(lambda x: None if x is None else x[0], solution)


def _batch_first(array):
    return tf.transpose(array, [1, 0, *range(2, array.shape.rank)])


def _inputs(problem, x0, u_init):
    """The initial states `[B, n]` and controls `[B, T, m]`, and whether there was a batch axis."""
    x0 = tf.convert_to_tensor(x0)
    _checks.check_float_dtype("x0", x0)
    u_init = tf.convert_to_tensor(u_init)
    if u_init.dtype != x0.dtype:
        raise _checks.error("u_init.dtype", f"be that of `x0`, {x0.dtype.name}", u_init.dtype.name)
    batched = x0.shape.rank == 2
    if x0.shape.rank not in {1, 2} or not x0.shape.is_fully_defined() or 0 in x0.shape:
        raise _checks.error("x0.shape", "be [n] or [B, n], not empty and known while tracing", x0.shape)
    lead = list(x0.shape[:-1])
    wanted = [*lead, problem.horizon, None]
    if not u_init.shape.is_compatible_with(wanted) or u_init.shape[-1] in {None, 0}:
        rule = f"be [T, m] or [B, T, m] as `x0` is [n] or [B, n], here {[*lead, problem.horizon, 'm']}"
        raise _checks.error("u_init.shape", rule, u_init.shape.as_list() if u_init.shape.rank is not None else None)
    u_init = tf.ensure_shape(u_init, [*lead, problem.horizon, u_init.shape[-1]])
    if not batched:
        x0, u_init = x0[None], u_init[None]
    limits = problem.limits(tf.zeros([u_init.shape[1], 1, u_init.shape[2]], u_init.dtype))
    if limits is not None:
        inside = tf.clip_by_value(u_init, *(limit[:, 0] for limit in limits))
        if tf.executing_eagerly():
            gap = float(tf.reduce_max(tf.abs(inside - u_init)))
            if gap > 0.0:
                hint = "Clip it first: that changes where the search starts."
                raise _checks.error("u_init", "be within the limits of the problem", f"outside by up to {gap:g}", hint)
        u_init = inside
    return x0, u_init, batched


def _run(problem, options, x0, controls):
    """The whole solve, `[B, n]` and `[T, B, m]`, time first everywhere."""
    dtype, B = x0.dtype, x0.shape[0]
    eps = float(np.finfo(dtype.as_numpy_dtype).eps)
    schedule = options.regularization
    gradient_tolerance = eps**0.5 if options.gradient_tolerance is None else options.gradient_tolerance
    cost_tolerance = eps**0.75 if options.cost_tolerance is None else options.cost_tolerance
    limits = problem.limits(controls)

    def sweep_along(nominal, mu, rate, status):
        model = model_along(problem, nominal.states, nominal.controls, options.second_order)
        finite = backward.is_finite(model)
        running = status == Status.RUNNING
        status = _set(status, running & ~finite, Status.NON_FINITE)
        model = backward.zero_where(model, ~finite | (status == Status.NON_FINITE))
        sweep, mu, rate = backward.regularised_sweep(
            model, nominal.controls, limits, mu, rate, status == Status.RUNNING, schedule
        )
        status = _set(status, ~sweep.definite, Status.INDEFINITE)
        small = sweep.gradient <= gradient_tolerance * (1.0 + tf.abs(nominal.cost))
        return sweep, mu, rate, _set(status, small, Status.CONVERGED_GRADIENT)

    def record(history, i, nominal, sweep, step, mu):
        entries = (nominal.cost, sweep.gradient, forward.expected_reduction(sweep, 1.0), step, mu)
        return tuple(array.write(i, entry) for array, entry in zip(history, entries, strict=True))

    def unfinished(loop):
        return (loop.iteration <= options.max_iterations) & tf.reduce_any(loop.status == Status.RUNNING)

    def iterate(loop):  # number 0 only sweeps along the first trajectory
        i, nominal, mu, rate = loop.iteration, loop.nominal, loop.mu, loop.rate
        running = loop.status == Status.RUNNING
        moving = running & (i > 0)
        found = forward.search(problem, nominal, loop.sweep, moving, limits, options.line_search)
        accepted = moving & (found.step > 0.0)

        negligible = cost_tolerance * (1.0 + tf.abs(nominal.cost))
        promise = forward.expected_reduction(loop.sweep, 1.0)
        converged = tf.where(accepted, (found.reduction <= negligible) & (found.step >= 1.0), promise <= negligible)
        converged &= moving & (mu <= 0.0)

        up, down = backward.stronger(mu, rate, schedule), backward.weaker(mu, rate, schedule)
        refused = moving & ~accepted & ~converged
        mu, rate = (
            tf.where(accepted, low, tf.where(refused, high, old))
            for old, low, high in zip((mu, rate), down, up, strict=True)
        )
        # whoever gave up keeps its sweep; whoever converged gets one at its new trajectory
        status = _set(loop.status, refused & (mu > schedule.largest), Status.LINE_SEARCH_FAILED)
        swept = running & (status == Status.RUNNING)
        sweep, mu, rate, status = sweep_along(found.rollout, mu, rate, status)
        status = _set(status, converged, Status.CONVERGED_COST)
        sweep = _where(swept, sweep, loop.sweep)
        history = record(loop.history, i, found.rollout, sweep, found.step, mu)
        iterations = tf.where(running, i, loop.iterations)
        return (_Loop(i + 1, found.rollout, sweep, mu, rate, status, iterations, history),)

    start = forward.roll(problem, x0, controls)
    status = tf.where(forward.is_finite(start), int(Status.RUNNING), int(Status.NON_FINITE))
    T, _, m = controls.shape
    nothing = backward.no_sweep(T, B, m, x0.shape[1], dtype)
    mu, rate = (tf.fill([B], tf.constant(value, dtype)) for value in (schedule.initial, 1.0))
    history = tuple(
        tf.TensorArray(dtype, options.max_iterations + 1, element_shape=[B], clear_after_read=False)
        for _ in History._fields
    )
    # an instance that is not finite from the start has no iteration at all, but its cost belongs into the history
    history = record(history, 0, start, nothing, mu * 0.0, mu)
    loop = _Loop(tf.constant(0), start, nothing, mu, rate, status, tf.zeros([B], tf.int32), history)
    (loop,) = tf.while_loop(unfinished, iterate, (loop,))
    status = _set(loop.status, loop.status == Status.RUNNING, Status.MAX_ITERATIONS)
    unusable = (status == Status.INDEFINITE) | (status == Status.NON_FINITE)
    sweep = _where(unusable, nothing, loop.sweep)
    return loop.nominal, sweep, status, loop.iterations, tuple(array.stack() for array in loop.history)


def _set(status, where, new):
    return tf.where(where & (status == Status.RUNNING), int(new), status)


def _where(chosen, new, old):
    """Sweep of the chosen instances from `new`, of the others from `old`."""
    axes = Sweep(1, 1, 1, 1, 0, 0, 0, 0)

    def merged(x, y, axis):
        shape = [1] * axis + [-1] + [1] * (x.shape.rank - axis - 1)
        return tf.where(tf.reshape(chosen, shape), x, y)

    return Sweep(*map(merged, new, old, axes))
