"""Logarithm of the hyperbolic cosine of the error."""

import keras
import tensorflow as tf

from bellman_tf.losses.closed_form import LossForm
from bellman_tf.losses.diagonal import ElementwiseForm


class LogCoshForm(ElementwiseForm):
    """Mean over the last axis of log cosh(z - target)."""

    kind = "log_cosh"
    functions = (keras.losses.log_cosh,)

    def derivatives(self, form: LossForm, z: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Slope tanh(gap), curvature 1 / cosh(gap)^2, gap = z - target."""
        gap = z - target
        # 1 / cosh^2 as 4 sigmoid(2 gap) sigmoid(-2 gap) keeps its digits for large gaps, as 1 - tanh^2 it does not.
        return tf.tanh(gap), 4.0 * tf.sigmoid(2.0 * gap) * tf.sigmoid(-2.0 * gap)
