"""The table of peers: results of `peers_jax.py` and `peers_torch.py` beside this package's methods on the same tasks.

    python -m benchmarks.peers_table --data-dir DIRECTORY       # goes on where it stopped

Our losses at equal steps and our step times are those of `keras_examples.studies.against_the_best` (cosine, seed 0, the
same weights, batches and number of learning rates). What is run here is each method at its best rate for as many steps
as fit in the time of all of Keras's SGD's. A step time is compared with SGD of the method's own framework, a loss with
any.
"""

import argparse
import json
import math
import os
import pathlib
from collections.abc import Sequence

from benchmarks.peers_loop import fitting
from keras_examples.studies._cells import COSINE, Entry, Setting, Store
from keras_examples.studies._contest import Ring
from keras_examples.studies.against_the_best import ENTRIES, SGD, TASKS

CONTEST = pathlib.Path("keras_examples/results/against_the_best/cells.jsonl")
PEERS = (pathlib.Path("benchmarks/peers.json"), pathlib.Path("benchmarks/peers_torch.json"))
OWN = pathlib.Path("benchmarks/peers_cells.jsonl")
NAMES = ("autoencoder", "residual")


def best(store: Store, task: str, entry: Entry, steps: int) -> tuple[Setting, float] | None:
    """The lowest test loss of a method at equal steps.

    Args:
        store: of the contest.
        task: its title.
        entry: the method.
        steps: of the task.

    Returns:
        The setting and its loss among the cosine runs of seed 0; `None` without any, or without a step time.
    """
    cells = [
        cell for cell in store.of(task, entry.name).values()
        if (cell.schedule, cell.steps, cell.seed) == (COSINE, steps, 0)
    ]  # fmt: skip
    if not cells or (task, entry.name) not in store.milliseconds:
        return None
    cell = min(cells, key=lambda cell: cell.loss)
    return cell.setting, cell.loss


def own_rows(name: str, contest: Store, own: Store, data_dir: str | None) -> list[dict]:
    """Runs what is missing of this package's rows on a task.

    Args:
        name: of the task.
        contest: runs and step times at equal steps.
        own: runs at equal time; grows.
        data_dir: TFDS directory.

    Returns:
        Rows with the fields that `peers_loop.py` writes.
    """
    kind, rows, ring = TASKS[name], [], None
    for entry in ENTRIES:
        if (found := best(contest, kind.title, entry, kind.steps)) is None:
            continue
        (setting, loss), times = found, contest.milliseconds
        ratio = times[kind.title, entry.name] / times[kind.title, SGD]
        steps = fitting(kind.steps, ratio)
        short = Setting(COSINE, steps, setting.rate, 0)
        if 0 < steps < kind.steps and short not in own.of(kind.title, entry.name):
            ring = ring or Ring(kind.make(data_dir, kind.steps), own)
            ring.run(entry, [short], math.inf)
        short_loss = own.of(kind.title, entry.name)[short].loss if 0 < steps < kind.steps else loss
        rows.append({
            "task": name, "method": entry.name if entry.base else f"Keras, {entry.name}",
            "milliseconds": times[kind.title, entry.name], "ratio": ratio, "rate": setting.rate,
            "loss": loss, "steps": kind.steps, "equal_time": {"steps": steps, "loss": short_loss},
        })  # fmt: skip
    return rows


def table(rows: Sequence[dict]) -> str:
    """Rows of one task in Markdown.

    Args:
        rows: with the fields that `peers_loop.py` writes.

    Returns:
        The table.
    """
    lines = [
        "| method | ms per step | own SGD's | rate | loss, equal steps | loss, equal time | steps in that time |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        short, rate = row["equal_time"], "own" if row["rate"] is None else f"{row['rate']:g}"
        losses = [
            "broken" if value is None or not math.isfinite(value) else f"{value:.4g}"
            for value in (row["loss"], short["loss"])
        ]
        losses[1] = losses[1] if short["steps"] else "-"  # not one piece fits
        lines.append(
            f"| {row['method']} | {row['milliseconds']:.1f} | {row['ratio']:.2f} | {rate} | {losses[0]} |"
            f" {losses[1]} | {short['steps']} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default=os.environ.get("TFDS_DATA_DIR"), help="TFDS directory")
    parser.add_argument("--tasks", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--peers", nargs="+", type=pathlib.Path, default=PEERS, help="files of peers' records")
    parser.add_argument("--contest", type=pathlib.Path, default=CONTEST, help="cells of against_the_best")
    parser.add_argument("--own", type=pathlib.Path, default=OWN, help="cells at equal time; goes on from it")
    options = parser.parse_args(arguments)
    contest, own = Store(options.contest), Store(options.own)
    files = [json.loads(path.read_text()) for path in options.peers]
    print("; ".join(f"{name} {version}" for file in files for name, version in file["versions"].items()))
    for name in options.tasks:
        peers = [record for file in files for record in file["results"] if record["task"] == name]
        rows = peers + own_rows(name, contest, own, options.data_dir)
        print(f"\n**{TASKS[name].title}**, B = {TASKS[name].batch_size}, {TASKS[name].steps} steps\n\n{table(rows)}")


if __name__ == "__main__":
    main()
