"""A contest of optimizers: cells of (task, method, schedule, length, rate, seed) in a store that grows line by line.

A cell is one run. A method is compiled once per task; runs assign weights, state and rate, so that nothing is traced
again (`_study.Trainer`). The time of a step is measured apart, over whole runs, because no two steps need cost the
same: step control measures the first twenty and then some. Methods of a task are timed in one process and in turns,
some of them later beside one that was timed before, and can be timed again without repeating a run.
"""

import dataclasses
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Iterable

import keras

from keras_examples.studies._lines import Lines
from keras_examples.studies._methods import Variant
from keras_examples.studies._study import Clock, Task, Trainer

CONSTANT, COSINE = "constant", "cosine"
BEYOND = "cosine, beyond the grid"  # of runs that no tuning sees


@dataclasses.dataclass(frozen=True)
class Entry:
    """A method of the contest.

    Attributes:
        name: what tables call it.
        make: a new optimizer; the study sets its rate.
        middle: middle of its learning rates.
        base: name of the same rule without the game; `None` for a baseline.
    """

    name: str
    make: Callable[[], keras.optimizers.Optimizer]
    middle: float
    base: str | None = None


@dataclasses.dataclass(frozen=True, order=True)
class Setting:
    """What one run of a method on a task is done with.

    Attributes:
        schedule: `CONSTANT`, `COSINE` or `BEYOND`.
        steps: length.
        rate: learning rate, the first one of a schedule.
        seed: of weights and batches.
    """

    schedule: str
    steps: int
    rate: float
    seed: int


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run. A loss that is not finite is `inf`.

    Attributes:
        task: its name.
        method: its name.
        schedule: `CONSTANT`, `COSINE` or `BEYOND`.
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
    def setting(self) -> Setting:
        """What it was run with."""
        return Setting(self.schedule, self.steps, self.rate, self.seed)


class Store:
    """Cells and step times in a file, one JSON object a line; a run once written is never run again.

    Attributes:
        cells: (task, method) -> setting -> cell.
        milliseconds: (task, method) -> time of a step, the last one measured.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._lines = Lines(path)
        self.cells: dict[tuple[str, str], dict[Setting, Cell]] = {}
        self.milliseconds: dict[tuple[str, str], float] = {}
        for record in self._lines.read():
            self._keep(record)

    def of(self, task: str, method: str) -> dict[Setting, Cell]:
        """The runs of one method on one task."""
        return self.cells.get((task, method), {})

    def _keep(self, record: dict) -> None:
        if "milliseconds" in record:
            self.milliseconds[record["task"], record["method"]] = record["milliseconds"]
        else:
            cell = Cell(**record | {"curve": tuple(record["curve"])})
            self.cells.setdefault((cell.task, cell.method), {})[cell.setting] = cell

    def add(self, record: dict) -> None:
        """Keeps a record and writes it down.

        Args:
            record: the fields of a `Cell`, or task, method and milliseconds.
        """
        self._keep(record)
        self._lines.add(record)


class Cosine(keras.callbacks.Callback):
    """A learning rate that falls to zero along half a cosine, piece by piece."""

    def __init__(self, rate: float, pieces: int) -> None:
        super().__init__()
        self._rate, self._pieces = rate, pieces

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Sets the rate of the coming piece."""
        self.model.optimizer.learning_rate = self._rate * (1 + math.cos(math.pi * epoch / self._pieces)) / 2


class Ring:
    """The methods of one task, each compiled when it is first needed and kept.

    Attributes:
        task: network and data.
        store: what has been run.
    """

    def __init__(self, task: Task, store: Store) -> None:
        self.task, self.store = task, store
        self._trainers: dict[str, Trainer] = {}

    def trainer(self, entry: Entry) -> Trainer:
        """A method compiled on the task."""
        if entry.name not in self._trainers:
            self._trainers[entry.name] = Trainer(self.task, Variant(entry.name, entry.make))
        return self._trainers[entry.name]

    def time_steps(self, entries: Iterable[Entry], rounds: int, steps: int, unit: Entry | None = None) -> None:
        """Measures milliseconds per step of methods, in turns in this process, and writes them down.

        Args:
            entries: the methods.
            rounds: turns; each method's median counts.
            steps: of a run.
            unit: a method that was timed before and is timed beside them where it is none of them: its time then over
                its time now multiplies theirs, because a machine is not the same on another day.
        """
        entries = list(entries)
        before = self.store.milliseconds.get((self.task.name, unit.name)) if unit and unit not in entries else None
        times: dict[str, list[float]] = {}
        for _ in range(rounds):
            for entry in entries if before is None else [unit, *entries]:
                clock = Clock()
                self.trainer(entry).run(0, 0, steps=steps, rate=entry.middle / 10, callbacks=[clock], test=False)
                times.setdefault(entry.name, []).append(1e3 * statistics.mean(clock.seconds) / self.task.every)
        found = {name: statistics.median(own) for name, own in times.items()}
        factor = 1.0 if before is None else before / found[unit.name]
        for entry in entries:
            milliseconds = float(f"{factor * found[entry.name]:.4g}")
            self.store.add({"task": self.task.name, "method": entry.name, "milliseconds": milliseconds})

    def run(self, entry: Entry, settings: Iterable[Setting], until: float) -> bool:
        """Runs settings of a method and writes them down.

        Args:
            entry: the method.
            settings: that the store does not have.
            until: moment of `time.monotonic` after which no run is begun.

        Returns:
            Whether all were run.
        """
        for setting in settings:
            if time.monotonic() > until:
                return False
            self.task.steps = max(self.task.steps, setting.steps)
            trainer = self.trainer(entry)
            pieces = setting.steps // self.task.every
            callbacks = [Cosine(setting.rate, pieces)] if setting.schedule != CONSTANT else []
            run = trainer.run(0, setting.seed, steps=setting.steps, rate=setting.rate, callbacks=callbacks, test=False)
            curve, (loss, accuracy) = [float(f"{value:.4g}") for value in run.curve], trainer.test()
            record = {"task": self.task.name, "method": entry.name, **dataclasses.asdict(setting)}
            self.store.add(record | {"loss": loss, "accuracy": accuracy, "curve": curve})
            print(
                f"{self.task.name}  {entry.name}  {setting.schedule}  {setting.steps} steps  rate {setting.rate:g}"
                f"  seed {setting.seed}  {loss:.4g}", flush=True,
            )  # fmt: skip
        return True
