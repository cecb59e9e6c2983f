"""What players with a Gram form bring to the recursion: Gram matrices, and how own costs move the samples.

Players of one stage may have one metric together. What is made with it is then made once, for the first of them.
"""

import functools
from collections.abc import Callable, Mapping

import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.curvature.gram import gram
from bellman_tf.curvature.metric import Metric
from bellman_tf.game.players import Player
from bellman_tf.layers.capture import Capture
from bellman_tf.training.moves import Moves


class Contributions:
    """Contributions of all players to one step while it is traced.

    Attributes:
        captures: of the players with a Gram form, by index.
    """

    def __init__(self, step: Moves, captures: Mapping[int, Capture], metric_of: Callable[[Player], Metric]) -> None:
        """Of a step whose captures are known.

        Args:
            step: the step.
            captures: of the players with a Gram form, by index.
            metric_of: gives a player's own metric, once it is known.
        """
        self.captures, self._step, self._metric_of = captures, step, metric_of
        self._drops: dict[int, tuple[list[Tensors], list[Tensors]]] = {}

    def come_from(self, player: Player) -> bool:
        """Whether a player has contributions, for those too that it shares a metric with."""
        return player.index in self.captures and self._step.leads(player)

    def gram(self, player: Player, group_size: int | None) -> tf.Tensor:
        """The Gram matrix of a player, or of all that share its metric, as `curvature.gram.gram` returns it."""
        together = self._step.together.get(player.index)
        if together is None:
            return self._own_gram(player, group_size)
        forms = [functools.partial(self._own_gram, member, group_size) for member in together.players]
        found = together.metric.gram(together.captures(self.captures), group_size, forms)
        return tf.cast(found, self._step.dtype)

    def _own_gram(self, player: Player, group_size: int | None) -> tf.Tensor:
        capture, options = self.captures[player.index], self._step.settings.options
        found = gram(capture, self._metric_of(player), group_size, options.gram, options.gram_limits)
        return tf.cast(found, self._step.dtype)

    def solve(self, player: Player, parts: list[Tensors]) -> list[Tensors]:
        """`M^{-1} parts`, for each of `Moves.members`."""
        together = self._step.together.get(player.index)
        return [self._metric_of(player).solve(*parts)] if together is None else together.metric.solve(parts)

    def inner(self, player: Player, directions: list[Tensors]) -> tf.Tensor:
        """`<q_ij, direction>`, `[B, m]`, summed over `Moves.members`, of a direction for each."""
        pairs = zip(self._step.members(player), directions, strict=True)
        return tf.add_n([self.captures[member.index].inner(direction) for member, direction in pairs])

    def pull(self, player: Player) -> tf.Tensor | None:
        """`<q_ij, M^{-1} l_u>`, `[B, m]`, of a player and those that share its metric; `None` without own costs."""
        members = self._step.members(player)
        if all(cost is None for member in members for cost in self._step.own[member.index]):
            return None
        costs = [self._step.own_cost(member) for member in members]
        solved = self.solve(player, costs)
        self._drops[player.index] = costs, solved
        return self.inner(player, solved)

    def own_drop(self) -> tf.Tensor | None:
        """The sum of `l_u' M^{-1} l_u` over the players whose pull was asked for; `None` without own costs."""
        pairs = [
            tf.reduce_sum(l * x)
            for _, drop in sorted(self._drops.items())
            for l, x in zip(*map(tf.nest.flatten, drop), strict=True)
        ]
        return tf.add_n(pairs) if pairs else None
