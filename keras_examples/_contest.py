"""A contest of optimizers: cells of (task, method, schedule, length, rate, seed) in a store that grows line by line.

A cell is one run. A method is compiled once per task; runs assign weights, state and rate, so that nothing is traced
again (`_study.Trainer`). The time of a step is measured apart, all methods of a task in one process and in turns.
"""

import dataclasses
import json
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Iterable

import keras
import numpy as np
from scipy import stats

from keras_examples._methods import Variant
from keras_examples._study import Task, Trainer

SCHEDULES = ("constant", "cosine")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A method of the contest.

    Attributes:
        name: what tables call it.
        make: a new optimizer; the study sets its rate.
        middle: middle of its learning rates.
        ours: whether it is one of this package; the others are baselines.
    """

    name: str
    make: Callable[[], keras.optimizers.Optimizer]
    middle: float
    ours: bool


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run. A loss that is not finite is `inf`.

    Attributes:
        task: its name.
        method: its name.
        schedule: "constant" or "cosine".
        steps: length.
        rate: learning rate, the first one of a schedule.
        seed: of weights and batches.
        loss: test loss at the end.
        accuracy: on the test part; `nan` where the task has no classes.
        curve: mean train loss of every piece.
    """

    task: str
    method: str
    schedule: str
    steps: int
    rate: float
    seed: int
    loss: float
    accuracy: float
    curve: tuple[float, ...]

    @property
    def key(self) -> tuple:
        """What the cell is of."""
        return (self.task, self.method, self.schedule, self.steps, self.rate, self.seed)


class Store:
    """Cells and step times in a file, one JSON object a line; a line once written is never run again."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self.cells: dict[tuple, Cell] = {}
        self.milliseconds: dict[tuple[str, str], float] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                self._keep(json.loads(line))

    def _keep(self, record: dict) -> None:
        if "milliseconds" in record:
            self.milliseconds[record["task"], record["method"]] = record["milliseconds"]
        else:
            cell = Cell(**record | {"curve": tuple(record["curve"])})
            self.cells[cell.key] = cell

    def add(self, record: dict) -> None:
        """Keeps a record and writes it down.

        Args:
            record: the fields of a `Cell`, or task, method and milliseconds.
        """
        self._keep(record)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")


class Cosine(keras.callbacks.Callback):
    """A learning rate that falls to zero along half a cosine, piece by piece."""

    def __init__(self, rate: float, pieces: int) -> None:
        super().__init__()
        self._rate, self._pieces = rate, pieces

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Sets the rate of the coming piece."""
        self.model.optimizer.learning_rate = self._rate * (1 + math.cos(math.pi * epoch / self._pieces)) / 2


def rates_of(middle: float, count: int) -> list[float]:
    """So many learning rates, half a decade apart, around a middle.

    Args:
        middle: of the rates.
        count: how many.

    Returns:
        The rates, three digits each.
    """
    return [float(f"{middle * 10 ** ((k - count // 2) / 2):.2e}") for k in range(count)]


def time_steps(task: Task, entries: Iterable[Entry], store: Store, rounds: int) -> None:
    """Milliseconds per step of every method, in turns in this process; nothing where the store has them all.

    Args:
        task: network and data.
        entries: the methods.
        store: where to write.
        rounds: turns; each method's median counts.
    """
    entries = list(entries)
    if all((task.name, entry.name) in store.milliseconds for entry in entries):
        return
    trainers = [Trainer(task, Variant(entry.name, entry.make)) for entry in entries]
    times: list[list[float]] = [[] for _ in entries]
    for _ in range(rounds):
        for entry, trainer, own in zip(entries, trainers, times, strict=True):
            own.append(trainer.run(0, 0, steps=task.every, rate=entry.middle / 10).milliseconds)
    for entry, own in zip(entries, times, strict=True):
        store.add({"task": task.name, "method": entry.name, "milliseconds": statistics.median(own)})


def run_cells(
    task: Task, entry: Entry, lengths: list[int], rates: list[float], seeds: int, store: Store, until: float
) -> bool:
    """Runs what the store does not have yet.

    Args:
        task: network and data.
        entry: the method.
        lengths: steps of a run.
        rates: learning rates.
        seeds: runs of each.
        store: where to read and write.
        until: moment of `time.monotonic` after which no run is begun.

    Returns:
        Whether all is done.
    """
    wanted = [
        (schedule, steps, rate, seed)
        for seed in range(seeds)
        for steps in lengths
        for schedule in SCHEDULES
        for rate in rates
        if (task.name, entry.name, schedule, steps, rate, seed) not in store.cells
    ]
    trainer = None
    for schedule, steps, rate, seed in wanted:
        if time.monotonic() > until:
            return False
        trainer = Trainer(task, Variant(entry.name, entry.make)) if trainer is None else trainer
        callbacks = [Cosine(rate, steps // task.every)] if schedule == "cosine" else []
        run = trainer.run(0, seed, steps=steps, rate=rate, callbacks=callbacks)
        loss = trainer.test_loss()
        cell = Cell(task.name, entry.name, schedule, steps, rate, seed, loss, run.accuracy, run.curve)
        store.add(dataclasses.asdict(cell))
        print(
            f"{task.name}  {entry.name}  {schedule}  {steps} steps  rate {rate:g}  seed {seed}  {loss:.4g}", flush=True
        )
    return True


@dataclasses.dataclass(frozen=True)
class Best:
    """A method at its best rate and schedule.

    Attributes:
        rate: learning rate.
        schedule: "constant" or "cosine".
        losses: test loss of each seed.
        accuracies: of each seed.
        width: decades of rates whose mean loss is within twice the best, of its schedule.
    """

    rate: float
    schedule: str
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    width: float

    @property
    def loss(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.losses))

    @property
    def interval(self) -> tuple[float, float]:
        """Bootstrap interval of the mean, 95 %; the mean itself twice where there are fewer than three seeds."""
        if len(self.losses) < 3 or not all(map(math.isfinite, self.losses)) or len(set(self.losses)) == 1:
            return self.loss, self.loss
        found = stats.bootstrap((self.losses,), np.mean, n_resamples=999, rng=np.random.default_rng(0))
        return float(found.confidence_interval.low), float(found.confidence_interval.high)


def best_of(store: Store, task: str, method: str, steps: int) -> Best | None:
    """The rate and schedule with the lowest mean test loss.

    Args:
        store: the cells.
        task: name.
        method: name.
        steps: length of the runs.

    Returns:
        The best; `None` without cells.
    """
    grouped: dict[tuple[str, float], list[Cell]] = {}
    for cell in store.cells.values():
        if (cell.task, cell.method, cell.steps) == (task, method, steps):
            grouped.setdefault((cell.schedule, cell.rate), []).append(cell)
    if not grouped:
        return None
    means = {key: float(np.mean([cell.loss for cell in cells])) for key, cells in grouped.items()}
    schedule, rate = min(means, key=means.get)
    near = [key for key, mean in means.items() if key[0] == schedule and mean <= 2 * means[schedule, rate]]
    cells = grouped[schedule, rate]
    losses, accuracies = tuple(c.loss for c in cells), tuple(c.accuracy for c in cells)
    return Best(rate, schedule, losses, accuracies, len(near) / 2)
