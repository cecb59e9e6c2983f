"""The model's metrics after a step, as `train_step` returns them."""

from typing import Any

import keras
import tensorflow as tf

from bellman_tf import replicas
from bellman_tf.training.context import StepResult


def report(model: keras.Model, data: Any, result: StepResult) -> dict[str, Any]:
    """Updates the model's metrics, with an accepted batch only: one NaN would stay in them until the epoch ends.

    Args:
        model: the model.
        data: what Keras handed to `train_step`.
        result: of the step.

    Returns:
        The metrics' results, as Keras's `train_step`.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    tracker = next((m for m in model.metrics if m.name == "loss"), None)
    if tracker is not None:
        first = next(leaf for leaf in keras.tree.flatten(x) if leaf is not None)
        size = first.shape[0] if first.shape[0] is not None else tf.shape(first)[0]
        counted = tf.cast(result.accepted, tracker.dtype)
        loss = tf.cast(result.loss, tracker.dtype)
        loss = loss if replicas.count() == 1 else loss * replicas.count()  # the mean over this replica's samples
        loss = tf.math.multiply_no_nan(loss, counted)
        tracker.update_state(loss, sample_weight=counted * tf.cast(size, tracker.dtype))

    def update() -> dict[str, Any]:
        return model.compute_metrics(x, y, result.y_pred, sample_weight=sample_weight)

    own = type(model).compute_metrics is not keras.Model.compute_metrics
    if own or len(model.metrics) <= 1:  # a user's own may report more than `get_metrics_result` knows
        return update()
    return tf.cond(result.accepted, update, model.get_metrics_result)
