"""Cells of an experiment, what each gave, and the store: one JSON line per cell, so that equal cells are run once."""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib

from keras_examples.papers.calls import Call
from keras_examples.studies._lines import Lines

CONSTANT, DROPS = "constant", "drops"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run, by everything that its outcome depends on but the library itself.

    Attributes:
        data: name of the data.
        network: its function.
        batch: B.
        steps: length.
        method: makes the optimizer from a learning rate.
        rate: learning rate.
        seed: of weights and batches.
        share: of the training part that is used.
        schedule: "constant", or "drops": a tenth of the rate after one half and again after three quarters.
        watch: whether the test accuracy is measured between.
        reward: whether `AlignmentReward` tells accuracies on held-out data after every step.
    """

    data: str
    network: Call
    batch: int
    steps: int
    method: Call
    rate: float
    seed: int
    share: float = 1.0
    schedule: str = CONSTANT
    watch: bool = False
    reward: bool = False

    def record(self) -> dict:
        """The fields as text and numbers; those at their defaults are left out, so that a new field moves no key."""
        fields = {field.name: (getattr(self, field.name), field.default) for field in dataclasses.fields(self)}
        shown = {name: value for name, (value, default) in fields.items() if value != default}
        return {name: str(value) if isinstance(value, Call) else value for name, value in shown.items()}

    @functools.cached_property
    def key(self) -> str:
        """What stands for the cell in the store."""
        return hashlib.sha1(json.dumps(self.record(), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def compiled(self) -> "Cell":
        """Equal for cells that can share one compiled step."""
        return dataclasses.replace(self, rate=0.0, seed=0)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a cell gave. A loss that is not finite is `inf`.

    Attributes:
        loss: train loss at the end, see `_study.Task.tail`.
        accuracy: on the test part at the end.
        curve: mean train loss of every piece.
        accuracies: on the first test samples after every piece, where the cell watches them (`train.WATCHED`; MNIST's
            cooperative blocks ran before there was a limit, on all); `nan` behind the end of a run that broke.
        rejected: batches that our optimizers refused.
        milliseconds: per step, median over the pieces; other work on the machine enters.
        processor: milliseconds of processor time per step, all threads together, likewise.
    """

    loss: float
    accuracy: float
    curve: tuple[float, ...]
    accuracies: tuple[float, ...]
    rejected: int
    milliseconds: float
    processor: float = math.nan

    def __post_init__(self) -> None:
        if self.accuracies:
            missing = len(self.curve) - len(self.accuracies)
            object.__setattr__(self, "accuracies", (*self.accuracies, *[math.nan] * missing))


class Store:
    """Outcomes by the key of their cell, in a file that grows line by line."""

    def __init__(self, path: pathlib.Path) -> None:
        self._lines = Lines(path)
        self._found: dict[str, Outcome] = {}
        for record in self._lines.read():
            fields = record["outcome"]
            lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
            self._found[record["key"]] = Outcome(**fields | lists)

    def __contains__(self, cell: Cell) -> bool:
        return cell.key in self._found

    def __getitem__(self, cell: Cell) -> Outcome:
        return self._found[cell.key]

    def add(self, cell: Cell, outcome: Outcome) -> None:
        """Keeps an outcome and writes it down.

        Args:
            cell: that was run.
            outcome: what it gave.
        """
        self._found[cell.key] = outcome
        self._lines.add({"key": cell.key, "cell": cell.record(), "outcome": dataclasses.asdict(outcome)})
