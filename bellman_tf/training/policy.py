"""From Gram matrices to sample weights, for each information structure and each form of the value Hessian.

`information` (DGN Sec. 3.2, algorithm.md Section 5) decides whose Gram matrices a player sees and whether the state's
deviation is fed back; `value_hessian` decides which samples are coupled.
"""

import dataclasses

import tensorflow as tf

from bellman_tf.bellman import outer_product, sample_space
from bellman_tf.bellman.sample_space import SampleValue, from_groups, to_groups


@dataclasses.dataclass(frozen=True)
class Information:
    """What a player knows.

    Attributes:
        curved: whether the value's curvature is used at all; without it every step is the baseline's.
        joint: whether the players of a stage share one value.
        feedback: whether the state's deviation enters the weights.
    """

    curved: bool
    joint: bool
    feedback: bool


INFORMATION = {
    "open": Information(curved=False, joint=False, feedback=False),
    "feedback": Information(curved=True, joint=False, feedback=True),
    "cooperative_open": Information(curved=True, joint=True, feedback=False),
    "cooperative": Information(curved=True, joint=True, feedback=True),
}


class SamplePolicy:
    """Sample weights of every stage, from the sample-space recursion.

    Attributes:
        group_size: samples per group; `None` is the whole batch.
        joint: whether the players of a stage share one value.
    """

    def __init__(
        self, terminal: SampleValue, group_size: int | None, joint: bool, columns: int, diagonal: bool
    ) -> None:
        self.group_size, self.joint = group_size, joint
        self._terminal, self._columns, self._diagonal = terminal, columns, diagonal
        self._values: list = []

    def solve(self, grams: list[list], linear: list[list] | None) -> None:
        """All stages at once.

        Args:
            grams: for each stage, the Gram matrix of each player, `None` for open-loop players.
            linear: for each stage, the vector `<q, M^{-1} l_u>` of each player, or `None` without own costs.
        """
        agents = 1 if self.joint else max((len(stage) for stage in grams), default=1)
        stacked = self._stack(
            grams, agents, tf.zeros_like(self._terminal.L[..., :, :1] * self._terminal.a[..., None, :])
        )
        stacked_linear = None if linear is None else self._stack(linear, agents, tf.zeros_like(self._terminal.a))
        terminal = self._terminal
        if not self.joint:
            terminal = SampleValue(terminal.a[None], terminal.L[None])
        value = sample_space.backward_all(terminal, stacked, stacked_linear, diagonal=self._diagonal)
        self._values = [SampleValue(*parts) for parts in zip(tf.unstack(value.a), tf.unstack(value.L), strict=True)]

    def _stack(self, stages: list[list], agents: int, zero: tf.Tensor) -> tf.Tensor:
        """`[T, ...]` with the players of a stage added, or `[T, N, ...]` with one row per agent."""
        rows = []
        for stage in stages:
            known = [part for part in stage if part is not None]
            if self.joint:
                rows.append(tf.add_n(known) if len(known) > 1 else (known[0] if known else zero))
            else:
                padded = [*stage, *[None] * (agents - len(stage))]
                rows.append(tf.stack([zero if part is None else part for part in padded]))
        return tf.stack(rows)

    def weights(self, stage: int, agent: int, deviation: tf.Tensor | None, batch_size: tf.Tensor | int) -> tf.Tensor:
        """Weights of one player, `[B, m]`.

        Args:
            stage: number of the stage.
            agent: position of the player in its stage.
            deviation: `[B, m]`, or `None` for an open-loop step.
            batch_size: B of this replica.

        Returns:
            The weights; their mean-gradient value is 1/B.
        """
        value = self._values[stage]
        if not self.joint:
            value = SampleValue(value.a[agent], value.L[agent])
        d = None if deviation is None else to_groups(deviation, self.group_size)
        w = from_groups(sample_space.weights(value, d), batch_size, self._columns)
        return tf.reshape(w, [batch_size, self._columns])


class OuterPolicy:
    """The papers' alpha, beta recursion, solved while the stages are visited from the last to the first.

    Attributes:
        joint: whether the players of a stage share one value.
        clamped: number of clamps so far.
    """

    def __init__(self, value: outer_product.OuterValue, joint: bool, agents: int, total: tf.Tensor) -> None:
        self.joint, self._total = joint, total
        self._current = [value] * (1 if joint else agents)
        self._behind: dict[int, list] = {}
        self.clamped = tf.zeros([], tf.int32)

    def alpha(self, agent: int) -> tf.Tensor:
        """Slope of the value behind the current stage, `[B]`."""
        return self._current[0 if self.joint else agent].alpha

    def visit(self, stage: int, inner_k: list, quad: list) -> None:
        """One stage backwards.

        Args:
            stage: number of the stage.
            inner_k: `<q_i, k>` `[B]` of each player, `None` for open-loop players.
            quad: `q_i' M^{-1} q_i` `[B]` of each player, likewise.
        """
        self._behind[stage] = list(self._current)
        pairs = [(k, q) for k, q in zip(inner_k, quad, strict=True)]
        if self.joint:
            known = [(k, q) for k, q in pairs if k is not None]
            if known:
                self._move(0, tf.add_n([k for k, _ in known]), tf.add_n([q for _, q in known]))
            return
        for agent, (k, q) in enumerate(pairs):
            if k is not None:
                self._move(agent, k, q)

    def _move(self, agent: int, inner_k: tf.Tensor, quad: tf.Tensor) -> None:
        self._current[agent], clamped = outer_product.backward(self._current[agent], inner_k, quad)
        self.clamped += clamped

    def weights(self, stage: int, agent: int, deviation: tf.Tensor | None, batch_size: tf.Tensor | int) -> tf.Tensor:
        """Weights of one player, `[B, 1]`; arguments as `SamplePolicy.weights`."""
        value = self._behind[stage][0 if self.joint else agent]
        d = None if deviation is None else deviation[:, 0]
        return outer_product.weights(value, d)[:, None] / self._total


class OpenPolicy:
    """Every sample weighs the same."""

    def __init__(self, total: tf.Tensor, columns: int = 1) -> None:
        self._total, self._columns = total, columns

    def weights(self, stage: int, agent: int, deviation: tf.Tensor | None, batch_size: tf.Tensor | int) -> tf.Tensor:
        """1 / B for the gradient, `[B, m]`."""
        first = tf.fill([batch_size, 1], 1 / self._total)
        return tf.pad(first, [[0, 0], [0, self._columns - 1]])
