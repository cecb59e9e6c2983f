"""Time and peak memory of one step against batch size, width and depth: the papers' cost figures.

    python -m benchmarks.batch_scaling [--quick] [--out benchmarks/batch_scaling.json] [--plot docs/batch_scaling.png]

An MLP width-...-10 with a softmax loss, tanh layers. Methods: Keras's SGD; EKFAC; GTDDP with samples uncoupled and
coupled (one column per sample), coupled with the exact terminal Hessian (ten columns), and `btf.DDP`, which writes the
stacked matrices out and is given 1 GiB for them. Every point is a process of its own; memory is the growth of its peak
resident set while the model is built and trained; time is processor time on one thread, the median of the steps after
the first two, so that other work on the machine does not enter. The exponent of a method is the slope of a line through
its largest three points in logarithms. (GT-DDP Fig. 1, DDP Fig. 6, DDPNOpt Fig. 3.)
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import bellman_tf as btf
from benchmarks.step_time import peak_resident

METHODS = {
    "SGD": lambda: keras.optimizers.SGD(0.01),
    "EKFAC": lambda: btf.EKFAC(0.001),
    "GTDDP block": lambda: btf.GTDDP(0.01, curvature="identity", value_hessian="block_diagonal"),
    "GTDDP coupled": lambda: btf.GTDDP(0.01, curvature="identity"),
    "GTDDP coupled, exact Hessian": lambda: btf.GTDDP(0.01, curvature="identity", terminal_hessian="full"),
    "dense DDP": lambda: btf.DDP(0.01, memory_budget=2**30),
}
# Batch size, input size, width, number of hidden layers; the second entry of an axis is what the point is called.
AXES = {
    "batch size": {B: (B, 64, 32, 4) for B in (1, 16, 64, 512)},
    "width": {n: (32, 64, n, 4) for n in (16, 64, 256)},
    "depth": {T: (32, 64, 32, T) for T in (2, 8, 32)},
    "MNIST shape": {784: (128, 784, 128, 2)},
}
QUICK = {"batch size": {B: (B, 16, 8, 2) for B in (1, 8)}}


def measure(method: str, batch: int, inputs: int, width: int, hidden: int) -> dict:
    """One point, in this process.

    Args:
        method: one of `METHODS`.
        batch: samples.
        inputs: size of a sample.
        width: of the hidden layers.
        hidden: their number.

    Returns:
        Milliseconds, megabytes, or the reason why the method refused.
    """
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    before = peak_resident()
    layers = [keras.layers.Dense(width, activation="tanh") for _ in range(hidden)]
    model = keras.Sequential([keras.Input((inputs,)), *layers, keras.layers.Dense(10)])
    model = model if method == "SGD" else btf.as_game(model)
    model.compile(METHODS[method](), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(batch, inputs)), tf.float32)
    y = tf.constant(rng.integers(0, 10, size=batch))
    model.optimizer.build(model.trainable_variables)
    step = tf.function(lambda: model.train_step((x, y))["loss"], autograph=False)
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
        "mb": round((peak_resident() - before) / 1024, 1),
    }


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


def _point(method: str, setting: tuple[int, ...]) -> dict:
    command = [sys.executable, "-m", "benchmarks.batch_scaling", "--one", json.dumps([method, *setting])]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        return {"refused": f"the process ended with {done.returncode}: {done.stderr.strip().splitlines()[-1][:200]}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def _table(axis: str, points: dict[int, dict[str, dict]]) -> str:
    lines = [f"{axis:30}" + "".join(f"{size:>18}" for size in points) + f"{'exponent ms, MB':>18}"]
    for method in METHODS:
        cells, sizes, ms, mb = [], [], [], []
        for size, found in points.items():
            point = found[method]
            if "refused" in point:
                cells.append("refused")
                continue
            cells.append(f"{point['ms']:.3g} ms {point['mb']:.0f} MB")
            sizes.append(size)
            ms.append(point["ms"])
            mb.append(max(point["mb"], 0.1))
        slopes = ", ".join(str(exponent(sizes, values)) for values in (ms, mb)) if len(points) > 1 else ""
        lines.append(f"{method:30}" + "".join(f"{cell:>18}" for cell in cells) + f"{slopes:>18}")
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

    axes = [axis for axis, points in results.items() if len(points) > 1]
    figure, panels = plt.subplots(2, len(axes), figsize=(4 * len(axes), 6), squeeze=False)
    for column, axis in enumerate(axes):
        for row, (key, name) in enumerate((("ms", "ms per step"), ("mb", "peak memory, MB"))):
            panel = panels[row][column]
            for method in METHODS:
                points = [(size, found[method][key]) for size, found in results[axis].items() if key in found[method]]
                if points:
                    panel.loglog(*zip(*points, strict=True), ".-", label=method)
            panel.set(xlabel=axis, ylabel=name)
            panel.set_xticks(sizes := [int(size) for size in results[axis]], labels=sizes)
            panel.minorticks_off()
            panel.grid(True, which="both", alpha=0.2)
    panels[0][0].legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small points, to see that it works")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file")
    parser.add_argument("--plot", type=pathlib.Path, help="image file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*json.loads(options.one))))
        return
    axes = QUICK if options.quick else AXES
    total, results = sum(map(len, axes.values())) * len(METHODS), {}
    progress = keras.utils.Progbar(total, unit_name="point")
    for axis, points in axes.items():
        results[axis] = {}
        for size, setting in points.items():
            results[axis][size] = {}
            for method in METHODS:
                results[axis][size][method] = _point(method, setting)
                progress.add(1)
    for axis, points in results.items():
        print(f"\n{_table(axis, points)}")
    if options.out:
        machine = {"machine": platform.platform(), "cores": os.cpu_count()}
        versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
        options.out.write_text(json.dumps({**machine, **versions, "results": results}, indent=1) + "\n")
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
