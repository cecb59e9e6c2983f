"""What `survey` would find of a model whose samples stay in their rows by construction, read off its graph.

The survey runs a model once and differentiates it three times, as long as a gradient step takes to trace. Many models
need no run: functional ones of Keras's own layers from the lists below, each called once, without masks, `training=` or
activations of the user's. Every layer in the lists maps row i of its inputs to row i of its output, but for
`BatchNormalization`, so that a capture, which `tests/layers` holds to the layer's Jacobians, is the gradient there.

A bias in front of a `BatchNormalization` is null where nothing but this normalisation, over the bias's own axis, reads
it, and is not where a nonlinear function reads it first. All else is left to the survey, and `None` says so.
Checked against: the survey itself, on every model of `tests/zoo` and of the benchmarks (`tests/game/test_rowwise.py`).
"""

from typing import Any

import keras

from bellman_tf import keras_access, keras_graphs
from bellman_tf.game.survey import Finding, Survey
from bellman_tf.game.synthetic_samples import mixes
from bellman_tf.game.trial import NOISE
from bellman_tf.layers.coverage import Coverage

_NONLINEAR = ("elu", "gelu", "leaky_relu", "mish", "relu", "selu", "sigmoid", "silu", "softplus", "softsign", "tanh")
SOFTMAX = keras.activations.softmax  # over the last axis; the others are taken entry by entry
NONLINEAR = (SOFTMAX, *(getattr(keras.activations, name) for name in _NONLINEAR))
LINEAR = (None, keras.activations.linear)
_KINDS = ("Conv1D", "Conv2D", "Conv3D", "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose", "Dense")
_KINDS += ("DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D", "Activation")
ACTIVATED = tuple(getattr(keras.layers, name) for name in _KINDS)
_KINDS = tuple(
    f"{pool}Pooling{rank}D" for pool in ("Average", "Max", "GlobalAverage", "GlobalMax") for rank in (1, 2, 3)
)
_KINDS += tuple(f"{kind}{rank}D" for kind in ("Cropping", "UpSampling", "ZeroPadding") for rank in (1, 2, 3))
_KINDS += ("Flatten", "Permute", "Reshape", "Rescaling")
PLAIN = tuple(getattr(keras.layers, name) for name in _KINDS)
RECTIFIED = (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU)
MERGED = (keras.layers.Add, keras.layers.Average, keras.layers.Multiply, keras.layers.Concatenate)
ROWWISE = {*ACTIVATED, *PLAIN, *RECTIFIED, *MERGED, *NOISE, keras.layers.BatchNormalization} - {keras.layers.RNN}


def read_off(model: keras.Model, candidates: list[tuple[keras.Layer, Coverage]]) -> Survey | None:
    """What `survey` would find, where the graph of the model says it.

    Args:
        model: a built model.
        candidates: layers with trainable variables and how they would be covered.

    Returns:
        The survey; `None` where the model has to be run.
    """
    core = keras_access.functional_core(model)
    if not keras_graphs.runs_its_graph(model) or not keras_graphs.runs_its_graph(core):
        return None
    nodes = keras_graphs.nodes_of(core)
    if not _alike(core.inputs) or not all(map(_is_rowwise, nodes)):
        return None
    layers = [node.operation for node in nodes]
    trained = [id(v) for layer in layers for v in layer.trainable_variables]
    asked = {id(v) for layer, _ in candidates for v in layer.trainable_variables}
    once = len({id(layer) for layer in layers}) == len(layers) and len(set(trained)) == len(trained)
    if not once or not asked.issuperset(trained):  # of other variables the survey finds the layers around them
        return None
    return _Graph(nodes, core.outputs).survey(candidates)


def _alike(inputs: list[keras.KerasTensor]) -> bool:
    """Whether the rows of all inputs are samples of one batch, of known shape."""
    batches = {tensor.shape[0] for tensor in inputs if tensor.shape}
    known = all(tensor.shape and None not in tensor.shape[1:] for tensor in inputs)
    dense = not any(tensor.sparse or keras_access.is_ragged(tensor) for tensor in inputs)
    return known and dense and len(batches) == 1


def _is_rowwise(node: Any) -> bool:
    """Whether a call maps row i of its inputs to row i of its output, and neither masks nor adds losses."""
    layer, inputs, outputs = node.operation, node.input_tensors, node.outputs
    if type(layer) not in ROWWISE or "call" in vars(layer):
        return False
    given = {name for name, value in node.arguments.kwargs.items() if value is not None}
    given -= {"training"} if isinstance(layer, NOISE) else set()  # noted by Keras, and overruled in every training step
    plain = not given and len(node.arguments.args) == 1 and len(outputs) == 1
    if not plain or layer.activity_regularizer is not None or None in outputs[0].shape[1:]:
        return False
    if isinstance(layer, MERGED):
        ranks = {len(tensor.shape) for tensor in inputs}  # of one rank, so that axes meet in their order
        rowwise = not isinstance(layer, keras.layers.Concatenate) or layer.axis % max(ranks) != 0
        return len(ranks) == 1 and rowwise
    if isinstance(layer, keras.layers.BatchNormalization):
        return layer.axis % len(inputs[0].shape) != 0
    if not isinstance(layer, ACTIVATED) or layer.activation in LINEAR:
        return True
    # Over one entry softmax is constant, and nothing in front of it has a gradient.
    return layer.activation in NONLINEAR and (layer.activation is not SOFTMAX or outputs[0].shape[-1] > 1)


class _Graph:
    """The calls of a model that is made of row-wise layers."""

    def __init__(self, nodes: list[Any], outputs: list[keras.KerasTensor]) -> None:
        self._nodes = nodes
        self._read_outside = {id(tensor) for tensor in outputs}

    def survey(self, candidates: list[tuple[keras.Layer, Coverage]]) -> Survey | None:
        """Findings of all candidates; `None` where a bias in front of a normalisation may or may not have an effect."""
        asked = {id(layer) for layer, _ in candidates}
        place = {id(node.operation): k for k, node in enumerate(self._nodes)}
        normalised = max((k for k, node in enumerate(self._nodes) if mixes(node.operation)), default=-1)
        order = {key: k for k, key in enumerate(key for key in place if key in asked)}
        found: dict[int, Finding] = {}
        for layer, _ in candidates:
            key = id(layer)
            if key not in place:
                found[key] = Finding("the model does not call it", order=len(order))
                continue
            node, separate = self._nodes[place[key]], place[key] >= normalised
            null = False if separate else self._is_null(node)
            if null is None:
                return None
            found[key] = Finding("", separate, null, order[key], (tuple(node.outputs[0].shape[1:]),))
        writers = [node.operation for node in self._nodes if mixes(node.operation) or isinstance(node.operation, NOISE)]
        return Survey(found, tuple(v for layer in writers for v in layer.non_trainable_variables))

    def _is_null(self, node: Any) -> bool | None:
        """Whether the bias of a layer in front of a normalisation has no effect; `None` where that is not plain."""
        layer, [output] = node.operation, node.outputs
        bias = getattr(layer, "bias", None)
        if bias is None or not bias.trainable or layer.activation in NONLINEAR:
            return False
        readers = [other for other in self._nodes if any(tensor is output for tensor in other.input_tensors)]
        if len(readers) != 1 or id(output) in self._read_outside:
            return None
        [reader] = readers
        if mixes(reader.operation):
            rank, channels_first = len(output.shape), getattr(layer, "data_format", "") == "channels_first"
            own = reader.operation.axis % rank == (1 if channels_first else rank - 1)
            return True if own else None
        nonlinear = isinstance(reader.operation, keras.layers.Activation) and reader.operation.activation in NONLINEAR
        return False if nonlinear or isinstance(reader.operation, RECTIFIED) else None
