"""From Gram matrices to sample weights, for each information structure and each form of the value Hessian.

`information` (DGN Sec. 3.2, claims OURS-2) decides which Gram matrices enter a player's weights and
whether the state's deviation is fed back; `value_hessian` decides which samples are coupled.
"""

import tensorflow as tf

from bellman_tf._typing import Size, SomeTensors
from bellman_tf.bellman import sample_space
from bellman_tf.bellman.groups import from_groups, to_groups
from bellman_tf.bellman.sample_space import SampleValue
from bellman_tf.training import held_out


class SamplePolicy:
    """Sample weights of every stage, from the sample-space recursion.

    The whole batch as one group keeps no group axis, and uncoupled samples (groups of one) are plain numbers: most of
    a small network's step is the number of operations.

    Attributes:
        group_size: samples per group; `None` is the whole batch.
        joint: whether the players of a stage share one value.
    """

    def __init__(
        self, terminal: SampleValue, group_size: int | None, joint: bool, columns: int, batch_size: tf.Tensor | int
    ) -> None:
        """Stores the terminal value.

        Args:
            terminal: made by `sample_space.init`, a `[G, n]`, L `[G, n, k]`.
            group_size: samples per group.
            joint: whether the players of a stage share one value.
            columns: m, columns per sample.
            batch_size: B.
        """
        self.group_size, self.joint = group_size, joint
        self._columns, self._batch_size = columns, batch_size
        self._terminal = SampleValue(terminal.a[0], terminal.L[0]) if group_size is None else terminal
        self._values: list[SampleValue] = []

    def solve(self, grams: list[SomeTensors], linear: list[SomeTensors] | None) -> None:
        """All stages at once.

        Args:
            grams: for each stage, the Gram matrix `[G, n, n]` of each player, `None` for open-loop players.
            linear: for each stage, the vector `<q, M^{-1} l_u>` `[G, n]` of each player, or `None` without own costs.
        """
        a, L = self._terminal
        agents = 1 if self.joint else max((len(stage) for stage in grams), default=1)
        n = a.shape[-1] if a.shape[-1] is not None else tf.shape(a)[-1]
        lead = [] if self.group_size is None else [tf.shape(a)[0] if a.shape[0] is None else a.shape[0]]
        stacked = self._stack(grams, agents, [*lead, n, n], a.dtype)
        pull = None if linear is None else self._stack(linear, agents, [*lead, n], a.dtype)
        value = sample_space.backward_all(SampleValue(a, L), stacked, pull, diagonal=self._columns == 1)
        self._solved = SampleValue(a, L), SampleValue(value.a[0], value.L[0]), stacked, pull
        a = value.a[..., None] if self.group_size is None else value.a  # columns, ready for plain products
        self._values = [SampleValue(*parts) for parts in zip(tf.unstack(a), tf.unstack(value.L), strict=True)]

    def _stack(self, stages: list[SomeTensors], agents: int, shape: list[Size], dtype: tf.DType) -> tf.Tensor:
        """`[T, ...]` with the players of a stage added, or `[T, N, ...]` with one row per agent."""
        slots: SomeTensors = []
        for stage in stages:
            if self.joint:
                known = [part for part in stage if part is not None]
                slots.append(tf.add_n(known) if known else None)
            else:
                slots.extend([*stage, *[None] * (agents - len(stage))])
        if any(part is None for part in slots):
            zero = tf.zeros([1, *shape] if self.group_size is None else shape, dtype)
            slots = [zero if part is None else part for part in slots]
        return tf.reshape(tf.stack(slots), [len(stages), *([] if self.joint else [agents]), *shape])

    @property
    def values(self) -> list[SampleValue]:
        """The value before every stage."""
        return self._values

    def predicted_reduction(self, own: tf.Tensor | None) -> tf.Tensor:
        """Decrease of J in the quadratic model, scalar; agents with values of their own are added.

        Args:
            own: sum of `l_u' M^{-1} l_u` over all covered players, `None` for zero.

        Returns:
            The decrease; exact for one group and one agent.
        """
        terminal, initial, grams, linear = self._solved
        parts = sample_space.predicted_reduction(terminal, initial, grams, linear)
        return tf.reduce_sum(parts) + (0 if own is None else own / 2)

    def held_out_model(self) -> tf.Tensor:
        """What the cooperative step does to samples that were left out of it, `[3]`; see `held_out.held_out_model`."""
        terminal, _, grams, linear = self._solved
        axes = [0] if self.joint else [0, 1]
        pull = None if linear is None else tf.reduce_sum(linear, axis=axes)
        return held_out.held_out_model(terminal, tf.reduce_sum(grams, axis=axes), pull, self._columns)

    def weights(self, stage: int, agent: int, deviation: tf.Tensor | None) -> tf.Tensor:
        """Weights of one player, `[B, m]`.

        Args:
            stage: number of the stage.
            agent: position of the player in its stage.
            deviation: `[B, m]`, or `None` for an open-loop step.

        Returns:
            The weights; their mean-gradient value is 1/B.
        """
        a, L = self._values[stage]
        if not self.joint:
            a, L = a[agent], L[agent]
        shape = [self._batch_size, self._columns]
        if self.group_size is None:
            if deviation is None:
                return tf.reshape(a, shape)
            d = deviation if self._columns == 1 else tf.reshape(deviation, [-1, 1])
            w = a + tf.matmul(L, tf.matmul(L, d, transpose_a=True))
            return w if self._columns == 1 else tf.reshape(w, shape)
        if L.shape[-2:] == [1, 1]:
            return a if deviation is None else a + tf.square(L[..., 0]) * deviation
        d = None if deviation is None else to_groups(deviation, self.group_size)
        w = from_groups(sample_space.weights(SampleValue(a, L), d), self._batch_size, self._columns)
        return tf.reshape(w, shape)
