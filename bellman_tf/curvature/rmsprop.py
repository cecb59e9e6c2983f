"""RMSprop's metric: running mean of squared gradients."""

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Tensors
from bellman_tf.curvature import config as options
from bellman_tf.curvature.block import Block, PlayerLayout, StateSpec
from bellman_tf.curvature.diagonal import DIAGONAL, DiagonalMetric, where_known
from bellman_tf.curvature.metric import Metric, MetricKind
from bellman_tf.curvature.step_scalars import StepScalars
from bellman_tf.layers.capture import Capture


class RMSpropBlock(Block):
    """Running mean of squared gradients, as in Keras."""

    needs_gradient = True

    def __init__(self, layout: PlayerLayout, config: options.RMSprop) -> None:
        super().__init__(layout)
        self.config = config

    def state_specs(self) -> list[StateSpec]:
        """One second moment per variable."""
        return [StateSpec(f"velocity_{k}", shape) for k, shape in enumerate(self.layout.shapes)]

    def update(
        self, state: Tensors, capture: Capture | None, gradient: Tensors | None, step: StepScalars
    ) -> tuple[Tensors, Metric]:
        """`v <- rho v + (1 - rho) g^2`, `M = diag(sqrt(v + epsilon)) / learning_rate`."""
        rho = self.config.rho
        state = [
            rho * v + (1 - rho) * tf.square(g) for v, g in zip(state, _checks.given("gradient", gradient), strict=True)
        ]
        return state, DiagonalMetric(state, step.learning_rate, self._divisor, self.layout.matrix)

    def _divisor(self, v: tf.Tensor) -> tf.Tensor:
        return tf.sqrt(v + self.config.epsilon)

    @property
    def kind(self) -> MetricKind:
        """A diagonal."""
        return DIAGONAL

    def standing(self, state: Tensors, step: StepScalars) -> Metric:
        """The metric of the statistics so far; what they do not know yet counts for nothing."""
        return DiagonalMetric(state, step.learning_rate, where_known(self._divisor), self.layout.matrix)

    def describe(self) -> str:
        """A word for `game_summary`."""
        return "rmsprop"
