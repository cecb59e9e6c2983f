"""Error and time of each form of a convolution's Gram matrix, on nets at initialisation and after training.

    python -m benchmarks.gram_error [--steps 0,200] [--batch 64] [--out benchmarks/gram_error.json]

A residual CNN (with and without BatchNormalization) is trained on DIGITS, enlarged to 24 x 24 so that convolutions have
many positions. Then, on one batch, each convolution's Gram matrix is formed exactly and by "sketch" (1, 2 and 3 taps)
and "reduced". Reported per layer: relative Frobenius error of G, relative error of its diagonal, and the relative
error of the sample weights `w = R a` that one stage with this G gives; then milliseconds of each form.
"""

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import bellman_tf as btf
from bellman_tf.bellman import sample_space
from bellman_tf.curvature.gram import gram, plan
from bellman_tf.curvature.gram.sketch import draw_taps
from bellman_tf.layers.convolution import Convolution
from bellman_tf.training.game_step import GameStep

FORMS = (
    ("sketch, 1 tap", "sketch", 1),
    ("sketch, 2 taps", "sketch", 2),
    ("sketch, 3 taps", "sketch", 3),
    ("reduced", "reduced", 1),
)


def network(normalised: bool) -> keras.Model:
    """Two residual blocks of 16 channels on 24 x 24."""

    def unit(x: object) -> object:
        x = keras.layers.Conv2D(16, 3, padding="same", use_bias=not normalised)(x)
        return keras.layers.BatchNormalization()(x) if normalised else x

    inputs = keras.Input((24, 24, 1))
    x = keras.layers.ReLU()(unit(inputs))
    for _ in range(2):
        y = unit(keras.layers.ReLU()(unit(x)))
        x = keras.layers.ReLU()(keras.layers.Add()([x, y]))
    return btf.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))


def data() -> tuple[np.ndarray, np.ndarray]:
    """DIGITS, each pixel three by three."""
    digits = load_digits()
    return np.kron(digits.images, np.ones((1, 3, 3)))[..., None].astype("float32") / 16, digits.target


def relative(error: np.ndarray, truth: np.ndarray) -> float:
    """Norm-wise relative error."""
    return float(np.linalg.norm(error - truth) / np.linalg.norm(truth))


def weights(gram: np.ndarray, beta_squared: tf.Tensor) -> np.ndarray:
    """Sample weights of one stage."""
    value = sample_space.init(len(gram), beta_squared=beta_squared)
    return sample_space.backward(value, tf.constant(gram[None]), diagonal=True).a.numpy()[0]


def measure(model: keras.Model, x: np.ndarray, y: np.ndarray, draws: int) -> list[dict]:
    """Errors and times of every convolution of a compiled model, on one batch."""
    batch = Batch(model, model.optimizer, (tf.constant(x), tf.constant(y)))
    step = GameStep(batch)
    step.differentiate()
    beta_squared = step.derivatives.beta_squared
    rows = []
    for player in model.game.players:
        capture = step.derivatives.captures[player.index]
        if not isinstance(capture, Convolution):
            continue
        step._measure([player])
        metric = batch.metrics[player.index]

        def form(name: str, seed: int, capture: Convolution = capture, metric: object = metric) -> np.ndarray:
            [taps] = draw_taps([(capture, metric)], name, [seed, 0])
            return gram(capture, metric, None, name, taps).numpy()[0]

        exact = form("per_sample", 0)
        w = weights(exact, beta_squared)
        row: dict = {"layer": player.name, "ms exact": _milliseconds(lambda form=form: form("per_sample", 0))}
        for title, name, taps in FORMS:
            plan.SKETCHED_TAPS = taps
            found = [form(name, seed) for seed in range(draws if name == "sketch" else 1)]
            row[title] = {
                "G": statistics.mean(relative(g, exact) for g in found),
                "diagonal": statistics.mean(relative(np.diag(g), np.diag(exact)) for g in found),
                "weights": statistics.mean(relative(weights(g, beta_squared), w) for g in found),
                "mean of draws": relative(np.mean(found, axis=0), exact),
                "ms": _milliseconds(lambda form=form, name=name: form(name, 0)),
            }
        plan.SKETCHED_TAPS = 1
        rows.append(row)
    return rows


def _milliseconds(function: object) -> float:
    times = []
    for _ in range(7):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="0,200", help="training steps after which to measure")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--draws", type=int, default=20, help="random sketches averaged")
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    x, y = data()
    report = {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "batch": options.batch,
        "rate": options.learning_rate,
        "results": {},
    }
    for normalised in (False, True):
        keras.utils.set_random_seed(0)
        model = network(normalised)
        model.compile(
            btf.GTDDP(options.learning_rate, curvature="rmsprop"), keras.losses.SparseCategoricalCrossentropy(True)
        )
        done = 0
        model.train_on_batch(x[: options.batch], y[: options.batch])
        for steps in map(int, options.steps.split(",")):
            rng = np.random.default_rng(steps)
            for _ in range(steps - done):
                chosen = rng.integers(0, len(x), options.batch)
                loss = model.train_on_batch(x[chosen], y[chosen])
            done = max(done, steps)
            rows = measure(model, x[: options.batch], y[: options.batch], options.draws)
            key = f"{'with' if normalised else 'without'} BatchNormalization, {steps} steps"
            report["results"][key] = rows
            print(f"\n{key}" + (f", loss {float(loss):.3f}" if steps else ""))
            print(
                f"{'layer':12}{'ms exact':>9}  " + "".join(f"{title + ': G / weights / ms':>38}" for title, *_ in FORMS)
            )
            for row in rows:
                cells = [f"{row[t]['G']:.2f} / {row[t]['weights']:.3f} / {row[t]['ms']:.1f}" for t, *_ in FORMS]
                print(
                    f"{row['layer'][:12]:12}{row['ms exact']:9.1f}  " + "".join(f"{cell:>38}" for cell in cells),
                    flush=True,
                )
    if options.out:
        with open(options.out, "w") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
