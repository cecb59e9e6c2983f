"""Made-up samples and weights to look at a model with, and a way to keep its samples apart while it runs."""

import contextlib
import math
from collections.abc import Generator, Sequence

import keras
import numpy as np
import tensorflow as tf

from bellman_tf import keras_access

ROWS = 3  # made-up samples: with two, a reversed batch and a rolled one are the same


def mixes(layer: keras.Layer) -> bool:
    """Tells whether a layer mixes samples on purpose.

    Args:
        layer: any layer.

    Returns:
        Whether it normalises with the moments of the batch.
    """
    return isinstance(layer, keras.layers.BatchNormalization) and layer.trainable


@contextlib.contextmanager
def samples_apart(layers: Sequence[keras.Layer], scope: keras.StatelessScope) -> Generator[None, None, None]:
    """Inside the context, normalisations take their batch's moments for constants, so that samples stay apart.

    Args:
        layers: `BatchNormalization` layers.
        scope: the scope that their calls run in.

    Yields:
        Nothing.
    """
    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_one_apart(layer, scope))
        yield


@contextlib.contextmanager
def _one_apart(layer: keras.Layer, scope: keras.StatelessScope) -> Generator[None, None, None]:
    own = layer.call

    def call(inputs: tf.Tensor, training: object = None, mask: tf.Tensor | None = None) -> tf.Tensor:
        axes = [k for k in range(inputs.shape.rank) if k != layer.axis % inputs.shape.rank]
        mean, variance = tf.nn.moments(tf.stop_gradient(tf.cast(inputs, layer.moving_mean.dtype)), axes)
        scope.state_mapping |= {id(layer.moving_mean): mean, id(layer.moving_variance): variance}
        return own(inputs, training=False, mask=mask)

    with keras_access.replaced(layer, "call", call):
        yield


def before_activation(output: tf.Tensor) -> tf.Tensor:
    """The logits of an output that ends in softmax or sigmoid, which may leave no gradient; else the output.

    Args:
        output: an output of a model.

    Returns:
        A tensor to differentiate.
    """
    logits = keras_access.logits_of(output)
    return output if logits is None else logits


def made_up(signature: object, size: int, rows: int = ROWS) -> object:
    """Draws random samples.

    Args:
        signature: symbolic tensors, first axis the batch.
        size: entries of axes of unknown size.
        rows: samples.

    Returns:
        Tensors in the structure of `signature`; integers are ones.
    """
    random = np.random.default_rng(1)

    def leaf(spec: keras.KerasTensor | None) -> object:
        if spec is None:
            return None
        fixed = spec.shape[0] or rows  # a model may have been made for batches of one size
        shape = [fixed, *(size if n is None else n for n in spec.shape[1:])]
        dtype = keras.backend.standardize_dtype(spec.dtype)
        if dtype == "string":
            return tf.fill(shape, "a")
        if dtype == "bool":
            return tf.ones(shape, tf.bool)
        if dtype == "uint8":
            return tf.constant(random.integers(0, 256, shape), tf.uint8)
        if "int" in dtype:  # a token or an index: 1 exists in nearly every table and is not masked
            return tf.ones(shape, dtype)
        values = tf.constant(random.normal(size=shape), dtype)
        return tf.sparse.from_dense(values) if getattr(spec, "sparse", False) else values

    return keras.tree.map_structure(leaf, signature)


def made_up_weights(variable: keras.Variable, random: np.random.Generator) -> tf.Tensor:
    """Draws values of a scale that neither explodes nor vanishes in depth; vectors are positive, as scales must be.

    Args:
        variable: a floating variable.
        random: where to draw from.

    Returns:
        Values in its shape and dtype.
    """
    shape = tuple(variable.shape)
    if len(shape) < 2:
        values = random.uniform(0.5, 1.5, size=shape)
    else:
        rows = 1 if variable.path.endswith("embeddings") else math.prod(shape[:-1])
        values = random.normal(size=shape) * 1.3 / math.sqrt(rows)
    return tf.constant(values, variable.dtype)
