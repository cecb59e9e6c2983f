"""Adam's metric: bias-corrected second moments, and a first moment of the step."""

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Entrywise, Tensors
from bellman_tf.curvature import config as options
from bellman_tf.curvature.block import Block, PlayerLayout, StateSpec
from bellman_tf.curvature.diagonal import DIAGONAL, DiagonalMetric, where_known
from bellman_tf.curvature.metric import Decrease, Metric, MetricKind
from bellman_tf.curvature.step_scalars import StepScalars
from bellman_tf.layers.capture import Capture
from bellman_tf.layers.matrix_layout import MatrixLayout
from bellman_tf.linalg.constants import number, once


class AdamMetric(DiagonalMetric):
    """A diagonal metric whose step averages the gradient first."""

    def __init__(
        self,
        moments: Tensors,
        rate: tf.Tensor,
        divisor: Entrywise,
        layout: MatrixLayout | None,
        *,
        first: Tensors,
        beta_1: float,
        first_rate: tf.Tensor,
    ) -> None:
        super().__init__(moments, rate, divisor, layout)
        self._first, self._beta_1, self._first_rate = first, beta_1, first_rate

    def step(self, gradient: Tensors) -> Decrease:
        """`M^{-1} m / (1 - beta_1^t)` with the new first moment m; state entries 0.. are the first moments."""
        share = number(1 - self._beta_1, self._first[0].dtype)
        moved = [m + (g - m) * share for m, g in zip(self._first, gradient, strict=True)]
        return Decrease(self._divided(moved), self._first_rate, dict(enumerate(moved)))


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
        """`v <- v + (1 - beta_2)(g^2 - v)`, `M = diag(sqrt(v) + epsilon) / (learning_rate sqrt(1 - beta_2^t))`."""
        count = len(self.layout.shapes)
        first, second = state[:count], state[count:]
        beta_1, beta_2 = self.config.beta_1, self.config.beta_2
        rate = step.corrected_rate(beta_2)
        first_rate = once(step, f"first rate {beta_1} {beta_2}", lambda: rate / step.correction(beta_1))
        share = number(1 - beta_2, second[0].dtype)
        second = [
            v + (tf.square(g) - v) * share for v, g in zip(second, _checks.given("gradient", gradient), strict=True)
        ]
        matrix = self.layout.matrix
        return first + second, AdamMetric(
            second, rate, self._divisor, matrix, first=first, beta_1=beta_1, first_rate=first_rate
        )

    def _divisor(self, v: tf.Tensor) -> tf.Tensor:
        """Of the gradient, for second moments v."""
        return tf.sqrt(v) + number(self.config.epsilon, v.dtype)

    @property
    def kind(self) -> MetricKind:
        """A diagonal."""
        return DIAGONAL

    def standing(self, state: Tensors, step: StepScalars) -> Metric:
        """The bias-corrected metric of the moments so far; what they do not know yet counts for nothing."""
        second = state[len(self.layout.shapes) :]
        rate = step.corrected_rate(self.config.beta_2, standing=True)
        return DiagonalMetric(second, rate, where_known(self._divisor), self.layout.matrix)

    def describe(self) -> str:
        """A word for `game_summary`."""
        return "adam"
