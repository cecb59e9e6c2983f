"""GTDDP against the optimizers that people use, each at its best of the same budget, at equal steps and at equal time.

    python -m keras_examples.studies.against_the_best --data-dir DIRECTORY            # hours; goes on where it stopped
    python -m keras_examples.studies.against_the_best --quick                         # less than a minute

Six tasks on real data. All methods are tuned by the same rule on the same budget (`_tuning.py`), and for one seed they
get the same initial weights and batches. A step is timed over whole runs, methods of a task in one process, in turns;
methods that are timed later run beside AdamW, in times that are AdamW's of before. A baseline also runs at the lengths
that fit in the time of the GTDDP rows with the same rule, of faster ones, and of the best one.
Results are kept line by line in `cells.jsonl` under `--out`: an interrupted run goes on, `--minutes` ends one, and more
`--finalists` or `--seeds` add to it. `--retime` measures the steps again, `--report` only writes the report anew.
"""

import argparse
import dataclasses
import functools
import math
import os
import pathlib
import time
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

import bellman_tf as btf
from keras_examples.studies import _command, _data, _goals, _networks
from keras_examples.studies._cells import Entry, Store
from keras_examples.studies._contest import Ring
from keras_examples.studies._rounds import Methods, contest
from keras_examples.studies._standings import standings, table
from keras_examples.studies._study import LOSS, Task
from keras_examples.studies._tuning import Budget

optimizers = keras.optimizers


def _kfac(**options: object) -> btf.curvature.KFAC:
    return btf.curvature.KFAC(invert_every=5, **options)


def _ekfac() -> btf.curvature.EKFAC:
    return btf.curvature.EKFAC(invert_every=5)


def _of_model() -> btf.curvature.KFAC:
    return btf.curvature.KFAC(damping=1e-3, update_every=10, invert_every=10, fisher="model")


def _controlled() -> btf.GTDDP:
    control = btf.LevenbergMarquardt(every=4)
    return btf.GTDDP(curvature=btf.curvature.Adam(beta_1=0.0), step_control=control)


def _controlled_kfac() -> btf.GTDDP:
    return btf.GTDDP(curvature=_of_model(), step_control=btf.LevenbergMarquardt(every=4))


def inside(make: Callable[[], optimizers.Optimizer]) -> Callable[[], btf.GTDDP]:
    """A GTDDP that moves the variables with another optimizer.

    Args:
        make: that optimizer.

    Returns:
        What makes the GTDDP.
    """
    return lambda: btf.GTDDP(inner_optimizer=make())


momentum = functools.partial(optimizers.SGD, momentum=0.9)
SGD, ADAMW, MUON, KFAC, EKFAC = "SGD, momentum", "AdamW", "Muon", "K-FAC", "EKFAC"
MODEL = "K-FAC of the model's Fisher"
ENTRIES = [
    Entry(SGD, momentum, 0.1),
    Entry(ADAMW, optimizers.AdamW, 0.003),
    Entry(KFAC, lambda: btf.KFAC(curvature=_kfac()), 0.03),
    Entry("GTDDP, SGD inside", inside(momentum), 0.1, SGD),
    Entry("GTDDP, momentum in the policy", lambda: btf.GTDDP(curvature="identity", momentum=0.9), 0.1, SGD),
    Entry("GTDDP, AdamW inside", inside(optimizers.AdamW), 0.003, ADAMW),
    Entry("GTDDP, K-FAC", lambda: btf.GTDDP(curvature=_kfac()), 0.03, KFAC),
    Entry(MUON, optimizers.Muon, 0.01),
    Entry("GTDDP, Muon inside", inside(optimizers.Muon), 0.01, MUON),
    Entry(EKFAC, lambda: btf.EKFAC(curvature=_ekfac()), 0.03),
    Entry("GTDDP, EKFAC", lambda: btf.GTDDP(curvature=_ekfac()), 0.03, EKFAC),
    Entry("GTDDP, K-FAC, feedback", lambda: btf.GTDDP(curvature=_kfac(), information="feedback"), 0.03, KFAC),
    Entry("GTDDP, K-FAC, nonlinear", lambda: btf.GTDDP(curvature=_kfac(), rollout="nonlinear"), 0.03, KFAC),
    Entry("GTDDP, Adam under step control", _controlled, 0.003, ADAMW),
    Entry(MODEL, lambda: btf.KFAC(curvature=_of_model()), 0.003),
    Entry("GTDDP, model's K-FAC under step control", _controlled_kfac, 0.03, MODEL),
]

UNIT = next(entry for entry in ENTRIES if entry.name == ADAMW)  # what others are timed beside

EVERY = 10
LONG = 1000  # steps of a run that sees all images of CIFAR-10


def _task(
    name: str, network: Callable[[], keras.Model], data: _data.Data, steps: int,
    loss: Callable[[], keras.losses.Loss] = LOSS, classes: bool = True,
) -> Task:  # fmt: skip
    kind = TASKS[name]
    return Task(kind.title, network, data, kind.batch_size, steps, EVERY, {}, EVERY, False, False, loss, classes)


def autoencoder(data_dir: str | None, steps: int) -> Task:
    """Martens and Grosse's deep autoencoder on MNIST."""
    data = _data.load("mnist", data_dir)
    x, x_test = (part.reshape(len(part), -1) for part in (data.x_train, data.x_test))
    loss = functools.partial(keras.losses.BinaryCrossentropy, from_logits=True)
    return _task("autoencoder", _networks.autoencoder, _data.Data(x, x, x_test, x_test), steps, loss, False)


def _images(data_dir: str | None, steps: int) -> _data.Data:
    """20,000 images of CIFAR-10 to train on and 4,000 to test on, for long runs all of them."""
    if steps > LONG:
        return _data.load("cifar10", data_dir)
    data = _data.load("cifar10", data_dir, 20000)
    return dataclasses.replace(data, x_test=data.x_test[:4000], y_test=data.y_test[:4000])


def residual(name: str, data_dir: str | None, steps: int) -> Task:
    """A residual net of widths 16, 16, 32, 64 on CIFAR-10."""
    network = functools.partial(_networks.residual_stages, (32, 32, 3), (16, 16, 32, 64), name == "residual-bn")
    return _task(name, network, _images(data_dir, steps), steps)


def transformer(data_dir: str | None, steps: int) -> Task:
    """A vision transformer of 64 tokens on CIFAR-10."""
    network = functools.partial(_networks.vision_transformer, (32, 32, 3), 4, 64, 3)
    return _task("vit", network, _images(data_dir, steps), steps)


def characters(data_dir: str | None, steps: int) -> Task:
    """A character-level transformer on the text of Python's own help topics, 64 characters a sample."""
    data, size = _data.characters(64)
    return _task("characters", functools.partial(_networks.character_transformer, 64, size, 64, 2), data, steps)


def digits(data_dir: str | None, steps: int) -> Task:
    """The papers' tanh network on DIGITS."""
    data = _data.load("digits", None)
    return _task("digits", functools.partial(_networks.tanh_mlp, (8, 8, 1)), data, steps)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A task of the contest.

    Attributes:
        title: what tables call it.
        batch_size: B.
        steps: of a run.
        make: the task, given the TFDS directory and the steps of a run.
        seeds: of a finalist.
        finalists: settings that run on all seeds.
        rates: learning rates of the grid.
        chance: loss of a network that has learnt nothing: all classes are equally likely.
    """

    title: str
    batch_size: int
    steps: int
    make: Callable[[str | None, int], Task]
    seeds: int = 3
    finalists: int = 1
    rates: int = 5
    chance: float = math.log(10)


VOCABULARY = 103  # characters of the text of "characters", in Python 3.11
TASKS = {
    "digits": Kind("DIGITS, tanh MLP", 8, 1000, digits, finalists=2),
    "characters": Kind("characters, transformer", 32, 200, characters, chance=math.log(VOCABULARY)),
    "autoencoder": Kind("MNIST, deep autoencoder", 250, 120, autoencoder, chance=math.log(2)),
    "residual": Kind("CIFAR-10, residual net", 128, 200, functools.partial(residual, "residual"), rates=4),
    "residual-bn": Kind("CIFAR-10, residual net with BN", 128, 200, functools.partial(residual, "residual-bn")),
    "vit": Kind("CIFAR-10, ViT", 128, 200, transformer),
}


def report(store: Store, names: Sequence[str], entries: Sequence[Entry], options: argparse.Namespace) -> str:
    """Tables of the tasks, the goals, and a figure for each task.

    Args:
        store: the cells.
        names: of the tasks.
        entries: the methods.
        options: of the command.

    Returns:
        The text.
    """
    parts, found = [], []
    for name in names:
        title, batch_size, budget = TASKS[name].title, TASKS[name].batch_size, budget_of(name, options)
        rows = standings(store, title, entries, budget)
        if rows:
            effort = f"seeds 0 to {budget.seeds - 1}, {budget.rates} rates, finalists: {budget.finalists}"
            parts.append(f"**{title}**, B = {batch_size}, {budget.steps} steps; {effort}\n\n{table(rows)}")
            found.append(_goals.goals(store, title, rows, budget, TASKS[name].chance))
            _goals.plot(store, title, rows, budget, options.figures / f"against_the_best_{name}.png")
    if not found:
        return "Nothing is complete yet."
    versions = f"Keras {keras.__version__}, TensorFlow {tf.__version__}"
    return "\n\n".join([versions, _goals.goals_table(found), *parts])


def budget_of(name: str, options: argparse.Namespace) -> Budget:
    """What every method of a task may spend, as the command says."""
    kind = TASKS[name]
    return Budget(
        options.steps or kind.steps, options.rates or kind.rates, options.seeds or kind.seeds,
        options.finalists or kind.finalists,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
        arguments: of the command line.
    """
    parser = _command.bare_parser(__doc__.splitlines()[0], "keras_examples/results/against_the_best", 0, 0)
    parser.add_argument("--quick", action="store_true", help="one task, three methods, few steps")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=[entry.name for entry in ENTRIES])
    parser.add_argument("--rates", type=_command.whole(1), help="learning rates of the grid; default: the task's")
    parser.add_argument(
        "--finalists", type=_command.whole(1), help="settings that are run on all seeds; default: the task's"
    )
    parser.add_argument("--rounds", type=_command.whole(1), default=1, help="turns of the step times, of whole runs")
    parser.add_argument("--minutes", type=_command.whole(1), help="begin no run after so many")
    parser.add_argument("--retime", action="store_true", help="measure the step times again and run nothing else")
    parser.add_argument("--report", action="store_true", help="write the report of what is stored and run nothing")
    parser.add_argument("--times", type=pathlib.Path, help="store whose step times --report takes: another machine's")
    parser.add_argument("--table", default="table.md", help="name of the report's file")
    parser.add_argument("--figures", type=pathlib.Path, help="directory of the figures; default: that of the results")
    parser.add_argument("--data-dir", default=os.environ.get("TFDS_DATA_DIR"), help="TFDS directory")
    options = parser.parse_args(arguments)
    if options.times and not options.report:
        parser.error("`--times` must come with `--report`: what is run here is timed here.")
    entries = [entry for entry in ENTRIES if options.methods is None or entry.name in options.methods]
    if options.quick:
        options.tasks, options.seeds, options.rates, options.rounds, options.steps = ["digits"], 1, 1, 1, 20
        options.finalists = 2
        entries = [entry for entry in ENTRIES if entry.name in (ADAMW, "GTDDP, AdamW inside", "GTDDP, K-FAC")]
    until = math.inf if options.minutes is None else time.monotonic() + 60 * options.minutes
    store, methods = Store(options.out / "cells.jsonl"), Methods(entries, ENTRIES, UNIT)
    for name in [] if options.report else options.tasks:
        budget = budget_of(name, options)
        try:
            task = TASKS[name].make(options.data_dir, budget.steps)
        except ValueError as problem:
            parser.error(str(problem))
        ring = Ring(task, store)
        if options.retime:
            timed = [entry for entry in entries if store.of(task.name, entry.name)]
            ring.time_steps(timed, options.rounds, budget.steps, UNIT)
        elif not contest(ring, methods, budget, TASKS[name].chance, options.rounds, until):
            print(f"{name}: stopped before its end; the same command goes on.", flush=True)
    options.figures = options.figures or options.out
    options.figures.mkdir(parents=True, exist_ok=True)
    if options.times:
        store.milliseconds = Store(options.times).milliseconds
    text = report(store, options.tasks, entries, options)
    (options.out / options.table).write_text(text + "\n")
    print(f"\n{text}\n\ncells.jsonl and {options.table} are in {options.out}/, figures in {options.figures}/")


if __name__ == "__main__":
    main()
