"""Which layers are covered, where their cotangent is taken, and how they are captured.

A layer is covered when the gradient of its parameters factors over samples in a form we know. Every other layer is
played open-loop: it trains by automatic differentiation with the sample weights, and adds nothing to a Gram matrix.
"""

import dataclasses
import math
from collections.abc import Callable

import keras

from bellman_tf.layers.capture import MatrixLayout
from bellman_tf.layers.convolution import capture_convolution, convolution_layout
from bellman_tf.layers.dense import capture_dense
from bellman_tf.layers.depthwise import capture_depthwise, capture_separable
from bellman_tf.layers.einsum import capture_einsum, einsum_layout, einsum_plan
from bellman_tf.layers.embedding import capture_embedding
from bellman_tf.layers.normalization import capture_scale_shift

PREACTIVATION, OUTPUT = "preactivation", "output"


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How one layer is covered.

    Attributes:
        kind: name of the layer family.
        site: where the cotangent is taken: "preactivation" (before `layer.activation`) or "output".
        capture: function of (layer, inputs, cotangents).
        matrix: the matrix layout, where there is one.
        convolution: whether the layer is a convolution.
        taps: kernel taps of a convolution, else 1.
    """

    kind: str
    site: str
    capture: Callable
    matrix: MatrixLayout | None = None
    convolution: bool = False
    taps: int = 1


def _expected(layer: keras.Layer, names: tuple[str, ...]) -> bool:
    """Whether the layer's trainable variables are exactly the named attributes that exist, in order."""
    present = [getattr(layer, name, None) for name in names]
    return [id(v) for v in present if v is not None] == [id(v) for v in layer.trainable_variables]


def _dense(layer: keras.Layer) -> Coverage | str:
    if not _expected(layer, ("kernel", "bias")):
        return "its trainable variables are not just kernel and bias"
    shape = tuple(layer.kernel.shape)
    matrix = MatrixLayout(shape, shape[0], tuple(layer.bias.shape) if layer.use_bias else None)
    return Coverage("dense", PREACTIVATION, capture_dense, matrix)


def _einsum(layer: keras.Layer) -> Coverage | str:
    if not _expected(layer, ("kernel", "bias")):
        return "its trainable variables are not just kernel and bias"
    plan = einsum_plan(layer)
    if plan is None:
        return f"its equation '{layer.equation}' has no leading batch axis"
    if layer.bias is not None and _bias_may_stray(layer):
        return "Keras may add its bias along another axis of the same size"
    return Coverage("einsum dense", PREACTIVATION, capture_einsum, einsum_layout(layer, plan))


def _bias_may_stray(layer: keras.Layer) -> bool:
    """Whether `keras.ops.add` takes a bias along one axis for a channel bias: it looks at axes -1 and 1, by size."""
    wide = [(axis, size) for axis, size in enumerate(layer.bias.shape, start=-len(layer.bias.shape)) if size > 1]
    if len(wide) != 1 or wide[0][0] == -1:
        return False
    [(axis, size)] = wide
    output = layer.compute_output_shape(layer.get_build_config()["input_shape"])
    return output[-1] in {None, size} or (axis != 1 - len(output) and output[1] in {None, size})


def _convolution(layer: keras.Layer) -> Coverage | str:
    if not _expected(layer, ("kernel", "bias")):
        return "its trainable variables are not just kernel and bias"
    matrix = convolution_layout(layer) if layer.groups == 1 else None
    taps = math.prod(layer.kernel_size)
    return Coverage("convolution", PREACTIVATION, capture_convolution, matrix, convolution=True, taps=taps)


def _depthwise(layer: keras.Layer) -> Coverage | str:
    if not _expected(layer, ("kernel", "bias")):
        return "its trainable variables are not just kernel and bias"
    return Coverage("depthwise convolution", PREACTIVATION, capture_depthwise)


def _separable(layer: keras.Layer) -> Coverage | str:
    if not _expected(layer, ("depthwise_kernel", "pointwise_kernel", "bias")):
        return "its trainable variables are not just its kernels and bias"
    return Coverage("separable convolution", PREACTIVATION, capture_separable)


def _embedding(layer: keras.Layer) -> Coverage | str:
    if not _expected(layer, ("_embeddings",)):
        return "its trainable variable is not just the table"
    return Coverage("embedding", OUTPUT, capture_embedding)


def _scale_shift(layer: keras.Layer) -> Coverage | str:
    if not _expected(layer, ("gamma", "beta")):
        return "its trainable variables are not just scale and shift"
    if getattr(layer, "synchronized", False):
        return "its statistics are synchronised across replicas"
    if getattr(layer, "renorm", False):
        return "it uses batch renormalisation"
    if getattr(layer, "rms_scaling", False):
        return "it uses the deprecated rms_scaling"
    if 0 in (layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]):
        return "its scale runs along the batch axis"
    return Coverage("scale and shift", OUTPUT, capture_scale_shift)


_FAMILIES: tuple[tuple[type, Callable], ...] = (
    (keras.layers.Dense, _dense),
    (keras.layers.EinsumDense, _einsum),
    (keras.layers.Conv1D, _convolution),
    (keras.layers.Conv2D, _convolution),
    (keras.layers.Conv3D, _convolution),
    (keras.layers.DepthwiseConv1D, _depthwise),
    (keras.layers.DepthwiseConv2D, _depthwise),
    (keras.layers.SeparableConv1D, _separable),
    (keras.layers.SeparableConv2D, _separable),
    (keras.layers.Embedding, _embedding),
    (keras.layers.BatchNormalization, _scale_shift),
    (keras.layers.LayerNormalization, _scale_shift),
    (keras.layers.GroupNormalization, _scale_shift),
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


def coverage(layer: keras.Layer) -> Coverage | str:
    """Looks a layer up.

    Args:
        layer: a built Keras layer with trainable variables.

    Returns:
        Its coverage, or the reason why it is played open-loop.
    """
    for family, build in _FAMILIES:
        if not isinstance(layer, family):
            continue
        if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None) is not None:
            return "it is adapted or quantised"
        changed = None if type(layer) is family else _overridden(type(layer), family)
        return f"it overrides `{changed}` of {family.__name__}" if changed else build(layer)
    return f"{type(layer).__name__} has no Gram form"
