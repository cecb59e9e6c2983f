"""What an experiment's cells say: one Markdown table per kind of report, the paper's numbers beside ours."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from keras_examples.papers import statistics
from keras_examples.papers.cells import Outcome, Store
from keras_examples.papers.experiment import Experiment, Part, Row
from keras_examples.studies._markdown import markdown
from keras_examples.studies._report import number_text

MEASURES: dict[str, Callable[[Outcome], float]] = {
    "loss": lambda outcome: outcome.loss,
    "accuracy": lambda outcome: 100 * outcome.accuracy,
}
NONE = "-"


def ours_text(values: Sequence[float]) -> str:
    """Mean +- deviation [interval of the mean], and how many seeds broke."""
    finite = [value for value in values if math.isfinite(value)]
    broken = len(values) - len(finite)
    if not finite:
        return f"{broken} broken" if broken else NONE
    low, high = statistics.mean_interval(finite)
    deviation = np.std(finite, ddof=len(finite) > 1)
    text = f"{_short(np.mean(finite))} +- {deviation:.1g} [{_short(low)}, {_short(high)}]"
    return f"{text}, {broken} broken" if broken else text


def _short(value: float) -> str:
    if 10 <= abs(value) < 1000:
        return f"{value:.2f}"
    return f"{value:.4g}" if abs(value) < 10 else number_text(float(value))


def signed_text(value: float, ends: tuple[float, float] | None = None) -> str:
    """A difference with its sign, and its interval."""
    if not math.isfinite(value):
        return NONE
    value = round(value, 12) + 0.0  # what is left of rounding, or a negative zero
    return f"{value:+.3g}" + ("" if ends is None else f" [{ends[0]:+.3g}, {ends[1]:+.3g}]")


def values_at(experiment: Experiment, store: Store, part: Part, row: Row, rate: float, measure: str) -> list[float]:
    """One measure of all seeds at one rate."""
    return [MEASURES[measure](each) for each in experiment.outcomes(store, part, row, rate)]


def table(experiment: Experiment, store: Store) -> str:
    """Each method at its best rate: loss and accuracy, the paper's, and the difference; then the same-rate pairs."""
    rows = [
        (
            "data",
            "method",
            "rate",
            "seeds",
            "train loss",
            "paper",
            "test accuracy",
            "paper",
            "ours - paper",
        )
    ]
    for part in experiment.parts:
        for row in experiment.rows_of(part):
            paper = experiment.printed.get((part.name, row.name), {})
            rate = experiment.best_rate(store, part, row)
            if rate is None:
                rows.append((part.name, row.name, *["not run"] * 2, NONE, _paper(paper, "loss"), NONE,
                             _paper(paper, "accuracy"), NONE))  # fmt: skip
                continue
            found = experiment.outcomes(store, part, row, rate)
            loss = values_at(experiment, store, part, row, rate, "loss")
            accuracy = [100 * each.accuracy for each in found if math.isfinite(each.loss)]
            gap = signed_text(np.mean(accuracy) - paper["accuracy"]) if accuracy and "accuracy" in paper else NONE
            rows.append((
                part.name, row.name, f"{rate:g}", str(len(found)), ours_text(loss), _paper(paper, "loss"),
                ours_text(accuracy), _paper(paper, "accuracy"), gap,
            ))  # fmt: skip
    pairs = difference(experiment, store)
    return markdown(rows) + (f"\n\nAt the baseline's best rate:\n\n{pairs}" if pairs else "")


def _paper(paper: dict, measure: str) -> str:
    return f"{paper[measure]:g}" if measure in paper else NONE


def _pairs(experiment: Experiment) -> list[tuple[Part, Row, Row]]:
    return [
        (part, row, base)
        for part in experiment.parts
        for row in experiment.rows_of(part)
        if (base := experiment.base_of(row)) is not None
    ]


def shared(
    experiment: Experiment, store: Store, part: Part, row: Row, base: Row, rate: float, measure: str
) -> tuple[list[float], list[float]]:
    """A measure of a method and of its baseline over the seeds that both have."""
    ours, theirs = (values_at(experiment, store, part, each, rate, measure) for each in (row, base))
    count = min(len(ours), len(theirs))
    return ours[:count], theirs[:count]


def difference(experiment: Experiment, store: Store) -> str:
    """Method minus baseline at the baseline's best rate, seed by seed; what the paper's numbers give."""
    rows = [("data", "method", "rate", "seeds", "loss - base", "paper's", "accuracy - base", "paper's")]
    for part, row, base in _pairs(experiment):
        rate = experiment.best_rate(store, part, base)
        if rate is None or not experiment.outcomes(store, part, row, rate):
            continue
        cells = [part.name, f"{row.name} - {base.name}", f"{rate:g}"]
        ended = np.isfinite(shared(experiment, store, part, row, base, rate, "loss")).all()
        for measure in MEASURES:
            ours, theirs = shared(experiment, store, part, row, base, rate, measure)
            if measure == "loss":
                cells.append(str(len(ours)))
            if ours and ended:
                ends = statistics.difference_interval(ours, theirs) if len(ours) > 1 else None
                cells.append(signed_text(float(np.mean(np.subtract(ours, theirs))), ends))
            else:
                cells.append(_broken(ours, theirs))  # an accuracy of runs that broke says nothing
            printed = [experiment.printed.get((part.name, each.name), {}).get(measure) for each in (row, base)]
            cells.append(NONE if None in printed else signed_text(round(printed[0] - printed[1], 6)))
        rows.append(tuple(cells))
    return markdown(rows) if len(rows) > 1 else ""


def _broken(ours: Sequence[float], theirs: Sequence[float]) -> str:
    counts = [sum(not math.isfinite(value) for value in values) for values in (ours, theirs)]
    return f"broken: {counts[0]} and {counts[1]} of the base" if any(counts) else NONE


def variance(experiment: Experiment, store: Store) -> str:
    """Change of the variance over the seeds in per cent, with the interval that so many seeds allow."""
    rows = [("data", "method", "rate", "seeds", *(f"{m}: {k}" for m in MEASURES for k in ("paper", "ours", "95 %")))]
    for part, row, base in _pairs(experiment):
        best = experiment.best_rate(store, part, base)
        rates = row.rates if not experiment.tune else () if best is None else (best,)
        for rate in rates:
            if not experiment.outcomes(store, part, row, rate):
                continue
            cells = [part.name, f"{row.name} / {base.name}", f"{rate:g}"]
            ended = np.isfinite(shared(experiment, store, part, row, base, rate, "loss")).all()
            for measure in MEASURES:
                ours, theirs = shared(experiment, store, part, row, base, rate, measure)
                if measure == "loss":
                    cells.append(str(len(ours)))
                if not ended:
                    cells += [NONE, _broken(ours, theirs) if measure == "loss" else NONE, NONE]
                    continue
                change = statistics.variance_change(ours, theirs)
                paper = experiment.printed.get((part.name, row.name), {}).get(measure)
                ends = statistics.variance_interval(change, len(ours), len(theirs)) if math.isfinite(change) else None
                cells += [NONE if paper is None else f"{paper:+g} %", signed_text(change) + " %" * (ends is not None)]
                cells.append(NONE if ends is None else f"[{', '.join(map(_percent_text, ends))}]")
            rows.append(tuple(cells))
    return markdown(rows)


def _percent_text(value: float) -> str:
    return f"{value:+.0f}" if abs(value) < 1e5 else f"{value:+.1e}"


def curves(experiment: Experiment, store: Store) -> str:
    """Loss at half of the run and at its end, at every rate that the figure shows."""
    rows = [("data", "method", "rate", "", "seeds", "loss, half way", "loss at the end", "test accuracy")]
    for part in experiment.parts:
        for row in experiment.rows_of(part):
            base = experiment.base_of(row) or row
            best, own = (experiment.best_rate(store, part, each) for each in (base, row))
            for rate in experiment.rates_to_report(store, part, row):
                found = experiment.outcomes(store, part, row, rate)
                half = [float(np.mean(each.curve[max(0, len(each.curve) // 2 - 2) :][:4])) for each in found]
                kinds = {"base's best": best} if row is base else {"base's best": best, "own best": own}
                if experiment.perturbed:
                    kinds |= (
                        {"perturbed": above} if (above := experiment.perturbed_rate(store, part, base)) != best else {}
                    )
                kind = ", ".join(name for name, value in kinds.items() if value == rate)
                rows.append((
                    part.name, row.name, f"{rate:g}", kind, str(len(found)), ours_text(half),
                    ours_text([each.loss for each in found]),
                    ours_text([100 * each.accuracy for each in found if math.isfinite(each.loss)]),
                ))  # fmt: skip
    return markdown(rows)


def steps(experiment: Experiment, store: Store) -> str:
    """Steps to an accuracy, and the accuracy at the end."""
    rows = [("data", "level", "method", "rate", "seeds", "steps to level", "paper", "test accuracy", "train loss")]
    for part in experiment.parts:
        for row in experiment.rows_of(part):
            rate = row.rates[0]
            found = experiment.outcomes(store, part, row, rate)
            paper = experiment.printed.get((part.name, row.name), {})
            needed = [_steps_to(each, part) for each in found]
            rows.append((
                part.name, f"{part.level:g} %", row.name, f"{rate:g}", str(len(found)),
                _steps_text(needed), _paper(paper, "steps"), ours_text([100 * each.accuracy for each in found]),
                ours_text([each.loss for each in found]),
            ))  # fmt: skip
    return markdown(rows)


def _steps_to(outcome: Outcome, part: Part) -> float:
    reached = [k for k, accuracy in enumerate(outcome.accuracies, 1) if 100 * accuracy >= part.level]
    return reached[0] * part.steps / len(outcome.curve) if reached else math.inf


def _steps_text(needed: Sequence[float]) -> str:
    if not needed:
        return "not run"
    reached = [value for value in needed if math.isfinite(value)]
    text = ours_text(reached) if reached else "never"
    return text if len(reached) in (0, len(needed)) else f"{text}, {len(needed) - len(reached)} never"


def costs(experiment: Experiment, store: Store) -> str:
    """Milliseconds of processor time per step, which other work on the machine does not enter, and times the base's."""
    rows = [("data", "method", "processor ms per step", "times its baseline's")]
    for part in experiment.parts:
        for row in experiment.rows_of(part):
            base = experiment.base_of(row)
            own = _milliseconds(experiment, store, part, row)
            ratio = _milliseconds(experiment, store, part, base) if base is not None else math.nan
            shown = f"{own:.3g}" if math.isfinite(own) else "not run"
            times = f"{own / ratio:.2f} ({base.name})" if math.isfinite(own / ratio) else NONE
            rows.append((part.name, row.name, shown, times))
    return markdown(rows)


def _milliseconds(experiment: Experiment, store: Store, part: Part, row: Row) -> float:
    found = experiment.outcomes(store, part, row, row.rates[0])
    return float(np.median([each.processor for each in found])) if found else math.nan


def grid(experiment: Experiment, store: Store) -> str:
    """Method minus baseline at every point of the grid of parts and rates, and how many points improve."""
    blocks = []
    for measure in MEASURES:
        for row in (each for each in experiment.rows if each.base):
            rows = [(f"{measure}, {row.name} - {row.base}", *(f"{rate:g}" for rate in row.rates))]
            values = grid_values(experiment, store, row, measure)
            for part, line in zip(experiment.parts, values, strict=True):
                rows.append((part.name, *(signed_text(value) for value in line)))
            better = np.sum(values < 0 if measure == "loss" else values > 0)
            known = np.isfinite(values).sum()
            blocks.append(f"{markdown(rows)}\n\nbetter at {better} of {known} points")
    return "\n\n".join(blocks)


def grid_values(experiment: Experiment, store: Store, row: Row, measure: str) -> np.ndarray:
    """Mean differences to the baseline, a line per part and a column per rate; nan where a run broke or is missing."""
    base = experiment.base_of(row)
    lines = []
    for part in experiment.parts:
        pairs = [shared(experiment, store, part, row, base, rate, measure) for rate in row.rates]
        lines.append(
            [float(np.mean(a) - np.mean(b)) if a and np.isfinite([a, b]).all() else math.nan for a, b in pairs]
        )
    return np.array(lines)


def accuracy_changes(experiment: Experiment, store: Store) -> np.ndarray:
    """Accuracy minus the baseline's at its best rate, over the seeds that both have.

    Args:
        experiment: what was run.
        store: of what was run.

    Returns:
        A line per method with a baseline and a column per part; nan where there is none.
    """
    rows = [row for row in experiment.rows if row.base]
    values = np.full((len(rows), len(experiment.parts)), np.nan)
    for part, row, base in _pairs(experiment):
        rate = experiment.best_rate(store, part, base)
        ours, theirs = ((), ()) if rate is None else shared(experiment, store, part, row, base, rate, "accuracy")
        if ours:
            values[rows.index(row), experiment.parts.index(part)] = np.mean(ours) - np.mean(theirs)
    return values


BEHIND = 2.0  # times the baseline's train loss from which on a run is counted as behind


def trains(experiment: Experiment, store: Store) -> str:
    """Whether each method trains where its baseline does: runs of both at one rate and seed, all rates together."""
    rows = [
        (
            "data", "method", "runs", "the base's break", "break where the base's do not",
            f"over {BEHIND:g} times its loss", "at rates",
        )
    ]  # fmt: skip
    for part, row, base in _pairs(experiment):
        runs, lost, broken, behind, rates = 0, 0, 0, 0, list[str]()
        for rate in row.rates:
            ours, theirs = shared(experiment, store, part, row, base, rate, "loss")
            known = [(a, b) for a, b in zip(ours, theirs, strict=True) if math.isfinite(b)]
            breaks, slow = sum(not math.isfinite(a) for a, _ in known), sum(BEHIND * b < a < math.inf for a, b in known)
            runs, lost = runs + len(ours), lost + len(ours) - len(known)
            broken, behind = broken + breaks, behind + slow
            rates += [f"{rate:g}"] * bool(breaks or slow)
        if runs:
            counts = map(str, (runs, lost, broken, behind))
            rows.append((part.name, f"{row.name} - {base.name}", *counts, ", ".join(rates) or NONE))
    return markdown(rows)


REPORTS: dict[str, Callable[[Experiment, Store], str]] = {
    "table": table, "difference": difference, "variance": variance, "curves": curves, "steps": steps, "costs": costs,
    "grid": grid, "trains": trains,
}  # fmt: skip
