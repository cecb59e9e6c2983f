"""Names for what the package hands around: tensors by their axes, and the few unions that come up everywhere.

A type checker sees `tf.Tensor` behind every name; the shape in it is for the reader, and a docstring gives its letters.
`...` are batch axes: any number of them, also none.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

Scalar: TypeAlias = Annotated[tf.Tensor, "[]"]
Batch: TypeAlias = Annotated[tf.Tensor, "[...]"]  # one number per entry of the batch axes
Vector: TypeAlias = Annotated[tf.Tensor, "[..., n]"]
Matrix: TypeAlias = Annotated[tf.Tensor, "[..., m, n]"]
Square: TypeAlias = Annotated[tf.Tensor, "[..., n, n]"]
Cube: TypeAlias = Annotated[tf.Tensor, "[..., l, m, n]"]  # second derivatives of a vector
Stack: TypeAlias = Annotated[tf.Tensor, "[T, ...]"]  # one entry per stage, first stage first

Tensors: TypeAlias = list[tf.Tensor]  # one per weight variable, or one per column of a player
SomeTensors: TypeAlias = list[tf.Tensor | None]  # the same, with `None` in the place of what is not there
Blocks: TypeAlias = Sequence[Sequence[Matrix]]  # a matrix in blocks: entry [n][m] stands in row n and column m
LowerBlocks: TypeAlias = Sequence[Sequence[Matrix | None]]  # the same of a symmetric matrix; m > n is not read

Number: TypeAlias = float | tf.Tensor  # a Python number, or a tensor that fits the batch axes
Size: TypeAlias = int | Scalar  # static, or known to the graph only
Array: TypeAlias = tf.Tensor | np.ndarray  # what `tf.convert_to_tensor` takes without a loop over elements
Shape: TypeAlias = tuple[int | None, ...]  # static; `None` for a size that is known to the graph only
Gradient: TypeAlias = tf.Tensor | tf.IndexedSlices  # as a tape gives it: whole, or rows of a table
Function: TypeAlias = Callable[[Vector], tuple[Scalar, Vector]]  # a point to a value and the gradient there
Entrywise: TypeAlias = Callable[[tf.Tensor], tf.Tensor]  # every entry by itself, whatever the shape

# What a Keras model takes and returns: tensors in dicts, lists and tuples. Keras decides the nesting.
Nested: TypeAlias = Any
# `tf.TensorSpec` or `keras.KerasTensor` in the nesting of a model's inputs, or the shape of its single input.
Signature: TypeAlias = Any
# `call` of a layer, whatever its arguments, and those of one call of it: (args, kwargs).
LayerCall: TypeAlias = Callable[..., Nested]
Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
# (variable, value): what `keras.StatelessScope` takes, values that stand in place of the variables' own.
StateMapping: TypeAlias = list[tuple[keras.Variable, tf.Tensor]]
# (variable, value) of Keras's variables and of TensorFlow's own: what a bad batch puts back.
Restored: TypeAlias = list[tuple[keras.Variable | tf.Variable, tf.Tensor]]
# A loss function of Keras; it is told from others, and called by Keras alone.
LossFunction: TypeAlias = Callable[..., object]
# What `get_config` or Keras's serialisation made of an object: a dict with string keys.
Serialised: TypeAlias = Mapping[str, Any]
