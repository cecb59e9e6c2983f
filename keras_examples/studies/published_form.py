"""The papers' form in every reading of its scale, beside the baseline of the same metric at the same rates.

    python -m keras_examples.studies.published_form              # on DIGITS
    python -m keras_examples.studies.published_form --data mnist cifar10 --data-dir DIRECTORY
    python -m keras_examples.studies.published_form --quick      # less than a minute

No paper says what its terminal value is divided by: the value of the mean loss or of each sample's own, z = g/B or
z = g, the batch's Q_u or the sample's own (`outer_scale`, `outer_gain` of `as_published`). You will see the train loss
at the end, seed by seed, of every reading, of the loss's own Hessian, and of the baseline; `as_published()` is to train
where its baseline trains at the papers' rates. DIGITS with the tanh network of DDP1, one
residual block of three convolutions with a trainable shortcut on MNIST and CIFAR-10, as in GT-DDP.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Sequence

import keras

import bellman_tf as btf
from keras_examples.studies import _command, _networks, _report, _study
from keras_examples.studies._markdown import markdown
from keras_examples.studies._methods import KERAS_BASELINES, Variant

BASELINE = "baseline"
# Name: options of `as_published`.
READINGS = {
    BASELINE: None,
    "as_published(): z = g/B, c = 1/B": {},
    "z = g, c = 1/B": {"outer_scale": "batch"},
    "z = g, c = 1": {"outer_scale": "sample"},
    "z = g, c = 1, own Q_u (Alg. 3)": {"outer_scale": "sample", "outer_gain": "own"},
    "true curvature along g, c = 1/B": {"terminal_hessian": "matched"},
    "whole Hessian, c = 1/B": {"terminal_hessian": "full"},
}
# Metric: learning rates of DDPN Table 4.
RATES = {"identity": (0.1, 0.3), "rmsprop": (0.001, 0.01), "adam": (0.001, 0.01), "ekfac": (0.01, 0.1)}
EVERY = 50


def residual_block(shape: tuple[int, ...], width: int = 12) -> keras.Model:
    """A strided convolution, three convolutions with a 1x1 shortcut over them, 2x2 pooling, and a dense layer.

    Args:
        shape: of an image.
        width: channels.

    Returns:
        The network, giving logits.
    """
    convolution = functools.partial(keras.layers.Conv2D, width, padding="same")
    inputs = keras.Input(shape)
    x = convolution(3, strides=2, activation="relu")(inputs)
    h = x
    for activation in ("relu", "relu", None):
        h = convolution(3, activation=activation)(h)
    x = keras.layers.Activation("relu")(keras.layers.Add()([h, convolution(1)(x)]))
    return btf.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(keras.layers.MaxPooling2D()(x))))


def optimizer(metric: str, reading: str) -> keras.optimizers.Optimizer:
    """A new optimizer of a row; the study sets its learning rate."""
    options = READINGS[reading]
    if options is not None:
        return btf.GTDDP.as_published(curvature=metric, **options)
    return KERAS_BASELINES[metric]() if metric in KERAS_BASELINES else btf.EKFAC.as_published()


def conduct(
    task: _study.Task, metrics: Sequence[str], readings: Sequence[str], seeds: int, progress: _report.Progress
) -> list[dict]:
    """Trains with every reading at the metric's rates.

    Args:
        task: network and data.
        metrics: of `RATES`.
        readings: of `READINGS`.
        seeds: runs of each.
        progress: told about every run.

    Returns:
        One record per run; with ours the number of values that were clamped.
    """
    records = []
    for metric in metrics:
        for reading in readings:
            trainer = _study.Trainer(task, Variant(reading, functools.partial(optimizer, metric, reading), metric))
            for run in trainer.runs(RATES[metric], seeds, progress):
                clamped = getattr(trainer.optimizer, "clamped_values", None)
                records.append(dataclasses.asdict(run) | {"clamped": None if clamped is None else int(clamped.numpy())})
    return records


def loss_text(loss: float) -> str:
    """A loss to three digits, "breaks" where it is not finite."""
    return f"{loss:.3g}" if math.isfinite(loss) else "breaks"


def table(records: list[dict]) -> str:
    """One row per data set, metric and reading: losses of all seeds at each rate."""
    first = dict.fromkeys((r["task"], r["metric"]) for r in records)
    rows = [("data", "metric", "reading", "lower rate", "higher rate", "clamps a step at the higher")]
    for task, metric in first:
        rates = RATES[metric]
        for reading in dict.fromkeys(r["method"] for r in records):
            own = [r for r in records if (r["task"], r["metric"], r["method"]) == (task, metric, reading)]
            cells = [" ".join(loss_text(r["loss"]) for r in own if r["rate"] == rate) for rate in rates]
            counts = [r["clamped"] / r["steps"] for r in own if r["rate"] == rates[-1] and r["clamped"] is not None]
            clamps = f"{sum(counts) / len(counts):.2g}" if counts else "-"
            texts = [f"{rate:g}: {cell}" for rate, cell in zip(rates, cells, strict=True)]
            rows.append((task, metric, reading, *texts, clamps))
    return markdown(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
        arguments: of the command line.
    """
    parser = _command.short_parser(__doc__.splitlines()[0], "results/published_form", "digits", 1500, seeds=3)
    parser.add_argument("--metrics", nargs="+", choices=list(RATES), default=["identity", "rmsprop"], help="curvatures")
    parser.add_argument("--readings", nargs="+", choices=list(READINGS), default=list(READINGS), help="rows")
    parser.add_argument("--batch", type=_command.whole(1), help="batch size; default: 8 on DIGITS, else 128")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.steps, options.metrics = 1, min(options.steps, 100), options.metrics[:1]
        options.readings = options.readings[:2]
    _command.multiple(parser, "--steps", options.steps, EVERY)
    data = _command.load(parser, options, ("digits",), 20000)
    options.out.mkdir(parents=True, exist_ok=True)
    start, records = time.perf_counter(), []
    cells = sum(len(RATES[metric]) for metric in options.metrics) * len(options.readings)
    progress = _report.Progress(len(data) * cells * options.seeds)
    for name, each in data.items():
        make = _networks.tanh_mlp if name == "digits" else residual_block
        network = functools.partial(make, each.x_train.shape[1:])
        size = options.batch or (8 if name == "digits" else 128)
        task = _study.Task(name, network, each, size, options.steps, EVERY, {}, tail=0)
        found = conduct(task, options.metrics, options.readings, options.seeds, progress)
        records += [record | {"steps": options.steps} for record in found]
    _command.report(options, table(records), records, time.perf_counter() - start, [])


if __name__ == "__main__":
    main()
