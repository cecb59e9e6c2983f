"""Figures that look into a trained model: V_XX (GT-DDP Fig. 4), feedback against open gain, maps of convolutions."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import keras
import numpy as np

import bellman_tf as btf
from keras_examples.papers import data as paper_data
from keras_examples.papers.networks import convolutions, fully_connected, normalised
from keras_examples.papers.train import piece
from keras_examples.studies import _study
from keras_examples.studies._feedback import nearest_pair
from keras_examples.studies._markdown import markdown
from keras_examples.studies._methods import Variant
from keras_examples.studies._report import new_figure, spread_text


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a look is made with.

    Attributes:
        data: name of the data; "" for the paper's own.
        data_dir: TFDS directory.
        steps: of training; None for the default of each look.
        seeds: runs; None for the default of each look.
        out: directory of the figures.
    """

    data: str
    data_dir: str | None
    steps: int | None
    seeds: int | None
    out: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Look:
    """A figure.

    Attributes:
        name: on the command line.
        place: paper and number.
        shows: what the paper says that it shows.
        make: writes the figure and returns the table.
        steps: of training.
        seeds: runs.
        data: name of the paper's data.
    """

    name: str
    place: str
    shows: str
    make: Callable[["Look", Settings], str]
    steps: int
    seeds: int
    data: str

    def trainer(self, settings: Settings, network: Callable, optimizer: Callable, batch: int) -> _study.Trainer:
        """The network with its optimizer, compiled, on the data."""
        data = paper_data.load(settings.data or self.data, settings.data_dir)
        steps = settings.steps or self.steps
        every = piece(steps)
        task = _study.Task(self.data, functools.partial(network, data.x_train.shape[1:]), data, batch, steps, every,
                           {}, tail=every)  # fmt: skip
        return _study.Trainer(task, Variant(self.name, optimizer))


def value_hessian(look: Look, settings: Settings) -> str:
    """V_XX of four samples before the layers of a net with BatchNormalization, and the share off its blocks."""
    make = functools.partial(btf.GTDDP, curvature="identity", terminal_hessian="full", rollout="nonlinear")
    trainer = look.trainer(settings, functools.partial(normalised, hidden=(20, 20)), make, 32)
    layers = [layer.name for layer in trainer.model.layers if isinstance(layer, keras.layers.Dense)][1:]
    rows, shown = [("before layer", "seed", "state", "size of V_XX", "share off the diagonal blocks")], {}
    for seed in range(settings.seeds or look.seeds):
        for state in ("untrained", "trained"):
            if state == "trained":
                trainer.run(0, seed, rate=0.1)
            else:
                trainer.model.set_weights(trainer.task.initial_weights(seed))
            for number, layer in enumerate(layers, 2):
                V = btf.analysis.value_hessian(trainer.model, trainer.task.data.x_test[:4], layer)
                off = V.copy()
                for i in range(len(V)):
                    off[i, :, i] = 0
                size = np.linalg.norm(V)
                rows.append((str(number), str(seed), state, f"{size:.3g}", f"{np.linalg.norm(off) / size:.3f}"))
                if seed == 0 and state == "trained":
                    shown[number] = V
    figure = new_figure(3.8 * len(shown), 3.2)
    for axis, (number, V) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        samples, size = V.shape[:2]
        matrix = V.reshape(samples * size, -1)
        most = np.abs(matrix).max()
        image = axis.imshow(matrix, cmap="RdBu_r", vmin=-most, vmax=most)
        for k in range(1, samples):
            for line in (axis.axhline, axis.axvline):
                line(k * size - 0.5, color="0.5", lw=0.5)
        axis.set_title(f"V_XX before layer {number}, {samples} samples", fontsize=8)
        figure.colorbar(image, ax=axis)
    figure.savefig(settings.out / f"{look.name}.png", dpi=90)
    return markdown(rows)


def feedback_ratio(look: Look, settings: Settings) -> str:
    """Norm of the feedback part of the sample weights over the open-loop part, stage by stage, at two rates."""
    hidden = functools.partial(fully_connected, hidden=(20,) * 4, activation="tanh")
    make = functools.partial(btf.GTDDP.as_published, curvature="identity")
    trainer = look.trainer(settings, hidden, make, 8)
    rows = [("rate", "stage", "feedback / open loop, mean over the run")]
    figure = new_figure(4.6, 3.0)
    axis = figure.subplots()
    for rate in (0.03, 0.1, 0.3):
        found: dict[str, list[list[float]]] = {}
        for seed in range(settings.seeds or look.seeds):
            watch = _Ratios()
            trainer.run(0, seed, rate=rate, callbacks=[btf.callbacks.GameMonitor(), watch])
            for name, values in watch.seen.items():
                found.setdefault(name, []).append(values)
        for name, curves in found.items():
            rows.append((f"{rate:g}", name.rsplit("_", 1)[-1], spread_text([float(np.mean(c)) for c in curves])))
        whole = np.mean([np.mean(curves, axis=0) for curves in found.values()], axis=0)
        axis.semilogy(trainer.task.every * np.arange(1, len(whole) + 1), whole, label=f"rate {rate:g}")
    axis.axhline(0.1, color="0.6", ls="--", lw=0.8)
    axis.set(xlabel="step", ylabel="feedback / open loop")
    axis.legend(fontsize=7)
    figure.savefig(settings.out / f"{look.name}.png", dpi=90)
    return markdown(rows)


class _Ratios(keras.callbacks.Callback):
    """Keeps the feedback ratios that `GameMonitor`, which comes before, puts into the logs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, list[float]] = {}

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Keeps them."""
        for name, value in (logs or {}).items():
            if name.startswith("feedback_ratio"):
                self.seen.setdefault(name, []).append(value)


MAPS = 4


def convolution_maps(look: Look, settings: Settings) -> str:
    """The leading feedback maps of a convolution, pulled back to the pixels, trained and not."""
    make = functools.partial(btf.GTDDP, curvature="identity", terminal_hessian="full", rollout="nonlinear")
    trainer = look.trainer(settings, functools.partial(convolutions, widths=(8, 8)), make, 32)
    task = trainer.task
    rows = [("seed", "state", "map", "nearest pair of classes", "cosine")]
    shown = {}
    for seed in range(settings.seeds or look.seeds):
        for trained in (False, True):
            if trained:
                trainer.run(0, seed, rate=0.1)
            else:
                trainer.model.set_weights(task.initial_weights(seed))
            layer = trainer.model.game.players[1].name
            maps = btf.analysis.feedback_maps(trainer.model, task.data.x_test[:16], layer, count=MAPS, project=True)
            state = "trained" if trained else "untrained"
            if not seed:
                shown[state] = maps
            for rank, image in enumerate(maps, 1):
                cosine, a, b = nearest_pair(image, task.data)
                rows.append((str(seed), state, str(rank), f"{a} - {b}", f"{cosine:.2f}"))
    figure = new_figure(1.4 * MAPS, 3.2)
    for line, (state, maps) in zip(figure.subplots(2, MAPS), shown.items(), strict=True):
        for axis, image in zip(line, maps, strict=True):
            size = np.abs(image).max()
            axis.imshow(image.mean(axis=-1), cmap="RdBu", vmin=-size, vmax=size)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(state, fontsize=7)
    figure.savefig(settings.out / f"{look.name}.png", dpi=90)
    return markdown(rows)


LOOKS = (
    Look(
        "gtddp-fig-4", "GT-DDP, Fig. 4", "V_XX has values along its diagonal blocks only, BatchNormalization or not",
        value_hessian, 300, 2, "digits",
    ),
    Look(
        "gtddp-section-5", "GT-DDP, Sec. 5", "feedback updates are an order of magnitude smaller than open gains",
        feedback_ratio, 600, 2, "digits",
    ),
    Look(
        "ddpnopt-fig-5", "DDPN, Fig. 5", "feedback maps of convolutions are differences of classes",
        convolution_maps, 300, 2, "mnist",
    ),
)  # fmt: skip
