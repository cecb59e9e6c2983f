"""What a study prints and saves: progress, a table, the comparison with the baselines, a plot, JSON."""

import dataclasses
import json
import math
import os
import pathlib
import platform
import sys
import time
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

import bellman_tf
from keras_examples.studies._markdown import markdown
from keras_examples.studies._methods import BASE, BLOCK, DECADE, MATCHED, OUTER, rate_of
from keras_examples.studies._study import Run, Task, best_rate, mean_loss

COLOURS = {BASE: "0.3", MATCHED: "tab:blue", BLOCK: "tab:orange", OUTER: "tab:green"}
CEILING = 10.0  # losses above this are drawn here


class Progress:
    """One line on the terminal, or one line per learning rate where the output is a file."""

    def __init__(self, total: int) -> None:
        self.done, self.total = 0, total
        self._start = time.perf_counter()

    def expect(self, more: int) -> None:
        """Announces further runs."""
        self.total += more

    def add(self, run: Run) -> None:
        """Shows that a run has ended."""
        self.done += 1
        spent = time.perf_counter() - self._start
        left = spent / self.done * (self.total - self.done)
        filled = 20 * self.done // self.total
        bar = "#" * filled + "." * (20 - filled)
        text = f"[{bar}] {self.done}/{self.total} {_clock(spent)} < {_clock(left)}  {run.task}  {run.method}"
        text += f"  rate {run.rate:g}  seed {run.seed}  loss {number_text(run.loss)}"
        if sys.stdout.isatty():
            print(f"\r\x1b[2K{text}", end="\n" if self.done == self.total else "", flush=True)
        elif run.seed == 0:
            print(text, flush=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def number_text(value: float) -> str:
    """Three significant digits; `broken` for what is not finite."""
    if not math.isfinite(value):
        return "broken"
    return f"{value:.3g}" if value < 1000 else f"{value:.1e}"


def loss_text(runs: list[Run], number: int) -> str:
    """Mean loss over the seeds at one learning rate; "-" without runs."""
    return number_text(mean_loss(runs, number)) if any(run.number == number for run in runs) else "-"


def by_method(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs of one task, method by method."""
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(run.method, []).append(run)
    return grouped


def table(runs: list[Run]) -> str:
    """One task's results as a Markdown table: means over the seeds, +- their standard deviation.

    Args:
        runs: of one task.

    Returns:
        The table.
    """
    rows = [("method", "best rate", "train loss", "test accuracy", "loss at 10x", "ms/step")]
    for name, own in by_method(runs).items():
        number = best_rate(own)
        best = [run for run in own if run.number == number]
        loss, accuracy = [run.loss for run in best], [100 * run.accuracy for run in best]
        rows.append((
            name, f"{rate_of(number):g}", spread_text(loss), f"{np.mean(accuracy):.1f} +- {np.std(accuracy):.1f}",
            loss_text(own, number + DECADE), f"{np.median([run.milliseconds for run in own]):.2f}",
        ))  # fmt: skip
    return markdown(rows)


def spread_text(losses: Sequence[float]) -> str:
    """Mean +- standard deviation."""
    mean = float(np.mean(losses))
    return f"{number_text(mean)} +- {np.std(losses):.1g}" if math.isfinite(mean) else "broken"


def rate_table(runs: list[Run]) -> str:
    """One task's results at every learning rate: mean loss / mean test accuracy.

    Args:
        runs: of one task.

    Returns:
        One Markdown table per metric.
    """
    tables = []
    for metric in dict.fromkeys(run.metric for run in runs):
        own = by_method([run for run in runs if run.metric == metric])
        rows = [("rate", *own)]
        for number in sorted({run.number for run in runs if run.metric == metric}):
            cells = []
            for method in own.values():
                accuracies = [100 * run.accuracy for run in method if run.number == number]
                cells.append(f"{loss_text(method, number)} / {np.mean(accuracies):.0f}%" if accuracies else "-")
            rows.append((f"{rate_of(number):g}", *cells))
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        tables.append("\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]))
    return "\n\n".join(tables)


def verdicts(runs: list[Run]) -> str:
    """GTDDP against its baseline, metric by metric: best-tuned, and at ten times the baseline's best rate.

    Args:
        runs: of one task.

    Returns:
        One item of a list per pair.
    """
    lines = []
    for own in by_method(runs).values():
        metric = own[0].metric
        base = [run for run in runs if run.metric == metric and run.form == BASE]
        if own[0].form == BASE or not base:
            continue
        theirs, ours = best_rate(base), best_rate(own)
        ten = theirs + DECADE
        low, high = mean_loss(own, ours), mean_loss(base, theirs)
        lines.append(
            f"- {own[0].method} against {base[0].method}: best {number_text(low)} against {number_text(high)}"
            f" ({'not above' if low <= high else 'ABOVE'}); at {rate_of(ten):g}, ten times the baseline's best rate, "
            f"{loss_text(own, ten)} against {loss_text(base, ten)}"
        )
    return "\n".join(lines)


def plot(task: Task, runs: list[Run], path: pathlib.Path) -> None:
    """Loss curves at each method's best rate, and final loss against learning rate; one column per metric.

    Args:
        task: the task of the runs.
        runs: its runs.
        path: of the image.
    """
    metrics = list(dict.fromkeys(run.metric for run in runs))
    figure = new_figure(3.2 * len(metrics), 6.2)
    axes = figure.subplots(2, len(metrics), squeeze=False, sharey="row")
    for column, metric in enumerate(metrics):
        curves, rates = axes[0][column], axes[1][column]
        curves.set_title(metric)
        for name, own in by_method([run for run in runs if run.metric == metric]).items():
            colour = COLOURS[own[0].form]
            number = best_rate(own)
            pieces = np.array([run.curve for run in own if run.number == number])
            steps = task.every * np.arange(1, pieces.shape[1] + 1)
            label = f"{name}, rate {rate_of(number):g}"
            curves.plot(steps, np.minimum(pieces, CEILING).mean(0), color=colour, lw=1.2, label=label)
            numbers = sorted({run.number for run in own})
            for seed in {run.seed for run in own}:
                points = [min(run.loss, CEILING) for k in numbers for run in own if (run.number, run.seed) == (k, seed)]
                rates.plot([rate_of(k) for k in numbers], points, ".", color=colour, ms=4)
            means = [min(mean_loss(own, k), CEILING) for k in numbers]
            rates.plot([rate_of(k) for k in numbers], means, color=colour, lw=1.2, label=name)
        curves.set(yscale="log", xlabel="step")
        rates.set(yscale="log", xscale="log", xlabel="learning rate")
        curves.legend(fontsize=6)
        rates.legend(fontsize=6)
    axes[0][0].set_ylabel("train loss at the best rate")
    axes[1][0].set_ylabel(f"final train loss (at most {CEILING:g})")
    figure.suptitle(f"{task.name}, B = {task.batch_size}, {task.steps} steps")
    figure.savefig(path, dpi=130)


def save(out: pathlib.Path, command: str, options: dict, tasks: list[Task], runs: list[Run], seconds: float) -> str:
    """Writes tables, plots and JSON, and returns the tables.

    Args:
        out: directory, made if it is missing.
        command: what was typed.
        options: the command's.
        tasks: of the study.
        runs: all of them.
        seconds: that the study took.

    Returns:
        Tables and comparisons of all tasks.
    """
    out.mkdir(parents=True, exist_ok=True)
    sections, details = [], []
    for task in tasks:
        own = [run for run in runs if run.task == task.name]
        head = f"**{task.name}, B = {task.batch_size}, {task.steps} steps**"
        sections.append(f"{head}\n\n{table(own)}\n\n{verdicts(own)}")
        details.append(f"{head}\n\n{rate_table(own)}")
        plot(task, own, out / f"{task.name.replace(' ', '_')}.png")
    text = "\n\n".join(sections)
    seeds = len({run.seed for run in runs})
    versions = ", ".join(f"{name} {number}" for name, number in _versions().items())
    spent = f"{os.cpu_count()} cores, {seconds:.0f} s"
    head = f"`{command}`: {len(runs)} runs, seeds 0 to {seeds - 1}; {versions}; {spent}."
    page = [head, text, "## Every rate: loss / test accuracy", *details]
    write(out, options, "\n\n".join(page), [dataclasses.asdict(run) for run in runs], seconds)
    return text


def write(out: pathlib.Path, options: dict, text: str, runs: list[dict], seconds: float) -> None:
    """Writes `table.md` and `results.json`: options, versions, machine, every run.

    Args:
        out: directory, made if it is missing.
        options: the command's.
        text: the tables.
        runs: what each run gave.
        seconds: that all took.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(text + "\n")
    record = {
        "options": options,
        "versions": _versions(),
        "machine": platform.platform(),
        "seconds": round(seconds, 1),
        "runs": _finite(runs),
    }
    (out / "results.json").write_text(json.dumps(record, indent=1, allow_nan=False, default=str) + "\n")


def _versions() -> dict[str, str]:
    return {
        "bellman_tf": bellman_tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
    }


def read(directory: pathlib.Path) -> list[dict]:
    """The runs that `write` has left in a directory; a loss that was not finite is `inf`."""
    runs = json.loads((directory / "results.json").read_text())["runs"]
    return [run | {"loss": math.inf if run["loss"] is None else run["loss"]} for run in runs]


def new_figure(width: float, height: float) -> object:
    """A figure of matplotlib that needs no display; `figure.savefig(path)` writes it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # an extra: `pip install "bellman_tf[examples]"`
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _finite(value: object) -> object:
    """JSON knows no infinity: what is not finite becomes `None`."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
