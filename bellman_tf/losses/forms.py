"""The closed forms there are, and which one a Keras loss and the last activation make together.

A new one is a file with a `ClosedForm` and a line in `CLOSED_FORMS`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from bellman_tf._checks import error
from bellman_tf._typing import LossFunction
from bellman_tf.keras_access import loss_arguments
from bellman_tf.losses.closed_form import AUTOMATIC, ClosedForm, LossForm, Prediction
from bellman_tf.losses.head import Head
from bellman_tf.losses.huber import HuberForm
from bellman_tf.losses.log_cosh import LogCoshForm
from bellman_tf.losses.observe import Observation
from bellman_tf.losses.poisson import PoissonForm
from bellman_tf.losses.samples import at_least_float32
from bellman_tf.losses.sigmoid import SigmoidForm
from bellman_tf.losses.softmax import SoftmaxForm
from bellman_tf.losses.square import SquareForm

CLOSED_FORMS: tuple[ClosedForm, ...] = (
    SoftmaxForm(),
    SigmoidForm(),
    SquareForm(),
    HuberForm(),
    LogCoshForm(),
    PoissonForm(),
)
# TensorFlow stops with an error or a NaN at a second derivative of these: they count as linear in the output.
ONCE_DIFFERENTIABLE: tuple[LossFunction, ...] = (keras.losses.ctc,)
_BY_KIND = {form.kind: form for form in CLOSED_FORMS}


def recognise(
    loss: Any, activation: str | None = None, rank: int | None = None, reached: tf.Tensor | None = None
) -> LossForm:
    """Closed form of a Keras loss on top of the last activation.

    Softmax with (sparse) categorical cross-entropy, and sigmoid with binary cross-entropy, are one function of the
    logits; so is either cross-entropy on *any* output in which Keras finds logits, whatever activation left them
    there. Everything else is a function of the output `y`, except that an unrecognised loss after a softmax or sigmoid
    is still cut before it: Keras's cross-entropies then take the logits from the activation, and dJ/dy would be zero.

    Args:
        loss: `keras.losses.Loss`, function, or name.
        activation: name of the last activation; None or `"linear"` for none. A `"softmax"` is over the last axis.
        rank: number of axes of the output, needed only for a loss with a positive `axis`.
        reached: the tensor that reached `Loss.call`; if None, a softmax or sigmoid counts as Keras's own.

    Returns:
        `LossForm`; of kind `"automatic"` when `loss` is anything else, in particular a subclass that overrides `call`.

    Example:
        >>> form = recognise("sparse_categorical_crossentropy", "softmax")
        >>> form.kind, form.before_activation
        ('softmax', True)
    """
    prediction = Prediction(activation, rank, reached)
    function, options = _function_and_options(loss)
    known = next((form for form in CLOSED_FORMS if any(function is own for own in form.functions)), None)
    form = known.recognise(function, options, prediction) if known is not None and function is not None else None
    return form if form is not None else LossForm(AUTOMATIC, before_activation=prediction.keeps_logits)


def agree(forms: Sequence[LossForm], activation: str | None = None) -> list[LossForm]:
    """Forms of several losses on one output, all with one cut.

    Args:
        forms: the forms.
        activation: name of the last activation.

    Returns:
        The forms as they are if all are closed and share a cut; otherwise as many automatic ones.
    """
    if len({form.before_activation for form in forms}) <= 1 and all(form.kind != AUTOMATIC for form in forms):
        return list(forms)
    before = Prediction(activation).keeps_logits
    return [LossForm(AUTOMATIC, before_activation=before) for _ in forms]


def once_differentiable(loss: Any) -> bool:
    """Whether TensorFlow has first derivatives of a loss but no second ones.

    Args:
        loss: `keras.losses.Loss`, function, or name.

    Returns:
        True for Keras's own losses in `ONCE_DIFFERENTIABLE`.
    """
    function, _ = _function_and_options(loss)
    return any(function is known for known in ONCE_DIFFERENTIABLE)


def closed_form(kind: str) -> ClosedForm:
    """Finds a registered form.

    Args:
        kind: its name.

    Returns:
        The form.

    Raises:
        ValueError: if no form has this name, `"automatic"` included.
    """
    if kind not in _BY_KIND:
        raise error("kind", f"be one of {', '.join(map(repr, _BY_KIND))}", kind, "Differentiate the loss instead.")
    return _BY_KIND[kind]


def terminal_head(form: LossForm, observation: Observation, z: tf.Tensor, f: tf.Tensor) -> Head:
    """Terminal cost of one output under a closed form.

    Args:
        form: what `recognise` said about `observation.loss`.
        observation: the observed loss.
        z: `[B, ..., C]`: input of the last activation if `form.before_activation`, else the output.
        f: B x `tape.gradient(J, observation.values)`; holds reduction, weights, masks and loss weights.

    Returns:
        The head, exact for this loss. Half precision is computed in float32.

    Raises:
        ValueError: if `form.kind` is not registered.
    """
    z = at_least_float32(z)
    return closed_form(form.kind).head(form, observation.y_true, z, tf.cast(f, z.dtype))


def _function_and_options(loss: Any) -> tuple[LossFunction | None, Mapping[str, Any]]:
    """Returns what `loss.call` evaluates, a function and its keyword arguments; (None, {}) if `call` does more."""
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    if not isinstance(loss, keras.losses.Loss):
        return (loss, {}) if callable(loss) else (None, {})
    wrapper = keras.losses.MeanSquaredError  # inherits `call` from Keras's wrapper of loss functions
    plain = type(loss).call is wrapper.call and type(loss).__call__ is wrapper.__call__ and "call" not in vars(loss)
    function = getattr(loss, "fn", None)
    if not plain or function is None:
        return None, {}
    options = loss_arguments(loss)  # what `call` really passes on; Huber's `get_config` omits delta
    if options is None:
        return (None, {}) if function is keras.losses.huber else (function, loss.get_config())
    return function, options
