"""Negative log-likelihood of counts under a Poisson distribution."""

import keras
import tensorflow as tf

from bellman_tf.losses.closed_form import LossForm
from bellman_tf.losses.diagonal import ElementwiseForm


class PoissonForm(ElementwiseForm):
    """Mean over the last axis of z - target log(z + epsilon), z the rate; epsilon is `keras.config.epsilon()`."""

    kind = "poisson"
    functions = (keras.losses.poisson,)

    def derivatives(self, form: LossForm, z: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Slope 1 - target / (z + epsilon), curvature target / (z + epsilon)^2; `target` are counts."""
        rate = z + keras.config.epsilon()
        return 1.0 - target / rate, target / rate / rate
