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
from bellman_tf.trajectory.forward import Rollout, SearchResult
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
    solve = _Solve(problem, options, x0, controls)
    (loop,) = tf.while_loop(solve.unfinished, solve.iterate, (solve.start(),))
    return solve.solution(loop), tf.stack([array.stack() for array in loop.history])


class _Solve:
    """What all iterations of a solve have in common: problem, options, limits, tolerances, where it starts."""

    def __init__(self, problem: Problem, options: Options, x0: tf.Tensor, controls: tf.Tensor) -> None:
        (T, m, B), (n, _) = controls.shape, x0.shape
        eps = float(np.finfo(x0.dtype.as_numpy_dtype).eps)
        self.problem, self.options, self.x0, self.controls = problem, options, x0, controls
        self.limits, self.nothing = problem.limits(controls), backward.no_sweep(T, B, m, n, x0.dtype)
        self.schedule, self.multipliers = options.regularization, options.augmented_lagrangian
        wanted = options.gradient_tolerance, options.cost_tolerance, self.multipliers.tolerance
        self.gradient_tolerance, self.cost_tolerance, self.constraint_tolerance = (
            eps**power if value is None else value for value, power in zip(wanted, (0.5, 0.75, 0.5), strict=True)
        )

    def start(self) -> _LoopState:
        """The first trajectory, along which nothing has been swept."""
        problem, (_, B), dtype = self.problem, self.x0.shape, self.x0.dtype
        start = forward.roll(problem, self.x0, self.controls)
        multipliers = tf.nest.map_structure(tf.zeros_like, constraints.values(problem, start.states, start.controls))
        lagrangian = Lagrangian(multipliers, tf.fill([B], tf.constant(self.multipliers.initial, dtype)))
        start = start._replace(cost=forward.total_cost(problem, start.states, start.controls, lagrangian))
        status = tf.where(forward.is_finite(start), int(Status.RUNNING), int(Status.NON_FINITE))
        mu, rate, gap = (tf.fill([B], tf.constant(value, dtype)) for value in (self.schedule.initial, 1.0, np.inf))
        history = tuple(
            tf.TensorArray(dtype, self.options.max_iterations + 1, element_shape=[B], clear_after_read=False)
            for _ in History._fields
        )
        # an instance that is not finite from the start has no iteration at all, but its cost belongs into the history
        history = _recorded(history, 0, start, self.nothing, mu * 0.0, mu)
        unswept, iterations = tf.zeros([B], tf.bool), tf.zeros([B], tf.int32)
        return _LoopState(
            tf.constant(0), start, self.nothing, unswept, mu, rate, status, iterations, history, lagrangian, gap
        )

    def unfinished(self, loop: _LoopState) -> Scalar:
        """Whether an instance is still running and has an iteration left."""
        return (loop.iteration <= self.options.max_iterations) & tf.reduce_any(loop.status == Status.RUNNING)

    def iterate(self, loop: _LoopState) -> tuple[_LoopState]:
        """A step, mu for the next one, a sweep along the new trajectory, new multipliers."""
        running = loop.status == Status.RUNNING
        moving = running & loop.swept  # number 0, and one after new multipliers, only sweeps along what it has
        found = forward.search(
            self.problem, loop.nominal, loop.sweep, moving, self.limits, self.options.line_search, loop.lagrangian
        )
        accepted = moving & (found.step > 0.0)
        converged = self._cost_converged(loop, found, moving, accepted)
        mu, rate, status = self._regularised(loop, moving, accepted, moving & ~accepted & ~converged)
        swept = running & (status == Status.RUNNING)
        sweep, mu, rate, status = self._sweep(loop, found.rollout, mu, rate, status)
        if self.problem.constrained:  # the last renewal of its multipliers came after its sweep
            sweep = _where(swept, sweep, loop.sweep)
        new = _LoopState(
            iteration=loop.iteration + 1,
            nominal=found.rollout,
            sweep=sweep,
            swept=tf.ones_like(running),
            mu=mu,
            rate=rate,
            status=_set(status, converged, Status.CONVERGED_COST),
            iterations=tf.where(running, loop.iteration, loop.iterations),
            history=_recorded(loop.history, loop.iteration, found.rollout, sweep, found.step, mu),
            lagrangian=loop.lagrangian,
            gap=loop.gap,
        )
        return (self._with_new_multipliers(running, new) if self.problem.constrained else new,)

    def _cost_converged(self, loop: _LoopState, found: SearchResult, moving: Batch, accepted: Batch) -> Batch:
        """Whether a full step lowered the cost by next to nothing, or none was accepted and no more was promised."""
        negligible = self.cost_tolerance * (1.0 + tf.abs(loop.nominal.cost))
        promise = forward.expected_reduction(loop.sweep, 1.0)
        converged = tf.where(accepted, (found.reduction <= negligible) & (found.step >= 1.0), promise <= negligible)
        return converged & moving & (loop.mu <= 0.0)

    def _regularised(
        self, loop: _LoopState, moving: Batch, accepted: Batch, refused: Batch
    ) -> tuple[Batch, Batch, Batch]:
        """Mu, rate and status after a step: a refused one asks for more, up to where the search has failed."""
        up, down = stronger(loop.mu, loop.rate, self.schedule), weaker(loop.mu, loop.rate, self.schedule)
        mu, rate = (
            tf.where(accepted, low, tf.where(refused, high, old))
            for old, low, high in zip((loop.mu, loop.rate), down, up, strict=True)
        )
        # An instance that has stopped keeps its trajectory and the mu of its last sweep: sweeping it along once more
        # gives the same sweep, and takes less time than choosing between two.
        status = _set(loop.status, refused & (mu > self.schedule.largest), Status.LINE_SEARCH_FAILED)
        return tf.where(moving & (status == Status.LINE_SEARCH_FAILED), loop.mu, mu), rate, status

    def _sweep(
        self, loop: _LoopState, nominal: Rollout, mu: Batch, rate: Batch, status: Batch
    ) -> tuple[Sweep, Batch, Batch, Batch]:
        """The backward pass along a new trajectory, with mu, rate and status after it."""
        problem = self.problem
        model = model_along(problem, nominal.states, nominal.controls, self.options.second_order, loop.lagrangian)
        sweep, mu, rate = backward.regularised_sweep(
            model, nominal.controls, self.limits, mu, rate, status == Status.RUNNING, self.schedule
        )
        status = _set(_set(status, ~sweep.finite, Status.NON_FINITE), ~sweep.definite, Status.INDEFINITE)
        # Limits bound the projected gradient by the room that they leave, and a large cost bounds nothing: a trajectory
        # is the end only where the next step does not promise more either.
        promise = forward.expected_reduction(sweep, 1.0)
        negligible = self.gradient_tolerance * (1.0 + tf.abs(nominal.cost))
        small = (sweep.gradient <= negligible) & (promise <= negligible)
        if problem.constrained:  # good enough for new multipliers, but not to give up at the largest penalty
            penalty, inexact = loop.lagrangian.penalty, self.multipliers.inexact
            gap = constraints.gap(constraints.values(problem, nominal.states, nominal.controls), loop.lagrangian)
            near = (sweep.gradient <= inexact * gap) & (promise <= inexact * penalty * gap**2)
            near &= penalty * self.multipliers.factor <= self.multipliers.largest
            small |= (gap > self.constraint_tolerance) & near
        return sweep, mu, rate, _set(status, small, Status.CONVERGED_GRADIENT)

    def _with_new_multipliers(self, running: Batch, loop: _LoopState) -> _LoopState:
        """Renews the multipliers of the instances that have just converged; those outside the tolerance go on."""
        states, controls, cost = loop.nominal
        old = loop.lagrangian
        converged = (loop.status == Status.CONVERGED_GRADIENT) | (loop.status == Status.CONVERGED_COST)
        converged &= running
        found = constraints.values(self.problem, states, controls)
        gap = constraints.gap(found, old)
        short = converged & (gap > self.constraint_tolerance)
        worse = short & (gap > self.multipliers.progress * loop.gap)
        grown = tf.where(worse, old.penalty * self.multipliers.factor, old.penalty)
        exhausted = short & (grown > self.multipliers.largest)
        goes_on = short & ~exhausted
        status = tf.where(exhausted, int(Status.INFEASIBLE), loop.status)
        status = tf.where(goes_on, int(Status.RUNNING), status)
        multipliers = tf.nest.map_structure(
            lambda new, before: tf.where(converged, new, before),
            constraints.multipliers_of(found, old),
            old.multipliers,
        )
        lagrangian = Lagrangian(multipliers, tf.where(goes_on, grown, old.penalty))
        renewed = forward.total_cost(self.problem, states, controls, lagrangian)
        return loop._replace(
            nominal=Rollout(states, controls, tf.where(goes_on, renewed, cost)),
            swept=~goes_on,
            status=status,
            lagrangian=lagrangian,
            gap=tf.where(converged, gap, loop.gap),
        )

    def solution(self, loop: _LoopState) -> Solution:
        """What has come of the last iteration, but for the history."""
        states, controls, cost = loop.nominal
        problem = self.problem
        status = _set(loop.status, loop.status == Status.RUNNING, Status.MAX_ITERATIONS)
        unusable = (status == Status.INDEFINITE) | (status == Status.NON_FINITE)
        sweep = _where(unusable, self.nothing, loop.sweep)
        return Solution(
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


def _recorded(
    history: tuple[tf.TensorArray, ...], i: Size, nominal: Rollout, sweep: Sweep, step: Batch, mu: Batch
) -> tuple[tf.TensorArray, ...]:
    """The history with one more entry."""
    entries = (nominal.cost, sweep.gradient, forward.expected_reduction(sweep, 1.0), step, mu)
    return tuple(array.write(i, entry) for array, entry in zip(history, entries, strict=True))


def _set(status: tf.Tensor, where: tf.Tensor, new: Status) -> tf.Tensor:
    return tf.where(where & (status == Status.RUNNING), int(new), status)


def _where(chosen: tf.Tensor, new: Sweep, old: Sweep) -> Sweep:
    """Sweep of the chosen instances from `new`, of the others from `old`."""
    return Sweep._make(tf.where(chosen, x, y) for x, y in zip(new, old, strict=True))
