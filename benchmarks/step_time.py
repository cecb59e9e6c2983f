"""Time, memory and tracing of one training step, as ratios to Keras's own `train_step` with SGD.

    python -m benchmarks.step_time [--rounds 30] [--models mlp,cnn] [--rows ...] [--out benchmarks/step_time.json]

Every row is a compiled model of its own. All rows of a model live in one process and are timed in turns (one block of
steps each, round after round), so that a slow moment of the machine falls on all of them; a ratio is between medians.
Two ways of running a step are timed:

    fit     the compiled train function that `fit` calls, once per step, on a data set of one repeated batch
    graph   many steps inside one compiled loop (as `steps_per_execution` does): operations only, no Python

Under XLA *compile* is what the first block of steps takes longer than the second. Peak memory (`--memory`) is the
growth of the resident set of a fresh process that runs one row.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import bellman_tf as btf
from benchmarks.networks import PROBLEMS, Problem

# What a row is compared with besides SGD, and what the ratio may be: a number, or one per network.
PER_NETWORK = {
    "mlp": 1.4, "cnn": 1.15, "resnet18": 1.2, "cifar": 1.25, "vit": 1.3, "text": 1.3, "autoencoder": 1.4, "frozen": 1.1,
}  # fmt: skip
AGAINST: dict[str, tuple[str, object]] = {
    "linear identity": ("keras sgd", PER_NETWORK),
    "linear adam": ("keras adam", PER_NETWORK),
    "linear kfac": ("open kfac", PER_NETWORK),
    "players=2": ("linear identity", 1.0),
    "adaptive alignment": ("nonlinear identity", 1.1),
    "step control": ("linear identity", ""),
    "step control every 4": ("linear identity", ""),
    "monitored": ("linear identity", ""),
    "coop exact": ("linear kfac", 1.25),
    "coop published": ("linear kfac", ""),
    "coop rescale": ("linear kfac", ""),
    "open model's kfac": ("open kfac", ""),
    "model's kfac": ("linear kfac", ""),
    "model's kfac every 5": ("linear kfac", ""),
}


def optimizers(kfac_every: int) -> dict:
    """The rows: name to optimizer, `None` for Keras's SGD."""
    kfac = btf.curvature.KFAC(invert_every=kfac_every)

    def coop(mode: str) -> btf.GTDDP:
        return btf.GTDDP(0.01, curvature=btf.curvature.KFAC(invert_every=kfac_every, cooperative=mode))

    def of_model(update_every: int) -> btf.curvature.KFAC:
        return btf.curvature.KFAC(invert_every=kfac_every, update_every=update_every, fisher="model")

    return {
        "open model's kfac": btf.GTDDP(0.01, curvature=of_model(1), information="open"),
        "model's kfac": btf.GTDDP(0.01, curvature=of_model(1)),
        "model's kfac every 5": btf.GTDDP(0.01, curvature=of_model(5)),
        "players=2": btf.DGNOpt(0.01, curvature="identity", players=2),
        "adaptive alignment": btf.DGNOpt(0.01, curvature="identity", alignment="adaptive"),
        "step control": btf.GTDDP(0.01, curvature="identity", step_control="levenberg_marquardt"),
        "step control every 4": btf.GTDDP(0.01, curvature="identity", step_control=btf.LevenbergMarquardt(every=4)),
        "monitored": btf.GTDDP(0.01, curvature="identity"),
        "coop exact": coop("exact"),
        "coop published": coop("published"),
        "coop rescale": coop("rescale"),
        "keras sgd": None,
        "open": btf.GTDDP(0.01, information="open", curvature="identity"),
        "open kfac": btf.GTDDP(0.01, curvature=kfac, information="open"),
        "linear identity": btf.GTDDP(0.01, curvature="identity"),
        "linear identity exact": btf.GTDDP(0.01, curvature="identity", gram="exact"),
        "linear feedback": btf.DDPNOpt(0.01, curvature="identity"),
        "linear block": btf.GTDDP(0.01, curvature="identity", value_hessian="block_diagonal"),
        "linear kfac": btf.GTDDP(0.01, curvature=kfac),
        "linear ekfac": btf.GTDDP(0.01, curvature=btf.curvature.EKFAC(invert_every=kfac_every)),
        "linear rmsprop": btf.GTDDP(0.001, curvature="rmsprop"),
        "linear adam": btf.GTDDP(0.001, curvature="adam"),
        "nonlinear identity": btf.GTDDP(0.01, curvature="identity", rollout="nonlinear"),
        "nonlinear kfac": btf.GTDDP(0.01, curvature=kfac, rollout="nonlinear"),
        "keras adam": keras.optimizers.Adam(0.001),
    }


def made(problem: Problem, row: str, kfac_every: int = 10) -> tuple[keras.Model, keras.optimizers.Optimizer]:
    """A network and the optimizer of a row, not compiled.

    Args:
        problem: the network's.
        row: of `optimizers`.
        kfac_every: steps between factorisations.

    Returns:
        Model and optimizer.
    """
    keras.utils.set_random_seed(0)
    model, optimizer = problem.network(), optimizers(kfac_every)[row]
    if row == "monitored":
        optimizer.watched = True
    return model if row.startswith("keras") else btf.as_game(model), optimizer or keras.optimizers.SGD(0.01)


def traced(model: keras.Model, data: tuple, steps: int, jit: bool = False) -> Callable[[], tf.Tensor]:
    """Looks at a compiled model's layers and traces its step inside one loop.

    Args:
        model: compiled.
        data: one batch.
        steps: of the loop.
        jit: compile the step with XLA.

    Returns:
        Runs the loop and gives the last loss.
    """
    step = tf.function(model.train_step, jit_compile=jit, autograph=False)  # as Keras does
    model.optimizer.build(model.trainable_variables)

    @tf.function
    def block() -> tf.Tensor:
        total = tf.zeros([])
        for _ in tf.range(steps):
            total = step(data)["loss"]
        return total

    block.get_concrete_function()
    return block


class Row:
    """One compiled model that can run a block of steps."""

    def __init__(self, model_name: str, row: str, jit: bool, steps: int, kfac_every: int) -> None:
        problem = PROBLEMS[model_name]
        self.model, optimizer = made(problem, row, kfac_every)
        data = problem.data()
        self.model.compile(optimizer=optimizer, loss=problem.loss(), jit_compile=jit)
        self.steps = steps
        start = time.perf_counter()
        self._block = block = traced(self.model, data, steps, jit)
        self.trace = time.perf_counter() - start
        start = time.perf_counter()
        float(block())
        self.compile = time.perf_counter() - start - self.graph() * steps
        self.model.make_train_function()
        self._data = iter(tf.data.Dataset.from_tensors(data).repeat())
        self.model.train_function(self._data)

    def graph(self) -> float:
        """Seconds per step inside one compiled loop."""
        start = time.perf_counter()
        float(self._block())
        return (time.perf_counter() - start) / self.steps

    def fit(self) -> float:
        """Seconds per call of the train function."""
        start = time.perf_counter()
        for _ in range(self.steps):
            logs = self.model.train_function(self._data)
        float(logs["loss"])
        return (time.perf_counter() - start) / self.steps


def measure(model_name: str, rows: list[str], jit: bool, rounds: int, kfac_every: int) -> dict:
    """Times all rows of one model in turns; prints and returns medians, ratios and spread."""
    steps = PROBLEMS[model_name].steps
    built = {}
    Row(model_name, "keras sgd", jit, 1, kfac_every)  # the first trace of a process takes longer than any other
    for name in rows:
        built[name] = Row(model_name, name, jit, steps, kfac_every)
        print(f"  built {model_name} / {name} (trace {built[name].trace:.1f} s)", file=sys.stderr, flush=True)
    times: dict[tuple, list[float]] = {(name, way): [] for name in rows for way in ("fit", "graph")}
    for _ in range(rounds):
        for name in rows:
            times[name, "fit"].append(built[name].fit())
            times[name, "graph"].append(built[name].graph())
    result: dict = {}
    for name in rows:
        entry = result[name] = {}
        for way in ("fit", "graph"):
            median = statistics.median(times[name, way])
            low, high = np.percentile(times[name, way], [25, 75])
            entry[f"{way}_ms"] = round(1e3 * median, 4)
            entry[f"{way}_ms_quartiles"] = [round(1e3 * float(low), 4), round(1e3 * float(high), 4)]
            entry[f"{way}_ratio"] = round(median / statistics.median(times["keras sgd", way]), 3)
        if AGAINST.get(name, ("",))[0] in rows:
            for way in ("fit", "graph"):
                other = statistics.median(times[AGAINST[name][0], way])
                entry[f"{way}_against"] = round(statistics.median(times[name, way]) / other, 3)
        entry["trace_s"] = round(built[name].trace, 2)
        entry["trace_ratio"] = round(built[name].trace / built["keras sgd"].trace, 2)
        if jit:
            entry["compile_s"] = round(built[name].compile, 2)
            entry["compile_ratio"] = round(built[name].compile / built["keras sgd"].compile, 2)
    return result


def peak_memory(model_name: str, row: str, kfac_every: int) -> float:
    """Growth of the resident set, MB, of a fresh process that builds and runs one row."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.step_time",
        "--one",
        f"{model_name}/{row}",
        "--kfac-every",
        str(kfac_every),
    ]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.strip().splitlines()[-1])


def peak_resident() -> float:
    """Peak resident set of this process in kB."""
    # Not getrusage, which counts the parent's from before exec.
    with open("/proc/self/status") as status:
        return float(next(line for line in status if line.startswith("VmHWM")).split()[1])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(PROBLEMS))
    parser.add_argument("--rows", default="", help="comma-separated; default all")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--jit", choices=("off", "on", "both"), default="both")
    parser.add_argument("--kfac-every", type=int, default=10, help="steps between factorisations")
    parser.add_argument("--memory", action="store_true", help="also measure peak memory, one process per row")
    parser.add_argument("--out", default="")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        before = peak_resident()
        model_name, row = options.one.split("/")
        built = Row(model_name, row, False, 1, options.kfac_every)
        for _ in range(3):
            built.graph()
        print((peak_resident() - before) / 1024)
        return
    everything = list(optimizers(options.kfac_every))
    rows = [name for name in everything if name == "keras sgd" or not options.rows or name in options.rows.split(",")]
    report: dict = {
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "rounds": options.rounds,
        "kfac_every": options.kfac_every,
        "targets": PER_NETWORK,
        "results": {},
    }
    for model_name in options.models.split(","):
        for jit in {"off": (False,), "on": (True,), "both": (False, True)}[options.jit]:
            result = measure(model_name, rows, jit, options.rounds, options.kfac_every)
            if options.memory and not jit:
                for name in rows:
                    result[name]["peak_mb"] = round(peak_memory(model_name, name, options.kfac_every), 1)
            key = f"{model_name} jit {'on' if jit else 'off'}"
            report["results"][key] = result
            head = (
                f"{'row':22}{'fit ms':>10}{'ratio':>7}{'graph ms':>10}{'ratio':>7}{'trace':>7}{'compile':>9}{'MB':>8}"
            )
            print(f"\n{key}\n{head}")
            for name, entry in result.items():
                print(
                    f"{name:22}{entry['fit_ms']:10.3f}{entry['fit_ratio']:7.2f}{entry['graph_ms']:10.3f}"
                    f"{entry['graph_ratio']:7.2f}{entry['trace_ratio']:7.2f}"
                    f"{entry.get('compile_ratio', ''):>9}{entry.get('peak_mb', ''):>8}",
                    flush=True,
                )
                if "fit_against" in entry:
                    other, most = AGAINST[name]
                    most = most.get(model_name, "") if isinstance(most, dict) else most
                    ratios = f"fit {entry['fit_against']:.2f}, graph {entry['graph_against']:.2f}"
                    print(f"{'':22}against {other}: {ratios}; target {most}", flush=True)
            if options.out:
                with open(options.out, "w") as file:
                    json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
