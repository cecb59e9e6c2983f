"""Puts a recorder in place of a model's `call`, so that Keras does everything around it: casting, masks, losses."""

import contextlib
import functools
import threading
from collections.abc import Callable, Generator
from typing import Any

import keras

from bellman_tf import keras_access
from bellman_tf._typing import Nested


@contextlib.contextmanager
def recorded(model: keras.Model, recorder: Callable[[Nested], Nested]) -> Generator[None, None, None]:
    """Inside the context, calling `model` in this thread runs `recorder(inputs)` in place of the model's own `call`.

    Other threads go on with the model's own `call`. The class is not touched, so models that are not trained by a
    replay are exactly what their author wrote.

    Args:
        model: any Keras model.
        recorder: function from the first argument of `call` to the outputs.

    Yields:
        Nothing.
    """
    call, owner, first = model.call, threading.get_ident(), keras_access.first_argument(model)

    @functools.wraps(call)
    def dispatch(*args: Any, **kwargs: Any) -> Nested:
        if threading.get_ident() != owner:
            return call(*args, **kwargs)
        return recorder(args[0] if args or first is None else kwargs[first])

    with keras_access.replaced(model, "call", dispatch):
        yield
