"""Adam's metric: bias-corrected second moments, and a first moment of the step."""

import tensorflow as tf

from bellman_tf.curvature import config as options
from bellman_tf.curvature.block import Block, Metric, MetricKind, PlayerLayout, StateSpec, StepScalars
from bellman_tf.curvature.diagonal import DIAGONAL, DiagonalMetric, where_known
from bellman_tf.layers.capture import Capture
from bellman_tf.layers.tensors import Tensors


class AdamMetric(DiagonalMetric):
    """A diagonal metric whose step averages the gradient first."""

    def __init__(self, *diagonal: object, first: Tensors, beta_1: float, correction: tf.Tensor) -> None:
        super().__init__(*diagonal)
        self._first, self._beta_1, self._correction = first, beta_1, correction

    def step(self, gradient: Tensors) -> tuple[Tensors, dict[int, tf.Tensor]]:
        """`M^{-1} m / (1 - beta_1^t)` with the new first moment m; state entries 0.. are the first moments."""
        moved = [m + (g - m) * (1 - self._beta_1) for m, g in zip(self._first, gradient, strict=True)]
        rate = self._rate / self._correction
        directions = [m * rate / self._divisor(v) for v, m in zip(self.moments, moved, strict=True)]
        return directions, dict(enumerate(moved))


class AdamBlock(Block):
    """Both moments of Adam; the first is kept beside the metric because it averages the direction."""

    needs_gradient = True

    def __init__(self, layout: PlayerLayout, config: options.Adam) -> None:
        super().__init__(layout)
        self.config = config

    def state_specs(self) -> list[StateSpec]:
        """First moments, then second moments."""
        first = [StateSpec(f"momentum_{k}", shape) for k, shape in enumerate(self.layout.shapes)]
        return first + [StateSpec(f"velocity_{k}", shape) for k, shape in enumerate(self.layout.shapes)]

    def update(
        self, state: Tensors, capture: Capture | None, gradient: Tensors | None, step: StepScalars
    ) -> tuple[Tensors, Metric]:
        """V <- v + (1 - beta_2)(g^2 - v), M = diag(sqrt(v) + epsilon) / (learning_rate sqrt(1 - beta_2^t))."""
        count = len(self.layout.shapes)
        first, second = state[:count], state[count:]
        beta_1, beta_2 = self.config.beta_1, self.config.beta_2
        dtype = step.learning_rate.dtype
        t = tf.cast(step.iteration + 1, dtype)
        rate = step.learning_rate * tf.sqrt(1 - tf.pow(tf.constant(beta_2, dtype), t))
        second = [v + (tf.square(g) - v) * (1 - beta_2) for v, g in zip(second, gradient, strict=True)]
        epsilon, matrix = self.config.epsilon, self.layout.matrix
        correction = 1 - tf.pow(tf.constant(beta_1, dtype), t)
        return first + second, AdamMetric(
            second, rate, lambda v: tf.sqrt(v) + epsilon, matrix, first=first, beta_1=beta_1, correction=correction
        )

    @property
    def kind(self) -> MetricKind:
        """A diagonal."""
        return DIAGONAL

    def standing(self, state: Tensors, step: StepScalars) -> Metric:
        """The bias-corrected metric of the moments so far; what they do not know yet counts for nothing."""
        second, dtype = state[len(self.layout.shapes) :], step.learning_rate.dtype
        t = tf.cast(tf.maximum(step.iteration, 1), dtype)
        rate = step.learning_rate * tf.sqrt(1 - tf.pow(tf.constant(self.config.beta_2, dtype), t))
        epsilon = self.config.epsilon
        return DiagonalMetric(second, rate, where_known(lambda v: tf.sqrt(v) + epsilon), self.layout.matrix)

    def describe(self) -> str:
        """A word for `game_summary`."""
        return "adam"
