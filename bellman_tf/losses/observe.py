"""Which Keras losses a computation of J calls, and the loss value of every sample.

Whatever Keras does between those values and J (reduction, sample and class weights, masks, loss weights, replicas)
is linear in them, so one `tape.gradient(J, values)` holds all of it and none of it is written again here.
"""

import contextlib
import threading
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import keras
import tensorflow as tf


class Observation(NamedTuple):
    """One call of one Keras loss: `values = loss.call(y_true, y_pred)`.

    Attributes:
        loss: the `keras.losses.Loss`.
        y_true: labels as they reach `Loss.call`, already in the loss's dtype.
        y_pred: the very object that was passed to the loss: `y_pred is output` finds the output that the loss is on.
        values: loss per sample (and position), before weights, masks and reduction; rank 0 if the loss returned one
            number for the batch.
        reached: `y_pred` as it reaches `Loss.call`: another tensor if the loss's dtype asked for a cast.
    """

    loss: Any
    y_true: Any
    y_pred: Any
    values: tf.Tensor
    reached: Any = None


def per_sample(observation: Observation) -> bool:
    """Whether J is linear in the values of a loss, and there is one per sample.

    Args:
        observation: of the loss, looked at when nothing is recorded any more.

    Returns:
        Whether it is so.
    """
    reduced_by_keras = type(observation.loss).__call__ is keras.losses.Loss.__call__
    return reduced_by_keras and observation.values.shape.rank != 0


class _Probe(keras.losses.Loss):
    """Keras's own reduction around another loss's `call`; made for one call, so replica threads share none of it."""

    def __init__(self, loss: keras.losses.Loss, call: Callable[..., tf.Tensor]) -> None:
        super().__init__(name=loss.name, reduction=loss.reduction, dtype=loss.dtype)
        self.call = call


class _Hook(threading.local):
    """The list that this thread records into; None: not recording."""

    record: tuple[list[Observation], tf.GradientTape | None] | None = None


_hook = _Hook()
_lock = threading.Lock()
_users = 0
_keras_call = keras.losses.Loss.__call__


@tf.autograph.experimental.do_not_convert
def _observed_call(loss: keras.losses.Loss, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
    record, tape = _hook.record or (None, None)
    if record is None:
        return _keras_call(loss, y_true, y_pred, sample_weight)

    def call(true: Any, pred: Any) -> tf.Tensor:
        outside, _hook.record = _hook.record, None  # a loss made of losses is one loss
        try:
            values = tf.convert_to_tensor(loss.call(true, pred))
        finally:
            _hook.record = outside
        if tape is not None:
            tape.watch(values)
        record.append(Observation(loss, true, y_pred, values, pred))
        return values

    return _keras_call(_Probe(loss, call), y_true, y_pred, sample_weight)


@contextlib.contextmanager
def observe_losses(tape: tf.GradientTape | None = None) -> Generator[list[Observation], None, None]:
    """Records every call of a Keras loss made by this thread inside the context.

    Args:
        tape: a `tf.GradientTape` that shall watch the values; not needed when `y_pred` depends on watched tensors.

    Yields:
        A list that fills with one `Observation` per loss called, in order. Empty when J is computed without a
        `keras.losses.Loss`, as a user's own `compute_loss` may do.

    Numerics: J is unchanged to the last bit; the loss objects are not touched. `keras.losses.Loss.__call__` is replaced
    while any thread is inside, and other threads pass straight through it.

    Example:
        >>> mse, y = keras.losses.MeanSquaredError(), tf.constant([[1.0], [3.0]])
        >>> with tf.GradientTape() as tape, observe_losses(tape) as observed:
        ...     J = mse(tf.zeros([2, 1]), y, sample_weight=tf.constant([1.0, 0.5]))
        >>> (2 * tape.gradient(J, observed[0].values)).numpy().tolist()
        [1.0, 0.5]
    """
    global _users
    observed: list[Observation] = []
    with _lock:
        _users += 1
        keras.losses.Loss.__call__ = _observed_call
    outside, _hook.record = _hook.record, (observed, tape)
    try:
        yield observed
    finally:
        _hook.record = outside
        with _lock:
            _users -= 1
            if not _users:
                keras.losses.Loss.__call__ = _keras_call
