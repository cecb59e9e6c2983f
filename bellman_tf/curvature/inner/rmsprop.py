"""Keras's RMSprop: the running mean of squared gradients."""

import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.curvature.diagonal import DiagonalMetric
from bellman_tf.curvature.inner.diagonal import DiagonalInnerBlock


class RMSpropInnerBlock(DiagonalInnerBlock):
    """M = diag(sqrt(v + epsilon)) / learning rate; `centered` takes the squared mean gradient off v."""

    name = "rmsprop"

    def diagonal(self, rate: tf.Tensor, steps: tf.Tensor, moments: Tensors) -> DiagonalMetric:
        """As RMSprop divides."""
        count, mover = len(self.variables), self.mover
        centres = moments[count:]
        moments = moments[:count]
        if centres:
            moments = [tf.maximum(v - tf.square(mean), 0) for v, mean in zip(moments, centres, strict=True)]
        rate = self.times_gain(rate, mover.momentum)
        return self.made(moments, rate, lambda v: tf.sqrt(v + mover.epsilon))
