"""What the diagonal families share: second moments that are known only after the first step."""

import tensorflow as tf

from bellman_tf import keras_optimizers
from bellman_tf._typing import Entrywise, Tensors
from bellman_tf.curvature.diagonal import DIAGONAL, DiagonalMetric, where_known
from bellman_tf.curvature.inner.base import InnerBlock
from bellman_tf.curvature.metric import Metric, MetricKind
from bellman_tf.curvature.step_scalars import StepScalars


class DiagonalInnerBlock(InnerBlock):
    """M = diag(f(v)) / rate, v the second moments that the optimizer keeps: those of re-weighted gradients.

    Entries whose moment is 0 have seen no gradient and count for nothing in a Gram matrix.
    """

    needs_gradient = True  # the moments of this step's gradient have yet to come; at the first step none are known

    def read(self) -> Tensors:
        """Learning rate, steps taken, second moments."""
        mover = self.mover
        moments = keras_optimizers.moments_of(mover, self.variables)
        return [tf.convert_to_tensor(t) for t in (keras_optimizers.rate_of(mover), mover.iterations, *moments)]

    def standing(self, state: Tensors, step: StepScalars) -> Metric:
        """The diagonal of the moments so far."""
        dtype = step.learning_rate.dtype
        rate, iteration, *moments = (tf.cast(part, dtype) for part in state)
        return self.diagonal(rate, tf.maximum(iteration, 1), moments)

    def diagonal(self, rate: tf.Tensor, steps: tf.Tensor, moments: Tensors) -> DiagonalMetric:
        """The metric of given moments.

        Args:
            rate: learning rate, scalar.
            steps: taken so far, at least 1, scalar.
            moments: as `read` gives them.
        """
        raise NotImplementedError

    def made(self, moments: Tensors, rate: tf.Tensor, divisor: Entrywise) -> DiagonalMetric:
        """`rate / divisor(moments)`, 0 where a moment is 0."""
        return DiagonalMetric(moments, rate, where_known(divisor), self.layout.matrix)

    @property
    def kind(self) -> MetricKind:
        """A diagonal."""
        return DIAGONAL
