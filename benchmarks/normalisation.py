"""Two ways to the gradient in front of BatchNormalization: time, and what the network learns.

    python -m benchmarks.normalisation [--seeds 2] [--steps 300] [--out benchmarks/normalisation.json]

Behind a layer whose samples stay apart the noted cotangents are weighed sample by sample. BatchNormalization mixes
samples, so that weighing them in front of one is not the gradient of the weighted loss; one more backward pass is. Both
are trained here on real DIGITS, 16 x 16: a residual CNN with BatchNormalization, B = 128, the same initial weights and
batches. Per metric the table has the lowest final test loss over the rates (mean over seeds, standard deviation), its
accuracy, and the median time of a step against Keras's SGD in the same process, in turns.
"""

import argparse
import dataclasses
import json
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sklearn.datasets import load_digits

import bellman_tf as btf
from bellman_tf.game.players import BACKWARD, COTANGENTS

RATES = {"identity": (0.1, 0.3, 1.0), "adam": (0.001, 0.003, 0.01), "kfac": (0.01, 0.03, 0.1)}
BATCH = 128


def network() -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Two residual blocks with BatchNormalization, 16 and 32 channels."""
    inputs = keras.Input((16, 16, 1))

    def unit(x: keras.KerasTensor, filters: int, stride: int = 1) -> keras.KerasTensor:
        x = keras.layers.Conv2D(filters, 3, stride, padding="same", use_bias=False)(x)
        return keras.layers.BatchNormalization(momentum=0.9)(x)  # of 0.99 a tenth would be left of the start

    x = keras.layers.ReLU()(unit(inputs, 16))
    for filters, stride in ((16, 1), (32, 2)):
        y = unit(keras.layers.ReLU()(unit(x, filters, stride)), filters)
        shortcut = x if stride == 1 else unit(x, filters, stride)
        x = keras.layers.ReLU()(keras.layers.Add()([shortcut, y]))
    return inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))


def data() -> tuple:
    """DIGITS with every pixel doubled, 1400 images to train on."""
    digits = load_digits()
    x = np.kron(digits.images / 16.0, np.ones((1, 2, 2)))[..., None].astype("float32")
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], digits.target[order]
    return (x[:1400], y[:1400]), (x[1400:], y[1400:])


def compiled(optimizer: keras.optimizers.Optimizer, way: str | None, seed: int) -> keras.Model:
    """The network; `way` is how layers in front of a normalisation get their gradient."""
    keras.utils.set_random_seed(seed)
    model = (keras.Model if way is None else btf.Model)(*network())
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    if way == COTANGENTS:
        model(data()[0][0][:2])  # the game is read anew when the inputs become known
        game = model.game
        game.players[:] = [dataclasses.replace(p, weighing=COTANGENTS) if p.covered else p for p in game.players]
    return model


def trained(metric: str, rate: float, way: str, seed: int, steps: int) -> tuple[float, float]:
    """Test loss and accuracy after some steps."""
    (x, y), test = data()
    model = compiled(btf.GTDDP(rate, curvature=metric), way, seed)
    random = np.random.default_rng(seed)
    for _ in range(steps):
        rows = random.choice(len(x), BATCH, replace=False)
        model.train_on_batch(x[rows], y[rows])
    loss, accuracy = model.evaluate(*test, verbose=0)
    return float(loss), float(accuracy)


def step_times(metric: str, rounds: int = 15) -> dict[str, float]:
    """Median seconds of a step, in turns, over that of Keras's SGD."""
    (x, y), _ = data()
    x, y = x[:BATCH], y[:BATCH]
    models = {
        "sgd": compiled(keras.optimizers.SGD(0.01), None, 0),
        COTANGENTS: compiled(btf.GTDDP(0.01, curvature=metric), COTANGENTS, 0),
        BACKWARD: compiled(btf.GTDDP(0.01, curvature=metric), BACKWARD, 0),
    }
    times: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model.train_on_batch(x, y)
    for _ in range(rounds):
        for name, model in models.items():
            start = time.perf_counter()
            for _ in range(4):
                model.train_on_batch(x, y)
            times[name].append(time.perf_counter() - start)
    base = statistics.median(times["sgd"])
    return {name: statistics.median(values) / base for name, values in times.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    report: dict = {"keras": keras.__version__, "seeds": options.seeds, "steps": options.steps, "rows": []}
    print(f"{'metric':10}{'way':16}{'rate':>7}{'test loss':>11}{'+-':>8}{'accuracy':>10}{'time / SGD':>12}")
    for metric, rates in RATES.items():
        times = step_times(metric)
        for way in (COTANGENTS, BACKWARD):
            found = {r: [trained(metric, r, way, s, options.steps) for s in range(options.seeds)] for r in rates}
            means = {rate: float(np.mean([loss for loss, _ in runs])) for rate, runs in found.items()}
            best = min((rate for rate in rates if np.isfinite(means[rate])), key=means.__getitem__, default=rates[0])
            losses, accuracies = zip(*found[best], strict=True)
            row = {
                "metric": metric, "way": way, "rate": best, "loss": means[best], "spread": float(np.std(losses)),
                "accuracy": float(np.mean(accuracies)), "time": times[way], "losses by rate": means,
            }  # fmt: skip
            report["rows"].append(row)
            print(
                f"{metric:10}{way:16}{best:7}{row['loss']:11.4f}{row['spread']:8.4f}{row['accuracy']:10.3f}"
                f"{row['time']:12.2f}   {means}",
                flush=True,
            )
            if options.out:
                with open(options.out, "w") as file:
                    json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
