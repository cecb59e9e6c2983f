"""Which layers are covered: one line per family, each with a function of its own file.

A layer is covered when the gradient of its parameters factors over samples in a form we know. Every other layer is
played open-loop: it trains by automatic differentiation with the sample weights, and adds nothing to a Gram matrix.
"""

from collections.abc import Callable

import keras

from bellman_tf.layers.convolution import cover_convolution
from bellman_tf.layers.coverage import Coverage
from bellman_tf.layers.dense import cover_dense
from bellman_tf.layers.depthwise import cover_depthwise, cover_separable
from bellman_tf.layers.einsum import cover_einsum
from bellman_tf.layers.embedding import cover_embedding
from bellman_tf.layers.normalization import cover_scale_shift
from bellman_tf.layers.prelu import cover_prelu
from bellman_tf.layers.rms_normalization import cover_rms_normalization
from bellman_tf.layers.transposed import cover_transposed

FAMILIES: tuple[tuple[type, Callable[[keras.Layer, bool], Coverage | str]], ...] = (
    (keras.layers.Dense, cover_dense),
    (keras.layers.EinsumDense, cover_einsum),
    (keras.layers.Conv1D, cover_convolution),
    (keras.layers.Conv2D, cover_convolution),
    (keras.layers.Conv3D, cover_convolution),
    (keras.layers.DepthwiseConv1D, cover_depthwise),
    (keras.layers.DepthwiseConv2D, cover_depthwise),
    (keras.layers.SeparableConv1D, cover_separable),
    (keras.layers.SeparableConv2D, cover_separable),
    (keras.layers.Conv1DTranspose, cover_transposed),
    (keras.layers.Conv2DTranspose, cover_transposed),
    (keras.layers.Conv3DTranspose, cover_transposed),
    (keras.layers.Embedding, cover_embedding),
    (keras.layers.BatchNormalization, cover_scale_shift),
    (keras.layers.LayerNormalization, cover_scale_shift),
    (keras.layers.GroupNormalization, cover_scale_shift),
    (keras.layers.PReLU, cover_prelu),
    *([(keras.layers.RMSNormalization, cover_rms_normalization)] if hasattr(keras.layers, "RMSNormalization") else []),
)

# What a subclass may change and still compute what its family computes.
_HARMLESS = {"build", "get_config", "from_config", "build_from_config", "get_build_config", "compute_output_shape"}


def _overridden(kind: type, family: type) -> str | None:
    """Name of a method or property of `family` that the subclass `kind` changes, or `None`."""
    for name in dir(family):
        harmless = name in _HARMLESS or (name.startswith("__") and name != "__call__")
        member = getattr(family, name)
        if not harmless and (callable(member) or isinstance(member, property)) and getattr(kind, name) is not member:
            bound = getattr(member, "__func__", None)  # a class method is bound anew for every class
            if bound is None or getattr(getattr(kind, name), "__func__", None) is not bound:
                return name
    return None


def coverage(layer: keras.Layer, bias: bool = True) -> Coverage | str:
    """Looks a layer up.

    Args:
        layer: a built Keras layer with trainable variables.
        bias: whether a bias (the shift of a normalisation) belongs to the player. Where what follows takes it away
            again, as a BatchNormalization does, its gradient is zero and its samples' gradients are not: it then has
            no place in Gram and Fisher matrices.

    Returns:
        Its coverage, or the reason why it is played open-loop.
    """
    for family, cover in FAMILIES:
        if not isinstance(layer, family):
            continue
        if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None) is not None:
            return "it is adapted or quantised"
        changed = None if type(layer) is family else _overridden(type(layer), family)
        return f"it overrides `{changed}` of {family.__name__}" if changed else cover(layer, bias)
    return f"{type(layer).__name__} has no Gram form"
