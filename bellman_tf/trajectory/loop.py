"""The loop around the backward sweep, the forward pass and the renewal of multipliers."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from bellman_tf._typing import Batch, Scalar, Size
from bellman_tf.bellman import Gains, Value
from bellman_tf.trajectory import backward, constraints, forward
from bellman_tf.trajectory.backward import Sweep
from bellman_tf.trajectory.constraints import Lagrangian
from bellman_tf.trajectory.derivatives import model_along
from bellman_tf.trajectory.forward import Rollout
from bellman_tf.trajectory.options import AugmentedLagrangian, LineSearch, Regularization
from bellman_tf.trajectory.problem import Problem
from bellman_tf.trajectory.regularisation import stronger, weaker
from bellman_tf.trajectory.solution import History, Solution, Status


class Options(NamedTuple):
    """What a compiled loop depends on, next to problem, shapes and dtype; the arguments of `solve`."""

    second_order: bool
    max_iterations: int
    gradient_tolerance: float | None
    cost_tolerance: float | None
    regularization: Regularization
    line_search: LineSearch
    augmented_lagrangian: AugmentedLagrangian
    jit_compile: bool


class _LoopState(NamedTuple):
    # everything that an iteration changes
    iteration: tf.Tensor
    nominal: Rollout
    sweep: Sweep
    swept: tf.Tensor  # [B], bool: whether the sweep is of the trajectory and multipliers that the instance has
    mu: tf.Tensor  # [B]
    rate: tf.Tensor  # [B]
    status: tf.Tensor  # [B]
    iterations: tf.Tensor  # [B]
    history: tuple[tf.TensorArray, ...]  # one per field of History
    lagrangian: Lagrangian
    gap: tf.Tensor  # [B], at the last renewal of the multipliers


def run(problem: Problem, options: Options, x0: tf.Tensor, controls: tf.Tensor) -> tuple[Solution, tf.Tensor]:
    """The whole solve, time first and instances last everywhere.

    Args:
        problem: `Problem`.
        options: `Options`.
        x0: `[n, B]`.
        controls: `[T, m, B]`, within the limits.

    Returns:
        `Solution` without its history, and `[fields of History, max_iterations + 1, B]`.
    """
    dtype = x0.dtype
    eps = float(np.finfo(dtype.as_numpy_dtype).eps)
    schedule = options.regularization
    gradient_tolerance = eps**0.5 if options.gradient_tolerance is None else options.gradient_tolerance
    cost_tolerance = eps**0.75 if options.cost_tolerance is None else options.cost_tolerance
    limits = problem.limits(controls)
    schedule_of_multipliers = options.augmented_lagrangian
    constraint_tolerance = eps**0.5 if schedule_of_multipliers.tolerance is None else schedule_of_multipliers.tolerance

    def sweep_along(
        nominal: Rollout, mu: Batch, rate: Batch, status: Batch, lagrangian: Lagrangian
    ) -> tuple[Sweep, Batch, Batch, Batch]:
        model = model_along(problem, nominal.states, nominal.controls, options.second_order, lagrangian)
        sweep, mu, rate = backward.regularised_sweep(
            model, nominal.controls, limits, mu, rate, status == Status.RUNNING, schedule
        )
        status = _set(_set(status, ~sweep.finite, Status.NON_FINITE), ~sweep.definite, Status.INDEFINITE)
        small = sweep.gradient <= gradient_tolerance * (1.0 + tf.abs(nominal.cost))
        if problem.constrained:  # good enough for new multipliers
            gap = constraints.gap(constraints.values(problem, nominal.states, nominal.controls), lagrangian)
            small |= (gap > constraint_tolerance) & (sweep.gradient <= schedule_of_multipliers.inexact * gap)
        return sweep, mu, rate, _set(status, small, Status.CONVERGED_GRADIENT)

    def record(
        history: tuple[tf.TensorArray, ...], i: Size, nominal: Rollout, sweep: Sweep, step: Batch, mu: Batch
    ) -> tuple[tf.TensorArray, ...]:
        entries = (nominal.cost, sweep.gradient, forward.expected_reduction(sweep, 1.0), step, mu)
        return tuple(array.write(i, entry) for array, entry in zip(history, entries, strict=True))

    def unfinished(loop: _LoopState) -> Scalar:
        return (loop.iteration <= options.max_iterations) & tf.reduce_any(loop.status == Status.RUNNING)

    def iterate(
        loop: _LoopState,
    ) -> tuple[_LoopState]:  # number 0, and one after new multipliers, only sweeps along the trajectory that it has
        i, nominal, mu, rate = loop.iteration, loop.nominal, loop.mu, loop.rate
        running = loop.status == Status.RUNNING
        moving = running & loop.swept
        found = forward.search(problem, nominal, loop.sweep, moving, limits, options.line_search, loop.lagrangian)
        accepted = moving & (found.step > 0.0)

        negligible = cost_tolerance * (1.0 + tf.abs(nominal.cost))
        promise = forward.expected_reduction(loop.sweep, 1.0)
        converged = tf.where(accepted, (found.reduction <= negligible) & (found.step >= 1.0), promise <= negligible)
        converged &= moving & (mu <= 0.0)

        up, down = stronger(mu, rate, schedule), weaker(mu, rate, schedule)
        refused = moving & ~accepted & ~converged
        mu, rate = (
            tf.where(accepted, low, tf.where(refused, high, old))
            for old, low, high in zip((mu, rate), down, up, strict=True)
        )
        # An instance that has stopped keeps its trajectory and the mu of its last sweep: sweeping it along once more
        # gives the same sweep, and takes less time than choosing between two.
        status = _set(loop.status, refused & (mu > schedule.largest), Status.LINE_SEARCH_FAILED)
        mu = tf.where(moving & (status == Status.LINE_SEARCH_FAILED), loop.mu, mu)
        swept = running & (status == Status.RUNNING)
        sweep, mu, rate, status = sweep_along(found.rollout, mu, rate, status, loop.lagrangian)
        status = _set(status, converged, Status.CONVERGED_COST)
        if problem.constrained:  # the last renewal of its multipliers came after its sweep
            sweep = _where(swept, sweep, loop.sweep)
        history = record(loop.history, i, found.rollout, sweep, found.step, mu)
        loop = _LoopState(
            i + 1,
            found.rollout,
            sweep,
            tf.ones_like(running),
            mu,
            rate,
            status,
            tf.where(running, i, loop.iterations),
            history,
            loop.lagrangian,
            loop.gap,
        )
        if not problem.constrained:
            return (loop,)
        return (_renewed(problem, schedule_of_multipliers, constraint_tolerance, running, loop),)

    T, m, B = controls.shape
    begin = schedule_of_multipliers.initial
    start = forward.roll(problem, x0, controls)
    multipliers = tf.nest.map_structure(tf.zeros_like, constraints.values(problem, start.states, controls))
    lagrangian = Lagrangian(multipliers, tf.fill([B], tf.constant(begin, dtype)))
    start = start._replace(cost=forward.total_cost(problem, start.states, controls, lagrangian))
    status = tf.where(forward.is_finite(start), int(Status.RUNNING), int(Status.NON_FINITE))
    nothing = backward.no_sweep(T, B, m, x0.shape[0], dtype)
    mu, rate, gap = (tf.fill([B], tf.constant(value, dtype)) for value in (schedule.initial, 1.0, np.inf))
    history = tuple(
        tf.TensorArray(dtype, options.max_iterations + 1, element_shape=[B], clear_after_read=False)
        for _ in History._fields
    )
    # an instance that is not finite from the start has no iteration at all, but its cost belongs into the history
    history = record(history, 0, start, nothing, mu * 0.0, mu)
    unswept = tf.zeros([B], tf.bool)
    iterations = tf.zeros([B], tf.int32)
    loop = _LoopState(tf.constant(0), start, nothing, unswept, mu, rate, status, iterations, history, lagrangian, gap)
    (loop,) = tf.while_loop(unfinished, iterate, (loop,))
    status = _set(loop.status, loop.status == Status.RUNNING, Status.MAX_ITERATIONS)
    unusable = (status == Status.INDEFINITE) | (status == Status.NON_FINITE)
    sweep = _where(unusable, nothing, loop.sweep)
    states, controls, cost = loop.nominal
    solution = Solution(
        states,
        controls,
        Gains(sweep.open_loop, sweep.feedback),
        Value(sweep.V_x, sweep.V_xx),
        forward.total_cost(problem, states, controls) if problem.constrained else cost,
        status,
        loop.iterations,
        History._make([cost] * len(History._fields)),
        loop.lagrangian.multipliers,
        constraints.violation(constraints.values(problem, states, controls)),
    )
    return solution, tf.stack([array.stack() for array in loop.history])


def _renewed(
    problem: Problem, schedule: AugmentedLagrangian, tolerance: float, running: tf.Tensor, loop: _LoopState
) -> _LoopState:
    """Renews the multipliers of the instances that have just converged; those outside the tolerance go on."""
    states, controls, cost = loop.nominal
    old = loop.lagrangian
    converged = (loop.status == Status.CONVERGED_GRADIENT) | (loop.status == Status.CONVERGED_COST)
    converged &= running
    found = constraints.values(problem, states, controls)
    gap = constraints.gap(found, old)
    short = converged & (gap > tolerance)
    grown = tf.where(short & (gap > schedule.progress * loop.gap), old.penalty * schedule.factor, old.penalty)
    exhausted = short & (grown > schedule.largest)
    goes_on = short & ~exhausted
    status = tf.where(exhausted, int(Status.INFEASIBLE), loop.status)
    status = tf.where(goes_on, int(Status.RUNNING), status)
    multipliers = tf.nest.map_structure(
        lambda new, before: tf.where(converged, new, before),
        constraints.multipliers_of(found, old),
        old.multipliers,
    )
    lagrangian = Lagrangian(multipliers, tf.where(goes_on, grown, old.penalty))
    renewed = forward.total_cost(problem, states, controls, lagrangian)
    return loop._replace(
        nominal=Rollout(states, controls, tf.where(goes_on, renewed, cost)),
        swept=~goes_on,
        status=status,
        lagrangian=lagrangian,
        gap=tf.where(converged, gap, loop.gap),
    )


def _set(status: tf.Tensor, where: tf.Tensor, new: Status) -> tf.Tensor:
    return tf.where(where & (status == Status.RUNNING), int(new), status)


def _where(chosen: tf.Tensor, new: Sweep, old: Sweep) -> Sweep:
    """Sweep of the chosen instances from `new`, of the others from `old`."""
    return Sweep._make(tf.where(chosen, x, y) for x, y in zip(new, old, strict=True))
