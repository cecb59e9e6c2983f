"""Huber's loss."""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from bellman_tf._typing import LossFunction
from bellman_tf.losses.closed_form import LossForm, Prediction
from bellman_tf.losses.diagonal import ElementwiseForm


class HuberForm(ElementwiseForm):
    """Mean over the last axis of gap^2 / 2 inside [-delta, delta] and its tangents outside, gap = z - target."""

    kind = "huber"
    functions = (keras.losses.huber,)

    def recognise(self, function: LossFunction, options: Mapping[str, Any], prediction: Prediction) -> LossForm | None:
        """Recognises every Huber loss, with its delta."""
        return LossForm(self.kind, options={"delta": float(options.get("delta", 1.0))})

    def derivatives(self, form: LossForm, z: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Slope: the gap clipped to [-delta, delta]; curvature: 1 inside, 0 outside."""
        gap, delta = z - target, form.options["delta"]
        return tf.clip_by_value(gap, -delta, delta), tf.cast(tf.abs(gap) <= delta, z.dtype)
