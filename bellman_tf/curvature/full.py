"""The whole Fisher matrix of a small player."""

import math
from collections.abc import Sequence
from typing import Self

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Tensors
from bellman_tf.curvature import config as options
from bellman_tf.curvature.block import PlayerLayout, StateSpec
from bellman_tf.curvature.cached import CachedBlock
from bellman_tf.curvature.inverses import damped_inverses
from bellman_tf.curvature.metric import Metric, MetricKind
from bellman_tf.curvature.step_scalars import StepScalars, running_mean
from bellman_tf.layers.capture import Capture


class DenseMetric(Metric):
    """M^{-1} as one `[P, P]` matrix over all variables of the player."""

    def __init__(self, inverse: tf.Tensor, shapes: tuple[tuple[int, ...], ...], learning_rate: tf.Tensor) -> None:
        self._inverse, self._shapes, self._rate = inverse, shapes, learning_rate

    def solve(self, parts: Tensors) -> Tensors:
        """`M^{-1}` on the concatenated variables; leading axes are allowed."""
        flat = flatten(parts, self._shapes)
        lead = tf.shape(flat)[:-1]
        moved = self._rate * tf.tensordot(flat, self._inverse, 1)
        sizes = [math.prod(shape) for shape in self._shapes]
        pieces = tf.split(moved, sizes, axis=-1)
        return [tf.reshape(p, tf.concat([lead, shape], 0)) for p, shape in zip(pieces, self._shapes, strict=True)]


def flatten(parts: Tensors, shapes: tuple[tuple[int, ...], ...]) -> tf.Tensor:
    """Variables with leading axes, side by side.

    Args:
        parts: tensors `[..., *shape]`.
        shapes: the variable shapes.

    Returns:
        `[..., P]`.
    """
    rows = []
    for part, shape in zip(parts, shapes, strict=True):
        lead = tf.shape(part)[: len(part.shape) - len(shape)]
        rows.append(tf.reshape(part, tf.concat([lead, [math.prod(shape)]], 0)))
    return tf.concat(rows, axis=-1)


class FullBlock(CachedBlock[Capture]):
    """M = (E[q q'] + damping I) / learning rate."""

    needs_capture = True
    factorise = staticmethod(damped_inverses)

    def __init__(self, layout: PlayerLayout, config: options.Full) -> None:
        """Refuses players whose matrix would be too large.

        Args:
            layout: the player.
            config: the options.

        Raises:
            ValueError: if the player has more than `config.max_parameters` parameters.
        """
        super().__init__(layout)
        self.config = config
        self.size = sum(math.prod(shape) for shape in layout.shapes)
        if self.size > config.max_parameters:
            raise _checks.error(
                "curvature",
                f"suit every player, and 'full' takes at most max_parameters={config.max_parameters} parameters "
                f"a player while '{layout.name}' has {self.size}",
                config,
                "Use curvature='kfac', or raise `max_parameters` of bellman_tf.curvature.Full.",
            )

    def state_specs(self) -> list[StateSpec]:
        """The running matrix and its damped inverse."""
        return [StateSpec("fisher", (self.size, self.size)), StateSpec("inverse", (self.size, self.size), "identity")]

    @property
    def period(self) -> int:
        """Steps between inversions."""
        return self.config.invert_every

    def observe(self, state: Tensors, capture: Capture, step: StepScalars) -> Tensors:
        """Running mean of `q q'`."""
        q = flatten([part[:, 0] for part in capture.per_sample()], self.layout.shapes)
        moment = tf.matmul(q, q, transpose_a=True) / tf.cast(capture.batch_size, q.dtype)
        return [running_mean(state[0], moment, step.mean_rate(self.config.decay))]

    @classmethod
    def matrices(cls, blocks: Sequence[Self], statistics: Sequence[Tensors]) -> list[list[tuple[tf.Tensor, ...]]]:
        """The running matrices and their dampings."""
        return [
            [(fisher, tf.constant(block.config.damping, fisher.dtype))]
            for block, (fisher,) in zip(blocks, statistics, strict=True)
        ]

    def cache(self, factors: list[Tensors], capture: Capture, kept: Tensors) -> Tensors:
        """The inverse."""
        return factors[0][:1]

    def finish(
        self, statistics: Tensors, cached: Tensors, measured: Tensors, step: StepScalars
    ) -> tuple[Tensors, Metric]:
        """The inverse as a metric."""
        return [*statistics, *cached], DenseMetric(cached[0], self.layout.shapes, step.learning_rate)

    def standing(self, state: Tensors, step: StepScalars) -> Metric:
        """The cached inverse as a metric."""
        return DenseMetric(state[1], self.layout.shapes, step.learning_rate)

    @property
    def kind(self) -> MetricKind:
        """Nothing but `solve`."""
        return DenseMetric.kind

    def describe(self) -> str:
        """A word for `game_summary`."""
        return f"full {self.size}x{self.size}"
