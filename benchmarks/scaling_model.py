"""A model on paper of a step at B = 4096 on 32 devices, ResNet-50 and a ViT of 12 blocks: tables of docs/scaling.md.

    python -m benchmarks.scaling_model [--measure] [--devices 32] [--batch 4096] [--markdown]

Shapes are those of `keras.applications.ResNet50` and of ViT-B/16 on images of 224 x 224; the form of every Gram matrix
is what the plan of the package chooses. `--measure` times the kinds of work once on this machine, one thread, processor
time, and writes the rates to scaling_model.json; without it the tables are made from that file. Nothing here has run on
32 devices: operations, bytes and memory are counts, and times are counts over measured rates of one processor core.
"""

import argparse
import json
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
from bellman_tf.curvature.gram.plan import LIMITS
from bellman_tf.linalg import eigh, factor_spd, inverse_spd
from benchmarks.scaling_counts import (
    FLOAT,
    Network,
    Shape,
    of_factorisation,
    of_gram,
    of_preconditioning,
    of_second_pass,
    of_sgd,
    of_solve,
    of_statistics,
    resnet,
    vit,
)

FILE = pathlib.Path(__file__).with_suffix(".json")
EVERY = 10  # steps between two factorisations, the default of `KFAC`


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
SAMPLES, LITTLE = 32, 2**21
CHECKED = {
    "SGD": lambda: keras.optimizers.SGD(0.01),
    "K-FAC alone": lambda: btf.KFAC(0.01),
    "game, room for the batch": lambda: btf.GTDDP(0.01, gram_memory=2**34),
    "game, `gram_memory=2**21`": lambda: btf.GTDDP(0.01, gram_memory=LITTLE),
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
        "Gram matrices, default `gram_memory`": (sum(of_gram(s, b, LIMITS.memory) for s in shapes), "gram"),
        "the same, with room for whole batches": (sum(of_gram(s, b) for s in shapes), "gram"),
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
