"""What a contest of optimizers stores: cells of (task, method, schedule, length, rate, seed), line by line.

A cell is one run. Needs nothing of Keras: where steps were compiled elsewhere (`benchmarks/gpu_run_contest.py`), the
same cells are stored.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from keras_examples.studies._lines import Lines

if TYPE_CHECKING:
    import keras

CONSTANT, COSINE = "constant", "cosine"
BEYOND = "cosine, beyond the grid"  # of runs that no tuning sees


@dataclasses.dataclass(frozen=True)
class Entry:
    """A method of the contest.

    Attributes:
        name: what tables call it.
        make: a new optimizer; the study sets its rate. `None` where steps were compiled elsewhere.
        middle: middle of its learning rates.
        base: name of the same rule without the game; `None` for a baseline.
    """

    name: str
    make: Callable[[], keras.optimizers.Optimizer] | None
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

    def rate_in(self, piece: int, pieces: int) -> float:
        """Learning rate in a piece of the run; but for a constant one it falls to zero along half a cosine."""
        if self.schedule == CONSTANT:
            return self.rate
        return self.rate * (1 + math.cos(math.pi * piece / pieces)) / 2


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

    def add_run(self, task: str, method: str, setting: Setting, found: tuple[float, float, Iterable[float]]) -> None:
        """Keeps a run, writes it down and prints it.

        Args:
            task: its name.
            method: its name.
            setting: what it was run with.
            found: test loss, accuracy and the curve.
        """
        loss, accuracy, curve = found
        record = {"task": task, "method": method, **dataclasses.asdict(setting), "loss": loss, "accuracy": accuracy}
        self.add(record | {"curve": [float(f"{value:.4g}") for value in curve]})
        length = f"{setting.schedule}  {setting.steps} steps  rate {setting.rate:g}"
        print(f"{task}  {method}  {length}  seed {setting.seed}  {loss:.4g}", flush=True)

    def add(self, record: dict) -> None:
        """Keeps a record and writes it down.

        Args:
            record: the fields of a `Cell`, or task, method and milliseconds.
        """
        self._keep(record)
        self._lines.add(record)
