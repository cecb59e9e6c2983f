"""Names for what the package hands around: tensors by their axes, and the few unions that come up everywhere.

A type checker sees `tf.Tensor` behind every name; the shape in it is for the reader, and a docstring gives its letters.
`...` are batch axes: any number of them, also none.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeAlias

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
Blocks: TypeAlias = Sequence[Sequence[Matrix]]  # a matrix in blocks: entry [n][m] stands in row n and column m
LowerBlocks: TypeAlias = Sequence[Sequence[Matrix | None]]  # the same of a symmetric matrix; m > n is not read

Number: TypeAlias = float | tf.Tensor  # a Python number, or a tensor that fits the batch axes
Size: TypeAlias = int | Scalar  # static, or known to the graph only
Array: TypeAlias = tf.Tensor | np.ndarray  # what `tf.convert_to_tensor` takes without a loop over elements
Function: TypeAlias = Callable[[Vector], tuple[Scalar, Vector]]  # a point to a value and the gradient there

# What a Keras model takes and returns: tensors in dicts, lists and tuples. Keras decides the nesting.
Nested: TypeAlias = Any
# `tf.TensorSpec` or `keras.KerasTensor` in the nesting of a model's inputs, or the shape of its single input.
Signature: TypeAlias = Any
# What `get_config` or Keras's serialisation made of an object: a dict with string keys.
Serialised: TypeAlias = Mapping[str, Any]
