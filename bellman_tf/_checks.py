"""Checks of shapes, dtypes and ranges, all speaking with one message form.

The form is `` `argument` must <rule>. Received: argument=value ``, then, where there is one, the next thing to try.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

Kind = TypeVar("Kind")

FLOAT_DTYPES = ("float32", "float64")


def error(argument: str, rule: str, received: object, hint: str = "") -> ValueError:
    """Builds (does not raise) the house `ValueError`.

    Args:
        argument: name of the offending argument.
        rule: what the code really checks, a phrase that follows "must".
        received: value to show; shown with `repr`.
        hint: one sentence with the next thing to try.

    Returns:
        The exception, for the caller to raise.
    """
    return misfit(argument, rule, {argument: received}, hint)


def misfit(argument: str, rule: str, received: Mapping[str, object], hint: str = "") -> ValueError:
    """Builds the `ValueError` of an argument that does not fit others.

    Args:
        argument: name of the offending argument.
        rule: what must hold, a phrase that follows "must".
        received: what to show, by name.
        hint: one sentence with the next thing to try.

    Returns:
        The exception, for the caller to raise.
    """
    shown = ", ".join(f"{name}={_shown(value)!r}" for name, value in received.items())
    return ValueError(f"`{argument}` must {rule}. Received: {shown}. {hint}".rstrip())


def _shown(value: Any) -> object:
    if isinstance(value, tf.TensorShape):
        return None if value.rank is None else tuple(value)
    return value


def given(argument: str, value: Kind | None) -> Kind:
    """Takes what may be `None` elsewhere and must not be here.

    Args:
        argument: its name.
        value: what was passed.

    Returns:
        The value.

    Raises:
        ValueError: if it is `None`.
    """
    if value is None:
        raise error(argument, "be given here", value)
    return value


def check_choice(argument: str, value: object, choices: Iterable[str]) -> None:
    """Checks that an option is one of the names it may have.

    Args:
        argument: name of the option.
        value: what was passed.
        choices: the allowed names.

    Raises:
        ValueError: if `value` is not among `choices`.
    """
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        raise error(argument, f"be one of {', '.join(map(repr, choices))}", value)


def resolve(argument: str, identifier: object, names: Mapping[str, type[Kind]], kind: type[Kind], other: str) -> Kind:
    """What an option means that may be a name, an object, or an object as Keras has serialised it.

    Args:
        argument: name of the option.
        identifier: what was passed.
        names: the classes that have a name.
        kind: what an object must be an instance of.
        other: what else is accepted, for the message.

    Returns:
        The object.

    Raises:
        ValueError: if it is none of these.
    """
    wrong = error(argument, f"be one of {', '.join(map(repr, names))} or {other}", identifier)
    found = deserialised(identifier, wrong) if isinstance(identifier, dict) else identifier
    if isinstance(found, kind):
        return found
    if isinstance(found, str) and found in names:
        return names[found]()
    raise wrong


def deserialised(
    config: Any, wrong: ValueError, make: Callable[[Any], Any] = keras.saving.deserialize_keras_object
) -> Any:
    """An object as Keras has serialised it.

    Args:
        config: its serialised form.
        wrong: what to raise where there is no such object; what Keras says becomes its cause.
        make: what Keras makes objects with.

    Returns:
        The object.

    Raises:
        ValueError: `wrong`.
    """
    try:
        return make(config)
    except (AttributeError, ImportError, KeyError, TypeError, ValueError) as cause:
        raise wrong from cause


def check_real(
    argument: str,
    value: object,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> None:
    """Checks that a Python number is real, finite and in range.

    Args:
        argument: name of the option.
        value: what was passed.
        above: exclusive lower bound.
        least: inclusive lower bound.
        below: exclusive upper bound.
        most: inclusive upper bound.

    Raises:
        ValueError: if `value` is not a finite real number in the stated range.
    """
    bounds = [
        text
        for bound, text in ((above, f"> {above}"), (least, f">= {least}"), (below, f"< {below}"), (most, f"<= {most}"))
        if bound is not None
    ]
    rule = "be a finite number" + (f" {' and '.join(bounds)}" if bounds else "")
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or value != value
        or value in (float("inf"), float("-inf"))
    ):
        raise error(argument, rule, value, _as_python(value))
    if (
        (above is not None and value <= above)
        or (least is not None and value < least)
        or (below is not None and value >= below)
        or (most is not None and value > most)
    ):
        raise error(argument, rule, value)


def _as_python(value: object) -> str:
    """What to do with a number of NumPy's: options are compared, hashed and written to files as Python's."""
    return "Pass Python's number, `.item()` of this one." if isinstance(value, np.generic) else ""


def check_integer(argument: str, value: object, *, least: int) -> None:
    """Checks that an option is an integer of at least `least`.

    Args:
        argument: name of the option.
        value: what was passed.
        least: inclusive lower bound.

    Raises:
        ValueError: if `value` is not an integer or is too small.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise error(argument, f"be an integer >= {least}", value, _as_python(value))


def check_flag(argument: str, value: object) -> None:
    """Checks that an option is a Python bool.

    Args:
        argument: name of the option.
        value: what was passed.

    Raises:
        ValueError: if `value` is not a bool.
    """
    if not isinstance(value, bool):
        raise error(argument, "be True or False", value)


def check_float_dtype(argument: str, tensor: tf.Tensor) -> None:
    """Checks that a tensor holds float32 or float64.

    Args:
        argument: name of the argument.
        tensor: anything with a TensorFlow `dtype`.

    Raises:
        ValueError: for any other dtype.
    """
    if tensor.dtype.name not in FLOAT_DTYPES:
        raise error(f"{argument}.dtype", f"be one of {FLOAT_DTYPES}", tensor.dtype.name)
