"""What the feedback policy of a layer answers: as images on MNIST, and as a spectrum on Gaussian clusters.

    python -m keras_examples.studies.feedback_maps --data-dir DIRECTORY    # 12 minutes, two cores with ten other jobs
    python -m keras_examples.studies.feedback_maps --quick                 # less than a minute, on DIGITS

You will see: (1) the deviations of a layer's input that its feedback gain answers most, pulled back to the pixels,
before and after training (DDPNOpt Fig. 5 says: differences between similar classes). The table compares each map with
the differences of two class means, after training and, as a control, before. (2) the experiment of DDP Section 5.1:
networks 30-20-20-k trained on k Gaussian clusters in 30 dimensions, singular values of the last layer's gain on a
batch; the paper says that exactly k are nontrivial. The table says after which value the spectrum falls most steeply,
by how much, and how many values are nonzero at all.
"""

import argparse
import functools
import itertools
import time
from collections.abc import Sequence

import keras
import numpy as np

import bellman_tf as btf
from keras_examples.studies import _command, _data, _networks, _report, _study
from keras_examples.studies._feedback import nearest_pair
from keras_examples.studies._markdown import markdown
from keras_examples.studies._methods import Variant

CLUSTERS, DIMENSIONS, SPREAD = (5, 8, 12, 15), 30, 0.5
TRAINED, MEASURED = 20, 6  # points per cluster to train on, and in the batch of the spectrum
EPOCHS, SNAPSHOTS = 15, 3
EVERY, BATCH, MAPS = 10, 64, 4
FIGURE = "feedback_maps.png"

optimizer = functools.partial(btf.GTDDP, 0.3, curvature="identity", terminal_hessian="full")


def images(options: argparse.Namespace, name: str, data: _data.Data) -> tuple[list[dict], dict[str, np.ndarray]]:
    """The maps of the second and of the last layer, before and after training.

    Args:
        options: parsed.
        name: of the data.
        data: images and labels.

    Returns:
        One record per map, and the maps of the first seed by title.
    """
    network = functools.partial(_networks.tanh_mlp, data.x_train.shape[1:])
    task = _study.Task(name, network, data, BATCH, options.steps, EVERY, {}, tail=EVERY)
    trainer = _study.Trainer(task, Variant("GTDDP", optimizer))
    layers = [player.name for player in trainer.model.game.players]
    records, shown = [], {}
    for seed in range(options.seeds):
        for trained in (False, True):
            run = trainer.run(0, seed, rate=0.3) if trained else None
            if not trained:
                trainer.model.set_weights(task.initial_weights(seed))
            for number in (1, len(layers) - 1):
                x = data.x_test[:BATCH]
                maps = btf.analysis.feedback_maps(trainer.model, x, layers[number], count=MAPS, project=True)
                title = f"layer {number + 1}, {'trained' if trained else 'untrained'}"
                if not seed:
                    shown[title] = maps
                for rank, image in enumerate(maps):
                    cosine, a, b = nearest_pair(image, data)
                    records.append({
                        "part": name, "layer": number + 1, "trained": trained, "seed": seed, "map": rank + 1,
                        "cosine": cosine, "classes": (a, b), "accuracy": run.accuracy if run else None,
                    })  # fmt: skip
            print(f"{name}, seed {seed}, {'trained' if trained else 'untrained'}: {len(records)} maps", flush=True)
    return records, shown


def maps_table(records: list[dict]) -> str:
    """One row per layer and map: the nearest pair of classes (first seed) and cosines, trained and untrained."""
    rows = [("data", "layer", "map", "nearest pair, seed 0", "cosine, trained", "cosine, untrained")]
    keys = dict.fromkeys((r["part"], r["layer"], r["map"]) for r in records)
    for part, layer, rank in keys:
        own = [r for r in records if (r["part"], r["layer"], r["map"]) == (part, layer, rank)]
        trained, before = ([r["cosine"] for r in own if r["trained"] == is_trained] for is_trained in (True, False))
        pair = next(r["classes"] for r in own if r["trained"])
        rows.append((
            part, str(layer), str(rank), "{} - {}".format(*pair),
            _report.spread_text(trained), _report.spread_text(before),
        ))  # fmt: skip
    return markdown(rows)


def spectra(clusters: Sequence[int], seeds: int) -> list[dict]:
    """Trains a network on each number of clusters and measures the spectrum between.

    Args:
        clusters: numbers of clusters.
        seeds: runs of each.

    Returns:
        One record per snapshot.
    """
    records = []
    for k, seed in itertools.product(clusters, range(seeds)):
        rng = np.random.default_rng(seed)
        centres, y = rng.normal(size=(k, DIMENSIONS)), np.arange(TRAINED * k) % k
        x = (centres[y] + SPREAD * rng.normal(size=(len(y), DIMENSIONS))).astype("float32")
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((DIMENSIONS,))
        hidden = inputs
        for _ in range(2):
            hidden = keras.layers.Dense(20, activation="tanh")(hidden)
        model = btf.Model(inputs, keras.layers.Dense(k, name="prediction")(hidden))
        model.compile(optimizer(), loss=_study.LOSS(), metrics=["accuracy"])
        for snapshot in range(SNAPSHOTS):
            if snapshot:
                model.fit(x, y, batch_size=20, epochs=EPOCHS, verbose=0)
            values = btf.analysis.feedback_spectrum(model, x[: MEASURED * k], "prediction")
            falls = values[: 2 * k] / values[1 : 2 * k + 1]
            records.append({
                "part": "clusters", "clusters": k, "seed": seed, "epochs": snapshot * EPOCHS,
                "accuracy": float(model.evaluate(x, y, verbose=0)[1]), "largest": float(values[0]),
                "fall_after": int(np.argmax(falls)) + 1, "fall": float(np.max(falls)), "fall_at_k": float(falls[k - 1]),
                "nonzero": int(np.sum(values > 1e-5 * values[0])), "values": [float(v) for v in values[: 3 * k]],
            })  # fmt: skip
        print(f"{k} clusters, seed {seed}: falls most after value {records[-1]['fall_after']}", flush=True)
    return records


def spectrum_table(records: list[dict]) -> str:
    """One row per number of clusters and snapshot; lists are over the seeds."""
    rows = [("clusters", "epochs", "accuracy", "falls most after value", "by", "largest value", "nonzero")]
    for k, epochs in dict.fromkeys((r["clusters"], r["epochs"]) for r in records):
        own = [r for r in records if (r["clusters"], r["epochs"]) == (k, epochs)]
        rows.append((
            str(k), str(epochs), f"{100 * np.mean([r['accuracy'] for r in own]):.0f}",
            ", ".join(str(r["fall_after"]) for r in own), _report.spread_text([r["fall"] for r in own]),
            _report.spread_text([r["largest"] for r in own]), str(max(r["nonzero"] for r in own)),
        ))  # fmt: skip
    return markdown(rows)


def plot(shown: dict[str, np.ndarray], records: list[dict], path: object) -> None:
    """Draws the maps of the first seed, a row per layer and state, and the spectra."""
    figure = _report.new_figure(9, 4.6)
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.15])
    axes = left.subplots(len(shown), MAPS, squeeze=False)
    for line, (title, maps) in zip(axes, shown.items(), strict=True):
        for axis, image in zip(line, maps, strict=True):
            size = np.abs(image).max()
            axis.imshow(image[..., 0], cmap="RdBu", vmin=-size, vmax=size)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(title, fontsize=6)
    first = [r for r in records if r["seed"] == 0]
    clusters = list(dict.fromkeys(r["clusters"] for r in first))
    panels = right.subplots(-(-len(clusters) // 2), 2, squeeze=False).flat
    for panel in list(panels)[len(clusters) :]:
        panel.set_visible(False)
    for panel, k in zip(right.axes, clusters, strict=False):
        for record in (r for r in first if r["clusters"] == k):
            values = record["values"]
            panel.semilogy(range(1, len(values) + 1), values, ".-", ms=3, lw=0.8, label=f"epoch {record['epochs']}")
        panel.axvline(k + 0.5, color="0.5", ls="--", lw=0.8)
        panel.set_title(f"{k} clusters", fontsize=8)
        panel.tick_params(which="both", labelsize=5)
    right.axes[0].legend(fontsize=6)
    right.supxlabel("singular value of the last layer's gain", fontsize=7)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
        arguments: of the command line.
    """
    parser = _command.short_parser(__doc__.splitlines()[0], "results/feedback_maps", "mnist", 500, seeds=2)
    parser.add_argument(
        "--clusters", nargs="+", type=_command.whole(2), default=list(CLUSTERS), help="numbers of Gaussian clusters"
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.steps, options.clusters = 1, min(options.steps, 100), options.clusters[:1]
    _command.multiple(parser, "--steps", options.steps, EVERY)
    data = _command.load(parser, options, ("mnist",), 20000)
    if any(each.x_train.shape[-1] > 1 for each in data.values()):
        parser.error("`--data` must be grey images here.")
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    records, shown = [], {}
    for name, each in data.items():
        more, shown = images(options, name, each)
        records += more
    spectrum = spectra(options.clusters, options.seeds)
    plot(shown, spectrum, options.out / FIGURE)
    text = f"{maps_table(records)}\n\n{spectrum_table(spectrum)}"
    _command.report(options, text, records + spectrum, time.perf_counter() - start, [FIGURE])


if __name__ == "__main__":
    main()
