"""What Keras does not publish about the graphs of functional models: `keras_access.py` goes on here."""

import contextlib
from collections.abc import Generator
from typing import Any

import keras

from bellman_tf.keras_access import layers_of

_OWN = ("keras.src.models.functional", "keras.src.models.sequential")  # where Keras keeps the `call` of both kinds


def runs_its_graph(model: keras.Model) -> bool:
    """Tells whether a model's `call` is Keras's own, which runs the recorded calls and nothing else.

    Args:
        model: a built model.

    Returns:
        Whether it is a functional or Sequential model with the `call` of its kind.
    """
    own = type(model).call.__module__ in _OWN and "call" not in vars(model)
    return own and isinstance(model, keras.Sequential | keras.Function)


def nodes_of(function: keras.Function) -> list[Any]:
    """Lists the calls that a functional model runs, in the order in which it runs them.

    Args:
        function: a `keras.Function`.

    Returns:
        Keras's nodes, as `keras_access.node_of` describes them; those of inputs are left out.
    """
    depths = sorted(function._nodes_by_depth.items(), key=lambda pair: -pair[0])
    return [node for _, nodes in depths for node in nodes if node.operation is not None and not node.is_input]


@contextlib.contextmanager
def nodes_forgotten(model: keras.Layer) -> Generator[None, None, None]:
    """Calls of a model's layers on symbolic tensors inside the context leave no record in the layers.

    Args:
        model: a layer or model.

    Yields:
        Nothing.
    """
    lists = [part for layer in layers_of(model) for part in (layer._inbound_nodes, layer._outbound_nodes)]
    sizes = [len(part) for part in lists]
    try:
        yield
    finally:
        for part, size in zip(lists, sizes, strict=True):
            del part[size:]
