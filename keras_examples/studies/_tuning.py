"""How every method of the contest is tuned, the same rule for all: what is to be run next, given what has been.

1. on seed 0, the cosine schedule at learning rates half a decade apart; while the best of them lies on the rim of
   the grid, one more rate beyond it, at most `EXTENSIONS` times
2. on seed 0, the constant rate at the best of these and half a decade below
3. the finalists, the best settings of 1 and 2, on the other seeds
4. baselines only: the finalists at other lengths, for the comparison at equal time
"""

import dataclasses
import math
from collections.abc import Iterable

from keras_examples.studies._contest import CONSTANT, COSINE, Cell, Setting

EXTENSIONS = 2


@dataclasses.dataclass(frozen=True)
class Budget:
    """What every method of a task may spend.

    Attributes:
        steps: of a run.
        rates: learning rates of the grid.
        seeds: of a finalist.
        finalists: settings that are run on all seeds.
    """

    steps: int
    rates: int
    seeds: int
    finalists: int


def rates_of(middle: float, count: int) -> list[float]:
    """So many learning rates, half a decade apart, around a middle.

    Args:
        middle: of the rates.
        count: how many.

    Returns:
        The rates, three digits each.
    """
    return [rate_at(middle, k - count // 2) for k in range(count)]


def rate_at(middle: float, place: int) -> float:
    """The learning rate so many half decades above a middle, three digits."""
    return float(f"{middle * 10 ** (place / 2):.2e}")


def place_of(rate: float, middle: float) -> int:
    """By how many half decades a rate of the grid lies above the middle."""
    return round(2 * math.log10(rate / middle))


def next_settings(done: dict[Setting, Cell], middle: float, budget: Budget) -> list[Setting]:
    """The runs of stages 1 to 3 that are to come next.

    Args:
        done: what has been run.
        middle: of the method's learning rates.
        budget: of every method.

    Returns:
        Settings to run before asking again; none when the method is tuned.
    """

    def first(schedule: str, places: Iterable[int]) -> list[Setting]:
        return [Setting(schedule, budget.steps, rate_at(middle, place), 0) for place in places]

    low = -(budget.rates // 2)
    high = low + budget.rates - 1
    for extension in range(EXTENSIONS + 1):
        grid = first(COSINE, range(low, high + 1))
        if missing := [setting for setting in grid if setting not in done]:
            return missing
        best = place_of(min(grid, key=lambda setting: done[setting].loss).rate, middle)
        if budget.rates == 1 or extension == EXTENSIONS or low < best < high:
            break
        low, high = (low - 1, high) if best == low else (low, high + 1)
    for lowest in range(best - 1, best - 2 - EXTENSIONS, -1):
        constant = first(CONSTANT, range(lowest, best + 1))
        if missing := [setting for setting in constant if setting not in done]:
            return missing
        if min(constant, key=lambda setting: done[setting].loss) != constant[0]:
            break
    return [
        setting
        for finalist in finalists(done, budget)
        for setting in (dataclasses.replace(finalist, seed=seed) for seed in range(1, budget.seeds))
        if setting not in done
    ]


def finalists(done: dict[Setting, Cell], budget: Budget) -> list[Setting]:
    """The best settings on seed 0, at the length of the budget.

    Args:
        done: what has been run.
        budget: of every method.

    Returns:
        As many as the budget has, best first.
    """
    tried = [setting for setting in done if setting.steps == budget.steps and setting.seed == 0]
    return sorted(tried, key=lambda setting: done[setting].loss)[: budget.finalists]


def other_lengths(done: dict[Setting, Cell], budget: Budget, lengths: Iterable[int]) -> list[Setting]:
    """The runs of stage 4 that are missing.

    Args:
        done: what has been run.
        budget: of every method.
        lengths: steps of a run.

    Returns:
        The settings.
    """
    return [
        setting
        for steps in sorted(set(lengths))
        for finalist in finalists(done, budget)
        for setting in (dataclasses.replace(finalist, steps=steps, seed=seed) for seed in range(budget.seeds))
        if setting not in done
    ]
