"""Sigmoid and binary cross-entropy as one function of the logits."""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from bellman_tf._typing import LossFunction
from bellman_tf.losses.closed_form import CrossEntropyForm, LossForm, Prediction
from bellman_tf.losses.diagonal import ElementwiseForm


class SigmoidForm(CrossEntropyForm, ElementwiseForm):
    """Binary cross-entropy, averaged over the last axis: softplus(z) - target z.

    Numerics: with mixed precision Keras computes it from probabilities clipped to [1e-7, 1 - 1e-7]; the closed form has
    no clipping.
    """

    kind = "sigmoid"
    functions = (keras.losses.binary_crossentropy,)
    operation = "Sigmoid"

    def recognise(self, function: LossFunction, options: Mapping[str, Any], prediction: Prediction) -> LossForm | None:
        """Recognises the axis of the mean and the place of the logits.

        Args:
            function: `keras.losses.binary_crossentropy`.
            options: keyword arguments it is called with.
            prediction: the output.

        Returns:
            The form, or None.
        """
        axis = options.get("axis", -1)
        last = axis == -1 or (prediction.rank is not None and axis == prediction.rank - 1)
        before = self.cut(options, prediction) if last else None
        if before is None:
            return None
        plain = prediction.activation == self.kind and not options.get("from_logits", False)
        smoothing = float(options.get("label_smoothing", 0.0))
        return LossForm(self.kind, before, {"label_smoothing": smoothing, "follows_logits": before and not plain})

    def fits(self, form: LossForm, y_true: tf.Tensor, z: tf.Tensor) -> bool:
        """Says whether every entry has one label, and Keras still finds the logits where the form needs that."""
        # A squeezed output has lost its logits: the loss has to be differentiated instead.
        squeezed = y_true.shape.rank != z.shape.rank
        return super().fits(form, y_true, z) and not (squeezed and form.options["follows_logits"])

    def derivatives(self, form: LossForm, z: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Slope p - target, curvature p (1 - p); `z` are logits, `target` lies in [0, 1]."""
        smoothing = form.options["label_smoothing"]
        target = target * (1.0 - smoothing) + 0.5 * smoothing
        return tf.sigmoid(z) - target, tf.sigmoid(z) * tf.sigmoid(-z)
