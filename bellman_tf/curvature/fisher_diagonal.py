"""The diagonal of the Fisher matrix, which stands in where K-FAC cannot."""

import tensorflow as tf

from bellman_tf import _checks, replicas
from bellman_tf._typing import Tensors
from bellman_tf.curvature.block import Block, PlayerLayout, StateSpec
from bellman_tf.curvature.damping import diagonal_damping
from bellman_tf.curvature.diagonal import DIAGONAL, DiagonalMetric
from bellman_tf.curvature.metric import Metric, MetricKind
from bellman_tf.curvature.periods import when
from bellman_tf.curvature.step_scalars import StepScalars, running_mean
from bellman_tf.layers.capture import Capture
from bellman_tf.layers.tensors import either


class DiagonalFisherBlock(Block):
    """M = (diag E[q^2] + damping) / learning rate.

    For covered players the mean is over per-sample gradients, at every step or in those that draw. An open-loop player
    has only its mean gradient g, of the loss itself: with samples independent and g small against their spread,
    `E[q^2] ~ batch size * g^2`.
    """

    def __init__(self, layout: PlayerLayout, damping: float, decay: float) -> None:
        super().__init__(layout)
        self.damping, self.decay = damping, decay
        self.needs_capture = layout.covered
        self.needs_gradient = not layout.covered

    def state_specs(self) -> list[StateSpec]:
        """One running mean per variable."""
        return [StateSpec(f"fisher_{k}", shape) for k, shape in enumerate(self.layout.shapes)]

    def update(
        self, state: Tensors, capture: Capture | None, gradient: Tensors | None, step: StepScalars
    ) -> tuple[Tensors, Metric]:
        """Running mean of squares, then the inverse of the damped diagonal."""
        if self.layout.covered:
            squares = step.mean(_checks.given("capture", capture).mean_squares())
        else:
            [batch] = replicas.total([tf.cast(_checks.given("capture", capture).batch_size, step.learning_rate.dtype)])
            squares = [batch * tf.square(g) for g in _checks.given("gradient", gradient)]
        period = self.draws or 1
        rate = step.mean_rate(self.decay, period)
        means = [running_mean(v, new, rate) for v, new in zip(state, squares, strict=True)]
        due = when(period, step.iteration)
        state = means if due is None else [either(due, new, old) for new, old in zip(means, state, strict=True)]
        return state, self.standing(state, step)

    @property
    def kind(self) -> MetricKind:
        """A diagonal."""
        return DIAGONAL

    def standing(self, state: Tensors, step: StepScalars) -> Metric:
        """The metric of the running means so far."""
        damping = diagonal_damping(state, self.damping)
        return DiagonalMetric(state, step.learning_rate, lambda v: v + damping, self.layout.matrix)

    def describe(self) -> str:
        """A word for `game_summary`."""
        return "fisher diagonal"
