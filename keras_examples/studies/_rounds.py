"""What one task of the contest lacks, run by whatever runs cells: Keras here, or programs compiled elsewhere."""

import abc
import dataclasses
import statistics
import time
from collections.abc import Iterable, Sequence

from keras_examples.studies._cells import Entry, Setting, Store
from keras_examples.studies._standings import Standing, champion, good_loss, length_in, standings
from keras_examples.studies._tuning import Budget, beyond, next_settings, other_lengths


class Ring(abc.ABC):
    """What runs the cells of one task.

    Attributes:
        name: of the task.
        every: steps of a piece of a loss curve.
        store: what has been run.
    """

    name: str
    every: int
    store: Store

    @abc.abstractmethod
    def once(self, entry: Entry, setting: Setting) -> tuple[float, float, Sequence[float]]:
        """One run of a method: test loss, accuracy and the mean train loss of every piece."""

    @abc.abstractmethod
    def milliseconds(self, entry: Entry, steps: int) -> float:
        """Time of a step of a method, mean over a run of so many steps, at a tenth of its middle rate."""

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
        before = self.store.milliseconds.get((self.name, unit.name)) if unit and unit not in entries else None
        times: dict[str, list[float]] = {}
        for _ in range(rounds):
            for entry in entries if before is None else [unit, *entries]:
                times.setdefault(entry.name, []).append(self.milliseconds(entry, steps))
        found = {name: statistics.median(own) for name, own in times.items()}
        factor = 1.0 if before is None else before / found[unit.name]
        for entry in entries:
            milliseconds = float(f"{factor * found[entry.name]:.4g}")
            self.store.add({"task": self.name, "method": entry.name, "milliseconds": milliseconds})

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
            self.store.add_run(self.name, entry.name, setting, self.once(entry, setting))
        return True


@dataclasses.dataclass(frozen=True)
class Methods:
    """Who takes part in a task.

    Attributes:
        run: the methods that run now.
        all: all of the contest; what they have reached says which loss is a good one.
        unit: the one that others are timed beside.
    """

    run: Sequence[Entry]
    all: Sequence[Entry]
    unit: Entry


def contest(
    ring: Ring, methods: Methods, budget: Budget, chance: float, rounds: int, until: float, widths: bool = True
) -> bool:
    """Runs what one task lacks.

    Args:
        ring: the task, and what has been run.
        methods: who takes part.
        budget: of each.
        chance: loss of a network that has learnt nothing.
        rounds: turns of the step times, where they have not been measured.
        until: moment of `time.monotonic` after which no run is begun.
        widths: whether rates beyond the grid are run, stage 5.

    Returns:
        Whether the task is complete.
    """
    store, entries = ring.store, methods.run
    for entry in entries:
        while settings := next_settings(store.of(ring.name, entry.name), entry.middle, budget):
            if not ring.run(entry, settings, until):
                return False
    if untimed := [entry for entry in entries if (ring.name, entry.name) not in store.milliseconds]:
        if time.monotonic() > until:
            return False
        ring.time_steps(untimed, rounds, budget.steps, methods.unit)
    rows = standings(store, ring.name, entries, budget)
    for entry in (entry for entry in entries if entry.base is None):
        lengths = lengths_of(entry, rows, budget, ring.every)
        if not ring.run(entry, other_lengths(store.of(ring.name, entry.name), budget, lengths), until):
            return False
    most = good_loss(standings(store, ring.name, methods.all, budget), chance)
    for entry in entries if widths else []:
        while settings := beyond(store.of(ring.name, entry.name), entry.middle, budget, most):
            if not ring.run(entry, settings, until):
                return False
    return True


def lengths_of(baseline: Entry, rows: Sequence[Standing], budget: Budget, every: int) -> list[int]:
    """Steps of a baseline in the time of GTDDP rows: those with its rule, those that are faster, and the best one.

    Args:
        baseline: the method.
        rows: standings of its task.
        budget: of every method.
        every: steps of a piece of a loss curve.

    Returns:
        The lengths, without repetition.
    """
    own = next(row.milliseconds for row in rows if row.entry == baseline)
    games = [row for row in rows if row.entry.base is not None]
    times = [row.milliseconds for row in games if row.entry.base == baseline.name or row.milliseconds < own]
    if (best := champion(rows)) is not None:
        times.append(best.milliseconds)
    return sorted({length_in(budget.steps, own, other, every) for other in times})
