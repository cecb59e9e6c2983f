"""Time and peak memory of one step against batch size, width, depth and sequence length.

    python -m benchmarks.batch_scaling [--quick] [--only AXIS] [--out FILE.json] [--plot docs/batch_scaling.png]

Nets: the MLP 784-128-128-10; an MLP 64-width-...-10; the residual CNN of `step_time.py`; a transformer block of width
64 on sequences. Methods: Keras's SGD; K-FAC (`information="open"`); GTDDP with the linear roll-out (the default) with
samples uncoupled, in groups of 64 and all coupled, the latter with K-FAC's metric too; with the exact terminal Hessian
(ten columns per sample); and `btf.DDP`, which writes the stacked matrices out and is given 1 GiB for them. Beside them
stands what the one factorisation and solve of a coupled step take, B x B, alone: "weights".

The axis "bound" has steps whose Gram matrices are formed of much, with the bound of `gram_memory` and without. The last
two have the papers' forms: "vanilla DDP" beside what approximates it, on DDP1's net for DIGITS (GT-DDP Sec. 4.2: two
thirds less memory, a fifth of the time), and DGNOpt's residual nets with EKFAC, FNE and GR (DGNOpt Figs. 5 and 10).

Every point is a process of its own; memory is the growth of its peak resident set while the model is built and trained;
time is processor time on one thread, the median of the steps after the first two, so that other work on the machine
does not enter. The exponent of a method is the slope of a line through its largest three points in logarithms. (GT-DDP
Fig. 1, DDP Fig. 6, DDPNOpt Fig. 3.)
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import bellman_tf as btf
from bellman_tf.bellman import rollout, sample_space
from benchmarks import step_time
from keras_examples.papers.networks import residual_blocks

UNBOUNDED = 2**50
METHODS = {
    "SGD": lambda: keras.optimizers.SGD(0.01),
    "K-FAC": lambda: btf.KFAC(0.001),
    "GTDDP uncoupled": lambda: btf.GTDDP(0.01, curvature="identity", value_hessian="block_diagonal"),
    "GTDDP groups of 64": lambda: btf.GTDDP(0.01, curvature="identity", group_size=64),
    "GTDDP": lambda: btf.GTDDP(0.01, curvature="identity"),
    "GTDDP kfac": lambda: btf.GTDDP(0.001, curvature="kfac"),
    "GTDDP exact Hessian": lambda: btf.GTDDP(0.01, curvature="identity", terminal_hessian="full"),
    "dense DDP": lambda: btf.DDP(0.01, memory_budget=2**30),
    "weights": None,
    "adam, open": lambda: btf.GTDDP(0.001, curvature="adam", information="open"),
    "adam": lambda: btf.GTDDP(0.001, curvature="adam"),
    "adam, no bound": lambda: btf.GTDDP(0.001, curvature="adam", gram_memory=UNBOUNDED),
    "adam, exact": lambda: btf.GTDDP(0.001, curvature="adam", gram="exact"),
    "adam, exact, no bound": lambda: btf.GTDDP(0.001, curvature="adam", gram="exact", gram_memory=UNBOUNDED),
    "vanilla DDP": lambda: btf.DDP.as_published(0.01),
    "DDP-SGD": lambda: btf.DDPNOpt.as_published(0.01, paper="ddp", curvature="identity"),
    "GT-DDP-SGD": lambda: btf.GTDDP.as_published(0.01, curvature="identity"),
    "EKFAC": lambda: btf.EKFAC.as_published(0.001),
    "GT-DDP-EKFAC": lambda: btf.GTDDP.as_published(0.001, curvature="ekfac"),
    "FNE": lambda: btf.DGNOpt.as_published(0.001, curvature="ekfac", information="feedback"),
    "GR": lambda: btf.DGNOpt.as_published(0.001, curvature="ekfac"),
}
USUAL = ("SGD", "GTDDP", "GTDDP kfac")
COUPLED = ("GTDDP groups of 64", "weights")
BOUND = ("adam, open", "adam", "adam, no bound")
VANILLA, GAME = "vanilla DDP on DIGITS", "DGNOpt on residual nets"
MNIST = ("mlp", 784, 128, 2)
# Of every axis: size, batch, net; then the methods, and those that stop at some size.
AXES: dict[str, dict[int | str, tuple]] = {
    "batch size": {B: (B, *MNIST) for B in (1, 16, 64, 512, 4096)},
    "width": {n: (128, "mlp", 64, n, 4) for n in (64, 256, 1024)},
    "depth": {T: (128, "mlp", 64, 32, T) for T in (2, 8, 32)},
    "sequence length": {L: (32, "transformer", L, 64, 1) for L in (16, 64, 256)},
    "residual CNN": {B: (B, "cnn", 28, 16, 2) for B in (16, 64, 512)},
    "bound": {
        "text of 64, B = 256": (256, "text", 64, 64, 1),
        "MLP, B = 512": (512, *MNIST),
        "CNN, B = 512": (512, "cnn", 28, 16, 2),
    },
    VANILLA: {B: (B, "mlp", 64, 20, 4) for B in (1, 4, 8, 16, 32)},
    GAME: {"DIGITS, B = 8": (8, "residual", 8, 5, 1), "MNIST, B = 128": (128, "residual", 28, 12, 3)},
}
METHODS_OF = {
    "batch size": (*USUAL, "K-FAC", "GTDDP uncoupled", *COUPLED, "GTDDP exact Hessian", "dense DDP"),
    "residual CNN": (*USUAL, "weights"),
    "bound": (*BOUND, "adam, exact", "adam, exact, no bound"),
    VANILLA: ("SGD", "vanilla DDP", "DDP-SGD", "GT-DDP-SGD", "EKFAC", "GT-DDP-EKFAC"),
    GAME: ("SGD", "EKFAC", "FNE", "GR"),
}
LAST = {"GTDDP exact Hessian": 64, "dense DDP": 1}  # the largest batch that is tried
QUICK: dict[str, dict[int | str, tuple]] = {"batch size": {B: (B, "mlp", 16, 8, 2) for B in (1, 8)}}


def network(kind: str, inputs: int, width: int, depth: int) -> tuple[keras.Model, tuple, int]:
    """A net, the shape of its samples, and how many tokens there are, 0 for numbers."""
    layers = keras.layers
    if kind == "cnn":
        return step_time.cnn()[0], (inputs, inputs, 1), 0
    if kind == "residual":
        small = {} if inputs < 16 else {"strides": 2, "pool": 4}
        return residual_blocks((inputs, inputs, 1), width, depth, "tanh", **small), (inputs, inputs, 1), 0
    if kind == "mlp":
        hidden = [layers.Dense(width, activation="tanh") for _ in range(depth)]
        return keras.Sequential([keras.Input((inputs,)), *hidden, layers.Dense(10)]), (inputs,), 0
    tokens = keras.Input((inputs,), dtype="int32")
    x = layers.Embedding(4096, width)(tokens)
    for _ in range(depth):
        x = step_time.attention_block(x) if kind == "transformer" else layers.Dense(width, "relu")(x)
    return keras.Model(tokens, layers.Dense(10)(layers.GlobalAveragePooling1D()(x))), (inputs,), 4096


def measure(method: str, batch: int, kind: str, inputs: int, width: int, depth: int) -> dict:
    """One point, in this process.

    Args:
        method: one of `METHODS`.
        batch: samples.
        kind: "mlp", "cnn", "residual", "transformer" or "text".
        inputs: size of a sample.
        width: of the hidden layers.
        depth: their number.

    Returns:
        Milliseconds, megabytes, or the reason why the method refused.
    """
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    before, rng = step_time.peak_resident(), np.random.default_rng(0)
    if method == "weights":
        return _timed(_weights_alone(batch, rng), before)
    model, shape, tokens = network(kind, inputs, width, depth)
    model = model if method == "SGD" else btf.as_game(model)
    model.compile(METHODS[method](), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = rng.integers(0, tokens, size=(batch, *shape)) if tokens else rng.normal(size=(batch, *shape)).astype("float32")
    x, y = tf.constant(x), tf.constant(rng.integers(0, 10, size=batch))
    model.optimizer.build(model.trainable_variables)
    return _timed(tf.function(lambda: model.train_step((x, y))["loss"], autograph=False), before)


def _weights_alone(batch: int, rng: np.random.Generator) -> Callable[[], tf.Tensor]:
    """Factorisation and solve of a Gram matrix of rank 20."""
    q = tf.constant(rng.normal(size=(batch, 20)), tf.float32)
    gram, curvature = tf.matmul(q, q, transpose_b=True), tf.ones([batch])

    def weights() -> tf.Tensor:
        terminal = sample_space.init(batch, beta_squared=curvature)
        return tf.reduce_sum(rollout.cooperative_weights(terminal, gram[None], diagonal=True))

    return tf.function(weights, autograph=False)


def _timed(step: Callable[[], tf.Tensor], before: float) -> dict:
    """Milliseconds and megabytes of a step."""
    times = []
    try:
        for _ in range(22):
            start = time.process_time()
            float(step())
            times.append(time.process_time() - start)
            if sum(times[2:]) > 4:
                break
    except ValueError as refusal:
        return {"refused": str(refusal).splitlines()[0]}
    return {
        "ms": round(1e3 * statistics.median(times[2:] or times), 3),
        "mb": round((step_time.peak_resident() - before) / 1024, 1),
    }


def methods_of(axis: str, size: int | str) -> list[str]:
    """What is measured at one point."""
    methods = METHODS_OF.get(axis, USUAL)
    return [name for name in methods if isinstance(size, str) or axis == "depth" or size <= LAST.get(name, size)]


def exponent(sizes: list[int], values: list[float]) -> float | None:
    """Slope in logarithms through the largest three points.

    Args:
        sizes: increasing.
        values: positive, one per size.

    Returns:
        The slope; `None` for fewer than two points.
    """
    if len(sizes) < 2:
        return None
    return round(float(np.polyfit(np.log(sizes[-3:]), np.log(values[-3:]), 1)[0]), 2)


def _point(method: str, setting: tuple) -> dict:
    """One point, in a process of its own: a copy of this one, which has imported TensorFlow and not used it."""
    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=lambda: send.send(measure(method, *setting)))
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        process.join()
        return {"refused": f"the process ended with {process.exitcode}"}
    finally:
        process.join()


def _table(axis: str, points: dict[int | str, dict[str, dict]]) -> str:
    lines = [f"{axis:24}" + "".join(f"{size:>20}" for size in points) + f"{'exponent ms, MB':>18}"]
    for method in METHODS_OF.get(axis, USUAL):
        cells, sizes, ms, mb = [], [], [], []
        for size, found in points.items():
            point = found.get(method, {"refused": "not tried"})
            if "refused" in point:
                cells.append("-" if method not in found else "refused")
                continue
            cells.append(f"{point['ms']:.3g} ms {point['mb']:.0f} MB")
            sizes.append(size)
            ms.append(point["ms"])
            mb.append(max(point["mb"], 0.1))
        known = len(points) > 1 and all(isinstance(size, int) for size in sizes)
        slopes = ", ".join(str(exponent(sizes, values)) for values in (ms, mb)) if known else ""
        lines.append(f"{method:24}" + "".join(f"{cell:>20}" for cell in cells) + f"{slopes:>18}")
    return "\n".join(lines)


def plot(results: dict, path: pathlib.Path) -> None:
    """Time and memory against each axis.

    Args:
        results: axis to size to method to point.
        path: of the image.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    axes = [axis for axis, points in results.items() if len(points) > 1 and all(map(str.isdigit, points))]
    figure, panels = plt.subplots(2, len(axes), figsize=(4 * len(axes), 6), squeeze=False)
    for column, axis in enumerate(axes):
        for row, (key, name) in enumerate((("ms", "ms per step"), ("mb", "peak memory, MB"))):
            panel = panels[row][column]
            for method in METHODS_OF.get(axis, USUAL):
                known = {size: found[method] for size, found in results[axis].items() if method in found}
                points = [(int(size), point[key]) for size, point in known.items() if key in point]
                if points:
                    panel.loglog(
                        *zip(*points, strict=True), ".-", label=method, color=f"C{list(METHODS).index(method)}"
                    )
            panel.set(xlabel=axis, ylabel=name)
            panel.set_xticks(sizes := [int(size) for size in results[axis]], labels=sizes)
            panel.minorticks_off()
            panel.grid(True, which="both", alpha=0.2)
        if METHODS_OF.get(axis, USUAL) != USUAL:
            panels[0][column].legend(fontsize=6)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small points, to see that it works")
    parser.add_argument("--only", default=",".join(AXES), help="comma-separated axes")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file; what stands there is not measured again")
    parser.add_argument("--plot", type=pathlib.Path, help="image file")
    options = parser.parse_args()
    axes = QUICK if options.quick else {axis: AXES[axis] for axis in options.only.split(",")}
    known = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    results = known.get("results", {})
    wanted = [(axis, size, method) for axis in axes for size in axes[axis] for method in methods_of(axis, size)]
    wanted = [(a, size, method) for a, size, method in wanted if method not in results.get(a, {}).get(str(size), {})]
    progress = keras.utils.Progbar(len(wanted), unit_name="point")
    for axis, size, method in wanted:
        results.setdefault(axis, {}).setdefault(str(size), {})[method] = _point(method, axes[axis][size])
        progress.add(1)
        if options.out:
            machine = {"machine": platform.platform(), "cores": os.cpu_count()}
            versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
            options.out.write_text(json.dumps({**machine, **versions, "results": results}, indent=1) + "\n")
    for axis, points in results.items():
        print(f"\n{_table(axis, {int(size) if size.isdigit() else size: found for size, found in points.items()})}")
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
