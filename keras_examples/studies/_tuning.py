"""How every method of the contest is tuned, the same rule for all: what is to be run next, given what has been.

1. on seed 0, the cosine schedule at learning rates half a decade apart; while the best of them lies on the rim of
   the grid, one more rate beyond it, at most `EXTENSIONS` times
2. on seed 0, the constant rate at the best of these and half a decade below
3. the finalists, the best settings of 1 and 2, on the other seeds
4. baselines only: the finalists at other lengths, for the comparison at equal time
5. on seed 0, the cosine schedule at rates beyond the grid, until the loss is no good any more (`_standings.good_loss`):
   how wide the range of good rates is; nothing is tuned by these
"""

import dataclasses
import math
from collections.abc import Iterable

from keras_examples.studies._cells import BEYOND, CONSTANT, COSINE, Cell, Setting

EXTENSIONS = 2
WIDEST = 6  # decades of rates that a method is run at


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
    tried = [s for s in done if s.steps == budget.steps and s.seed == 0 and s.schedule != BEYOND]
    return sorted(tried, key=lambda setting: done[setting].loss)[: budget.finalists]


def losses_by_rate(done: dict[Setting, Cell], budget: Budget, beyond: bool = False) -> dict[float, float]:
    """Test losses of seed 0 under the cosine schedule.

    Args:
        done: a method's runs.
        budget: of every method.
        beyond: whether those beyond the grid count.

    Returns:
        By rate, in rising order.
    """
    schedules = (COSINE, BEYOND) if beyond else (COSINE,)
    cells = [(s, cell) for s, cell in done.items() if (s.steps, s.seed) == (budget.steps, 0)]
    return dict(sorted((s.rate, cell.loss) for s, cell in cells if s.schedule in schedules))


def beyond(done: dict[Setting, Cell], middle: float, budget: Budget, most: float) -> list[Setting]:
    """The runs of stage 5 that are to come next.

    Args:
        done: what has been run, stages 1 to 3 at least.
        middle: of the method's learning rates.
        budget: of every method.
        most: the loss up to which a rate is a good one.

    Returns:
        A run at either end whose loss is still good; none once the rates span `WIDEST` decades, or of a single rate.
    """
    losses = {place_of(rate, middle): loss for rate, loss in losses_by_rate(done, budget, beyond=True).items()}
    low, high = min(losses), max(losses)
    if budget.rates == 1 or high - low >= 2 * WIDEST:
        return []
    places = [place for end, place in ((low, low - 1), (high, high + 1)) if losses[end] <= most]
    return [Setting(BEYOND, budget.steps, rate_at(middle, place), 0) for place in places]


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
