"""The one room for names that Keras does not publish: what each means to us, in one function per name.

It goes on in `keras_graphs.py` (functional models) and `keras_optimizers.py`. Everything else in the package reads
Keras through its public interface or through these files. When a new Keras renames something,
`tests/test_keras_access.py` says what it must give and these are the files to change.
"""

import contextlib
import inspect
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from bellman_tf._typing import Nested, Shape

if TYPE_CHECKING:
    _Mixed = keras.Model  # what a mixin stands in front of
else:
    _Mixed = object

# ---- layers and models ---------------------------------------------------------------------------------------------


def layers_of(model: keras.Layer) -> list[keras.Layer]:
    """Lists a layer and every layer inside it, at any depth, each once.

    Args:
        model: a layer or model.

    Returns:
        The layers, `model` first.
    """
    return list({id(layer): layer for layer in model._flatten_layers(include_self=True, recursive=True)}.values())


def children_of(layer: keras.Layer) -> list[keras.Layer]:
    """Lists the layers directly inside a layer.

    Args:
        layer: a layer or model.

    Returns:
        The layers, without those inside them.
    """
    return list(layer._flatten_layers(include_self=False, recursive=False))


def own_trainable_variables(layer: keras.Layer) -> list[keras.Variable]:
    """Lists the variables that a layer itself has made as trainable, whether or not it is frozen now.

    Args:
        layer: a layer; variables of layers inside it are left out.

    Returns:
        The variables, in the order in which they were made.
    """
    return list(layer._trainable_variables)


def own_non_trainable_variables(layer: keras.Layer) -> list[keras.Variable]:
    """Lists the variables that a layer itself has made as not trainable, such as moving statistics.

    Args:
        layer: a layer; variables of layers inside it and states of its random generators are left out.

    Returns:
        The variables, in the order in which they were made.
    """
    return list(layer._non_trainable_variables)


def own_metrics_variables(layer: keras.Layer) -> list[keras.Variable]:
    """Lists the variables of the metrics that a layer itself holds.

    Args:
        layer: a layer; metrics that a model was compiled with are left out.

    Returns:
        The variables, metric by metric.
    """
    return [variable for metric in layer._metrics for variable in metric.variables]


def takes_training(layer: keras.Layer) -> bool:
    """Tells whether `call` of a layer has an argument `training`.

    Args:
        layer: a layer, a model or an operation.

    Returns:
        Whether `layer(x, training=...)` reaches `call`.
    """
    return bool(getattr(layer, "_call_has_training_arg", False))  # an operation of `keras.ops` has none


def first_argument(layer: keras.Layer) -> str | None:
    """Names the first argument of a layer's `call`.

    Args:
        layer: a layer or model.

    Returns:
        The name, or `None` if `call` has only `*args` or `**kwargs`.
    """
    for parameter in inspect.signature(layer.call).parameters.values():
        if parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
            return parameter.name
        return None
    return None


def functional_core(model: keras.Model) -> keras.Model:
    """Gets the functional model that a built Sequential model runs.

    Args:
        model: any model.

    Returns:
        That functional model; `model` itself if it is not Sequential, or not built.
    """
    core = model._functional if isinstance(model, keras.Sequential) else None
    return model if core is None else core


def inputs_of(function: keras.Function) -> Nested:
    """The inputs that a functional model was made of.

    Args:
        function: a `keras.Function`.

    Returns:
        Symbolic tensors in the structure that its `call` takes.
    """
    return function._inputs_struct


def flat_inputs(model: keras.Model, inputs: Nested) -> list[Any]:
    """Flattens a batch into the order of a model's inputs, as Keras does before it runs the graph.

    Args:
        model: any model.
        inputs: as `model.call` gets them.

    Returns:
        One tensor per input: cast and reshaped to the `Input`s of a functional or Sequential model; for a subclassed
        model every leaf that is not `None`.
    """
    source = functional_core(model)
    if hasattr(source, "_standardize_inputs"):
        return source._standardize_inputs(inputs)
    return [leaf for leaf in keras.tree.flatten(inputs) if leaf is not None]


@contextlib.contextmanager
def replaced(layer: object, name: str, value: Any) -> Generator[None, None, None]:
    """Replaces an attribute of one layer inside the context, unseen by Keras's attribute tracking.

    `Layer.__call__` runs `self.call`, so replacing "call" puts a function in place of the layer's own `call`;
    replacing "activation" shows the pre-activation. The layer's class is not touched.

    Args:
        layer: the layer, or any other object.
        name: of the attribute.
        value: what stands there inside the context.

    Yields:
        Nothing.
    """
    kept, had = layer.__dict__.get(name), name in layer.__dict__
    object.__setattr__(layer, name, value)
    try:
        yield
    finally:
        if had:
            object.__setattr__(layer, name, kept)
        else:
            object.__delattr__(layer, name)


def mapped(function: Callable[[Any], Any], structure: Nested) -> Nested:
    """`keras.tree.map_structure`, of which type checkers read that it may return nothing.

    Args:
        function: from leaf to leaf.
        structure: leaves in dicts, lists and tuples.

    Returns:
        The leaves' values in the same structure.
    """
    return keras.tree.map_structure(function, structure)


# ---- symbolic tensors ----------------------------------------------------------------------------------------------


def node_of(tensor: keras.KerasTensor) -> Any:
    """Finds the call that has made a symbolic tensor.

    Args:
        tensor: made by `keras.Input` or by calling a layer or operation.

    Returns:
        Keras's node, with `operation`, `arguments.args`, `arguments.kwargs`, `input_tensors` and `outputs`.
    """
    history: Any = getattr(tensor, "_keras_history")  # noqa: B009  # Keras sets it and declares it nowhere
    return history.operation._inbound_nodes[history.node_index]


def symbolic(shape: Shape, dtype: str, sparse: bool = False, ragged: bool = False) -> keras.KerasTensor:
    """Makes a symbolic tensor.

    Args:
        shape: the static shape, `None` for a size that is not known.
        dtype: of the tensor.
        sparse: whether it stands for a `tf.SparseTensor`.
        ragged: whether it stands for a `tf.RaggedTensor`, which Keras 3.8 does not know.

    Returns:
        The tensor.

    Raises:
        NotImplementedError: for a ragged tensor, if the installed Keras has none.
    """
    if not ragged:
        return keras.KerasTensor(shape, dtype=dtype, sparse=sparse)
    if "ragged" not in inspect.signature(keras.KerasTensor).parameters:
        raise NotImplementedError(
            f"Keras {keras.__version__} has no symbolic ragged tensors. Received: shape={shape}. "
            "Update Keras, or pad the batch: `ragged.to_tensor()`."
        )
    return keras.KerasTensor(shape, dtype=dtype, ragged=True)


def is_ragged(tensor: keras.KerasTensor) -> bool:
    """Tells whether a symbolic tensor stands for a `tf.RaggedTensor`.

    Args:
        tensor: a symbolic tensor.

    Returns:
        `False` where the installed Keras knows no ragged tensors.
    """
    return bool(getattr(tensor, "ragged", False))


def input_like(tensor: keras.KerasTensor) -> keras.KerasTensor:
    """Makes an input of a functional model.

    Args:
        tensor: a symbolic tensor.

    Returns:
        A `keras.Input` of its shape and dtype, sparse or ragged as it is.
    """
    kind = {"ragged": True} if is_ragged(tensor) else {"sparse": tensor.sparse}
    made: Any = keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, **kind)
    return made


# ---- what Keras attaches to tensors --------------------------------------------------------------------------------


def mask_of(tensor: Any) -> tf.Tensor | None:
    """Reads the mask that a layer has attached to its output.

    Args:
        tensor: an output of a layer.

    Returns:
        The mask, or `None`.
    """
    return getattr(tensor, "_keras_mask", None)


def set_mask(tensor: tf.Tensor, mask: tf.Tensor | None) -> None:
    """Attaches a mask to a tensor, for the next layer to find; `None` attaches nothing.

    Args:
        tensor: the tensor.
        mask: `[batch, positions]`, boolean.
    """
    if mask is not None:
        setattr(tensor, "_keras_mask", mask)  # noqa: B010  # an attribute that Keras declares nowhere


def logits_of(tensor: tf.Tensor) -> tf.Tensor | None:
    """Reads the logits that `Activation("softmax")`, `Activation("sigmoid")` and the like attach to their output.

    A cross-entropy with `from_logits=False` computes from these, not from the probabilities.

    Args:
        tensor: predictions.

    Returns:
        The logits, or `None`.
    """
    return getattr(tensor, "_keras_logits", None)


def table_of(layer: keras.layers.Embedding) -> keras.Variable:
    """Gets the table of an embedding as it is trained; the public `embeddings` adds LoRA and quantisation to it.

    Args:
        layer: a built layer.

    Returns:
        The variable, `[tokens, width]`.
    """
    return layer._embeddings


# ---- losses ------------------------------------------------------------------------------------------------------


def loss_arguments(loss: keras.losses.Loss) -> dict[str, Any] | None:
    """Reads the keyword arguments that a loss passes to its function; `get_config` leaves some out.

    Args:
        loss: a loss made of a function, as Keras's own are.

    Returns:
        The arguments, or `None` if the loss does not keep them.
    """
    return getattr(loss, "_fn_kwargs", None)


# ---- training ------------------------------------------------------------------------------------------------------


class SeesData(_Mixed):
    """Mixin of models: what the data look like is known before a step is traced."""

    def sees(self, data: Nested) -> None:
        """Called at the beginning of `fit` and `evaluate` and by `train_on_batch` and `test_on_batch`.

        Args:
            data: tensors, or their specifications, in the structure that `train_step` is given.
        """
        raise NotImplementedError

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)
        self.sees(data_batch if iterator is None else iterator._distributed_dataset.element_spec)
