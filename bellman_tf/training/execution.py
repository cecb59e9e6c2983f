"""Hands a model's `call` to a recorder, so that Keras does everything around it: casting, masks, losses, names."""

import contextlib
import functools
import threading
from collections.abc import Callable, Generator

import keras


class _Running(threading.local):
    """Recorders of this thread, by `id` of the model; replicas of a strategy run in threads of their own."""

    def __init__(self) -> None:
        self.recorders: dict[int, Callable] = {}


_running = _Running()


@contextlib.contextmanager
def recorded(model: keras.Model, recorder: Callable) -> Generator[None, None, None]:
    """Inside the context, calling `model` runs `recorder(inputs)` in place of the model's own `call`.

    Args:
        model: a model whose class dispatches through `dispatching`.
        recorder: function from the inputs to the outputs.

    Yields:
        Nothing.
    """
    _running.recorders[id(model)] = recorder
    try:
        yield
    finally:
        del _running.recorders[id(model)]


def dispatching(call: Callable) -> Callable:
    """Wraps a `call` method so that an active recorder of this thread takes its place.

    Args:
        call: the method.

    Returns:
        The wrapped method, with the same signature.
    """

    @functools.wraps(call)
    def dispatch(self: keras.Model, inputs: object, *args: object, **kwargs: object) -> object:
        recorder = _running.recorders.get(id(self))
        return call(self, inputs, *args, **kwargs) if recorder is None else recorder(inputs)

    return dispatch
