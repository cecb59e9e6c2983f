"""The goals of the contest, task by task, and its figures."""

import pathlib
from collections.abc import Sequence

import numpy as np

from keras_examples.studies._cells import Store
from keras_examples.studies._markdown import markdown
from keras_examples.studies._report import new_figure
from keras_examples.studies._standings import Standing, best_baseline, champion, good_loss, loss_at, mean_text, width
from keras_examples.studies._tuning import Budget, losses_by_rate

TIME, WIDTH = 0.8, 1.5  # goals: of AdamW's time to its loss, of the widest baseline's width


def goals(
    store: Store, task: str, rows: Sequence[Standing], budget: Budget, chance: float
) -> tuple[list[str], list[bool | None]]:  # fmt: skip
    """What one task says of the three goals.

    Args:
        store: the cells.
        task: its name.
        rows: its standings.
        budget: of every method.
        chance: loss of a network that has learnt nothing.

    Returns:
        Row of the table of the goals, and for each goal whether it is met; `None` where it cannot be said yet.
    """
    ours, reference, first = [row for row in rows if row.entry.base], best_baseline(rows), champion(rows)
    if first is None or reference is None:
        return [task, "", "", ""], [None] * 3
    timed = [row for row in ours if row.ratios.get("AdamW") is not None]
    fastest = min(timed, key=lambda row: row.ratios["AdamW"][1], default=None)
    if all("AdamW" not in row.ratios for row in ours):
        time, fast = "AdamW has not been run", None
    elif fastest is None:
        time, fast = "never", False
    else:
        steps, ratio = fastest.ratios["AdamW"]
        time, fast = f"{ratio:.2f} ({fastest.entry.name}, {steps:.2f} of its steps)", bool(ratio <= TIME)
    equal, below = equal_time(store, task, rows, budget)
    range_of_rates, wide = widest(store, task, rows, budget, good_loss(rows, chance))
    verdicts = [fast, below, wide]
    cells = [f"{text}: {_word(verdict)}" for text, verdict in zip((time, equal, range_of_rates), verdicts, strict=True)]
    return [task, *cells], verdicts


def widest(
    store: Store, task: str, rows: Sequence[Standing], budget: Budget, most: float
) -> tuple[str, bool | None]:  # fmt: skip
    """The method of ours with the widest range of good rates, beside the baseline with the widest one.

    Args:
        store: the cells.
        task: its name.
        rows: its standings.
        budget: of every method.
        most: the loss up to which a rate is good.

    Returns:
        In words, and whether it is `WIDTH` times as wide; `None` where the baseline's range ends with the rates that
        were run, so that it may be wider, and what is known allows both.
    """
    found = {
        row.entry: width(losses_by_rate(store.of(task, row.entry.name), budget, beyond=True), most) for row in rows
    }
    ours, theirs = (
        max((entry for entry in found if bool(entry.base) is own), key=lambda entry: found[entry][0])
        for own in (True, False)
    )
    (mine, mine_open), (other, other_open) = found[ours], found[theirs]
    ratio = mine / other if other else np.inf
    sign = {(True, False): ">= ", (False, True): "<= ", (True, True): "~ "}.get((mine_open, other_open), "")
    words = f"{sign}{ratio:.2f} ({ours.name} {mine:.2f}, {theirs.name} {other:.2f})"
    unknown = other_open and (mine_open or ratio >= WIDTH)
    return words, None if unknown else bool(ratio >= WIDTH)


def equal_time(store: Store, task: str, rows: Sequence[Standing], budget: Budget) -> tuple[str, bool | None]:
    """The method of ours that is furthest below every baseline which spends the same time.

    Args:
        store: the cells.
        task: its name.
        rows: its standings.
        budget: of every method.

    Returns:
        In words, and whether it is below all of them; `None` where the baselines' runs are missing.
    """
    baselines, margins = [row for row in rows if row.entry.base is None], {}
    for row in (row for row in rows if row.entry.base):
        losses = {}
        for other in baselines:
            length = budget.steps * row.milliseconds / other.milliseconds
            losses[other.entry.name] = loss_at(store.of(task, other.entry.name), budget, length)
        if all(loss is not None for loss in losses.values()):
            name = min(losses, key=losses.get)
            margins[row.entry.name] = (losses[name] / row.best.loss, row, name, losses[name])
    if not margins:
        return "not run", None
    _, row, name, loss = max(margins.values(), key=lambda margin: margin[0])
    words = f"{mean_text(row.best.losses)} ({row.entry.name}) against {loss:.4g} ({name})"
    return words, bool(row.best.loss < loss)


def _word(verdict: bool | None) -> str:
    return {True: "**yes**", False: "no", None: "open"}[verdict]


def goals_table(found: Sequence[tuple[list[str], list[bool | None]]]) -> str:
    """The goals of all tasks in Markdown.

    Args:
        found: what `goals` returns, one per task.

    Returns:
        One row per task, and how often each goal is met.
    """
    head = [
        "task",
        f"time to AdamW's loss <= {TIME}",
        "lowest loss at equal time",
        f"width >= {WIDTH} x widest baseline's",
    ]
    met = [sum(verdict is True for verdict in column) for column in zip(*(v for _, v in found), strict=True)]
    wanted = (4, 4, 5)
    last = [
        f"{len(found)} tasks",
        *[f"{n} of {len(found)}; goal {goal} of 6" for n, goal in zip(met, wanted, strict=True)],
    ]
    return markdown([head, *[row for row, _ in found], last])


def plot(store: Store, task: str, rows: Sequence[Standing], budget: Budget, path: pathlib.Path) -> None:
    """Train loss against steps and against time at each method's best, and test loss against the learning rate.

    Args:
        store: the cells.
        task: its name.
        rows: its standings.
        budget: of every method.
        path: of the image.
    """
    figure = new_figure(13, 4.6)
    by_step, by_time, by_rate = figure.subplots(1, 3)
    families = list(dict.fromkeys(row.entry.base or row.entry.name for row in rows))
    styles = ("-", "-.", ":")
    seen: dict[str, int] = {}
    most = max(float(row.best.curve[:, 0].mean()) for row in rows)
    for row in rows:
        family = row.entry.base or row.entry.name
        if row.entry.base:
            seen[family] = seen.get(family, -1) + 1
        line = {
            "color": f"C{families.index(family)}",
            "linestyle": styles[seen[family] % len(styles)] if row.entry.base else "--",
            "linewidth": 1.3,
        }
        curve = row.best.curve
        steps = np.arange(1, curve.shape[1] + 1) * row.best.setting.steps / curve.shape[1]
        for axes, x in ((by_step, steps), (by_time, steps * row.milliseconds / 1e3)):
            axes.plot(x, curve.mean(0), label=row.entry.name, **line)
            axes.fill_between(x, curve.min(0), curve.max(0), color=line["color"], alpha=0.12, linewidth=0)
        losses = losses_by_rate(store.of(task, row.entry.name), budget, beyond=True)
        by_rate.plot(list(losses), np.minimum(list(losses.values()), 1.5 * most), marker=".", **line)
    by_step.set(xlabel="step", ylabel="train loss", yscale="log")
    by_time.set(xlabel="seconds", yscale="log")
    by_rate.set(xlabel="learning rate", ylabel="test loss", xscale="log", yscale="log")
    by_rate.set_title("cosine, seed 0", fontsize=9)
    by_step.legend(fontsize=6)
    figure.suptitle(f"{task}: best setting of each method, mean and range of {budget.seeds} seeds")
    figure.savefig(path, dpi=110)
