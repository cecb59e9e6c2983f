"""Error and time of the approximate forms of Gram matrices, on nets at initialisation and after training.

    python -m benchmarks.gram_error [--steps 0,200] [--batch 64] [--out benchmarks/gram_error.json]

A residual CNN (with and without BatchNormalization) is trained on DIGITS, enlarged to 24 x 24 so that convolutions have
many positions; then, on one batch, each convolution's Gram matrix is formed exactly, by "sketch" (the centre tap) and
by "reduced". A tanh MLP of 64-512-512-10 is trained on DIGITS with Adam and RMSprop; then each layer's Gram matrix is
formed exactly and with the metric of rank one. Reported per layer: relative Frobenius error of G, relative error of its
diagonal, and the relative error of the sample weights `w = R a` that one stage with this G gives; then milliseconds.
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
from bellman_tf.curvature.block import Metric
from bellman_tf.curvature.gram import GramLimits, gram
from bellman_tf.layers.capture import Capture
from bellman_tf.training.game_step import GameStep
from bellman_tf.training.round import Round

RANK_ONE = GramLimits(rank_one_above=1)
FORMS = {
    "convolution": (("sketch", "sketch", GramLimits()), ("reduced", "reduced", GramLimits())),
    "dense": (("rank one", "auto", RANK_ONE),),
}


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


def wide() -> keras.Model:
    """A tanh MLP with layers of 2^15 and 2^18 weights."""
    layers = [keras.layers.Dense(512, "tanh"), keras.layers.Dense(512, "tanh"), keras.layers.Dense(10)]
    return btf.Sequential([keras.Input((24, 24, 1)), keras.layers.Flatten(), *layers])


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


def measure(model: keras.Model, x: np.ndarray, y: np.ndarray, kind: str) -> list[dict]:
    """Errors and times of every player of one kind of a compiled model, on one batch."""
    optimizer = model.optimizer
    batch = Round(model, model.game, optimizer.settings(), optimizer.context(), (tf.constant(x), tf.constant(y)))
    step = GameStep(batch)
    step.differentiate()
    beta_squared = step.derivatives.beta_squared
    rows = []
    for player in model.game.players:
        capture = step.derivatives.captures[player.index]
        if player.kind != kind:
            continue
        step._measure([player])
        metric = batch.metrics[player.index]

        def form(
            name: str, limits: GramLimits = RANK_ONE, capture: Capture = capture, metric: Metric = metric
        ) -> np.ndarray:
            return gram(capture, metric, None, name, limits).numpy()[0]

        exact = form("per_sample")
        w = weights(exact, beta_squared)
        row: dict = {"layer": player.name, "ms exact": _milliseconds(lambda form=form: form("per_sample"))}
        for title, name, limits in FORMS[kind]:
            found = form(name, limits)
            row[title] = {
                "G": relative(found, exact),
                "diagonal": relative(np.diag(found), np.diag(exact)),
                "weights": relative(weights(found, beta_squared), w),
                "ms": _milliseconds(lambda form=form, name=name, limits=limits: form(name, limits)),
            }
        rows.append(row)
    return rows


def _milliseconds(function: object) -> float:
    times = []
    for _ in range(7):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


CASES = {
    "without BatchNormalization": (lambda: network(False), "rmsprop", "convolution"),
    "with BatchNormalization": (lambda: network(True), "rmsprop", "convolution"),
    "wide, rmsprop": (wide, "rmsprop", "dense"),
    "wide, adam": (wide, "adam", "dense"),
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="0,200", help="training steps after which to measure")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seeds", default="0", help="of the initial weights")
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
    for title, (make, curvature, kind) in CASES.items():
        for seed in map(int, options.seeds.split(",")):
            keras.utils.set_random_seed(seed)
            model = make()
            rate = options.learning_rate if kind == "convolution" else options.learning_rate / 10
            optimizer = btf.GTDDP(rate, curvature=curvature, rollout="nonlinear")
            model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(True))
            _run(model, title, seed, kind, x, y, options, report["results"])
    if options.out:
        with open(options.out, "w") as file:
            json.dump(report, file, indent=1)


def _run(
    model: keras.Model,
    title: str,
    seed: int,
    kind: str,
    x: np.ndarray,
    y: np.ndarray,
    options: argparse.Namespace,
    results: dict,
) -> None:
    """Trains one model and prints the errors on the way."""
    done = 0
    loss = model.train_on_batch(x[: options.batch], y[: options.batch])
    for steps in map(int, options.steps.split(",")):
        rng = np.random.default_rng(steps)
        for _ in range(steps - done):
            chosen = rng.integers(0, len(x), options.batch)
            loss = model.train_on_batch(x[chosen], y[chosen])
        done = max(done, steps)
        rows = measure(model, x[: options.batch], y[: options.batch], kind)
        key = f"{title}, seed {seed}, {steps} steps"
        results[key] = rows
        print(f"\n{key}, loss {float(loss):.3f}")
        print(f"{'layer':12}{'ms exact':>9}  " + "".join(f"{t + ': G / weights / ms':>38}" for t, *_ in FORMS[kind]))
        for row in rows:
            cells = [f"{row[t]['G']:.2f} / {row[t]['weights']:.3f} / {row[t]['ms']:.1f}" for t, *_ in FORMS[kind]]
            print(
                f"{row['layer'][:12]:12}{row['ms exact']:9.1f}  " + "".join(f"{cell:>38}" for cell in cells), flush=True
            )


if __name__ == "__main__":
    main()
