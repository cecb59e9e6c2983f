"""Keras's Adam, AdamW and Nadam: bias-corrected second moments."""

import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.curvature.diagonal import DiagonalMetric
from bellman_tf.curvature.inner.diagonal import DiagonalInnerBlock


class AdamInnerBlock(DiagonalInnerBlock):
    """M = diag(sqrt(v) + epsilon) / (learning rate sqrt(1 - beta_2^t)), v the largest one so far with `amsgrad`.

    The first moment is an average of gradients, so in the end a gradient moves the whole of M^{-1} of itself: "rate"
    and "gain" are the same.
    """

    name = "adam"

    def diagonal(self, rate: tf.Tensor, steps: tf.Tensor, moments: Tensors) -> DiagonalMetric:
        """As Adam divides."""
        mover = self.mover
        rate *= tf.sqrt(1 - tf.pow(tf.constant(mover.beta_2, rate.dtype), steps))
        return self.made(moments, rate, lambda v: tf.sqrt(v) + mover.epsilon)


class NadamInnerBlock(DiagonalInnerBlock):
    """M = diag(sqrt(v / (1 - beta_2^t)) + epsilon) / learning rate."""

    name = "nadam"

    def diagonal(self, rate: tf.Tensor, steps: tf.Tensor, moments: Tensors) -> DiagonalMetric:
        """As Nadam divides."""
        mover = self.mover
        known = 1 - tf.pow(tf.constant(mover.beta_2, rate.dtype), steps)
        return self.made(moments, rate, lambda v: tf.sqrt(v / known) + mover.epsilon)
