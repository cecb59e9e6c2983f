"""Runs the contest that `benchmarks.gpu_contest` exported, with JAX, on JAX's default device.

    python -m benchmarks.gpu_run_contest DIRECTORY --store cells.jsonl [--tasks ...] [--minutes 8]

Needs JAX, NumPy and SciPy, no TensorFlow. What is tuned, run and stored is `keras_examples.studies._rounds`'s, as it is
with Keras: the same weights and batches for a seed, the same rates and schedules. A piece of a run, steps between two
points of its loss curve, is one call of a compiled loop over steps, data on the device; a step's time is a whole run's,
evaluation and compilation apart, divided by its steps. All programs are compiled before the first run.
"""

import argparse
import concurrent.futures
import functools
import json
import math
import pathlib
import time
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from benchmarks.gpu_run_exported import program
from keras_examples.studies import _rounds
from keras_examples.studies._cells import CONSTANT, Entry, Setting, Store
from keras_examples.studies._data import batch_rows
from keras_examples.studies._rounds import Methods, contest
from keras_examples.studies._tuning import Budget

Arrays = list[jax.Array]


def scaled(values: np.ndarray) -> np.ndarray:
    """Bytes as numbers between 0 and 1; others as they are."""
    return values.astype(np.float32) / 255 if values.dtype == np.uint8 else values


class Method:
    """One method's step: its program and what its arguments are.

    Attributes:
        description: of the JSON file.
        start: values of the arguments behind the batch; of weights, which a run sets, zeros.
    """

    def __init__(self, directory: pathlib.Path, name: str) -> None:
        self.description = json.loads((directory / f"{name}.json").read_text())
        self._module = (directory / f"{name}.stablehlo").read_bytes()
        with np.load(directory / f"{name}.npz") as values:
            self.start = [
                values[f"argument_{i}"] if f"argument_{i}" in values else np.zeros(entry["shape"], entry["dtype"])
                for i, entry in enumerate(self.description["arguments"])
            ][2:]

    def places(self, kind: str) -> list[int]:
        """Places in `start` of the arguments of a kind: "metric", "rates", "rejected"."""
        if kind == "metric":
            return [i - 2 for i, entry in enumerate(self.description["arguments"]) if entry["kind"] == kind]
        return [i - 2 for i in self.description[kind]]

    def weights(self) -> dict[int, int]:
        """Number of the weight for each place in `start` that is one."""
        return {i - 2: k for i, k in enumerate(self.description["weights"]) if k is not None}

    def compiled(self, x: jax.Array, y: jax.Array, rows: np.ndarray) -> jax.stages.Compiled:
        """The loop over the steps of a piece.

        Args:
            x: inputs, `[N, ...]`.
            y: labels, `[N, ...]`.
            rows: of the batches, `[steps, B]`.

        Returns:
            Function `(arguments, x, y, rows) -> (arguments, loss)`, the loss a mean over the piece.
        """
        results = self.description["results"]
        replaced = {r: entry["replaces"] - 2 for r, entry in enumerate(results) if entry["replaces"] is not None}
        batch = [jax.ShapeDtypeStruct((rows.shape[1], *part.shape[1:]), part.dtype) for part in (x, y)]
        call = program(self._module, [*batch, *self.start], results)

        def piece(arguments: Arrays, x: jax.Array, y: jax.Array, rows: jax.Array) -> tuple[Arrays, jax.Array]:
            def step(state: tuple[Arrays, jax.Array], row: jax.Array) -> tuple[tuple[Arrays, jax.Array], None]:
                arguments, found = list(state[0]), call(x[row], y[row], *state[0])
                for result, place in replaced.items():
                    arguments[place] = found[result]
                return (arguments, found[0]), None

            return jax.lax.scan(step, (arguments, jax.numpy.zeros([], np.float32)), rows)[0]

        arguments = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in self.start]
        return jax.jit(piece, donate_argnums=0).lower(arguments, x, y, rows).compile()


class Ring(_rounds.Ring):
    """The methods of one task, compiled; see `_rounds.Ring`.

    Attributes:
        name: of the task.
        every: steps of a piece.
        store: what has been run.
        description: of the JSON file.
        entries: the methods.
    """

    def __init__(self, directory: pathlib.Path, name: str, store: Store) -> None:
        self.description = json.loads((directory / f"{name}.json").read_text())
        self.name, self.every, self.store = self.description["title"], self.description["every"], store
        self.entries = [Entry(m["name"], None, m["middle"], m["base"]) for m in self.description["methods"]]
        with np.load(directory / f"{name}.npz") as values:
            data = {key: scaled(values[key]) for key in values if key[:2] in ("x_", "y_")}
            self._weights = {key: values[key] for key in values if key.startswith("weight_")}
        self._x, self._y = (jax.device_put(data.get(key, data["x_train"])) for key in ("x_train", "y_train"))
        self._test = data["x_test"], data.get("y_test", data["x_test"])
        self._methods = {e.name: Method(directory, f"{name}_{k}") for k, e in enumerate(self.entries)}
        self._evaluation = (directory / f"{name}_evaluate.stablehlo").read_bytes()
        self._pieces: dict[str, concurrent.futures.Future] = {}

    def compile(self, entries: Iterable[Entry], pool: concurrent.futures.Executor) -> None:
        """Begins to compile methods.

        Args:
            entries: the methods.
            pool: of threads.
        """
        rows = np.zeros((self.every, self.description["batch_size"]), np.int32)
        for entry in entries:
            self._pieces[entry.name] = pool.submit(self._methods[entry.name].compiled, self._x, self._y, rows)

    def train(self, entry: Entry, setting: Setting) -> tuple[list[float], Arrays, float]:
        """One run.

        Args:
            entry: the method.
            setting: what it is run with.

        Returns:
            Mean loss of every piece, `inf` where it is not finite or a batch was refused; the arguments at the end;
            seconds.
        """
        method, piece = self._methods[entry.name], self._pieces[entry.name].result()
        batch_size, pieces = self.description["batch_size"], setting.steps // self.every
        rows = batch_rows(len(self._x), batch_size, setting.steps, setting.seed).astype(np.int32)
        rows = jax.device_put(rows.reshape(pieces, self.every, batch_size))
        initial = method.start.copy()
        for place, k in method.weights().items():
            initial[place] = self._weights[f"weight_{setting.seed}_{k}"]
        arguments, losses, counters = [jax.device_put(value) for value in initial], [], []
        jax.block_until_ready((arguments, rows))
        begin = time.perf_counter()
        for k in range(pieces):
            for place in method.places("rates"):
                arguments[place] = np.asarray(setting.rate_in(k, pieces), initial[place].dtype)
            for place in method.places("metric"):
                arguments[place] = initial[place]
            arguments, loss = piece(arguments, self._x, self._y, rows[k])
            losses.append(loss)
            counters.append([jax.numpy.copy(arguments[place]) for place in method.places("rejected")])
        jax.block_until_ready((arguments, losses))
        seconds = time.perf_counter() - begin
        refused = np.diff([float(sum(map(np.asarray, each))) for each in counters], prepend=0.0) > 0
        curve = [
            float(loss) if math.isfinite(loss) and not lost else math.inf
            for loss, lost in zip(losses, refused, strict=True)
        ]
        return curve, arguments, seconds

    @functools.cached_property
    def _sums(self) -> jax.stages.Wrapped:
        results = [{"shape": [], "dtype": "float32"}] * 2
        chunk, weights = self.description["evaluate"]["chunk"], self.description["evaluate"]["weights"]
        samples = [jax.ShapeDtypeStruct((chunk, *part.shape[1:]), part.dtype) for part in self._test]
        values = [self._weights[f"weight_0_{k}"] for k in weights]
        return jax.jit(program(self._evaluation, [*samples, np.zeros([chunk], np.float32), *values], results))

    def test(self, entry: Entry, arguments: Arrays) -> tuple[float, float]:
        """Loss and accuracy on the test part.

        Args:
            entry: the method.
            arguments: at the end of a run.

        Returns:
            Both; `inf` for a loss that is not finite, `nan` for the accuracy where the task has no classes.
        """
        place = {k: i for i, k in self._methods[entry.name].weights().items()}
        weights = [arguments[place[k]] for k in self.description["evaluate"]["weights"]]
        chunk, (x, y) = self.description["evaluate"]["chunk"], self._test
        sums = np.zeros(2)
        for first in range(0, len(x), chunk):
            rows = np.arange(first, first + chunk)
            counts, rows = (rows < len(x)).astype(np.float32), np.minimum(rows, len(x) - 1)
            sums += [float(part) for part in self._sums(x[rows], y[rows], counts, *weights)]
        loss, accuracy = (float(each) for each in sums / len(x))
        return loss if math.isfinite(loss) else math.inf, accuracy if self.description["classes"] else math.nan

    def once(self, entry: Entry, setting: Setting) -> tuple[float, float, Sequence[float]]:
        """Trains a method with its program, see `_rounds.Ring`."""
        curve, arguments, _ = self.train(entry, setting)
        return (*self.test(entry, arguments), curve)

    def milliseconds(self, entry: Entry, steps: int) -> float:
        """Times a run without its evaluation, see `_rounds.Ring`."""
        return 1e3 * self.train(entry, Setting(CONSTANT, steps, entry.middle / 10, 0))[2] / steps


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path, help="that `gpu_contest` wrote")
    parser.add_argument("--store", type=pathlib.Path, required=True, help="file of the runs; what is in it is not run")
    parser.add_argument("--tasks", nargs="+", help="default: all in the directory")
    parser.add_argument("--methods", nargs="+", help="default: all of a task")
    parser.add_argument("--rates", type=int, default=5, help="learning rates of the grid")
    parser.add_argument("--finalists", type=int, default=1, help="settings that are run on all seeds")
    parser.add_argument("--rounds", type=int, default=1, help="turns of the step times, of whole runs")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run after so many")
    parser.add_argument("--widths", action="store_true", help="also run rates beyond the grid")
    parser.add_argument("--threads", type=int, default=8, help="that compile")
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)  # counters are 64-bit integers
    until = time.monotonic() + 60 * options.minutes
    store, device = Store(options.store), jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), JAX {jax.__version__}", flush=True)
    found = sorted(path.stem for path in options.directory.glob("*.json") if not path.stem.rpartition("_")[2].isdigit())
    rings = [Ring(options.directory, name, store) for name in options.tasks or found]
    chosen = [[e for e in ring.entries if options.methods is None or e.name in options.methods] for ring in rings]
    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(options.threads) as pool:
        for ring, entries in zip(rings, chosen, strict=True):
            ring.compile(entries, pool)
    print(f"compiled in {time.monotonic() - begin:.0f} s", flush=True)
    for ring, entries in zip(rings, chosen, strict=True):
        about = ring.description
        unit = next((entry for entry in ring.entries if entry.name == about["unit"]), entries[0])
        methods = Methods(entries, ring.entries, unit)
        budget = Budget(about["steps"], options.rates, about["seeds"], options.finalists)
        begin = time.monotonic()
        done = contest(ring, methods, budget, about["chance"], options.rounds, until, options.widths)
        words = "complete" if done else "stopped before its end; the same command goes on"
        print(f"{ring.name}: {words}, {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
