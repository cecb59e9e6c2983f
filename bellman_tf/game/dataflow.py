"""Stages of a running model: the number of players on the longest path above a player, read off TensorFlow's graph."""

import keras
import tensorflow as tf

from bellman_tf._typing import Nested, Signature
from bellman_tf.game.instrument import Notes, noting
from bellman_tf.game.own_thread import run_in_own_thread
from bellman_tf.game.survey import FAILURES
from bellman_tf.keras_access import takes_training


def stages_of(model: keras.Model, signature: Signature, layers: list[keras.Layer]) -> dict[int, int]:
    """Traces a model's forward pass and counts players along every path.

    Args:
        model: a built model.
        signature: its inputs as symbolic tensors.
        layers: the players' layers.

    Returns:
        Stage of each layer's first call, by `id`; layers that the model does not call outside a loop are left out, and
        all of them where the model cannot be traced with an unknown batch size.
    """
    try:
        return run_in_own_thread(_traced, model, signature, layers)
    except FAILURES:
        return {}


def _traced(model: keras.Model, signature: Signature, layers: list[keras.Layer]) -> dict[int, int]:
    found: list[dict[int, int]] = []

    def forward(inputs: Nested) -> list[tf.Tensor]:
        notes = Notes((), layers, lambda tensor: None)
        keywords = {"training": True} if takes_training(model) else {}
        with keras.StatelessScope(initialize_variables=False), noting(notes):
            outputs = model(inputs, **keywords)
        found.append(_longest_paths(notes))
        return [leaf for leaf in keras.tree.flatten(outputs) if tf.is_tensor(leaf)]

    specs = keras.tree.map_structure(
        lambda leaf: None if leaf is None else tf.TensorSpec(leaf.shape, keras.backend.standardize_dtype(leaf.dtype)),
        signature,
    )
    tf.function(forward, autograph=False).get_concrete_function(specs)
    return found[0]


def _longest_paths(notes: Notes) -> dict[int, int]:
    """Stage of each noted layer: players above its inputs, counted in one sweep over the graph's operations."""
    begins: dict[str, list[int]] = {}  # an input's operation -> layers that read it
    ends: dict[str, list[int]] = {}  # an output's operation -> layers that made it
    graph = None
    for key, calls in notes.calls.items():
        for note in calls:
            ends.setdefault(note.site.op.name, []).append(key)
            graph = note.site.graph
    if graph is None:
        return {}
    inputs = {key: calls[0].inputs for key, calls in notes.calls.items()}
    for key, tensor in inputs.items():
        begins.setdefault(tensor.op.name, []).append(key)
    depth: dict[str, int] = {}
    stage: dict[int, int] = {}
    for operation in graph.get_operations():  # in the order of their making, so inputs come first
        name = operation.name
        depth[name] = max((depth[source.op.name] for source in operation.inputs), default=0)
        for key in ends.get(name, ()):
            depth[name] = max(depth[name], stage.get(key, 0) + 1)
        for key in begins.get(name, ()):
            stage.setdefault(key, depth[name])
    return stage
