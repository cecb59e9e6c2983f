"""What the store of the contest says: each method at its best, at equal steps and at equal time; the goals."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import stats

from keras_examples.studies._cells import Cell, Entry, Setting, Store
from keras_examples.studies._markdown import markdown
from keras_examples.studies._tuning import Budget, finalists, losses_by_rate

WIDE, NARROW = 2.0, 1.1  # a rate counts to the width of a method up to so many times its best loss
# Lengths of a baseline's runs at equal time, in runs of the usual length.
RUNGS = (0.12, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.2)


@dataclasses.dataclass(frozen=True)
class Best:
    """A method at its best rate and schedule.

    Attributes:
        setting: of the first seed.
        cells: its runs, one per seed.
        widths: decades of rates whose loss is within `WIDE` and `NARROW` times the best; cosine schedule, seed 0.
        open: whether the wide one ends at the rim of the rates that were run, so that it is a lower bound.
    """

    setting: Setting
    cells: tuple[Cell, ...]
    widths: tuple[float, float]
    open: bool

    @property
    def losses(self) -> list[float]:
        """Test loss of each seed."""
        return [cell.loss for cell in self.cells]

    @property
    def loss(self) -> float:
        """Mean test loss over the seeds."""
        return float(np.mean(self.losses))

    @property
    def accuracy(self) -> float:
        """Mean accuracy over the seeds."""
        return float(np.mean([cell.accuracy for cell in self.cells]))

    @property
    def curve(self) -> np.ndarray:
        """Train loss of every piece, `[seeds, pieces]`, as a trailing mean over a twentieth of the run."""
        curves = np.array([cell.curve for cell in self.cells])
        window = max(3, curves.shape[1] // 20)
        sums = np.cumsum(np.pad(curves, ((0, 0), (window, 0)), mode="edge"), axis=1)
        return (sums[:, window:] - sums[:, :-window]) / window

    @property
    def train_loss(self) -> float:
        """End of the curve, mean over the seeds."""
        return float(self.curve[:, -1].mean())


def mean_text(values: Sequence[float]) -> str:
    """A mean in words, with its bootstrap interval, 95 %, or with the values where they are fewer than three.

    Args:
        values: one per seed.

    Returns:
        The text.
    """
    mean = f"{float(np.mean(values)):.4g}"
    if len(set(values)) == 1 or not all(map(math.isfinite, values)):
        return mean
    if len(values) < 3:
        return f"{mean} ({', '.join(f'{value:.4g}' for value in values)})"
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=999, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval  # fmt: skip
    return f"{mean} [{found.low:.4g}, {found.high:.4g}]"


def best_of(done: dict[Setting, Cell], budget: Budget, steps: int | None = None) -> Best | None:
    """The finalist with the lowest mean test loss over all seeds.

    Args:
        done: the method's runs.
        budget: of every method.
        steps: length of the runs; the budget's by default.

    Returns:
        The best; `None` where no finalist has been run on all seeds at that length.
    """
    steps = budget.steps if steps is None else steps
    complete = []
    for finalist in finalists(done, budget):
        wanted = [dataclasses.replace(finalist, steps=steps, seed=seed) for seed in range(budget.seeds)]
        if all(setting in done for setting in wanted):
            complete.append([done[setting] for setting in wanted])
    if not complete:
        return None
    cells = min(complete, key=lambda cells: np.mean([cell.loss for cell in cells]))
    losses = losses_by_rate(done, budget)
    (wide, is_open), (narrow, _) = (width(losses, times * min(losses.values())) for times in (WIDE, NARROW))
    return Best(cells[0].setting, tuple(cells), (wide, narrow), is_open)


def width(losses: dict[float, float], most: float) -> tuple[float, bool]:
    """Decades of learning rates that end at or below a loss.

    Between two rates the logarithm of the loss is taken as linear in that of the rate.

    Args:
        losses: by rate, in rising order.
        most: the loss.

    Returns:
        The decades, and whether they reach the rim of the rates that were run, so that they are a lower bound.
    """
    places = [math.log10(rate) for rate in losses]
    pieces = zip(itertools.pairwise(places), itertools.pairwise(losses.values()), strict=True)
    decades = sum((right - left) * _share(*ends, most) for (left, right), ends in pieces)
    found = list(losses.values())
    return decades, min(found[0], found[-1]) <= most


def _share(first: float, second: float, most: float) -> float:
    """Share of the way between two losses that lies at or below a level, on a logarithmic scale."""
    low, high = sorted((first, second))
    if high <= most:
        return 1.0
    if low > most or not math.isfinite(high):
        return 0.0
    return math.log(most / low) / math.log(high / low)


def length_in(steps: int, own: float, other: float, every: int) -> int:
    """Steps of a method in the time that another one takes for a run, up to the next of `RUNGS`.

    Args:
        steps: of the other one.
        own: milliseconds per step.
        other: milliseconds per step of the other one.
        every: steps of a piece of the curve.

    Returns:
        A positive multiple of `every`; the last of `RUNGS` where none is long enough.
    """
    rung = next((rung for rung in RUNGS if rung * own >= other), RUNGS[-1])
    return every * max(1, round(rung * steps / every))


def loss_at(done: dict[Setting, Cell], budget: Budget, length: float) -> float | None:
    """Loss of a method after so many steps, each length at its best setting.

    Between two lengths that were run the loss is linear in the logarithm of the length; below the shortest it is that
    of the shortest, in the method's favour.

    Args:
        done: the method's runs.
        budget: of every method.
        length: steps.

    Returns:
        Mean test loss; `None` above the longest length.
    """
    at = {steps: best_of(done, budget, steps) for steps in {setting.steps for setting in done}}
    known = sorted((steps, best.loss) for steps, best in at.items() if best is not None)
    if not known or length > known[-1][0] * (1 + 1e-9):
        return None
    steps, losses = zip(*known, strict=True)
    return float(np.interp(math.log(length), np.log(steps), losses))


def steps_to(best: Best, level: float) -> float | None:
    """When the train loss of a run, mean over the seeds, first reaches a level.

    Args:
        best: the method.
        level: loss.

    Returns:
        Steps; `None` if it does not.
    """
    curve = best.curve.mean(0)
    below = np.flatnonzero(curve <= level)
    if not len(below):
        return None
    piece, first = best.setting.steps / len(curve), int(below[0])
    back = 0.0 if first == 0 else (level - curve[first]) / (curve[first - 1] - curve[first])
    return (first + 1 - back) * piece


@dataclasses.dataclass(frozen=True)
class Standing:
    """One method on one task.

    Attributes:
        entry: the method.
        best: it at its best.
        milliseconds: per step.
        alone: loss of the same rule without the game at equal time; `None` for a baseline, or where it was not run.
        ratios: name of a baseline -> steps and time to its final train loss, in its own; `None` if never.
    """

    entry: Entry
    best: Best
    milliseconds: float
    alone: float | None
    ratios: dict[str, tuple[float, float] | None]


def standings(store: Store, task: str, entries: Iterable[Entry], budget: Budget) -> list[Standing]:
    """Every method of a task that is tuned and timed.

    Args:
        store: the cells.
        task: name.
        entries: the methods.
        budget: of each.

    Returns:
        In the order of the entries.
    """
    found = {entry: best_of(store.of(task, entry.name), budget) for entry in entries}
    found = {e: best for e, best in found.items() if best is not None and (task, e.name) in store.milliseconds}
    ms = {entry.name: store.milliseconds[task, entry.name] for entry in found}
    levels = {e.name: (best, best.train_loss) for e, best in found.items() if e.base is None}
    rows = []
    for entry, best in found.items():
        ratios = {}
        for name, (other, level) in levels.items():
            own, theirs = steps_to(best, level), steps_to(other, level)
            share = None if own is None else own / theirs
            ratios[name] = None if share is None else (share, share * ms[entry.name] / ms[name])
        alone = None
        if entry.base in ms:
            length = budget.steps * ms[entry.name] / ms[entry.base]
            alone = loss_at(store.of(task, entry.base), budget, length)
        rows.append(Standing(entry, best, ms[entry.name], alone, ratios))
    return rows


def best_baseline(rows: Iterable[Standing]) -> Standing | None:
    """The baseline with the lowest loss at equal steps; `None` without one."""
    return min((row for row in rows if row.entry.base is None), key=lambda row: row.best.loss, default=None)


def champion(rows: Iterable[Standing]) -> Standing | None:
    """The method of this package with the lowest loss at equal steps; `None` without one."""
    return min((row for row in rows if row.entry.base is not None), key=lambda row: row.best.loss, default=None)


def good_loss(rows: Sequence[Standing], chance: float) -> float:
    """The loss up to which a rate is a good one, the same for all methods.

    Args:
        rows: standings of all methods.
        chance: loss of a network that has learnt nothing.

    Returns:
        `WIDE` times the lowest mean loss of all methods, or half of the way to it from `chance` where that is less:
        twice the lowest loss may be more than `chance`.
    """
    lowest = min((row.best.loss for row in rows), default=math.inf)
    return min(WIDE * lowest, (lowest + chance) / 2)


def _ratio(value: tuple[float, float] | None) -> str:
    return "never" if value is None else "{:.2f}, {:.2f}".format(*value)


def table(rows: Sequence[Standing]) -> str:
    """The results of one task in Markdown.

    Args:
        rows: of the task.

    Returns:
        One row per method.
    """
    reference = best_baseline(rows)
    head = (
        "method", "ms/step", "best rate", "schedule", "test loss", "train loss", "accuracy",
        "rule alone, same time", "steps, time to AdamW's loss", "to best baseline's", "width",
    )  # fmt: skip
    cells = [head]
    for row in rows:
        name = row.entry.name + (" (best baseline)" if row is reference else "")
        alone = "" if row.entry.base is None else "not run" if row.alone is None else f"{row.alone:.4g}"
        wide, narrow = row.best.widths
        cells.append((
            name, f"{row.milliseconds:.3g}", f"{row.best.setting.rate:g}", row.best.setting.schedule,
            mean_text(row.best.losses), f"{row.best.train_loss:.3g}",
            "" if math.isnan(row.best.accuracy) else f"{100 * row.best.accuracy:.1f}", alone,
            _ratio(row.ratios["AdamW"]) if "AdamW" in row.ratios else "",
            _ratio(row.ratios[reference.entry.name]) if reference is not None else "",
            f"{'>= ' if row.best.open else ''}{wide:.2f} / {narrow:.2f}",
        ))  # fmt: skip
    return markdown(cells)
