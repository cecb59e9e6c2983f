"""Runs a table or figure of the four papers and puts the paper's numbers beside ours.

    python -m keras_examples.papers --list
    python -m keras_examples.papers ddp-table-3 --data-dir DIRECTORY     # full settings; goes on where it stopped
    python -m keras_examples.papers ddp-table-3 --parts WINE IRIS --seeds 3
    python -m keras_examples.papers gtddp-table-2 --quick                # less than a minute, without a directory
    python -m keras_examples.papers ddpnopt-fig-4 --report               # of what has been run
    python -m keras_examples.papers --page docs/papers.md                # its tables and figures, of what has been run

A run is a grid of cells (data, network, method, rate, seed). Each ends as one line of `cells.jsonl` below `--store`:
experiments share equal cells, and a command that was interrupted goes on. The default store is the repository's, which
has the runs behind docs/papers.md. Tables and figures are written below `--out`.
"""

import argparse
import collections
import dataclasses
import os
import pathlib
import time
from collections.abc import Sequence
from typing import NamedTuple

from bellman_tf import _checks
from keras_examples.papers import figures, page, reports
from keras_examples.papers.catalogue import ENTRIES, Elsewhere
from keras_examples.papers.cells import Store
from keras_examples.papers.engines import ENGINES
from keras_examples.papers.experiment import QUICK_STEPS, Experiment
from keras_examples.papers.looks import Look, Settings
from keras_examples.studies import _command, _report
from keras_examples.studies._markdown import markdown

STORE, RESULTS = pathlib.Path("keras_examples/results/papers"), pathlib.Path("results/papers")


class Shown(NamedTuple):
    """What a line of the progress says of a cell, see `_report.Progress`."""

    task: str
    method: str
    rate: float
    seed: int
    loss: float


def listing() -> str:
    """Every name with its place in the papers and what it shows."""
    rows = [("name", "place", "shows", "runs")]
    for entry in ENTRIES.values():
        if isinstance(entry, Experiment):
            data = ", ".join(part.name for part in entry.parts)
            rows.append((entry.name, entry.place, entry.shows, f"{data}; {entry.seeds} seeds"))
        else:
            rows.append((entry.name, entry.place, entry.shows, getattr(entry, "command", "a trained model")))
    return markdown(rows)


def conduct(experiment: Experiment, store: Store, engine: str, data_dir: str | None, until: float) -> bool:
    """Runs the cells that are missing, stage by stage.

    Args:
        experiment: what to run.
        store: keeps the outcomes.
        engine: one of `ENGINES`.
        data_dir: TFDS directory.
        until: moment of `time.monotonic` after which no cell is begun.

    Returns:
        Whether nothing is missing any more.
    """
    while cells := experiment.next_cells(store):
        progress = _report.Progress(len(cells))
        for cell, outcome in ENGINES[engine](cells, data_dir):
            store.add(cell, outcome)
            progress.add(Shown(cell.data, str(cell.method), cell.rate, cell.seed, outcome.loss))
            if time.monotonic() > until:
                return False
    return True


def publish(experiment: Experiment, store: Store, out: pathlib.Path) -> str:
    """Writes the table and the figure.

    Args:
        experiment: whose cells the store has.
        store: of what was run.
        out: directory, made if it is missing.

    Returns:
        The table.
    """
    out.mkdir(parents=True, exist_ok=True)
    body = reports.REPORTS[experiment.report](experiment, store)
    also = f"\n\nSee also: {experiment.also}" if experiment.also else ""
    text = f"{experiment.place}: {experiment.shows}.\n\n{body}{also}\n"
    (out / f"{experiment.name}.md").write_text(text)
    if draw := figures.DRAWN.get(experiment.report):
        draw(experiment, store, out / f"{experiment.name}.png")
    return text


def tables_of(text: str, directory: pathlib.Path) -> str:
    """The text of a page with its tables made of the store.

    Args:
        text: of the page, see `page`.
        directory: of the store.

    Returns:
        The new text.
    """
    store = Store(directory / "cells.jsonl")

    def table(arguments: Sequence[str]) -> str:
        options = parser().parse_args(arguments)
        [experiment] = [_chosen(_experiment(name), options) for name in options.names]
        return reports.REPORTS[experiment.report](experiment, store)

    return page.refreshed(text, table)


def write_page(path: pathlib.Path, directory: pathlib.Path) -> list[pathlib.Path]:
    """Makes the tables of a page of the store, and the figures that it shows.

    A table's figure is `NAME.png`, with `--kind KIND` `NAME-KIND.png`; that of a second table of the same name ends in
    `-2`, and so on.

    Args:
        path: of the page.
        directory: of the store.

    Returns:
        Paths of the figures.
    """
    text, store = path.read_text(), Store(directory / "cells.jsonl")
    path.write_text(tables_of(text, directory))
    shown: dict[pathlib.Path, Experiment] = {}
    counts: collections.Counter[str] = collections.Counter()
    for arguments in page.places(text):
        options = parser().parse_args(arguments)
        name = "-".join([*options.names, *[options.kind] * bool(options.kind)])
        counts[name] += 1
        image = path.parent / path.stem / f"{name}{f'-{counts[name]}' * (counts[name] > 1)}.png"
        if f"({path.stem}/{image.name})" in text:
            shown[image] = _chosen(_experiment(options.names[0]), options)
    for image, experiment in shown.items():
        image.parent.mkdir(parents=True, exist_ok=True)
        figures.DRAWN[experiment.report](experiment, store, image)
    return list(shown)


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(
        prog="python -m keras_examples.papers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("names", nargs="*", metavar="NAME", help="of --list; several share their cells")
    made.add_argument("--list", action="store_true", help="names, places, what each shows")
    made.add_argument("--quick", action="store_true", help="a tiny grid, to see that it works; in a store of its own")
    made.add_argument("--report", action="store_true", help="runs nothing: tables and figures of the store")
    made.add_argument("--page", type=pathlib.Path, help="runs nothing: writes tables and figures of the store into it")
    made.add_argument("--seeds", type=_command.whole(1), help="runs of everything; default: the paper's number")
    made.add_argument("--steps", type=_command.whole(1), help="length of a run; default: each part's own")
    made.add_argument("--parts", nargs="+", help="names of data sets; default: all of the experiment")
    made.add_argument("--rows", nargs="+", help="names of methods; default: all of the experiment")
    made.add_argument("--rates", nargs="+", type=float, help="learning rates; default: all of a method")
    made.add_argument("--kind", choices=list(reports.REPORTS), help="of the report; default: the experiment's")
    made.add_argument("--minutes", type=float, default=float("inf"), help="after which no cell is begun")
    made.add_argument("--engine", choices=list(ENGINES), default="local", help="what runs the cells")
    made.add_argument("--store", type=pathlib.Path, help=f"directory of cells.jsonl; default: {STORE}")
    made.add_argument("--out", type=pathlib.Path, default=RESULTS, help="directory of tables and figures")
    made.add_argument(
        "--data-dir", default=os.environ.get("TFDS_DATA_DIR"), help="TFDS directory; default: TFDS_DATA_DIR"
    )
    return made


def _experiment(name: str) -> Experiment:
    """The entry of a name, which must be a grid of cells."""
    entry = ENTRIES.get(name)
    if not isinstance(entry, Experiment):
        raise _checks.error("name", "be that of a grid of cells where its table is to be made of the store", name)
    return entry


def _chosen(entry: Experiment, options: argparse.Namespace) -> Experiment:
    """The experiment as the options want it."""
    entry = entry.quick() if options.quick else entry.restricted(options.parts, options.rows)
    entry = dataclasses.replace(entry.with_steps(options.steps), report=options.kind or entry.report)
    entry = entry.at_rates(options.rates)
    return entry if options.seeds is None else entry.with_seeds(options.seeds)


def run(name: str, options: argparse.Namespace) -> str:
    """One table or figure.

    Args:
        name: of `ENTRIES`.
        options: parsed.

    Returns:
        What it says.
    """
    entry = ENTRIES[name]
    if isinstance(entry, Elsewhere):
        directory = ["--data-dir", options.data_dir] if options.data_dir else []
        entry.main([*directory, *["--quick"] * options.quick, "--out", str(options.out / name)])
        return f"{entry.place}: made by `{entry.command}`, in {options.out / name}."
    if isinstance(entry, Look):
        options.out.mkdir(parents=True, exist_ok=True)
        steps, seeds = (QUICK_STEPS, 1) if options.quick else (None, None)
        settings = Settings(
            "digits" if options.quick else "",
            options.data_dir,
            options.steps or steps,
            options.seeds or seeds,
            options.out,
        )
        text = f"{entry.place}: {entry.shows}.\n\n{entry.make(entry, settings)}\n"
        (options.out / f"{name}.md").write_text(text)
        return text
    experiment = _chosen(entry, options)
    directory = options.store or (options.out / "quick" if options.quick else STORE)
    store = Store(directory / "cells.jsonl")
    done = options.report or conduct(
        experiment, store, options.engine, options.data_dir, time.monotonic() + 60 * options.minutes
    )
    return publish(experiment, store, options.out) + ("" if done else "\nThe time is over: the same command goes on.\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
        arguments: of the command line.
    """
    made = parser()
    options = made.parse_args(arguments)
    if options.list:
        print(listing())
        return
    if options.page:
        print("\n".join(str(path) for path in write_page(options.page, options.store or STORE)))
        return
    unknown = [name for name in options.names if name not in ENTRIES]
    if unknown or not options.names:
        made.error(f"names must be of `--list`, at least one. Received: {unknown or options.names}.")
    for name in options.names:
        try:
            print(run(name, options), flush=True)
        except ValueError as problem:
            if not str(problem).startswith("`"):
                raise
            made.error(str(problem))


if __name__ == "__main__":
    main()
