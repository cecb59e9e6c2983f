"""GTDDP against the optimizers that people use, each at its best of the same budget, at equal steps and at equal time.

    python -m keras_examples.against_the_best --data-dir DIRECTORY            # hours; goes on where it stopped
    python -m keras_examples.against_the_best --quick                         # less than a minute

Six tasks on real data. Every method gets the same number of learning rates (half a decade apart), seeds and schedules
(constant, cosine), and for one seed the same initial weights and batches. A step is timed with all methods of a task in
one process, in turns; a baseline also runs so many steps more as fit in the time of the GTDDP row with the same rule.
Results are kept line by line in `cells.jsonl` under `--out`: an interrupted run goes on, `--minutes` ends one.
"""

import dataclasses
import functools
import math
import os
import pathlib
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np

import bellman_tf as btf
from keras_examples import _command, _data, _networks
from keras_examples._contest import Entry, Store, best_of, rates_of, run_cells, time_steps
from keras_examples._study import LOSS, Task

optimizers = keras.optimizers


def _kfac(**options: object) -> btf.curvature.KFAC:
    return btf.curvature.KFAC(invert_every=5, **options)


def _ekfac() -> btf.curvature.EKFAC:
    return btf.curvature.EKFAC(invert_every=5)


def inside(make: Callable[[], optimizers.Optimizer]) -> Callable[[], btf.GTDDP]:
    """A GTDDP that moves the variables with another optimizer.

    Args:
        make: that optimizer.

    Returns:
        What makes the GTDDP.
    """
    return lambda: btf.GTDDP(inner_optimizer=make())


momentum = functools.partial(optimizers.SGD, momentum=0.9)
ENTRIES = [
    Entry("SGD, momentum", momentum, 0.1, False),
    Entry("AdamW", optimizers.AdamW, 0.003, False),
    Entry("Muon", optimizers.Muon, 0.01, False),
    Entry("K-FAC", lambda: btf.KFAC(curvature=_kfac()), 0.03, False),
    Entry("EKFAC", lambda: btf.EKFAC(curvature=_ekfac()), 0.03, False),
    Entry("GTDDP, SGD inside", inside(momentum), 0.1, True),
    Entry("GTDDP, momentum in the policy", lambda: btf.GTDDP(curvature="identity", momentum=0.9), 0.1, True),
    Entry("GTDDP, AdamW inside", inside(optimizers.AdamW), 0.003, True),
    Entry("GTDDP, Muon inside", inside(optimizers.Muon), 0.01, True),
    Entry("GTDDP, K-FAC", lambda: btf.GTDDP(curvature=_kfac()), 0.03, True),
    Entry("GTDDP, EKFAC", lambda: btf.GTDDP(curvature=_ekfac()), 0.03, True),
    Entry("GTDDP, K-FAC, feedback", lambda: btf.GTDDP(curvature=_kfac(), information="feedback"), 0.03, True),
    Entry("GTDDP, K-FAC, nonlinear", lambda: btf.GTDDP(curvature=_kfac(), rollout="nonlinear"), 0.03, True),
]
# Whose time a baseline may spend.
TWIN = {
    "SGD, momentum": "GTDDP, SGD inside",
    "AdamW": "GTDDP, AdamW inside",
    "Muon": "GTDDP, Muon inside",
    "K-FAC": "GTDDP, K-FAC",
    "EKFAC": "GTDDP, EKFAC",
}


def autoencoder(data_dir: str | None, steps: int) -> Task:
    """Martens and Grosse's deep autoencoder on MNIST, B = 250."""
    data = _data.load("mnist", data_dir)
    x, x_test = (part.reshape(len(part), -1) for part in (data.x_train, data.x_test))
    loss = functools.partial(keras.losses.BinaryCrossentropy, from_logits=True)
    return _task("autoencoder", _networks.autoencoder, _data.Data(x, x, x_test, x_test), 250, steps, loss, False)


def residual(normalize: bool, data_dir: str | None, steps: int) -> Task:
    """A residual net of widths 16, 16, 32, 64 on 20,000 images of CIFAR-10, B = 128."""
    data = _data.load("cifar10", data_dir, 20000)
    network = functools.partial(_networks.residual_stages, (32, 32, 3), (16, 16, 32, 64), normalize)
    return _task(f"residual net{', BN' if normalize else ''}", network, data, 128, steps)


def transformer(data_dir: str | None, steps: int) -> Task:
    """A vision transformer of 64 tokens on 20,000 images of CIFAR-10, B = 128."""
    data = _data.load("cifar10", data_dir, 20000)
    return _task("ViT", functools.partial(_networks.vision_transformer, (32, 32, 3), 4, 64, 3), data, 128, steps)


def characters(data_dir: str | None, steps: int) -> Task:
    """A character-level transformer on the text of Python's own help topics, 64 characters, B = 64."""
    data, size = _data.characters(64)
    return _task("characters", functools.partial(_networks.character_transformer, 64, size, 64, 2), data, 64, steps)


def digits(data_dir: str | None, steps: int) -> Task:
    """The papers' tanh network on DIGITS, B = 8."""
    data = _data.load("digits", None)
    return _task("DIGITS", functools.partial(_networks.tanh_mlp, (8, 8, 1)), data, 8, steps)


def _task(
    name: str,
    network: Callable[[], keras.Model],
    data: _data.Data,
    batch_size: int,
    steps: int,
    loss: Callable[[], keras.losses.Loss] = LOSS,
    classes: bool = True,
) -> Task:
    return Task(name, network, data, batch_size, steps, EVERY, {}, EVERY, False, False, loss, classes)


EVERY = 10
# name -> what makes the task, steps of a run
TASKS: dict[str, tuple[Callable[[str | None, int], Task], int]] = {
    "digits": (digits, 1000),
    "autoencoder": (autoencoder, 240),
    "residual": (functools.partial(residual, False), 300),
    "residual-bn": (functools.partial(residual, True), 300),
    "vit": (transformer, 300),
    "characters": (characters, 300),
}


def longer(steps: int, own: float, twin: float) -> int:
    """Steps of a baseline in the time that its GTDDP row takes for `steps`.

    Args:
        steps: of the GTDDP row.
        own: milliseconds per step of the baseline.
        twin: milliseconds per step of the GTDDP row.

    Returns:
        A multiple of the curve's pieces, at least `steps`.
    """
    return max(steps, EVERY * math.ceil(steps * twin / own / EVERY))


def table(store: Store, task: str, steps: int) -> str:
    """The results of one task in Markdown.

    Args:
        store: the cells.
        task: name.
        steps: of a run.

    Returns:
        One row per method.
    """
    head = (
        "method",
        "ms/step",
        "best rate",
        "schedule",
        f"test loss, {steps} steps",
        "accuracy",
        "width",
        "equal time",
    )
    rows = [head, ("---",) * len(head)]
    for entry in ENTRIES:
        best, ms = best_of(store, task, entry.name, steps), store.milliseconds.get((task, entry.name))
        if best is None:
            continue
        low, high = best.interval
        accuracy = "-" if math.isnan(best.accuracies[0]) else f"{100 * np.mean(best.accuracies):.1f}"
        equal = "as left"
        if entry.name in TWIN and ms is not None and (task, TWIN[entry.name]) in store.milliseconds:
            more = longer(steps, ms, store.milliseconds[task, TWIN[entry.name]])
            at_time = best_of(store, task, entry.name, more)
            equal = "-" if at_time is None else f"{at_time.loss:.4g} ({more} steps)"
        rows.append((
            entry.name, "-" if ms is None else f"{ms:.1f}", f"{best.rate:g}", best.schedule,
            f"{best.loss:.4g} [{low:.4g}, {high:.4g}]", accuracy, f"{best.width:.1f}", equal,
        ))  # fmt: skip
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
        arguments: of the command line.
    """
    parser = _command.bare_parser(__doc__.splitlines()[0], "results/against_the_best", 0, 3)
    parser.add_argument("--quick", action="store_true", help="one task, three methods, few steps")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=[entry.name for entry in ENTRIES])
    parser.add_argument("--rates", type=_command.whole(1), default=5, help="learning rates per method")
    parser.add_argument("--rounds", type=_command.whole(1), default=5, help="turns of the step times")
    parser.add_argument("--minutes", type=_command.whole(1), help="begin no run after so many")
    parser.add_argument("--data-dir", default=os.environ.get("TFDS_DATA_DIR"), help="TFDS directory")
    options = parser.parse_args(arguments)
    entries = [entry for entry in ENTRIES if options.methods is None or entry.name in options.methods]
    if options.quick:
        options.tasks, options.seeds, options.rates, options.rounds, options.steps = ["digits"], 1, 1, 1, 20
        entries = [entry for entry in ENTRIES if entry.name in ("AdamW", "GTDDP, AdamW inside", "GTDDP, K-FAC")]
    start = time.perf_counter()
    until = math.inf if options.minutes is None else time.monotonic() + 60 * options.minutes
    out = pathlib.Path(options.out)
    store, text = Store(out / "cells.jsonl"), []
    for name in options.tasks:
        make, steps = TASKS[name]
        steps = options.steps or steps
        try:
            task = make(options.data_dir, steps)
        except ValueError as problem:
            parser.error(str(problem))
        time_steps(task, entries, store, options.rounds)
        for entry in entries:
            lengths, twin = [steps], TWIN.get(entry.name)
            if twin is not None and (task.name, twin) in store.milliseconds:
                own, other = (store.milliseconds[task.name, method] for method in (entry.name, twin))
                lengths = sorted({steps, longer(steps, own, other)})
            task.steps = max(task.steps, *lengths)
            if not run_cells(task, entry, lengths, rates_of(entry.middle, options.rates), options.seeds, store, until):
                break
        text.append(f"**{task.name}**, B = {task.batch_size}\n\n{table(store, task.name, steps)}")
    cells = [dataclasses.asdict(cell) for cell in store.cells.values()]
    _command.report(options, "\n\n".join(text), cells, time.perf_counter() - start, ["cells.jsonl"])


if __name__ == "__main__":
    main()
