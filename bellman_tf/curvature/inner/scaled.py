"""Any other optimizer: one number per variable, the length of its last step over that of the gradient."""

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Tensors
from bellman_tf.curvature.block import StateSpec
from bellman_tf.curvature.identity import IDENTITY
from bellman_tf.curvature.inner.base import InnerBlock
from bellman_tf.curvature.metric import GradientPair, Metric, MetricKind, TwoSided
from bellman_tf.curvature.step_scalars import StepScalars
from bellman_tf.layers.capture import MatrixCapture
from bellman_tf.layers.matrix_layout import MatrixLayout


class ScaledMetric(Metric, TwoSided):
    """M^{-1} multiplies each variable's gradient by a number of its own."""

    kind = IDENTITY

    def __init__(self, scales: list[tf.Tensor], layout: MatrixLayout | None) -> None:
        """Stores the numbers.

        Args:
            scales: one scalar per variable.
            layout: the player's matrix form, where it has one.
        """
        self.scales, self.scale = scales, tf.ones([], scales[0].dtype)
        self._layout = layout

    def solve(self, parts: Tensors) -> Tensors:
        """`scale_k * part_k`."""
        return [scale * part for scale, part in zip(self.scales, parts, strict=True)]

    def input_solve(self, x: tf.Tensor) -> tf.Tensor:
        """Rows of the kernel times its number, the row of the bias times its own."""
        layout = _checks.given("layout", self._layout)
        if layout.bias_shape is None:
            return self.scales[0] * x
        return x * tf.concat([tf.repeat(self.scales[0], layout.rows), self.scales[1][None]], axis=0)

    def cotangent_solve(self, c: tf.Tensor) -> tf.Tensor:
        """The cotangent side: identity."""
        return c

    def tap_input_solve(self, x: tf.Tensor) -> tf.Tensor:
        """What one tap sees times the kernel's number."""
        return self.scales[0] * x

    def feature_pair(self, capture: MatrixCapture, count: int) -> GradientPair:
        """The gradients as they are; the kernel's number times how many more features there are."""
        q = [capture.feature_gradients(count)]
        return GradientPair(q, q, self.scales[0] * capture.features_over(count))

    def solve_tap(self, q: tf.Tensor, tap: int) -> tf.Tensor:
        """One tap of a convolution's kernel, `[..., c_in, c_out]`."""
        return self.scales[0] * q

    def solve_bias(self, q: tf.Tensor) -> tf.Tensor:
        """The bias of a convolution, `[..., c_out]`."""
        return self.scales[1] * q

    def solve_rows(self, tokens: tf.Tensor, c: tf.Tensor) -> tf.Tensor:
        """Rows of a table, `[B, m, L, e]`."""
        return self.scales[0] * c


class ScaledBlock(InnerBlock):
    """M^{-1} = |du| / |g| of the last step, variable by variable; 0 before the first.

    |du| is the whole displacement, weight decay and momentum included.
    """

    name = "scaled"
    needs_gradient = True  # no step is known at the first one

    def state_specs(self) -> list[StateSpec]:
        """One number per variable."""
        return [StateSpec("step_scales", (len(self.layout.shapes),))]

    def read(self) -> Tensors:
        """Nothing of the optimizer's own."""
        return []

    def standing(self, state: Tensors, step: StepScalars) -> Metric:
        """The numbers of the last step."""
        scales = tf.unstack(tf.cast(state[0], step.learning_rate.dtype), len(self.layout.shapes))
        return ScaledMetric(scales, self.layout.matrix)

    def measured(self, scales: tf.Tensor, moves: Tensors, gradients: Tensors) -> tf.Tensor:
        """The numbers of a step that has been made.

        Args:
            scales: those so far, `[variables]`.
            moves: displacement of every variable.
            gradients: what the optimizer was handed.

        Returns:
            `[variables]`; a variable without a gradient keeps its number.
        """
        lengths = [tf.stack([tf.norm(tf.cast(part, scales.dtype)) for part in parts]) for parts in (moves, gradients)]
        known = lengths[1] > 0
        return tf.where(known, lengths[0] / tf.where(known, lengths[1], tf.ones_like(scales)), scales)

    @property
    def kind(self) -> MetricKind:
        """That of the identity."""
        return IDENTITY
