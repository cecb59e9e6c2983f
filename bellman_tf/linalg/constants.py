"""Constants that a graph holds once.

TensorFlow makes an operation of every number, shape and axis that is written in Python, a third of the operations of a
training step, and tracing costs by operations. Here equal constants of one graph are one operation.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import tensorflow as tf

from bellman_tf._typing import Size

Made = TypeVar("Made")
_KEPT = "_bellman_constants"  # an attribute of the graph, so that they go when the graph goes


def constant(value: float | Sequence[int], dtype: tf.DType = tf.int32) -> tf.Tensor:
    """A number, or a list of integers, as a tensor.

    Args:
        value: the number or the integers.
        dtype: of the tensor.

    Returns:
        Scalar or vector; in a graph the same tensor for the same value.

    Example:
        >>> constant([2, 3]).numpy().tolist()
        [2, 3]
    """
    if tf.executing_eagerly():
        return tf.constant(value, dtype)
    graph = tf.compat.v1.get_default_graph()
    kept = getattr(graph, _KEPT, None)
    if kept is None:
        kept = {}
        setattr(graph, _KEPT, kept)
    value = value if isinstance(value, int | float) else tuple(value)
    key = value, dtype, id(tf.distribute.get_replica_context())  # replicas share a graph and not a device
    if key not in kept:
        with tf.control_dependencies(None):  # whatever the first of its readers waits for
            kept[key] = tf.constant(value, dtype)
    return kept[key]


def once(holder: object, name: str, make: Callable[[], Made]) -> Made:
    """Makes something of an object's tensors once in every graph that asks for it.

    What is made inside a branch or a loop must not be read outside.

    Args:
        holder: the object, which keeps what was made.
        name: of what is made.
        make: makes it.

    Returns:
        What `make` returns, or returned before in this graph.
    """
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    kept = vars(holder).setdefault("_made", {})
    if kept.get(name, (0, None))[0] is not graph:
        kept[name] = graph, make()
    return kept[name][1]


def number(value: float | tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """A number to calculate with.

    Args:
        value: a Python number, or a scalar tensor.
        dtype: of what it meets.

    Returns:
        Scalar.
    """
    return tf.cast(value, dtype) if tf.is_tensor(value) else constant(float(value), dtype)


def reshape(tensor: tf.Tensor, shape: Sequence[Size]) -> tf.Tensor:
    """`tf.reshape`; nothing at all where the tensor has that shape.

    Args:
        tensor: of any shape.
        shape: integers, one of them -1 at most, or scalar tensors.

    Returns:
        The tensor in that shape.

    Example:
        >>> reshape(tf.ones([2, 3]), [3, -1]).shape.as_list()
        [3, 2]
    """
    sizes = [size for size in shape if isinstance(size, int)]
    if len(sizes) < len(shape):
        return tf.reshape(tensor, list(shape))
    own = [] if tensor.shape.rank is None else tensor.shape.as_list()
    rest = math.prod(size for size in sizes if size != -1)
    if None not in own and rest:
        sizes = [math.prod(own) // rest if size == -1 else size for size in sizes]
    return tensor if own == sizes and tensor.shape.rank is not None else tf.reshape(tensor, constant(sizes))


def expand_dims(tensor: tf.Tensor, axis: int) -> tf.Tensor:
    """`tf.expand_dims`, one operation instead of the four of `tensor[..., None]`.

    Args:
        tensor: of any shape.
        axis: where the new axis stands.

    Returns:
        The tensor with an axis of size 1.
    """
    return tf.expand_dims(tensor, constant(axis))
