"""Which closed form a Keras loss and the last activation make together."""

from typing import NamedTuple

import keras

_ACTIVATIONS_KEEPING_LOGITS = ("softmax", "sigmoid")  # Keras's cross-entropies look through these two


class LossForm(NamedTuple):
    """What is known about one output's terminal cost before any number is.

    Attributes:
        kind: `"softmax"`, `"sigmoid"`, `"square"`, `"huber"`, or `"automatic"` when no closed form applies.
        before_activation: where to cut. True: `z` is the input of the last activation; False: `z` is the output.
        sparse: labels are class indices.
        label_smoothing: as in Keras.
        delta: Huber's.
        ignore_class: label without loss, or None.
    """

    kind: str
    before_activation: bool = False
    sparse: bool = False
    label_smoothing: float = 0.0
    delta: float = 1.0
    ignore_class: int | None = None


def recognise(loss, activation=None, rank=None):
    """Closed form of a Keras loss on top of the last activation.

    Softmax with (sparse) categorical cross-entropy, and sigmoid with binary cross-entropy, are one function of the
    logits. Everything else is a function of the output `y`, except that an unrecognised loss after a softmax or sigmoid
    is still cut before it: Keras's cross-entropies then take the logits from the activation, and dJ/dy would be zero.

    Args:
        loss: `keras.losses.Loss`, function, or name.
        activation: name of the last activation; None or `"linear"` for none. A `"softmax"` is over the last axis.
        rank: number of axes of the output, needed only for a loss with a positive `axis`.

    Returns:
        `LossForm`; of kind `"automatic"` when `loss` is anything else, in particular a subclass that overrides `call`.

    Example:
        >>> recognise("sparse_categorical_crossentropy", "softmax")[:3]
        ('softmax', True, True)
    """
    automatic = LossForm("automatic", before_activation=activation in _ACTIVATIONS_KEEPING_LOGITS)
    function, options = _function_and_options(loss)
    if function is None:
        return automatic
    if function is keras.losses.mean_squared_error:
        return LossForm("square")
    if function is keras.losses.huber:
        return LossForm("huber", delta=options.get("delta", 1.0))
    links = {
        keras.losses.categorical_crossentropy: "softmax",
        keras.losses.sparse_categorical_crossentropy: "softmax",
        keras.losses.binary_crossentropy: "sigmoid",
    }
    kind = links.get(function)
    axis = options.get("axis", -1)
    if kind is None or (axis != -1 and (rank is None or axis != rank - 1)):
        return automatic
    from_logits = options.get("from_logits", False)
    through = activation == kind and not from_logits
    direct = activation not in _ACTIVATIONS_KEEPING_LOGITS and from_logits
    if not (through or direct):
        return automatic
    return LossForm(
        kind,
        before_activation=through,
        sparse=function is keras.losses.sparse_categorical_crossentropy,
        label_smoothing=float(options.get("label_smoothing", 0.0)),
        ignore_class=options.get("ignore_class"),
    )


def agree(forms, activation=None):
    """Forms of several losses on one output, all with one cut.

    Args:
        forms: list of `LossForm`.
        activation: name of the last activation.

    Returns:
        The forms as they are if they share a cut; otherwise as many automatic ones.
    """
    if len({form.before_activation for form in forms}) <= 1:
        return list(forms)
    return [LossForm("automatic", before_activation=activation in _ACTIVATIONS_KEEPING_LOGITS) for _ in forms]


def _function_and_options(loss):
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
    options = getattr(loss, "_fn_kwargs", None)  # what `call` really passes on; Huber's `get_config` omits delta
    if options is None:
        return (None, {}) if function is keras.losses.huber else (function, loss.get_config())
    return function, options
