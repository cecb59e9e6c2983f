"""Plain gradient descent."""

import tensorflow as tf

from bellman_tf.curvature.block import Block, Metric, Step, TapwiseMetric
from bellman_tf.layers.capture import Capture, Tensors


class IdentityMetric(TapwiseMetric):
    """M = I / learning rate."""

    kronecker = True
    tapwise = True

    def __init__(self, learning_rate: tf.Tensor) -> None:
        self.scale = learning_rate

    def solve(self, parts: Tensors) -> Tensors:
        """`learning_rate * parts`."""
        return [self.scale * part for part in parts]

    def input_solve(self, x: tf.Tensor) -> tf.Tensor:
        """The input side: identity."""
        return x

    def cotangent_solve(self, c: tf.Tensor) -> tf.Tensor:
        """The cotangent side: identity."""
        return c

    def solve_tap(self, q: tf.Tensor, tap: object) -> tf.Tensor:
        """One tap of a convolution's kernel, `[..., c_in, c_out]`."""
        return self.scale * q

    def solve_bias(self, q: tf.Tensor) -> tf.Tensor:
        """The bias of a convolution, `[..., c_out]`."""
        return self.scale * q


class IdentityBlock(Block):
    """Plain gradient descent."""

    def update(
        self, state: Tensors, capture: Capture | None, gradient: Tensors | None, step: Step
    ) -> tuple[Tensors, Metric]:
        """No state; the metric is the learning rate."""
        return [], IdentityMetric(step.learning_rate)

    def standing(self, state: Tensors, step: Step) -> Metric:
        """The learning rate."""
        return IdentityMetric(step.learning_rate)

    def describe(self) -> str:
        """A word for `game_summary`."""
        return "identity"
