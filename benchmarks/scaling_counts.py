"""Layers of two networks, and the operations and numbers of a step on each: what `benchmarks.scaling_model` counts."""

import dataclasses
import functools
import math

import keras

from bellman_tf.curvature.gram.plan import LIMITS, Plan, kept_features, plan
from bellman_tf.curvature.metric import MetricKind
from bellman_tf.layers.matrix_layout import Extent

FLOAT = 4  # bytes
DENSE = MetricKind(kronecker=True, whitened=True)
CONVOLUTION = MetricKind(tapwise=True, sided=True)  # one factor for all taps


@dataclasses.dataclass(frozen=True)
class Shape:
    """A layer with a matrix form: at L positions `[taps * d]` inputs to e outputs.

    Attributes:
        name: of the layer.
        positions: L.
        inputs: d, channels of one tap.
        width: e.
        taps: of a convolution; 0 for a Dense layer.
        seen: positions of the input.
        bias: whether there is one.
    """

    name: str
    positions: int
    inputs: int
    width: int
    taps: int = 0
    seen: int = 0
    bias: bool = False

    @property
    def parameters(self) -> int:
        """Numbers in kernel and bias."""
        return (max(self.taps, 1) * self.inputs + self.bias) * self.width

    @property
    def factor(self) -> int:
        """Rows of K-FAC's input factor: taps share one, and the bias of a Dense layer has a row."""
        return self.inputs + (self.bias and not self.taps)

    @property
    def extent(self) -> Extent:
        """The sizes that the package's plan reads."""
        rows = max(self.taps, 1) * self.inputs + self.bias
        return Extent(
            self.parameters, 1, self.positions, rows, self.width, 1, self.taps, self.inputs if self.taps else 0
        )

    @property
    def kind(self) -> MetricKind:
        """K-FAC's metric."""
        if self.taps > 1:
            return CONVOLUTION
        apart = self.taps == 1 and self.bias  # the bias's moment, which a convolution's input factor leaves out
        return dataclasses.replace(DENSE, kronecker=not apart)

    @functools.cached_property
    def plan(self) -> Plan:
        """What the package's plan chooses under K-FAC."""
        return plan(self.extent, self.kind)


@dataclasses.dataclass(frozen=True)
class Network:
    """What is counted.

    Attributes:
        name: of the network.
        shapes: of the layers with a matrix form.
        others: parameters of all other layers.
        attention: multiplications per sample of products between activations.
        backward_passes: 2 where players stand in front of a BatchNormalization, whose samples mix; else 1.
    """

    name: str
    shapes: tuple[Shape, ...]
    others: int
    attention: int = 0
    backward_passes: int = 1

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.others + sum(shape.parameters for shape in self.shapes)


def resnet() -> Network:
    """ResNet-50 of keras.applications."""
    model, shapes = keras.applications.ResNet50(weights=None), []
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            (_, h, w, d), (_, p, q, e) = layer.input.shape, layer.output.shape
            taps = layer.kernel_size[0] * layer.kernel_size[1]
            shapes.append(Shape(layer.name, p * q, d, e, taps, h * w, layer.use_bias))
        elif isinstance(layer, keras.layers.Dense):
            shapes.append(Shape(layer.name, 1, layer.input.shape[-1], layer.units, 0, 1, layer.use_bias))
    trained = sum(v.value.shape.num_elements() for v in model.trainable_variables)
    return Network("ResNet-50", tuple(shapes), trained - sum(shape.parameters for shape in shapes), backward_passes=2)


def vit(blocks: int = 12, width: int = 768, hidden: int = 3072, patch: int = 16, size: int = 224) -> Network:
    """ViT-B/16."""
    patches = (size // patch) ** 2
    tokens = patches + 1
    shapes = [Shape("patches", patches, 3, width, patch * patch, size * size, True)]
    for k in range(blocks):
        shapes += [Shape(f"block_{k}/{name}", tokens, width, width, 0, tokens, True) for name in ("q", "k", "v", "out")]
        shapes += [
            Shape(f"block_{k}/up", tokens, width, hidden, 0, tokens, True),
            Shape(f"block_{k}/down", tokens, hidden, width, 0, tokens, True),
        ]
    shapes.append(Shape("head", 1, width, 1000, 0, 1, True))
    others = (tokens + 1) * width + (2 * blocks + 1) * 2 * width
    return Network("ViT-B/16", tuple(shapes), others, attention=blocks * 2 * tokens**2 * width)


# ---- operations of one step on one device, b samples; a multiplication and its addition are two


def of_sgd(network: Network, b: int) -> float:
    """One pass forward and one back: three products per layer."""
    products = sum(s.positions * max(s.taps, 1) * s.inputs * s.width for s in network.shapes)
    return 2 * 3 * b * (products + network.attention)


def of_second_pass(network: Network, b: int) -> float:
    """The backward pass of the re-weighted loss, where weighing cotangents is not enough."""
    return (network.backward_passes - 1) * of_sgd(network, b) * 2 / 3


def of_gram(shape: Shape, b: int, memory: int = 2**40) -> float:
    """A Gram matrix under K-FAC: the metric on one side, then inner products; of mixtures of features on both.

    Args:
        shape: of the layer.
        b: samples.
        memory: `gram_memory`, bytes: above it gradients are formed anew for every two blocks of samples that meet.

    Returns:
        Operations.
    """
    L, d, e, form = shape.positions, shape.factor, shape.width, shape.plan.form
    on_sides = L * (d * d + e * e)
    pairs = b * on_sides + b * b * L * L * (d + e)
    if form in {"factored", "positions"}:
        return 2 * pairs
    metric = d * d * e + d * e * e
    if form == "sketch":  # the metric acts on inputs and cotangents where that is cheaper
        metric = min(metric, on_sides + L * d * e)
    load, room, times = shape.plan.load, memory // FLOAT, 1
    if load.whole(b, None) > room:
        times = 1 + math.ceil(b / load.side(room))
    if form == "features":
        r = kept_features(d, LIMITS)
        return 2 * (times * b * (L * d * r + L * r * e + r * e * e) + b * b * r * e)
    gradients = times * b * (L * d * e + metric) + b * b * d * e
    return 2 * (min(pairs, gradients) if form == "sketch" else max(shape.taps, 1) * gradients)


def of_statistics(shape: Shape, b: int) -> float:
    """The moments of inputs and cotangents."""
    return 2 * b * (shape.seen * shape.factor**2 + shape.positions * shape.width**2)


def of_factorisation(n: int) -> float:
    """Cholesky factor and inverse of n rows."""
    return 2 * n**3 * (1 / 6 + 5 / 6)


def of_preconditioning(shape: Shape) -> float:
    """`A^{-1} G B^{-1}`."""
    rows = max(shape.taps, 1)
    return 2 * rows * (shape.factor**2 * shape.width + shape.factor * shape.width**2)


def of_solve(b: int) -> float:
    """`(I + L' Gamma L)` factored, of the b samples."""
    return 2 * b**3 / 3


# ---- what is measured
