"""Variables that an object holds: its own, those in its lists and dictionaries, and those of objects that it holds."""

from typing import Any

import keras
import tensorflow as tf

from bellman_tf import keras_access


def variables_in(
    part: Any, holders: tuple[type, ...] = (), seen: set[int] | None = None
) -> list[keras.Variable | tf.Variable]:
    """Lists the variables that an object holds, at any depth of lists, tuples and dictionaries.

    Args:
        part: a variable, a container, a layer, an object of one of `holders`, or anything else.
        holders: kinds of objects that are looked into: their `variables`, then their attributes.
        seen: `id` of what has been looked at.

    Returns:
        Every variable once, in the order in which they are found; of layers those that they may write themselves, as
        moving statistics.
    """
    seen = set() if seen is None else seen
    if id(part) in seen:
        return []
    seen.add(id(part))
    if isinstance(part, keras.Variable | tf.Variable):
        return [part]
    parts: list[Any] = []
    if isinstance(part, keras.Layer):
        parts = written_by(part)
    elif isinstance(part, holders):
        parts = [*getattr(part, "variables", ()), *vars(part).values()]
    elif isinstance(part, dict):
        parts = list(part.values())
    elif isinstance(part, list | tuple):
        parts = list(part)
    return [variable for each in parts for variable in variables_in(each, holders, seen)]


def written_by(layer: keras.Layer) -> list[keras.Variable]:
    """Lists what a layer and those inside it may write: variables that are not trained, and state of metrics.

    Args:
        layer: a layer or model.

    Returns:
        The variables, without states of random generators and without the metrics that a model was compiled with.
    """
    layers = keras_access.layers_of(layer)
    kept = [v for one in layers for v in keras_access.own_non_trainable_variables(one)]
    return kept + [v for one in layers for v in keras_access.own_metrics_variables(one)]
