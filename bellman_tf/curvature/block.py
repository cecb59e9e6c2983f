"""The interface of one player's curvature: `Block` owns its running statistics, `Metric` applies them in one step.

A block is created once per player; its state is a list of tensors that the optimizer keeps in variables. Each step,
`update` turns statistics of the batch into the new state and a `Metric`. Nothing here assigns a variable.

A `CachedBlock` keeps factorisations, too dear for every step. `update_all` renews those of many players in one branch
of the graph, matrices of one size as one stack: a branch per player took longer to trace than the rest of
the step.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from bellman_tf.curvature.capture import Capture, MatrixLayout, Tensors
from bellman_tf.linalg import factor_spd, inverse_spd


class Step:
    """Scalars of the current step.

    Attributes:
        iteration: number of updates done so far, int64 scalar.
        learning_rate: scalar in the metric's dtype.
    """

    def __init__(self, iteration: tf.Tensor, learning_rate: tf.Tensor) -> None:
        self.iteration, self.learning_rate = iteration, learning_rate
        self._rates: dict[tuple, tf.Tensor] = {}

    def mean_rate(self, decay: float, period: int = 1) -> tf.Tensor:
        """Weight of the old value in an exponential mean that starts as a plain mean.

        One tensor for all who ask: to be called outside the branches of the graph that use it.

        Args:
            decay: the eventual weight.
            period: steps between two updates of the mean.

        Returns:
            `min(decay, 1 - 1/(k + 1))` at update k, 0 at the first.
        """
        if (decay, period) not in self._rates:
            dtype = self.learning_rate.dtype
            count = tf.cast(self.iteration if period == 1 else self.iteration // period, dtype)
            self._rates[decay, period] = tf.minimum(tf.constant(decay, dtype), 1 - 1 / (count + 1))
        return self._rates[decay, period]


@dataclasses.dataclass(frozen=True)
class StateSpec:
    """One tensor of a block's state.

    Attributes:
        name: for the optimizer variable.
        shape: static shape.
        initial: "zeros", "ones" or "identity".
    """

    name: str
    shape: tuple
    initial: str = "zeros"


@dataclasses.dataclass(frozen=True)
class PlayerLayout:
    """What a block needs to know about its player before training.

    Attributes:
        name: for messages and variable names.
        shapes: shapes of the player's variables.
        matrix: how they make one matrix, or `None` if they have no Kronecker structure.
        convolution: whether the layer is a convolution.
        taps: kernel taps when the layer is a convolution, else 1.
        covered: whether statistics per sample are available; `False` for open-loop players.
    """

    name: str
    shapes: tuple[tuple, ...]
    matrix: MatrixLayout | None = None
    convolution: bool = False
    taps: int = 1
    covered: bool = True


class Metric:
    """M^{-1} of one player at one step, learning rate included.

    Attributes:
        kronecker: whether M^{-1} acts on the two sides of the matrix form, through `input_solve`, `cotangent_solve`.
        tapwise: whether the taps of a convolution do not mix, so that `solve_tap`, `solve_bias` exist.
    """

    kronecker = False
    tapwise = False

    def solve(self, parts: Tensors) -> Tensors:
        """`M^{-1}` applied to tensors in the shapes of the variables; leading axes are allowed."""
        raise NotImplementedError

    def step(self, gradient: Tensors) -> tuple[Tensors, dict[int, tf.Tensor]]:
        """The decrease of the variables for a gradient, and state entries that change with it."""
        return self.solve(gradient), {}


class TapwiseMetric(Metric):
    """A metric under which the taps of a convolution may be looked at one by one, where `tapwise` says so."""

    def solve_tap(self, q: tf.Tensor, tap: int | tf.Tensor) -> tf.Tensor:
        """`M^{-1}` on one tap of a kernel, `[..., c_in, c_out]`."""
        raise NotImplementedError

    def solve_bias(self, q: tf.Tensor) -> tf.Tensor:
        """`M^{-1}` on the bias of a convolution, `[..., c_out]`."""
        raise NotImplementedError

    def tap_pair(self, capture: Capture, tap: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Two tensors `[B, m, c_in, c_out]` whose inner products are those of the samples' gradients of one tap."""
        q = capture.tap_gradients(tap)
        return q, self.solve_tap(q, tap)


class Block:
    """Curvature of one player.

    Attributes:
        layout: the player.
        needs_gradient: whether `update` reads the mean gradient.
        needs_capture: whether `update` reads the capture.
    """

    needs_gradient = False
    needs_capture = False

    def __init__(self, layout: PlayerLayout) -> None:
        self.layout = layout

    def state_specs(self) -> list[StateSpec]:
        """The state, empty for metrics without memory."""
        return []

    def update(
        self, state: Tensors, capture: Capture | None, gradient: Tensors | None, step: Step
    ) -> tuple[Tensors, Metric]:
        """New state and this step's metric, from the batch's statistics."""
        raise NotImplementedError

    def describe(self) -> str:
        """A word or two for `game_summary`."""
        raise NotImplementedError


class CachedBlock(Block):
    """Curvature with factorisations that are renewed every `period` steps only.

    Attributes:
        factorise: static method on stacks `[S, n, n]` of matrices and what else `matrices` gives with each of them,
            returning tensors `[S, ...]`.
    """

    factorise: Callable[..., Tensors]

    @property
    def period(self) -> int:
        """Steps between two refreshes."""
        raise NotImplementedError

    def observe(self, state: Tensors, capture: Capture, step: Step) -> Tensors:
        """The running statistics of this step, the first entries of the new state."""
        raise NotImplementedError

    def matrices(self, statistics: Tensors) -> list[tuple[tf.Tensor, ...]]:
        """The arguments of `factorise`, one tuple per matrix."""
        raise NotImplementedError

    def cache(self, factors: list[Tensors], capture: Capture) -> Tensors:
        """What is kept of the factorisations, the other entries of the state."""
        raise NotImplementedError

    def finish(self, statistics: Tensors, cached: Tensors, capture: Capture, step: Step) -> tuple[Tensors, Metric]:
        """The new state and this step's metric."""
        raise NotImplementedError

    def update(
        self, state: Tensors, capture: Capture | None, gradient: Tensors | None, step: Step
    ) -> tuple[Tensors, Metric]:
        """New statistics, every `period` steps new factorisations, and the metric."""
        [updated] = update_all([Seen(self, state, capture, gradient)], step)
        return updated


class Seen(NamedTuple):
    """A block and what it sees in one step: the arguments of `Block.update`."""

    block: Block
    state: Tensors
    capture: Capture | None
    gradient: Tensors | None


def update_all(players: list[Seen], step: Step) -> list[tuple[Tensors, Metric]]:
    """Updates the blocks of many players.

    Args:
        players: the blocks, their states, and what they see.
        step: scalars of the step.

    Returns:
        New state and metric of each.
    """
    statistics = {
        k: seen.block.observe(seen.state, seen.capture, step)
        for k, seen in enumerate(players)
        if isinstance(seen.block, CachedBlock)
    }
    cached: dict[int, Tensors] = {}
    for period in sorted({players[k].block.period for k in statistics}):
        due = {k: known for k, known in statistics.items() if players[k].block.period == period}
        kept = {k: players[k].state[len(known) :] for k, known in due.items()}
        refreshed = every(
            period,
            step.iteration,
            lambda due=due: [part for parts in _refresh(players, due) for part in parts],
            [part for parts in kept.values() for part in parts],
        )
        remaining = iter(refreshed)
        cached.update({k: [next(remaining) for _ in parts] for k, parts in kept.items()})
    return [
        seen.block.finish(statistics[k], cached[k], seen.capture, step)
        if k in statistics
        else seen.block.update(seen.state, seen.capture, seen.gradient, step)
        for k, seen in enumerate(players)
    ]


def _refresh(players: list[Seen], statistics: dict[int, Tensors]) -> list[Tensors]:
    """What every block caches, matrices of one size and kind factorised as one stack."""
    wanted = [(k, arguments) for k in statistics for arguments in players[k].block.matrices(statistics[k])]
    stacks: dict[tuple, list[int]] = {}
    for place, (k, arguments) in enumerate(wanted):
        kind = players[k].block.factorise, tuple(arguments[0].shape), arguments[0].dtype
        stacks.setdefault(kind, []).append(place)
    factors: dict[int, Tensors] = {}
    for (factorise, *_), places in stacks.items():
        stacked = factorise(*(tf.stack(parts) for parts in zip(*(wanted[place][1] for place in places), strict=True)))
        factors.update(zip(places, zip(*map(tf.unstack, stacked), strict=True), strict=True))
    made: dict[int, list[Tensors]] = {k: [] for k in statistics}
    for place, (k, _) in enumerate(wanted):
        made[k].append(list(factors[place]))
    return [players[k].block.cache(made[k], players[k].capture) for k in statistics]


def running_mean(old: tf.Tensor, new: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
    """Exponential mean.

    Args:
        old: the mean so far.
        new: this step's value.
        rate: weight of the old one, of `Step.mean_rate`.

    Returns:
        The new mean.
    """
    return rate * old + (1 - rate) * new


def damped_inverses(matrices: tf.Tensor, dampings: tf.Tensor) -> Tensors:
    """`(A + damping I)^{-1}` of a stack, for `CachedBlock.factorise`.

    Args:
        matrices: `[S, n, n]`, positive semidefinite.
        dampings: `[S]`.

    Returns:
        The inverses, `[S, n, n]`, and the dampings.
    """
    return [inverse_spd(factor_spd(matrices, dampings)), dampings]


def every(period: int, iteration: tf.Tensor, refresh: object, keep: Tensors) -> Tensors:
    """Runs `refresh` on iterations divisible by `period`, returns `keep` on the others.

    Args:
        period: steps between refreshes.
        iteration: integer scalar.
        refresh: function of no arguments returning tensors like `keep`.
        keep: what stands otherwise.

    Returns:
        The chosen tensors.
    """
    if period == 1:
        return refresh()
    return tf.cond(tf.equal(iteration % period, 0), refresh, lambda: [tf.identity(part) for part in keep])
