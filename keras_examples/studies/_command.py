"""The command line that the studies share."""

import argparse
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Callable, Sequence

from bellman_tf.curvature.gram import FORMS
from keras_examples.studies import _data, _report, _study
from keras_examples.studies._methods import METRICS, Method


def whole(least: int) -> Callable[[str], int]:
    """A type for argparse: an integer of at least `least`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"must be an integer >= {least}. Received: {text!r}.")
        return value

    return parse


def parser(
    description: str, out: str, steps: int, metrics: tuple[str, ...], seeds: int = 3, decades: int = 2
) -> argparse.ArgumentParser:
    """The options of every study.

    Args:
        description: of the command.
        out: default directory of the results.
        steps: default length of a run.
        metrics: default metrics.
        seeds: default number of seeds.
        decades: default span of the learning rates.

    Returns:
        The parser.
    """
    made = bare_parser(description, out, steps, seeds)
    made.add_argument("--quick", action="store_true", help="few methods, rates and steps, to see that it works")
    made.add_argument("--metrics", nargs="+", choices=METRICS, default=list(metrics), help="curvatures to compare")
    made.add_argument("--decades", type=whole(1), default=decades, help="decades that the learning rates span")
    made.add_argument("--per-decade", type=int, choices=(2, 4), default=2, help="learning rates per decade")
    made.add_argument(
        "--gram", choices=FORMS, default="auto", help="how GTDDP forms the Gram matrices, see bellman_tf.curvature.gram"
    )
    made.add_argument(
        "--invert-every", type=whole(1), default=1, help="steps between factorisations of K-FAC and EKFAC, both sides"
    )
    made.add_argument("--jit", action="store_true", help="compile the steps with XLA")
    return made


def bare_parser(description: str, out: str, steps: int, seeds: int) -> argparse.ArgumentParser:
    """The options of every example."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    made.add_argument("--out", type=pathlib.Path, default=pathlib.Path(out), help="directory for tables, plots, JSON")
    made.add_argument("--seeds", type=whole(1), default=seeds, help="runs of everything")
    made.add_argument("--steps", type=whole(1), default=steps, help="length of a run")
    return made


def short_parser(description: str, out: str, data: str, steps: int, seeds: int) -> argparse.ArgumentParser:
    """The options of an example that shows one thing.

    Args:
        description: of the command.
        out: default directory of the results.
        data: what it runs on.
        steps: default length of a run.
        seeds: default number of seeds.

    Returns:
        The parser.
    """
    made = bare_parser(description, out, steps, seeds)
    made.add_argument("--quick", action="store_true", help="smallest sizes, to see that it works; on DIGITS by default")
    made.add_argument("--data", nargs="+", choices=_data.NAMES, help=f"data; default: {data}")
    made.add_argument(
        "--data-dir",
        default=os.environ.get("TFDS_DATA_DIR"),
        help="TFDS directory; default: environment's TFDS_DATA_DIR",
    )
    return made


def load(
    parser: argparse.ArgumentParser, options: argparse.Namespace, names: Sequence[str], most: int
) -> dict[str, _data.Data]:
    """The data that the command asks for; a quick one takes DIGITS, which need no directory, and says so.

    Args:
        parser: says what is wrong.
        options: parsed; `options.data` is filled in.
        names: of the data of a full run.
        most: images of each part.

    Returns:
        Name to images and labels.
    """
    if options.data is None:
        options.data = ["digits"] if options.quick else list(names)
        if options.quick:
            print("--quick: on DIGITS, which scikit-learn carries (--data chooses others).", flush=True)
    try:
        return {name: _data.load(name, options.data_dir, most) for name in options.data}
    except ValueError as problem:
        parser.error(str(problem))


def report(options: argparse.Namespace, text: str, runs: list[dict], seconds: float, figures: Sequence[str]) -> None:
    """Prints the table and saves it with the record.

    Args:
        options: parsed.
        text: the tables.
        runs: what each run gave.
        seconds: that all took.
        figures: names of the files already written.
    """
    _report.write(options.out, vars(options) | {"cores": os.cpu_count()}, text, runs, seconds)
    files = ", ".join([*figures, "table.md", "results.json"])
    print(f"\n{text}\n\n{len(runs)} runs in {seconds:.0f} s; {files} are in {options.out}/")


def typed(module: str, arguments: Sequence[str] | None) -> str:
    """The command as it was typed, `python -m ...`.

    Args:
        module: that was run.
        arguments: of the command line; None: the process's own.

    Returns:
        The command.
    """
    return shlex.join(["python", "-m", module, *(sys.argv[1:] if arguments is None else arguments)])


def conduct(command: str, options: argparse.Namespace, tasks: list[_study.Task], methods: list[list[Method]]) -> None:
    """Runs the study, prints its table, saves everything.

    Args:
        command: what was typed, for the page.
        options: parsed.
        tasks: the tasks.
        methods: the rows of each.
    """
    rates = options.per_decade * options.decades + 1
    progress = _report.Progress(sum(map(len, methods)) * rates * options.seeds)
    start = time.perf_counter()
    runs = []
    for task, rows in zip(tasks, methods, strict=True):
        runs += _study.compare(task, rows, options.decades, options.per_decade, options.seeds, progress)
    seconds = time.perf_counter() - start
    shown = vars(options) | {"cores": os.cpu_count()}
    text = _report.save(options.out, command, shown, tasks, runs, seconds)
    print(f"\n{text}\n\n{len(runs)} runs in {seconds:.0f} s; tables, plots and JSON are in {options.out}/")


def multiple(parser: argparse.ArgumentParser, option: str, steps: int, every: int) -> None:
    """Refuses a number of steps that the pieces of a loss curve do not divide."""
    if steps % every:
        parser.error(f"`{option}` must be a multiple of {every}. Received: {steps}.")
