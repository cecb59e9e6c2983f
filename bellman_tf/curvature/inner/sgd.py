"""Keras's SGD: the learning rate, with or without momentum."""

import tensorflow as tf

from bellman_tf import keras_optimizers
from bellman_tf._typing import Tensors
from bellman_tf.curvature.identity import IDENTITY, IdentityMetric
from bellman_tf.curvature.inner.base import InnerBlock
from bellman_tf.curvature.metric import Metric, MetricKind
from bellman_tf.curvature.step_scalars import StepScalars


class SGDBlock(InnerBlock):
    """M = I / learning rate, with `metric="gain"` M = (1 - momentum) I / learning rate."""

    name = "sgd"

    def read(self) -> Tensors:
        """The learning rate."""
        return [tf.convert_to_tensor(keras_optimizers.rate_of(self.mover))]

    def standing(self, state: Tensors, step: StepScalars) -> Metric:
        """The learning rate or the gain."""
        [rate] = state
        return IdentityMetric(self.times_gain(tf.cast(rate, step.learning_rate.dtype), self.mover.momentum))

    @property
    def kind(self) -> MetricKind:
        """That of the identity."""
        return IDENTITY
