"""Fictitious players, and the learning rate or damping that does the same.

    python -m keras_examples.studies.fictitious_players --data-dir DIRECTORY    # 21 minutes, two busy cores
    python -m keras_examples.studies.fictitious_players --quick                 # less than half a minute, on DIGITS

DGNOpt lets N players share the weights of a layer, theta = theta_1 + ... + theta_N, and reports fewer training steps
for larger N (its Table 3). You will see a small CNN trained for N = 1, 2, 4, 6 at one learning rate, in three ways,
each beside a control without any players:

- "SGD": `DGNOpt(players=N, information="open", curvature="identity")` beside Keras's SGD at N times the rate, and
  beside the game itself: a network in which every layer is N Keras layers whose outputs are added, trained by Keras's
  SGD at the plain rate. That one owes nothing to our code.
- "game": the same with the cooperative recursion, beside GTDDP at N times the rate.
- "K-FAC": `DGNOpt(players=N, curvature=KFAC(damping))` beside GTDDP with damping / N.

The table has the steps to the train loss that N = 1 ends with (mean of 20 steps), how many times fewer than for N = 1,
the final loss, and the largest relative difference between a curve and its controls, over the first ten steps and over
all: float32 rounds and training amplifies. A second table has one player's SGD at other rates.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np

import bellman_tf as btf
from keras_examples.studies import _command, _networks, _report, _study
from keras_examples.studies._markdown import markdown
from keras_examples.studies._methods import Variant

PLAYERS = (1, 2, 4, 6)
RATES = {"SGD": 0.03, "game": 0.03, "K-FAC": 0.01}
TUNED = (0.1, 0.2, 0.3, 0.6)
DAMPING = 0.01
BATCH = 64
EVERY, WINDOW = 10, 2  # steps of a piece of the curve; pieces that are averaged
FIGURE = "fictitious_players.png"


def kfac(damping: float) -> btf.curvature.KFAC:
    """K-FAC with a damping."""
    return btf.curvature.KFAC(damping=damping)


def pairs(way: str, count: int) -> dict[str, tuple[Callable[[], keras.optimizers.Optimizer], float]]:
    """The optimizer with players and its control: name to how to make it and its learning rate.

    Args:
        way: "SGD", "game" or "K-FAC".
        count: N.

    Returns:
        Both.
    """
    rate, plain = RATES[way], {"curvature": "identity"}
    if way == "SGD":
        open_loop = functools.partial(btf.DGNOpt, players=count, information="open", **plain)
        return {"players": (open_loop, rate), "control": (keras.optimizers.SGD, count * rate)}
    if way == "game":
        game = functools.partial(btf.DGNOpt, players=count, **plain)
        return {"players": (game, rate), "control": (functools.partial(btf.GTDDP, **plain), count * rate)}
    damped = functools.partial(btf.DGNOpt, players=count, curvature=kfac(DAMPING))
    return {"players": (damped, rate), "control": (functools.partial(btf.GTDDP, curvature=kfac(DAMPING / count)), rate)}


def split_network(network: Callable[[], keras.Model], count: int) -> keras.Model:
    """The network with every layer that has weights replaced by N of its kind whose outputs are added.

    Args:
        network: makes the model of one player per layer.
        count: N.

    Returns:
        The model; the first of the N starts with the layer's weights, the others with zeros.
    """

    class Shared(keras.layers.Layer):
        """N layers with one input, outputs added."""

        def __init__(self, layer: keras.layers.Layer) -> None:
            super().__init__()
            config = {key: value for key, value in layer.get_config().items() if key != "name"}
            self.parts = [type(layer).from_config(config) for _ in range(count)]

        def call(self, x: object) -> object:
            return sum(part(x) for part in self.parts[1:]) + self.parts[0](x) if count > 1 else self.parts[0](x)

        def compute_output_shape(self, shape: tuple) -> tuple:
            return self.parts[0].compute_output_shape(shape)

        def build(self, shape: tuple) -> None:
            for part in self.parts:
                part.build(shape)
            self.built = True

    made = network()
    split = keras.models.clone_model(
        keras.Model(made.inputs, made.outputs),
        clone_function=lambda layer: Shared(layer) if layer.weights else type(layer).from_config(layer.get_config()),
    )
    own = [layer for layer in made.layers if layer.weights]
    for layer, shared in zip(own, [each for each in split.layers if isinstance(each, Shared)], strict=True):
        for number, part in enumerate(shared.parts):
            part.set_weights([w if number == 0 else np.zeros_like(w) for w in layer.get_weights()])
    return split


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one data set, way and number of players, and what they are compared with.

    Attributes:
        data: name.
        way: "SGD", "game" or "K-FAC".
        count: N.
        players: one run per seed.
        control: as `players`.
        explicit: as `players`, of the split network; empty but for "SGD".
    """

    data: str
    way: str
    count: int
    players: list[_study.Run]
    control: list[_study.Run]
    explicit: list[_study.Run]

    def difference(self, others: list[_study.Run]) -> str:
        """Largest relative difference of the curves, any seed, in the first piece / in all; "-" without runs."""
        if not others:
            return "-"
        pairs = zip(self.players, others, strict=True)
        ratios = np.array([np.abs(np.array(a.curve) - b.curve) / np.array(b.curve) for a, b in pairs])
        return f"{ratios[:, 0].max():.0e} / {ratios.max():.0e}"


def steps_to(run: _study.Run, level: float) -> float:
    """Steps until the mean of the last pieces is at most a level; `inf` if it never is."""
    means = np.convolve(run.curve, np.ones(WINDOW) / WINDOW, mode="valid")
    below = np.flatnonzero(means <= level)
    return float((below[0] + WINDOW) * EVERY) if len(below) else np.inf


def conduct(
    task: _study.Task, ways: Sequence[str], counts: Sequence[int], seeds: int, progress: _report.Progress
) -> list[Group]:
    """Runs players, control and split network.

    Args:
        task: network and data.
        ways: of `RATES`.
        counts: numbers of players.
        seeds: runs of each.
        progress: told about every run.

    Returns:
        One group per way and number.
    """

    def run(trained: _study.Task, name: str, make: Callable, rate: float) -> list[_study.Run]:
        trainer = _study.Trainer(trained, Variant(name, make))
        return list(trainer.runs([rate], seeds, progress))

    groups = []
    for way in ways:
        for count in counts:
            both = {
                form: run(task, f"{way}, N = {count}, {form}", make, rate)
                for form, (make, rate) in pairs(way, count).items()
            }
            explicit = []
            if way == "SGD":
                split = dataclasses.replace(task, network=functools.partial(split_network, task.network, count))
                explicit = run(split, f"SGD, {count} layers for each", keras.optimizers.SGD, RATES[way])
            groups.append(Group(task.name, way, count, **both, explicit=explicit))
    return groups


def table(groups: list[Group]) -> str:
    """One row per data set, way and number of players."""
    rows = [(
        "data", "way", "N", "steps to level", "times fewer", "final loss",
        "control's final loss", f"to control, first {EVERY} steps / all", f"to N layers, first {EVERY} steps / all",
    )]  # fmt: skip
    for group in groups:
        [one] = [g for g in groups if (g.data, g.way, g.count) == (group.data, group.way, 1)]
        levels = [np.mean(run.curve[-WINDOW:]) for run in one.players]
        steps = [steps_to(run, level) for run, level in zip(group.players, levels, strict=True)]
        base = [steps_to(run, level) for run, level in zip(one.players, levels, strict=True)]
        mean, first = np.mean(steps), np.mean(base)
        rows.append((
            group.data, group.way, str(group.count), f"{mean:.0f}" if np.isfinite(mean) else "not reached",
            f"{first / mean:.2f}" if np.isfinite(mean) else "-",
            _report.spread_text([run.loss for run in group.players]),
            _report.spread_text([run.loss for run in group.control]),
            group.difference(group.control), group.difference(group.explicit),
        ))  # fmt: skip
    return markdown(rows)


def plot(groups: list[Group], path: object) -> None:
    """Curves of the players (lines) and of the controls (dots), a row per data set."""
    names = list(dict.fromkeys(g.data for g in groups))
    ways = list(dict.fromkeys(g.way for g in groups))
    figure = _report.new_figure(3.0 * len(ways), 2.6 * len(names))
    axes = figure.subplots(len(names), len(ways), squeeze=False, sharey="row")
    for group in groups:
        axis = axes[names.index(group.data)][ways.index(group.way)]
        for runs, style in (
            (group.players, {"lw": 1.0, "label": f"N = {group.count}"}),
            (group.control, {"ls": ":", "lw": 3}),
        ):
            curve = np.mean([run.curve for run in runs], axis=0)
            axis.plot(EVERY * np.arange(1, len(curve) + 1), curve, color=f"C{PLAYERS.index(group.count)}", **style)
        axis.set_title(f"{group.data}, {group.way}", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0][0].legend(fontsize=7, title="dotted: control", title_fontsize=7)
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("train loss", fontsize=8)
    figure.savefig(path, dpi=110)


def tuned_table(tuned: list[_study.Run]) -> str:
    """One player's SGD at other rates."""
    rows = [("data", "rate, one player", "final loss")]
    for data, rate in dict.fromkeys((run.task, run.rate) for run in tuned):
        losses = [run.loss for run in tuned if (run.task, run.rate) == (data, rate)]
        rows.append((data, f"{rate:g}", _report.spread_text(losses)))
    return markdown(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
        arguments: of the command line.
    """
    parser = _command.short_parser(
        __doc__.splitlines()[0], "results/fictitious_players", "mnist and cifar10", 160, seeds=2
    )
    parser.add_argument("--ways", nargs="+", choices=list(RATES), default=list(RATES), help="what is compared")
    options = parser.parse_args(arguments)
    counts, rates = PLAYERS, TUNED
    if options.quick:
        options.seeds, options.steps, options.ways = 1, min(options.steps, 40), options.ways[:1]
        counts, rates = (1, 4), TUNED[2:3]
    _command.multiple(parser, "--steps", options.steps, EVERY)
    data = _command.load(parser, options, ("mnist", "cifar10"), 20000)
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    forms = 2 * len(options.ways) + ("SGD" in options.ways)
    progress = _report.Progress(len(data) * (forms * len(counts) + len(rates)) * options.seeds)
    groups, tuned = [], []
    for name, each in data.items():
        network = functools.partial(_networks.small_cnn, each.x_train.shape[1:])
        task = _study.Task(name, network, each, BATCH, options.steps, EVERY, {}, tail=WINDOW * EVERY)
        groups += conduct(task, options.ways, counts, options.seeds, progress)
        trainer = _study.Trainer(task, Variant("SGD, one player", keras.optimizers.SGD))
        tuned += trainer.runs(rates, options.seeds, progress)
    plot(groups, options.out / FIGURE)
    runs = [run for group in groups for run in (*group.players, *group.control, *group.explicit)] + tuned
    text = f"{table(groups)}\n\n{tuned_table(tuned)}"
    _command.report(options, text, [dataclasses.asdict(r) for r in runs], time.perf_counter() - start, [FIGURE])


if __name__ == "__main__":
    main()
