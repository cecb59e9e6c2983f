"""TensorFlow's own variables in a Keras model, which Keras's scopes neither hide nor put back."""

import contextlib
from collections.abc import Callable, Generator

import keras
import numpy as np
import tensorflow as tf

from bellman_tf import keras_access


def raw_variables(model: keras.Layer) -> list[tf.Variable]:
    """Lists the TensorFlow variables that a model's layers hold as attributes, alone or in lists and dictionaries.

    Args:
        model: a layer or model.

    Returns:
        The variables, Keras's left out.
    """
    found: dict[int, tf.Variable] = {}
    for layer in keras_access.layers_of(model):
        for value in vars(layer).values():
            inside = (
                value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            )
            found |= {id(v): v for v in inside if isinstance(v, tf.Variable)}
    return list(found.values())


@contextlib.contextmanager
def moved(variables: list[tf.Variable]) -> Generator[Callable[[], list[tf.Variable]], None, None]:
    """Inside the context, floating variables have made-up values; afterwards all have their own again.

    Args:
        variables: TensorFlow's.

    Yields:
        Function that gives the variables that were written since.
    """
    own, random, start = [v.numpy() for v in variables], np.random.default_rng(3), []
    for variable, value in zip(variables, own, strict=True):
        drawn = random.uniform(0.5, 1.5, variable.shape) if variable.dtype.is_floating else value
        start.append(np.asarray(drawn, variable.dtype.as_numpy_dtype))
    with put_back(variables):
        for variable, value in zip(variables, start, strict=True):
            variable.assign(value)
        yield lambda: [v for v, value in zip(variables, start, strict=True) if not np.array_equal(v.numpy(), value)]


@contextlib.contextmanager
def put_back(variables: list[tf.Variable]) -> Generator[None, None, None]:
    """Gives variables the values back that they had before the context.

    Args:
        variables: TensorFlow's.

    Yields:
        Nothing.
    """
    own = [v.numpy() for v in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, own, strict=True):
            variable.assign(value)
