"""What a layer's variables say of its input, where the tensor itself does not say it.

A batch of a data set may come without sizes (`tf.data.Dataset.from_generator`, `tf.numpy_function`). Keras runs it;
captures need the number of features, which is that of the kernel's rows.
"""

import keras
import tensorflow as tf

from bellman_tf import keras_access
from bellman_tf.layers.einsum import einsum_plan
from bellman_tf.layers.tensors import with_sizes


def input_sizes(layer: keras.Layer) -> dict[int, int]:
    """Sizes that a layer's input must have for its variables to fit.

    Args:
        layer: a built layer of a covered family.

    Returns:
        Sizes by axis, counted from the end where negative; axes that may have any size are left out.
    """
    if isinstance(layer, keras.layers.EinsumDense):  # its `input_spec` is the rank alone
        plan = einsum_plan(layer)
        sizes = {} if plan is None else dict(zip(plan.kernel, layer.kernel.shape, strict=True))
        letters = [] if plan is None else enumerate(plan.source)
        return {axis: sizes[letter] for axis, letter in letters if letter in sizes}
    axes = getattr(layer.input_spec, "axes", None) or {}
    return {axis: size for axis, size in axes.items() if size is not None}


def as_computed(layer: keras.Layer, inputs: tf.Tensor) -> tf.Tensor:
    """An input as the layer computes with it.

    Args:
        layer: the layer.
        inputs: its first tensor argument, of known rank.

    Returns:
        The tensor in the layer's compute dtype (integers stay integers), its static shape completed by `input_sizes`.
    """
    sizes: list[int | None] = [None] * inputs.shape.rank
    for axis, size in input_sizes(layer).items():
        sizes[axis] = size
    known = with_sizes(inputs, sizes)
    if known is not inputs:
        keras_access.set_mask(known, keras_access.mask_of(inputs))
    if known.dtype.is_floating and known.dtype.name != layer.compute_dtype:
        return tf.cast(known, layer.compute_dtype)
    return known
