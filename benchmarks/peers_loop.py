"""What the scripts of the peers share: runs at several learning rates, times in turns, a file that grows. NumPy only.

Every method runs at the same number of learning rates, half a decade apart, each falling along half a cosine, from the
same weights on the same batches; the lowest test loss counts. Steps are timed in turns, one step after the other; the
median counts. At its best rate a method then runs as many steps as fit in the time of all of SGD's: the loss at equal
time.
"""

import argparse
import importlib.metadata
import json
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

PIECE = 10  # steps between changes of the rate
TIMED = 10  # steps of a turn: two periods of K-FAC's inverses
DAMPING, MOMENTUM, INVERT_EVERY = 0.01, 0.9, 5
WIDTHS = (16, 16, 32, 64)  # of the residual net


class Method(Protocol):
    """An optimizer of some framework on one task."""

    def restart(self) -> None:
        """Takes the initial weights and a new state."""

    def step(self, number: int, rate: float) -> None:
        """One step on the batch of that number; returns when it is done."""

    def test_loss(self) -> float:
        """Mean loss on the test part, `inf` if it is not finite."""


class Problem:
    """A task as `benchmarks.peers` wrote it.

    Attributes:
        name: of the task.
        weights: initial ones, kernels `[in, out]` or `[height, width, in, out]` and biases.
        steps: of a run.
        loss: on the test part at the initial weights.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.name = path.stem
        with np.load(path) as values:
            self._x, self._y = values["x"], values.get("y")
            self._test = (values["x_test"], values.get("y_test"))
            self.weights = [values[key] for key in sorted(values) if key.startswith("weight_")]
            self.loss = float(values["loss"])
        self.steps = len(self._x)

    def batch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of one step."""
        return _scaled(self._x[number], None if self._y is None else self._y[number])

    def test(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of the test part."""
        return _scaled(*self._test)

    @property
    def classes(self) -> bool:
        """Whether targets are classes; else they are the inputs."""
        return self._y is not None

    def check(self, loss: float) -> None:
        """Compares the loss of a framework's network at the initial weights with Keras's.

        Args:
            loss: on the test part.

        Raises:
            ValueError: they differ.
        """
        if not math.isclose(loss, self.loss, rel_tol=1e-4):
            raise ValueError(f"{self.name}: the loss at the initial weights is {loss}, not {self.loss}.")


def _scaled(x: np.ndarray, y: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in [0, 1], which are the targets where there are no labels."""
    x = x.astype("float32") / 255
    return x, x if y is None else y


def rates_of(middle: float | None, count: int) -> list[float]:
    """Learning rates half a decade apart around a middle; 1 alone where the method chooses it."""
    if middle is None:
        return [1.0]
    return [float(f"{middle * 10 ** ((k - count // 2) / 2):.2e}") for k in range(count)]


def run(method: Method, rate: float, steps: int) -> list[float]:
    """Trains from the initial weights.

    Args:
        method: is restarted.
        rate: the first of a cosine.
        steps: how many.

    Returns:
        Seconds of each step.
    """
    method.restart()
    seconds, pieces = [], steps // PIECE
    for number in range(steps):
        now = rate * (1 + math.cos(math.pi * (number // PIECE) / pieces)) / 2
        start = time.perf_counter()
        method.step(number, now)
        seconds.append(time.perf_counter() - start)
    return seconds


def times_of(made: Mapping[str, Method], rounds: int) -> dict[str, float]:
    """Milliseconds of a step of each method, timed in turns.

    Args:
        made: the methods.
        rounds: turns; the median counts.

    Returns:
        Of each method.
    """
    times: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(rounds + 1):
        for name, method in made.items():
            seconds = run(method, 1e-4, TIMED)
            times[name] += [] if turn == 0 else [statistics.mean(seconds)]  # the first turn compiles
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def losses_of(method: Method, middle: float | None, count: int, steps: int) -> dict:
    """Runs a method at its learning rates.

    Args:
        method: on a task.
        middle: of the rates; `None` where the method chooses it.
        count: learning rates.
        steps: of a run.

    Returns:
        The lowest test loss, its rate, and those of the other rates.
    """
    losses = {}
    for rate in rates_of(middle, count):
        run(method, rate, steps)
        losses[rate] = method.test_loss()
    best = min(losses, key=losses.get)
    return {
        "rate": None if middle is None else best, "loss": losses[best], "steps": steps,
        "losses": {f"{rate:g}": loss if math.isfinite(loss) else None for rate, loss in losses.items()},
    }  # fmt: skip


def fitting(steps: int, ratio: float) -> int:
    """Steps of a method in the time of SGD's run.

    Args:
        steps: of SGD.
        ratio: time of a step over that of SGD's.

    Returns:
        A multiple of `PIECE`, at most `steps`.
    """
    return min(int(steps / ratio) // PIECE * PIECE, steps)


def command(
    description: str,
    default: str,
    middles: Mapping[str, float | None],
    make: Callable[[Problem], dict[str, Method]],
    packages: Sequence[str],
    arguments: Sequence[str] | None,
) -> None:
    """The command of a framework's script.

    Args:
        description: of the command.
        default: file of the results.
        middles: method -> middle of its learning rates; the first is the framework's SGD.
        make: the methods that run on a task.
        packages: whose versions are written.
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("directory", type=pathlib.Path, help="that benchmarks.peers wrote")
    parser.add_argument("--tasks", nargs="+", default=["autoencoder", "residual"])
    parser.add_argument("--methods", nargs="+", choices=middles, default=list(middles))
    parser.add_argument("--rates", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--retime", action="store_true", help="measure the step times again before anything else")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(default), help="goes on from it")
    options = parser.parse_args(arguments)
    versions = {name: importlib.metadata.version(name) for name in packages}
    stored = json.loads(options.out.read_text())["results"] if options.out.exists() else []
    found = {(record["task"], record["method"]): record for record in stored}
    first = next(iter(middles))

    def write(text: str) -> None:
        print(text, flush=True)
        options.out.write_text(json.dumps({"versions": versions, "results": list(found.values())}, indent=1) + "\n")

    for task in options.tasks:
        problem = Problem(options.directory / f"{task}.npz")
        made = {name: one for name, one in make(problem).items() if name in options.methods or name == first}
        records = {name: found.setdefault((task, name), {"task": task, "method": name}) for name in made}
        if options.retime or any("milliseconds" not in record for record in records.values()):
            times = times_of(made, options.rounds)
            for name, record in records.items():
                record.update(milliseconds=times[name], ratio=times[name] / times[first])
                write(f"{task}  {name}  {times[name]:.1f} ms ({record['ratio']:.2f} SGD)")
        for name, record in records.items():
            if "loss" not in record:
                record.update(losses_of(made[name], middles[name], options.rates, problem.steps))
                write(f"{task}  {name}  {problem.steps} steps  loss {record['loss']:.4g}")
            short = fitting(problem.steps, record["ratio"])
            if record.get("equal_time", {}).get("steps") != short:
                run(made[name], 1.0 if record["rate"] is None else record["rate"], short)
                loss = made[name].test_loss()
                record["equal_time"] = {"steps": short, "loss": loss if math.isfinite(loss) else None}
                write(f"{task}  {name}  {short} steps  loss {loss:.4g}")
