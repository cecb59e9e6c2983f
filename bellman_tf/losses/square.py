"""Mean squared error."""

import keras
import tensorflow as tf

from bellman_tf.losses.closed_form import LossForm
from bellman_tf.losses.diagonal import ElementwiseForm


class SquareForm(ElementwiseForm):
    """Mean over the last axis of (z - target)^2."""

    kind = "square"
    functions = (keras.losses.mean_squared_error,)

    def derivatives(self, form: LossForm, z: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Slope 2 (z - target), curvature 2."""
        return 2.0 * (z - target), 2.0 * tf.ones_like(z)
