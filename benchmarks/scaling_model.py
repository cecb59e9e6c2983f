"""A model on paper of a step at B = 4096 on 32 devices, ResNet-50 and a ViT of 12 blocks: tables of docs/scaling.md.

    python -m benchmarks.scaling_model [--measure] [--devices 32] [--batch 4096] [--markdown]

Shapes are those of `keras.applications.ResNet50` and of ViT-B/16 on images of 224 x 224; the form of every Gram matrix
is what the plan of the package chooses. `--measure` times the kinds of work once on this machine, one thread, processor
time, and writes the rates to scaling_model.json; without it the tables are made from that file. Nothing here has run on
32 devices: operations, bytes and memory are counts, and times are counts over measured rates of one processor core.
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

import bellman_tf as btf
from bellman_tf.curvature.block import MetricKind
from bellman_tf.curvature.gram.plan import LIMITS, Plan, plan
from bellman_tf.layers.matrix_layout import Extent
from bellman_tf.linalg import eigh, factor_spd, inverse_spd

FILE = pathlib.Path(__file__).with_suffix(".json")
EVERY = 10  # steps between two factorisations, the default of `KFAC`
FLOAT = 4  # bytes
DENSE = MetricKind(kronecker=True)
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
        return CONVOLUTION if self.taps else DENSE

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


def of_gram(shape: Shape, b: int, sides: bool = False, memory: int = 2**40) -> float:
    """A Gram matrix under K-FAC: the metric on one side, then inner products.

    Args:
        shape: of the layer.
        b: samples.
        sides: whether the metric acts on inputs and cotangents, and not on gradients per sample, where that is
            cheaper; a convolution's tap is always formed so.
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
    if sides or form == "sketch":
        metric = min(metric, on_sides + L * d * e)
    load, room, times = shape.plan.load, memory // FLOAT, 1
    if load.whole(b, None) > room:
        times = 1 + math.ceil(b / load.side(room))
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


def _seconds(work: Callable[[], object], turns: int = 5) -> float:
    work()
    times = []
    for _ in range(turns):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def measure() -> dict:
    """Rates of this machine, one thread, in operations or bytes a second of processor time."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    rates = {}
    square = tf.random.normal([1024, 1024])
    product = tf.function(lambda: tf.linalg.matmul(square, square))
    rates["products"] = 2 * 1024**3 / _seconds(product)
    image, kernel = tf.random.normal([8, 28, 28, 128]), tf.random.normal([3, 3, 128, 128])

    @tf.function
    def convolution() -> list:
        with tf.GradientTape() as tape:
            tape.watch([image, kernel])
            y = tf.nn.conv2d(image, kernel, 1, "SAME")
        return tape.gradient(y, [image, kernel])

    rates["network"] = 2 * 3 * 8 * 28 * 28 * 9 * 128 * 128 / _seconds(convolution)
    x, c = tf.random.normal([16, 196, 256]), tf.random.normal([16, 196, 256])

    @tf.function
    def gram() -> tf.Tensor:
        q = tf.reshape(tf.einsum("bld,ble->bde", x, c), [16, -1])
        return tf.linalg.matmul(q, q, transpose_b=True)

    rates["gram"] = 2 * (16 * 196 * 256**2 + 16**2 * 256**2) / _seconds(gram)
    rates["statistics"] = 2 * 16 * 196 * 256**2 / _seconds(tf.function(lambda: tf.einsum("bld,ble->de", x, x)))
    definite = tf.linalg.matmul(square, square, transpose_b=True) / 1024 + tf.eye(1024)
    inverse = tf.function(lambda: inverse_spd(factor_spd(definite, tf.constant(0.1))))
    rates["factorisation"] = of_factorisation(1024) / _seconds(inverse, 3)
    rates["eigenvectors"] = of_factorisation(512) / _seconds(tf.function(lambda: eigh(definite[:512, :512])), 3)
    large = tf.random.normal([2**24])
    rates["bytes"] = 3 * FLOAT * 2**24 / _seconds(tf.function(lambda: large + 1.0 * large))
    checked = {name: 1e3 * _step(make) for name, make in CHECKED.items()}
    machine = {"cpu": _processor(), "tensorflow": tf.__version__, "keras": keras.__version__}
    return {"machine": machine, "rates": rates, "milliseconds of one layer": checked}


CHECK = Shape("check", 32, 256, 256, 0, 32, True)
SAMPLES, LITTLE = 32, 2**23
CHECKED = {
    "SGD": lambda: keras.optimizers.SGD(0.01),
    "K-FAC alone": lambda: btf.KFAC(0.01),
    "game, room for the batch": lambda: btf.GTDDP(0.01, gram_memory=2**34),
    "game, `gram_memory=2**23`": lambda: btf.GTDDP(0.01, gram_memory=LITTLE),
}


def _step(make: Callable[[], keras.optimizers.Optimizer]) -> float:
    """Processor seconds of a step of one Dense layer, the shape of `CHECK`."""
    x = tf.random.normal([SAMPLES, CHECK.positions, CHECK.inputs])
    model = btf.Sequential([keras.Input(x.shape[1:]), keras.layers.Dense(CHECK.width)])
    model.compile(make(), "mse", jit_compile=False)
    model.train_on_batch(x, x)
    return _seconds(lambda: model.train_on_batch(x, x))


def check(known: dict) -> list[str]:
    """What the model says of the Gram matrix of one layer, and what was measured."""
    measured = known["milliseconds of one layer"]
    alone = measured["K-FAC alone"]
    lines = [
        f"**One Dense layer**, {CHECK.inputs} to {CHECK.width} at {CHECK.positions} positions, {SAMPLES} samples, "
        "measured: " + ", ".join(f"{name} {value:.1f} ms" for name, value in measured.items()) + ".",
        "",
        "| its Gram matrix | measured, ms more than K-FAC alone | on paper, ms |",
        "| --- | ---: | ---: |",
    ]
    for name, memory in zip(list(CHECKED)[2:], (2**34, LITTLE), strict=True):
        paper = 1e3 * of_gram(CHECK, SAMPLES, memory=memory) / known["rates"]["gram"]
        lines.append(f"| {name.removeprefix('game, ')} | {measured[name] - alone:.1f} | {paper:.1f} |")
    return [*lines, ""]


def _processor() -> str:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines() if pathlib.Path("/proc/cpuinfo").exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


# ---- tables


def work_of(network: Network, b: int, rates: dict) -> dict[str, tuple[float, float]]:
    """Operations and seconds of one step on one device, part by part; factorisations as the mean over `EVERY` steps."""
    shapes = network.shapes
    sizes = [n for s in shapes for n in (s.factor, s.width)]
    factorisations = sum(map(of_factorisation, sizes)) / EVERY
    parts = {
        "SGD": (of_sgd(network, b), "network"),
        "second backward pass": (of_second_pass(network, b), "network"),
        "Gram matrices, default `gram_memory`": (sum(of_gram(s, b, False, LIMITS.memory) for s in shapes), "gram"),
        "the same, with room for whole batches": (sum(of_gram(s, b) for s in shapes), "gram"),
        "the same, metric on inputs and cotangents (not built)": (sum(of_gram(s, b, True) for s in shapes), "gram"),
        "weights of the samples": (of_solve(b), "factorisation"),
        "K-FAC moments": (sum(of_statistics(s, b) for s in shapes), "statistics"),
        "K-FAC inverses": (factorisations, "factorisation"),
        "EKFAC eigenvectors, instead": (factorisations, "eigenvectors"),
        "K-FAC on the gradient": (sum(map(of_preconditioning, shapes)), "products"),
    }
    return {name: (work, work / rates[rate]) for name, (work, rate) in parts.items()}


def memory_of(network: Network, b: int) -> dict[str, float]:
    """Bytes on one device."""
    shapes = network.shapes
    activations = sum(s.seen * s.inputs + s.positions * s.width for s in shapes)
    factors = sum(s.factor**2 + s.width**2 for s in shapes)
    return {
        "weights and gradient": 2 * FLOAT * network.parameters,
        "inputs and cotangents of the layers": FLOAT * b * activations,
        "of these, cotangents that wait for the weights": FLOAT * b * sum(s.positions * s.width for s in shapes),
        "K-FAC moments": FLOAT * factors,
        "K-FAC inverses": FLOAT * factors,
        "Gram matrices, two at a time": 2 * FLOAT * b * b,
        "formed for one Gram matrix, default `gram_memory`": LIMITS.memory,
        "room that whole batches need": FLOAT * max(s.plan.load.whole(b, None) for s in shapes),
    }


def exchange_of(network: Network) -> dict[str, float]:
    """Bytes that are summed over the devices in a step."""
    factors = sum(s.factor**2 + s.width**2 for s in network.shapes)
    return {
        "gradient": FLOAT * network.parameters,
        "K-FAC moments, every step": FLOAT * factors,
        "EKFAC scalings, every step": FLOAT * sum(s.parameters for s in network.shapes),
        "Gram matrices": 0.0,
    }


def report(network: Network, b: int, devices: int, rates: dict) -> list[str]:
    """The tables of one network, as lines of Markdown."""
    work = work_of(network, b, rates)
    base = work["SGD"]
    forms: dict[str, int] = {}
    for shape in network.shapes:
        forms[shape.plan.form] = forms.get(shape.plan.form, 0) + 1
    lines = [
        f"**{network.name}**: {network.parameters / 1e6:.1f} M parameters, {len(network.shapes)} layers with a matrix "
        f"form ({', '.join(f'{form} {count}' for form, count in sorted(forms.items()))}), {b} samples a device.",
        "",
        "| one step, one device | Gflop | s of one core | over SGD |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, (flop, seconds) in work.items():
        lines.append(f"| {name} | {flop / 1e9:,.1f} | {seconds:,.2f} | {seconds / base[1]:.3f} |")
    lines += ["", "| memory of a device | MB |", "| --- | ---: |"]
    lines += [f"| {name} | {size / 1e6:,.1f} |" for name, size in memory_of(network, b).items()]
    lines += ["", "| summed over the devices | MB a step | sent by a device in a ring, MB |", "| --- | ---: | ---: |"]
    for name, size in exchange_of(network).items():
        lines.append(f"| {name} | {size / 1e6:,.1f} | {2 * (devices - 1) / devices * size / 1e6:,.1f} |")
    fixed = work["K-FAC inverses"][1] + work["K-FAC on the gradient"][1]
    largest = max(max(s.factor, s.width) for s in network.shapes)
    alone = sum(of_factorisation(n) for s in network.shapes for n in (s.factor, s.width)) / rates["factorisation"]
    lines += [
        "",
        f"What does not shrink with more devices (inverses and the metric on the gradient) takes "
        f"{fixed / base[1]:.3f} of the SGD step here, and as much as the SGD step at {b * fixed / base[1]:.1f} samples "
        f"a device. A step that renews the inverses takes {alone / base[1]:.2f} SGD steps more; the largest factor has "
        f"{largest} rows.",
        "",
    ]
    return lines


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="time the kinds of work and write the rates")
    parser.add_argument("--devices", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4096)
    options = parser.parse_args()
    if options.measure:
        FILE.write_text(json.dumps(measure(), indent=1) + "\n")
    known = json.loads(FILE.read_text())
    print(f"{known['machine']['cpu']}, TensorFlow {known['machine']['tensorflow']}, one thread.", end=" ")
    shown = (f"{name} {rate / 1e9:.1f}" for name, rate in known["rates"].items())
    print(f"Rates in 10^9 operations or bytes a second: {', '.join(shown)}.\n")
    print("\n".join(check(known)))
    for network in (resnet(), vit()):
        print("\n".join(report(network, options.batch // options.devices, options.devices, known["rates"])))


if __name__ == "__main__":
    main()
