"""Cross moments of players that act together: what every kind of coupling shares."""

from collections.abc import Sequence

import tensorflow as tf

from bellman_tf._typing import LowerBlocks, Tensors
from bellman_tf.curvature.block import StateSpec
from bellman_tf.curvature.coupling.joint import EigenScaling, JointMetric, OwnGram, SampleGradients
from bellman_tf.curvature.damping import factor_damping
from bellman_tf.curvature.ekfac import EigenBlock, EigenMetric
from bellman_tf.curvature.gram.plan import LIMITS
from bellman_tf.curvature.gram.products import inner_products
from bellman_tf.curvature.kfac import KFACBlock
from bellman_tf.curvature.metric import Metric
from bellman_tf.curvature.periods import every
from bellman_tf.curvature.step_scalars import StepScalars, running_mean
from bellman_tf.layers.capture import MatrixCapture
from bellman_tf.linalg import split_damping, symmetrize
from bellman_tf.linalg.products import matmul


class Coupling:
    """Cross moments of players that act together, and the factors made of them.

    Attributes:
        players: the players' indices.
        blocks: their blocks.
        positions: at which each of them is applied to a sample.
        joint_gram: whether the Gram matrix is that of the joint metric.
        joint: whether the players have one metric together, and not each its own.
        word: what `describe` calls the metric.
    """

    joint = True
    word = "exact"

    def __init__(
        self, players: list[int], blocks: list[KFACBlock], positions: int, joint_up_to: float = LIMITS.joint_up_to
    ) -> None:
        """Stores the players.

        Args:
            players: their indices.
            blocks: their blocks.
            positions: at which each of them is applied to a sample.
            joint_up_to: numbers of a gradient per sample up to which the Gram matrix is that of the joint metric.
        """
        self.players, self.blocks, self.positions = players, blocks, positions
        self.config = blocks[0].config
        self.eigen = isinstance(blocks[0], EigenBlock)
        self.inputs = [block.rows.size for block in blocks]
        self.outputs = [block.layout.matrix_form.width for block in blocks]
        self.pairs = [(n, m) for n in range(len(blocks)) for m in range(n)]
        self.joint_gram = self._formed_numbers() <= joint_up_to

    def _formed_numbers(self) -> int:
        """Numbers of the largest gradient per sample that the Gram matrix needs, times the positions it sums."""
        return self.positions * max(a * b for a, b in zip(self.inputs, self.outputs, strict=True))

    # ---- what a kind of coupling adds

    def factor_specs(self) -> list[StateSpec]:
        """The tensors of `factor`."""
        raise NotImplementedError

    def factor(self, A: LowerBlocks, B: LowerBlocks) -> Tensors:
        """Factors the joint matrix from the blocks on and below the diagonal, damped."""
        raise NotImplementedError

    def solve(self, factor: Tensors, matrices: Tensors) -> Tensors:
        """Applies the factored inverse to one matrix `[..., inputs, outputs]` per player."""
        raise NotImplementedError

    def gram(
        self,
        factor: Tensors,
        samples: Sequence[SampleGradients],
        group_size: int | None,
        own: Sequence[OwnGram],
        scale: tf.Tensor | float,
    ) -> tf.Tensor:
        """Gram matrix of the factored inverse times `scale`; arguments else as `JointMetric.gram`."""
        q = [player.matrix() for player in samples]
        return scale * symmetrize(inner_products(q, self.solve(factor, q), group_size))

    # ---- state

    def state_specs(self) -> list[StateSpec]:
        """Cross moments; for EKFAC the damped eigenvalues that the factor belongs to; the factor."""
        specs = []
        for n, m in self.pairs:
            specs.append(StateSpec(f"input_cross_{n}_{m}", (self.inputs[n], self.inputs[m])))
            specs.append(StateSpec(f"gradient_cross_{n}_{m}", (self.outputs[n], self.outputs[m])))
        if self.eigen:
            for n, (a, b) in enumerate(zip(self.inputs, self.outputs, strict=True)):
                specs += [StateSpec(f"input_values_{n}", (a,)), StateSpec(f"gradient_values_{n}", (b,))]
        return specs + self.factor_specs()

    def update(
        self,
        state: Tensors,
        captures: list[MatrixCapture],
        own: list[Tensors],
        metrics: list[Metric],
        step: StepScalars,
    ) -> tuple[Tensors, JointMetric | list[Metric]]:
        """New cross moments, and with the players' own schedule new factors.

        Args:
            state: as `state_specs`.
            captures: the players', as their own blocks have seen them.
            own: new states of the players' blocks.
            metrics: the players' own metrics of this step.
            step: scalars of the step.

        Returns:
            The new state, and the joint metric; where players stay apart, a metric for each.
        """
        count, rate = 2 * len(self.pairs), step.mean_rate(self.config.decay, self.config.update_every)
        cross = every(
            self.config.update_every,
            step.iteration,
            lambda: self._moments(state[:count], captures, rate),
            state[:count],
        )
        cross = step.mean(cross)
        cached = every(
            self.config.invert_every,
            step.iteration,
            lambda: self._refresh(cross, own),
            state[count:],
            step.refreshing,
        )
        scalings, factor = None, cached
        if self.eigen:
            values, factor = cached[: 2 * len(own)], cached[2 * len(own) :]
            products = [values[2 * n][:, None] * values[2 * n + 1] for n in range(len(own))]
            bases = [metric for metric in metrics if isinstance(metric, EigenMetric)]
            scalings = [
                EigenScaling(metric, tf.sqrt(k * metric.inverse)) for k, metric in zip(products, bases, strict=True)
            ]
        return [*cross, *cached], JointMetric(self, factor, step.learning_rate, scalings)

    def _moments(self, state: Tensors, captures: list[MatrixCapture], rate: tf.Tensor) -> Tensors:
        new, total = [], tf.cast(captures[0].batch_size, state[0].dtype)
        rows = [tf.reshape(c.augmented(), [-1, size]) for c, size in zip(captures, self.inputs, strict=True)]
        columns = [tf.reshape(c.cotangents[0], [-1, e]) for c, e in zip(captures, self.outputs, strict=True)]
        for n, m in self.pairs:
            new.append(matmul(rows[n], rows[m], transpose_a=True) / total)
            new.append(matmul(columns[n], columns[m], transpose_a=True) / (total * self.positions))
        return [running_mean(old, fresh, rate) for old, fresh in zip(state, new, strict=True)]

    def _refresh(self, cross: Tensors, own: list[Tensors]) -> Tensors:
        A, B = (dict(zip(self.pairs, side, strict=True)) for side in (cross[::2], cross[1::2]))
        values = []
        for n, state in enumerate(own):
            damping = split_damping(state[0], state[1], self.config.damping)
            for blocks, moment, extra in zip((A, B), state[:2], damping, strict=True):
                extra = factor_damping(moment, extra)
                blocks[n, n] = moment + extra * tf.eye(moment.shape[-1], dtype=moment.dtype)
        if self.eigen:
            for side, blocks in enumerate((A, B)):
                U = [state[2 + side] for state in own]
                blocks.update({(n, m): matmul(matmul(U[n], M, transpose_a=True), U[m]) for (n, m), M in blocks.items()})
            values = [tf.linalg.diag_part(blocks[n, n]) for n in range(len(own)) for blocks in (A, B)]
        players = range(len(own))
        lower_A, lower_B = ([[blocks.get((n, m)) for m in players] for n in players] for blocks in (A, B))
        return [*values, *self.factor(lower_A, lower_B)]

    def describe(self, names: list[str]) -> list[str]:
        """For each player, what to add to its block's description.

        Args:
            names: the players' names.

        Returns:
            A phrase per player.
        """
        alone = "" if self.joint_gram else ", Gram matrices of the players alone"
        return [f"{self.word} with {', '.join(names[:n] + names[n + 1 :])}{alone}" for n in range(len(names))]
