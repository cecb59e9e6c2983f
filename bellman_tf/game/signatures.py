"""The structure of a model's inputs as symbolic tensors, gathered from batches and shapes that it has been given."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bellman_tf import keras_access
from bellman_tf._typing import Nested, Shape, Signature
from bellman_tf.layers.tensors import with_sizes


def is_made_of_tensors(x: Nested) -> bool:
    """Tells whether every leaf of an input has a shape and a dtype.

    Args:
        x: any structure; leaves may be `None`.

    Returns:
        Whether `of_batch` can describe it.
    """
    return all(leaf is None or (hasattr(leaf, "dtype") and hasattr(leaf, "shape")) for leaf in keras.tree.flatten(x))


def of_batch(x: Nested) -> Signature:
    """Describes a batch.

    Args:
        x: tensors in any structure.

    Returns:
        Symbolic tensors of any batch size in the same structure, sparse or ragged as the batch is.
    """
    return keras.tree.map_structure(_symbolic, x)


def of_data(x: Nested) -> Signature | None:
    """Describes a batch by its tensors or by what a data set says of them.

    Args:
        x: arrays, tensors or `tf.TensorSpec`s in any structure.

    Returns:
        Symbolic tensors of the batch's own size where that is known; `None` if a leaf is not dense, is an array of
        NumPy's strings or objects, or a size besides the batch's is not known.
    """
    leaves = [leaf for leaf in keras.tree.flatten(x) if leaf is not None]
    if any(isinstance(leaf, np.ndarray) and leaf.dtype.kind in "OSU" for leaf in leaves):
        return None
    if not all(isinstance(leaf, np.ndarray | tf.Tensor | tf.TensorSpec) for leaf in leaves):
        return None
    shapes = [tf.TensorShape(leaf.shape) for leaf in leaves]
    if any(shape.rank is None or None in shape[1:] for shape in shapes):
        return None
    return keras.tree.map_structure(_sized, x)


def before_average(signature: Signature) -> Signature:
    """Undoes what Keras does to integers where it averages the batches of several replicas.

    Args:
        signature: of the averages, where a mean of integers has become float64.

    Returns:
        The same with int64 in the place of float64.
    """

    def leaf(spec: keras.KerasTensor | None) -> keras.KerasTensor | None:
        if spec is None or spec.dtype != "float64":
            return spec
        return keras_access.symbolic(tuple(spec.shape), "int64", spec.sparse, keras_access.is_ragged(spec))

    return keras.tree.map_structure(leaf, signature)


def of_shapes(shape: Nested) -> Signature:
    """Describes inputs of which the shapes are known.

    Args:
        shape: a shape with its batch axis, or shapes nested in dictionaries and lists.

    Returns:
        Symbolic tensors of any batch size in the same structure.
    """
    if isinstance(shape, dict):
        return {key: of_shapes(value) for key, value in shape.items()}
    if isinstance(shape, list | tuple) and shape and isinstance(shape[0], list | tuple | dict):
        return [of_shapes(value) for value in shape]
    return keras.KerasTensor((None, *shape[1:]))


def is_known(signature: Signature) -> bool:
    """Tells whether all sizes but the batch's are known.

    Args:
        signature: symbolic tensors.

    Returns:
        Whether they are.
    """
    return all(leaf is None or None not in leaf.shape[1:] for leaf in keras.tree.flatten(signature))


def described(signature: Signature) -> tuple[tuple[Shape, str, int, bool, bool] | None, ...]:
    """Lists what two signatures must have in common to give one game.

    Args:
        signature: symbolic tensors, or `None`.

    Returns:
        Shape, dtype and layout of every leaf, to be compared.
    """
    return tuple(
        None if leaf is None else (tuple(leaf.shape), leaf.dtype, *_layout_of(leaf))
        for leaf in keras.tree.flatten(signature)
    )


def with_declared_sizes(model: keras.Model, x: Nested) -> Nested:
    """Adds to a batch the sizes that a model's `Input`s declare, where the batch does not know its own.

    Data sets made of generators and of functions of NumPy may give tensors without sizes. What the layers compute from
    such a batch, and with it what is known when a step is traced, would have none either.

    Args:
        model: any model.
        x: its inputs, as `train_step` gets them.

    Returns:
        The same values, checked when the step runs; `x` itself for a model without `Input`s, and where its structure is
        not theirs. Sizes of batches stay unknown.
    """
    core = keras_access.functional_core(model)
    declared = keras_access.inputs_of(core) if isinstance(core, keras.Function) else None
    if isinstance(x, dict) and not isinstance(declared, dict):  # Keras finds these by name
        declared = {leaf.name: leaf for leaf in keras.tree.flatten(declared) if leaf is not None}
        x = {name: x[name] for name in declared} if declared and set(declared) <= set(x) else x
    before, after = keras.tree.flatten(x), keras.tree.flatten(declared)
    if isinstance(x, dict) != isinstance(declared, dict) or len(before) != len(after):
        return x
    with tf.name_scope(model.name):  # what a batch of another width is told
        known = [_with_sizes_of(spec, leaf) for spec, leaf in zip(after, before, strict=True)]
    return keras.tree.pack_sequence_as(x, known)


def _with_sizes_of(spec: keras.KerasTensor | None, leaf: Any) -> Any:
    """One input; a column that Keras is to add or to take away leaves it as it is."""
    if spec is None or not isinstance(leaf, tf.Tensor) or leaf.shape.rank != len(spec.shape):
        return leaf
    return with_sizes(leaf, [None, *spec.shape[1:]]) if spec.shape else leaf


def merged(old: Signature, new: Signature) -> Signature:
    """Joins the signatures of two calls.

    Args:
        old: of the calls so far.
        new: of one more.

    Returns:
        What they have in common: a size that differs is unknown. Other ranks or layouts change nothing.
    """
    before, after = keras.tree.flatten(old), keras.tree.flatten(new)
    if [_layout(leaf) for leaf in before] != [_layout(leaf) for leaf in after]:
        return old
    common = [leaf if leaf is None else _common(leaf, other) for leaf, other in zip(before, after, strict=True)]
    return keras.tree.pack_sequence_as(new, common)


def _symbolic(leaf: Any) -> keras.KerasTensor | None:
    if leaf is None:
        return None
    shape = (None, *leaf.shape[1:]) if len(leaf.shape) else ()
    sparse, ragged = isinstance(leaf, tf.SparseTensor), isinstance(leaf, tf.RaggedTensor)
    if isinstance(leaf, keras.KerasTensor):
        sparse, ragged = leaf.sparse, keras_access.is_ragged(leaf)
    return keras_access.symbolic(shape, keras.backend.standardize_dtype(leaf.dtype), sparse, ragged)


def _sized(leaf: Any) -> keras.KerasTensor | None:
    if leaf is None:
        return None
    return keras_access.symbolic(tuple(leaf.shape), keras.backend.standardize_dtype(leaf.dtype))


def _layout(leaf: keras.KerasTensor | None) -> tuple[int, bool, bool] | None:
    return None if leaf is None else _layout_of(leaf)


def _layout_of(leaf: keras.KerasTensor) -> tuple[int, bool, bool]:
    return len(leaf.shape), leaf.sparse, keras_access.is_ragged(leaf)


def _common(old: keras.KerasTensor, new: keras.KerasTensor) -> keras.KerasTensor:
    shape = tuple(a if a == b else None for a, b in zip(old.shape, new.shape, strict=True))
    same = keras.backend.is_float_dtype(old.dtype) == keras.backend.is_float_dtype(new.dtype)
    return keras_access.symbolic(shape, old.dtype if same else new.dtype, new.sparse, keras_access.is_ragged(new))
