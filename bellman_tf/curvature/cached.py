"""Blocks that keep factorisations.

A `CachedBlock` keeps factorisations, too dear for every step. `update_all` renews those of many players in one branch
of the graph, matrices of one size as one stack: a branch per player took longer to trace than the rest of
the step.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import tensorflow as tf

from bellman_tf import _checks, replicas
from bellman_tf._typing import Tensors
from bellman_tf.curvature.block import Block
from bellman_tf.curvature.metric import Metric
from bellman_tf.curvature.periods import every, when
from bellman_tf.curvature.sharded import renewed_in_shares
from bellman_tf.curvature.stacks import Stacks
from bellman_tf.curvature.step_scalars import StepScalars, running_mean
from bellman_tf.layers.capture import Capture

Captured = TypeVar("Captured", bound=Capture)  # what a block's players are captured as

Factorise: TypeAlias = Callable[[list[tuple[tf.Tensor, ...]], bool], list[Tensors]]


class RunningMean(NamedTuple):
    """Arguments of `running_mean`, which many players' means wait for to be taken as one.

    Attributes:
        old: the mean so far.
        new: this step's value.
        rate: weight of the old one, of `StepScalars.mean_rate`.
    """

    old: tf.Tensor
    new: tf.Tensor
    rate: tf.Tensor


class CachedBlock(Block, Generic[Captured]):
    """Curvature with factorisations that are renewed every `period` steps only.

    Attributes:
        factorise: static method on a list of stacks, one per size: matrices `[S, n, n]` and what else `matrices` gives
            with each of them; and whether XLA compiles it. Returns tensors `[S, ...]` for every stack.
    """

    factorise: Factorise

    @property
    def period(self) -> int:
        """Steps between two refreshes."""
        raise NotImplementedError

    @property
    def sharded(self) -> bool:
        """Whether replicas share the factorisations out."""
        return False

    def observe(self, state: Tensors, capture: Captured, step: StepScalars) -> Sequence[tf.Tensor | RunningMean]:
        """The running statistics of this step, the first entries of the new state, or what they are means of."""
        raise NotImplementedError

    @classmethod
    def matrices(cls, blocks: Sequence[Any], statistics: Sequence[Tensors]) -> list[list[tuple[tf.Tensor, ...]]]:
        """The arguments of `factorise`, of many blocks of this class at once.

        Args:
            blocks: of this class.
            statistics: what `observe` gave, one list per block.

        Returns:
            Per block one tuple per matrix `[n, n]` or stack of matrices `[k, n, n]`.
        """
        raise NotImplementedError

    def cache(self, factors: list[Tensors], capture: Captured, kept: Tensors) -> Tensors:
        """What is kept of the factorisations, the other entries of the state; `kept` are those of the last time."""
        raise NotImplementedError

    def measure(self, cached: Tensors, capture: Captured) -> Tensors:
        """Statistics of the batch that are taken in the factorisations; none by default."""
        return []

    def finish(
        self, statistics: Tensors, cached: Tensors, measured: Tensors, step: StepScalars
    ) -> tuple[Tensors, Metric]:
        """The new state and this step's metric, `measured` of `measure`."""
        raise NotImplementedError

    def update(
        self, state: Tensors, capture: Capture | None, gradient: Tensors | None, step: StepScalars
    ) -> tuple[Tensors, Metric]:
        """New statistics, every `period` steps new factorisations, and the metric."""
        [updated] = update_all([PlayerUpdate(self, state, capture, gradient)], step)
        return updated


class PlayerUpdate(NamedTuple):
    """A block and what it sees in one step: the arguments of `Block.update`."""

    block: Block
    state: Tensors
    capture: Capture | None
    gradient: Tensors | None


def update_all(players: list[PlayerUpdate], step: StepScalars) -> list[tuple[Tensors, Metric]]:
    """Updates the blocks of many players.

    Args:
        players: the blocks, their states, and what they see.
        step: scalars of the step.

    Returns:
        New state and metric of each.
    """
    observed = _observed(players, step)
    cached: dict[int, Tensors] = {}
    schedules = [(one.block.period, one.block.sharded) for one in observed.values()]
    for period, sharded in sorted(set(schedules)):
        own = zip(observed.items(), schedules, strict=True)
        due = {k: one for (k, one), schedule in own if schedule == (period, sharded)}
        renew = _renewed_in_shares if sharded and replicas.count() > 1 else _renewed
        cached.update(zip(due, renew(list(due.values()), period, step), strict=True))
    measured = _averaged({k: one.block.measure(cached[k], one.capture) for k, one in observed.items()}, step)
    return [
        observed[k].block.finish(observed[k].statistics, cached[k], measured[k], step)
        if k in observed
        else seen.block.update(seen.state, seen.capture, seen.gradient, step)
        for k, seen in enumerate(players)
    ]


class _Observed(NamedTuple):
    """A block with factorisations, its statistics with this step's, and what it kept of the last factorisations."""

    block: CachedBlock[Any]
    capture: Capture
    statistics: Tensors
    kept: Tensors


def _observed(players: list[PlayerUpdate], step: StepScalars) -> dict[int, _Observed]:
    """The blocks with factorisations, by the place of the player."""
    caching = {
        k: (seen.block, _checks.given("capture", seen.capture), seen.state)
        for k, seen in enumerate(players)
        if isinstance(seen.block, CachedBlock)
    }
    seen = {k: block.observe(state, capture, step) for k, (block, capture, state) in caching.items()}
    statistics = _averaged(_means(seen), step)
    return {
        k: _Observed(block, capture, statistics[k], state[len(statistics[k]) :])
        for k, (block, capture, state) in caching.items()
    }


def _means(seen: dict[int, Sequence[tf.Tensor | RunningMean]]) -> dict[int, Tensors]:
    """Statistics of which those in one place of one shape are taken as one mean, as they are stored."""
    found: dict[tuple[int, int], tf.Tensor] = {}
    waiting = {(k, j): part for k, parts in seen.items() for j, part in enumerate(parts)}
    means = {place: part for place, part in waiting.items() if isinstance(part, RunningMean)}
    found.update({place: part for place, part in waiting.items() if not isinstance(part, RunningMean)})
    kinds = [(j, mean.old.dtype, id(mean.rate)) for (_, j), mean in means.items()]
    stacks = Stacks([mean.old.shape for mean in means.values()], kinds)
    sides = (stacks.pack([mean.old for mean in means.values()]), stacks.pack([mean.new for mean in means.values()]))
    rates = [list(means.values())[group[0]].rate for group in stacks.groups]
    taken = [running_mean(*parts) for parts in zip(*sides, rates, strict=True)]
    found.update(zip(means, stacks.unpack(taken), strict=True))
    return {k: [found[k, j] for j in range(len(parts))] for k, parts in seen.items()}


def _averaged(statistics: dict[int, Tensors], step: StepScalars) -> dict[int, Tensors]:
    """Statistics of the samples of all replicas, exchanged at once."""
    remaining = iter(step.mean([part for parts in statistics.values() for part in parts]))
    return {k: [next(remaining) for _ in parts] for k, parts in statistics.items()}


def _renewed(due: list[_Observed], period: int, step: StepScalars) -> list[Tensors]:
    """What blocks of one period cache: new factorisations, or those that stand."""
    kept = [part for one in due for part in one.kept]
    refreshed = every(
        period,
        step.iteration,
        lambda: [part for parts in _refresh(due, step.compiled) for part in parts],
        kept,
        step.refreshing,
        [(type(one.block), j) for one in due for j in range(len(one.kept))],
    )
    remaining = iter(refreshed)
    return [[next(remaining) for _ in one.kept] for one in due]


def _renewed_in_shares(due: list[_Observed], period: int, step: StepScalars) -> list[Tensors]:
    """As `_renewed`, on several replicas that share the blocks out; the work of a matrix of n rows is n^3."""
    return renewed_in_shares(
        when(period, step.iteration, step.refreshing),
        lambda places: _refresh([due[k] for k in places], step.compiled),
        [one.kept for one in due],
        [sum(part.shape.num_elements() * part.shape[-1] for part in one.statistics) for one in due],
    )


def _refresh(observed: list[_Observed], compiled: bool) -> list[Tensors]:
    """What every block caches, matrices of one size and kind factorised as one stack."""
    wanted: list[tuple[int, tuple[tf.Tensor, ...]]] = []
    for kind in dict.fromkeys(type(one.block) for one in observed):
        same = [k for k, one in enumerate(observed) if type(one.block) is kind]
        made = kind.matrices([observed[k].block for k in same], [observed[k].statistics for k in same])
        wanted += [(k, arguments) for k, own in zip(same, made, strict=True) for arguments in own]
    kinds: dict[tuple[Factorise, tf.DType], dict[tuple[int, int], list[int]]] = {}
    for place, (k, (first, *_)) in enumerate(wanted):
        alike = kinds.setdefault((observed[k].block.factorise, first.dtype), {})
        alike.setdefault((first.shape[-1], len(first.shape)), []).append(place)
    factors: dict[int, Tensors] = {}
    for (factorise, _), alike in kinds.items():
        stacks = [_stack([wanted[place][1] for place in places]) for places in alike.values()]
        for places, made in zip(alike.values(), factorise(stacks, compiled), strict=True):
            factors.update(zip(places, _unstack(made, [wanted[place][1][0] for place in places]), strict=True))
    made_of: list[list[Tensors]] = [[] for _ in observed]
    for place, (k, _) in enumerate(wanted):
        made_of[k].append(factors[place])
    return [one.block.cache(made, one.capture, one.kept) for one, made in zip(observed, made_of, strict=True)]


def _stack(wanted: list[tuple[tf.Tensor, ...]]) -> tuple[tf.Tensor, ...]:
    """The arguments of matrices, or of stacks of matrices, of one size as those of one stack."""
    join = tf.stack if len(wanted[0][0].shape) == 2 else functools.partial(tf.concat, axis=0)
    return tuple(join(column) for column in zip(*wanted, strict=True))


def _unstack(made: Tensors, matrices: list[tf.Tensor]) -> list[Tensors]:
    """What was made of a stack, for every matrix or stack of matrices in it."""
    if len(matrices[0].shape) == 2:
        parts = [tf.unstack(part, len(matrices)) for part in made]
    else:
        parts = [tf.split(part, [matrix.shape[0] for matrix in matrices]) for part in made]
    return [list(own) for own in zip(*parts, strict=True)]
