"""Plain gradient descent."""

import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.curvature.block import Block
from bellman_tf.curvature.metric import Decrease, GradientPair, Metric, MetricKind, TwoSided
from bellman_tf.curvature.step_scalars import StepScalars
from bellman_tf.layers.capture import Capture, MatrixCapture
from bellman_tf.layers.tap_capture import TapCapture

IDENTITY = MetricKind(kronecker=True, tapwise=True, sided=True, rowwise=True)


class IdentityMetric(Metric, TwoSided):
    """M = I / learning rate."""

    kind = IDENTITY

    def __init__(self, learning_rate: tf.Tensor) -> None:
        self.scale = learning_rate

    def solve(self, parts: Tensors) -> Tensors:
        """`learning_rate * parts`."""
        return [self.scale * part for part in parts]

    def step(self, gradient: Tensors) -> Decrease:
        """The gradient, scaled by the learning rate."""
        return Decrease(gradient, self.scale, {})

    def input_solve(self, x: tf.Tensor) -> tf.Tensor:
        """The input side: identity."""
        return x

    def cotangent_solve(self, c: tf.Tensor) -> tf.Tensor:
        """The cotangent side: identity."""
        return c

    def tap_input_solve(self, x: tf.Tensor) -> tf.Tensor:
        """The input side: identity."""
        return x

    def input_pair(self, capture: MatrixCapture) -> tuple[tf.Tensor, tf.Tensor, float | None]:
        """The inputs without the constant feature of the bias, whose products are one."""
        x = capture.features()
        return x, x, 1.0 if capture.bias else None

    def sample_pair(self, capture: Capture) -> GradientPair:
        """The gradients as they are, and the learning rate."""
        parts = capture.per_sample()
        return GradientPair(parts, parts, self.scale)

    def tap_pair(self, capture: TapCapture, tap: int) -> GradientPair:
        """The gradients as they are, and the learning rate."""
        q = [capture.tap_gradients(tap)]
        return GradientPair(q, q, self.scale)

    def feature_pair(self, capture: MatrixCapture, count: int) -> GradientPair:
        """The gradients as they are; the learning rate times how many more features there are."""
        q = [capture.feature_gradients(count)]
        return GradientPair(q, q, self.scale * capture.features_over(count))

    def solve_tap(self, q: tf.Tensor, tap: int) -> tf.Tensor:
        """One tap of a convolution's kernel, `[..., c_in, c_out]`."""
        return self.scale * q

    def solve_bias(self, q: tf.Tensor) -> tf.Tensor:
        """The bias of a convolution, `[..., c_out]`."""
        return self.scale * q

    def solve_rows(self, tokens: tf.Tensor, c: tf.Tensor) -> tf.Tensor:
        """Rows of a table, `[B, m, L, e]`."""
        return self.scale * c


class IdentityBlock(Block):
    """Plain gradient descent."""

    def update(
        self, state: Tensors, capture: Capture | None, gradient: Tensors | None, step: StepScalars
    ) -> tuple[Tensors, Metric]:
        """No state; the metric is the learning rate."""
        return [], IdentityMetric(step.learning_rate)

    def standing(self, state: Tensors, step: StepScalars) -> Metric:
        """The learning rate."""
        return IdentityMetric(step.learning_rate)

    @property
    def kind(self) -> MetricKind:
        """Everything but a basis."""
        return IDENTITY

    def describe(self) -> str:
        """A word for `game_summary`."""
        return "identity"
