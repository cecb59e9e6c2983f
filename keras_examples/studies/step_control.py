"""Step control against a bad initial learning rate, over four decades, on DIGITS and MNIST.

    python -m keras_examples.studies.step_control --data-dir DIRECTORY    # 10 minutes, two cores with ten other jobs
    python -m keras_examples.studies.step_control --quick                 # less than half a minute, on DIGITS
    python -m keras_examples.studies.step_control --tasks vit --data-dir DIRECTORY   # of against_the_best; 10 to 45 min
    python -m keras_examples.studies.step_control --report DIRECTORY ...  # one table and figure of earlier results

You will see: GTDDP with `step_control="levenberg_marquardt"` and without (`--forms`, also with every fourth step
measured), from the same weights on the same batches, at initial learning rates over four decades, with two curvatures.
The table has the final loss at every rate and how many steps were refused; the figure draws loss against rate. Two
columns compare with what a sweep of the plain form would have found: the median and the worst loss over the rates,
divided by the plain form's loss at its best rate.
"""

import argparse
import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Sequence

import numpy as np

import bellman_tf as btf
from keras_examples.studies import _command, _networks, _report, _study
from keras_examples.studies._markdown import markdown
from keras_examples.studies._methods import Variant
from keras_examples.studies.against_the_best import TASKS

RATES = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)
METRICS = ("identity", "kfac")
EVERY, TAIL = 25, 40  # steps of a piece; last steps of a contest's task, whose mean loss counts
CONTROLS = {
    "plain": None,
    "controlled": "levenberg_marquardt",
    "every 4th measured": btf.LevenbergMarquardt(every=4),
}
COLOURS = {"plain": "0.3", "controlled": "tab:blue", "every 4th measured": "tab:orange"}
FIGURE = "step_control.png"


def variant(metric: str, form: str) -> Variant:
    """GTDDP with or without step control."""
    make = functools.partial(btf.GTDDP, curvature=metric, step_control=CONTROLS[form])
    return Variant(f"GTDDP {metric}, {form}", make, metric, form)


def means(records: list[dict], **wanted: object) -> list[float]:
    """Mean loss over the seeds at every rate, of the records that match."""
    own = [r for r in records if all(r[key] == value for key, value in wanted.items())]
    rates = sorted({r["rate"] for r in own})
    return [float(np.mean([r["loss"] for r in own if r["rate"] == rate])) for rate in rates]


def forms_of(records: list[dict], task: str, metric: str) -> list[str]:
    """The forms that a task and curvature were run with."""
    return [form for form in CONTROLS if means(records, task=task, metric=metric, form=form)]


def table(records: list[dict]) -> str:
    """One row per data set, curvature and form."""
    rates = sorted({r["rate"] for r in records})
    shares = ("median / best plain", "worst / best plain")
    rows = [("data", "curvature", "form", *(f"{rate:g}" for rate in rates), *shares, "refused steps")]
    for task, metric in dict.fromkeys((r["task"], r["metric"]) for r in records):
        best = min(means(records, task=task, metric=metric, form="plain"), default=None)
        for form in forms_of(records, task, metric):
            own = [r for r in records if (r["task"], r["metric"], r["form"]) == (task, metric, form)]
            cells = [_report.spread_text([r["loss"] for r in own if r["rate"] == rate]) for rate in rates]
            losses = means(records, task=task, metric=metric, form=form)
            compared = [
                "-" if best is None else _report.number_text(float(loss) / best)
                for loss in (np.median(losses), max(losses))
            ]
            refused = "-" if form == "plain" else f"{np.mean([r['refused'] for r in own]):.1f}"
            rows.append((task, metric, form, *cells, *compared, refused))
    return markdown(rows)


def plot(records: list[dict], path: object) -> None:
    """Final loss against the initial rate, a panel per data set and curvature; points are seeds, lines their means."""
    panels = list(dict.fromkeys((r["task"], r["metric"]) for r in records))
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure = _report.new_figure(2.4 * columns, 2.4 * lines)
    axes = figure.subplots(lines, columns, squeeze=False).flat
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, (task, metric) in zip(axes[: len(panels)], panels, strict=True):
        for form in forms_of(records, task, metric):
            own = [r for r in records if (r["task"], r["metric"], r["form"]) == (task, metric, form)]
            axis.plot([r["rate"] for r in own], [_capped(r["loss"]) for r in own], ".", color=COLOURS[form], ms=4)
            losses = map(_capped, means(records, task=task, metric=metric, form=form))
            axis.plot(sorted({r["rate"] for r in own}), list(losses), color=COLOURS[form], lw=1.2, label=form)
        axis.set(xscale="log", yscale="log")
        axis.set_title(f"{task}, {metric}", fontsize=7)
        axis.tick_params(labelsize=6, which="both")
    figure.supxlabel("initial learning rate", fontsize=8)
    figure.supylabel(f"final train loss (at most {_report.CEILING:g})", fontsize=8)
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def _capped(loss: float) -> float:
    return min(loss, _report.CEILING)


def tasks_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[_study.Task]:
    """What the command asks for: tasks of `against_the_best` at their length, or the tanh MLP.

    Args:
        parser: says what is wrong.
        options: parsed.

    Returns:
        The tasks.
    """
    if options.tasks:
        try:
            made = [TASKS[name].make(options.data_dir, options.steps or TASKS[name].steps) for name in options.tasks]
        except ValueError as problem:
            parser.error(str(problem))
        return [dataclasses.replace(task, tail=min(TAIL, task.steps)) for task in made]
    options.steps = options.steps or 400
    options.steps = min(options.steps, 100) if options.quick else options.steps
    _command.multiple(parser, "--steps", options.steps, EVERY)
    data = _command.load(parser, options, ("digits", "mnist"), 20000)
    tail = min(4 * EVERY, options.steps)
    return [
        _study.Task(
            f"{name}, B = {size}", functools.partial(_networks.tanh_mlp, each.x_train.shape[1:]), each, size,
            options.steps, EVERY, {}, tail=tail,
        )
        for (name, each), size in itertools.product(data.items(), options.batch_sizes)
    ]  # fmt: skip


def show(options: argparse.Namespace, records: list[dict], seconds: float = 0.0) -> None:
    """Writes table, figure and records, and prints the table.

    Args:
        options: parsed.
        records: of all runs.
        seconds: that they took, where this command made them.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    plot(records, options.out / FIGURE)
    _command.report(options, table(records), records, seconds, [FIGURE])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
        arguments: of the command line.
    """
    parser = _command.short_parser(__doc__.splitlines()[0], "results/step_control", "digits and mnist", 0, seeds=2)
    parser.add_argument("--batch-sizes", nargs="+", type=_command.whole(1), default=[8, 64], help="B")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=list(METRICS), help="curvatures")
    parser.add_argument(
        "--forms", nargs="+", choices=CONTROLS, default=["plain", "controlled"], help="with and without"
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="of against_the_best, in place of data and B")
    parser.add_argument("--report", nargs="+", type=pathlib.Path, metavar="DIRECTORY", help="results to show together")
    options = parser.parse_args(arguments)
    if options.report:
        show(options, [run for directory in options.report for run in _report.read(directory)])
        return
    rates = RATES
    if options.quick:
        options.seeds, rates = 1, (RATES[0], 0.1, RATES[-1])
        options.metrics, options.batch_sizes = options.metrics[:1], options.batch_sizes[-1:]
    tasks = tasks_of(parser, options)
    start = time.perf_counter()
    progress = _report.Progress(len(tasks) * len(options.metrics) * len(options.forms) * len(rates) * options.seeds)
    records = []
    for task, metric, form in itertools.product(tasks, options.metrics, options.forms):
        trainer = _study.Trainer(task, variant(metric, form))
        for run in trainer.runs(rates, options.seeds, progress):
            refused = int(trainer.optimizer.refused_steps) if CONTROLS[form] else 0
            records.append(dataclasses.asdict(run) | {"refused": refused})
    show(options, records, time.perf_counter() - start)


if __name__ == "__main__":
    main()
