"""Where the shortcuts act: fixed, random and adaptive alignment of a residual network with trainable shortcuts.

    python -m keras_examples.studies.alignment --data-dir DIRECTORY    # 8 minutes, two cores with ten other jobs
    python -m keras_examples.studies.alignment --quick                 # less than a minute, on DIGITS

A trainable shortcut may act in the stage of the first or of the second convolution beside it. The network computes the
same, the game's update does not. You will see DGNOpt with K-FAC as the metric: with the shortcuts as early and as late
as possible, placed at random at every step, and placed by a bandit (EXP3++, rewarded by the decrease of the loss),
beside the open-loop baseline, for which all placements are the same. The table has the train loss (mean of the last 30
steps), its difference to the earliest placement with the same seed, and the bandit's final probabilities; the figure
has the loss curves and the bandit's probabilities over the steps.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence

import keras
import numpy as np

import bellman_tf as btf
from keras_examples.studies import _command, _networks, _report, _study
from keras_examples.studies._markdown import markdown
from keras_examples.studies._methods import Variant

STRATEGIES = {
    "open loop": {"information": "open"},
    "fixed, earliest": {"alignment": "asap"},
    "fixed, latest": {"alignment": "alap"},
    "random": {"alignment": "random"},
    "adaptive": {"alignment": "adaptive"},
}
REFERENCE = "fixed, earliest"
EVERY, TAIL, BATCH = 10, 30, 64
FIGURE = "alignment.png"


class _Probabilities(keras.callbacks.Callback):
    """Notes the bandit's probabilities at the end of every piece."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[float]] = []

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Notes them."""
        self.seen.append([float(p) for p in self.model.optimizer.probabilities.numpy()])


def conduct(
    task: _study.Task, strategies: Sequence[str], rate: float, seeds: int, progress: _report.Progress
) -> list[dict]:
    """Trains with every strategy.

    Args:
        task: network and data.
        strategies: of `STRATEGIES`; the reference must be among them.
        rate: learning rate.
        seeds: runs of each.
        progress: told about every run.

    Returns:
        One record per run; with the adaptive strategy the bandit's probabilities and how often each placement acted.
    """
    records = []
    for name in strategies:
        make = functools.partial(btf.DGNOpt, curvature="kfac", **STRATEGIES[name])
        trainer = _study.Trainer(task, Variant(name, make))
        optimizer = trainer.optimizer
        for seed in range(seeds):
            watch = _Probabilities()
            run = trainer.run(0, seed, rate=rate, callbacks=[watch] if optimizer.adaptive else [])
            progress.add(run)
            record = dataclasses.asdict(run)
            if optimizer.adaptive:
                placements = [list(placement.values()) for placement in optimizer.placements(trainer.model.game)]
                pulls = optimizer.pulls.numpy().tolist()
                record |= {"probabilities": watch.seen, "pulls": pulls, "placements": placements}
            records.append(record)
    return records


def table(records: list[dict]) -> str:
    """One row per data set and strategy."""
    rows = [
        ("data", "shortcuts", "train loss", "minus earliest", "test accuracy", "final probabilities, seed 0", "ms/step")
    ]
    for task, name in dict.fromkeys((r["task"], r["method"]) for r in records):
        own, reference = ([r for r in records if (r["task"], r["method"]) == (task, n)] for n in (name, REFERENCE))
        gaps = [r["loss"] - other["loss"] for r, other in zip(own, reference, strict=True)]
        accuracy = [100 * r["accuracy"] for r in own]
        chances = " ".join(f"{p:.2f}" for p in own[0]["probabilities"][-1]) if "probabilities" in own[0] else "-"
        rows.append((
            task, name, _report.spread_text([r["loss"] for r in own]), f"{np.mean(gaps):+.2g} +- {np.std(gaps):.1g}",
            f"{np.mean(accuracy):.1f} +- {np.std(accuracy):.1f}", chances,
            f"{np.median([r['milliseconds'] for r in own]):.0f}",
        ))  # fmt: skip
    return markdown(rows)


def plot(records: list[dict], path: object) -> None:
    """Loss curves, means over the seeds, and the bandit's probabilities of every seed; a row per data set."""
    tasks = list(dict.fromkeys(r["task"] for r in records))
    figure = _report.new_figure(8, 2.8 * len(tasks))
    for (curves, chances), task in zip(figure.subplots(len(tasks), 2, squeeze=False), tasks, strict=True):
        for name in dict.fromkeys(r["method"] for r in records):
            own = [r for r in records if (r["task"], r["method"]) == (task, name)]
            curve = np.mean([r["curve"] for r in own], axis=0)
            steps = EVERY * np.arange(1, len(curve) + 1)
            curves.semilogy(steps, curve, lw=1.2, label=name)
            for record in own if "probabilities" in own[0] else ():
                for arm, values in enumerate(np.transpose(record["probabilities"])):
                    label = f"shortcuts at {record['placements'][arm]}" if record["seed"] == 0 else None
                    chances.plot(
                        steps, values, color=f"C{arm}", lw=1, ls=("-", "--", ":")[record["seed"] % 3], label=label
                    )
        curves.set(ylabel="train loss", xlabel="step", title=task)
        chances.set(ylabel="probability", xlabel="step", title="bandit; line styles are seeds", ylim=(0, None))
        curves.legend(fontsize=7)
        chances.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
        arguments: of the command line.
    """
    parser = _command.short_parser(__doc__.splitlines()[0], "results/alignment", "mnist", 200, seeds=3)
    parser.add_argument("--rate", type=float, default=0.03, help="learning rate of all")
    parser.add_argument("--blocks", type=_command.whole(1), default=2, help="residual blocks")
    parser.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES), help="rows")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.steps, options.blocks = 1, min(options.steps, 40), 1
        options.strategies = ["adaptive"]
    strategies = list(dict.fromkeys([REFERENCE, *options.strategies]))
    _command.multiple(parser, "--steps", options.steps, EVERY)
    data = _command.load(parser, options, ("mnist",), 20000)
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    progress = _report.Progress(len(data) * len(strategies) * options.seeds)
    records = []
    for name, each in data.items():
        shape = each.x_train.shape[1:]
        network = functools.partial(
            _networks.shortcut_cnn, shape, width=8, strides=2 if name == "digits" else 4, blocks=options.blocks
        )
        task = _study.Task(name, network, each, BATCH, options.steps, EVERY, {}, tail=min(TAIL, options.steps))
        records += conduct(task, strategies, options.rate, options.seeds, progress)
    plot(records, options.out / FIGURE)
    _command.report(options, table(records), records, time.perf_counter() - start, [FIGURE])


if __name__ == "__main__":
    main()
