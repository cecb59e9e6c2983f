"""Sample weights of the linear roll-out where players have losses of their own.

The players of the feedback Nash game are then the pairs of a place in the stages and an objective: layers at one place
with one objective have one value over all stages, of the objective's own loss, and every player has the weights of its
own columns. Source: DGN Eqs. 3, 6, 9, 10; `bellman/own_costs.py`.
"""

import functools
from collections.abc import Sequence

import tensorflow as tf

from bellman_tf.bellman import sample_space
from bellman_tf.bellman.own_costs import side_by_side
from bellman_tf.bellman.sample_space import SampleValue
from bellman_tf.training.information import Information
from bellman_tf.training.linear_policy import LinearPolicy
from bellman_tf.training.own_losses import Objective
from bellman_tf.training.samples import OWN, OwnSamples


class OwnPolicy(LinearPolicy):
    """Weights of every player for its own objective; Gram matrices and pulls are over the columns of all objectives.

    `predicted_reduction` and what else is said of J belongs to `LinearPolicy`: here no player minimises J.
    """

    _own = True

    def __init__(
        self,
        values: Sequence[SampleValue],
        numbers: dict[int, int],
        information: Information,
        group_size: int | None,
        columns: Sequence[int],
        batch_size: tf.Tensor | int,
        direct: float = 1.0,
        share: float = 1.0,
        samples: OwnSamples = OWN,
    ) -> None:
        """Stores the terminal values.

        Args:
            values: of every objective, over its own columns.
            numbers: of every player's objective, by index.
            information: as in `LinearPolicy`, without a joint value.
            group_size: samples per group.
            columns: of every objective, per sample.
            batch_size: B.
            direct: as in `LinearPolicy`.
            share: as in `LinearPolicy`.
            samples: as in `LinearPolicy`.
        """
        super().__init__(values[0], information, group_size, sum(columns), batch_size, direct, share, samples)
        a, L = side_by_side(values, columns)
        self._ends = [self._in_one_group(SampleValue(*end)) for end in zip(tf.unstack(a), tf.unstack(L), strict=True)]
        self._numbers, self._widths = numbers, list(columns)

    @functools.cached_property
    def _places(self) -> list[dict[tuple[int, int], int]]:
        """Stage by stage the players by their place there and their objective."""
        return [{(place, self._numbers[k]): k for place, k in enumerate(stage)} for stage in self._stages]

    @functools.cached_property
    def _rows(self) -> list[tuple[int, int]]:
        """The players of the game, in the order of the seats."""
        return sorted({row for stage in self._places for row in stage})

    @functools.cached_property
    def _seats(self) -> list[list[int | None]]:
        """One seat for each place in the stages and each objective of a player there; see `LinearPolicy`."""
        return [[stage.get(row) for row in self._rows] for stage in self._places]

    @functools.cached_property
    def _start(self) -> SampleValue:  # pyright: ignore[reportIncompatibleMethodOverride]  # made when first read
        """The terminal value of the player in every seat, `[N, ...]`."""
        ends = [self._ends[number] for _, number in self._rows]
        return SampleValue(*(tf.stack(parts) for parts in zip(*ends, strict=True)))

    def _own_columns(self, index: int, w: tf.Tensor) -> tf.Tensor:
        """The columns of a player's own objective, `[B, m_s]`."""
        return self._columns_for(self._numbers[index], w)

    def _columns_for(self, number: int, w: tf.Tensor) -> tf.Tensor:
        """The columns of an objective, `[B, m_s]`."""
        before = sum(self._widths[:number])
        return self._columns_of(w)[:, before : before + self._widths[number]]

    def _means(self) -> list[tf.Tensor]:
        """Mean weights of the players of every objective; those of the mean loss where no player has a Gram form."""
        found = []
        for number, end in enumerate(self._ends):
            own = [self._own_columns(k, w) for k, w in self._weights.items() if self._numbers[k] == number]
            found.append(tf.add_n(own) / len(own) if own else self._columns_for(number, end.a))
        return found


def policy_of(
    objectives: Sequence[Objective],
    information: Information,
    group_size: int | None,
    batch_size: tf.Tensor | int,
    dtype: tf.DType,
    direct: float,
    share: float = 1.0,
    samples: OwnSamples = OWN,
) -> LinearPolicy:
    """The policy of a step, before it has seen a Gram matrix.

    Args:
        objectives: of the step, differentiated.
        information: what a player knows.
        group_size: samples per group.
        batch_size: samples in the game.
        dtype: of the recursion.
        direct: as in `LinearPolicy`.
        share: as in `LinearPolicy`.
        samples: as in `LinearPolicy`.

    Returns:
        One value for all players, or one for each objective.
    """
    columns = [len(objective.columns) for objective in objectives]
    values = [
        samples.value(
            sample_space.init(batch_size, beta_squared=beta, rank=m - 1, group_size=group_size, dtype=dtype), m
        )
        for beta, m in zip(samples.curvatures([o.beta_squared for o in objectives]), columns, strict=True)
    ]
    if len(objectives) == 1:
        return LinearPolicy(values[0], information, group_size, columns[0], batch_size, direct, share, samples)
    numbers = {player.index: objective.number for objective in objectives for player in objective.players}
    return OwnPolicy(values, numbers, information, group_size, columns, batch_size, direct, share, samples)
