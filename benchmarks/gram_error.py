"""Error and time of the approximate forms of Gram matrices, on nets at initialisation and after training.

    python -m benchmarks.gram_error [--steps 0,200] [--batch 64] [--out benchmarks/gram_error.json]

A residual CNN (with and without BatchNormalization) is trained on DIGITS, enlarged to 24 x 24 so that convolutions have
many positions; then, on one batch, each convolution's Gram matrix is formed exactly and by "sketch": the centre tap,
and on nets of 64 channels a quarter of its input channels too. A tanh MLP of 64-512-512-10 is trained on DIGITS with
Adam and RMSprop; then each layer's Gram matrix is formed exactly and with the metric of rank one. A vision transformer
of 64 tokens is trained on the same images; then each Gram matrix of a layer with positions is formed exactly and from a
quarter and a half of its input features, under K-FAC's metric from a quarter as many mixtures as whitened features.
Reported per layer: relative Frobenius error of G, of its diagonal, and the relative error of the sample weights
`w = R a` that one stage with this G gives; then milliseconds. Last the same of Gamma, the sum over all layers, which is
all that the cooperative step sees.
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
from bellman_tf.curvature.gram import GramLimits, gram
from bellman_tf.curvature.metric import Metric
from bellman_tf.layers.capture import Capture
from bellman_tf.training.native_step import NativeStep
from bellman_tf.training.round import Round
from benchmarks.networks import attention_block

RANK_ONE = GramLimits(rank_one_above=1)
FORMS = {
    "convolution": (("sketch", "sketch", GramLimits()),),
    "many channels": (("all channels", "sketch", GramLimits(thin_from=65)), ("1 of 4", "sketch", GramLimits())),
    "wide": (("rank one", "auto", RANK_ONE),),
    "positions": (("1 of 4", "features", GramLimits()), ("1 of 2", "features", GramLimits(feature_share=2))),
    "mixtures": (("1 of 4", "features", GramLimits()),),
}


def network(normalised: bool, width: int = 16, stride: int = 1) -> keras.Model:
    """Two residual blocks of convolutions on 24 x 24, or on 12 x 12 behind a first one with stride."""

    def unit(x: object, stride: int = 1) -> object:
        x = keras.layers.Conv2D(width, 3, stride, padding="same", use_bias=not normalised)(x)
        return keras.layers.BatchNormalization()(x) if normalised else x

    inputs = keras.Input((24, 24, 1))
    x = keras.layers.ReLU()(unit(inputs, stride))
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


def transformer() -> keras.Model:
    """64 tokens of 3 x 3 pixels, width 64, two blocks."""
    inputs = keras.Input((24, 24, 1))
    x = keras.layers.Reshape((64, 64))(keras.layers.Conv2D(64, 3, strides=3)(inputs))
    for _ in range(2):
        x = attention_block(x)
    return btf.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling1D()(x)))


def kind_of(capture: Capture) -> str:
    """Which approximate forms a layer has."""
    extent = capture.extent
    if extent.taps or not extent.rows:
        many = "many channels" if extent.channels >= GramLimits().thin_from else "convolution"
        return many if extent.taps else ""
    return "wide" if extent.positions == 1 else "positions"


def measured_step(model: keras.Model, x: np.ndarray, y: np.ndarray) -> NativeStep:
    """A step of a compiled model on one batch, up to where captures and metrics of its players are known."""
    optimizer = model.optimizer
    batch = Round(model, model.game, optimizer.settings(), optimizer.context(), (tf.constant(x), tf.constant(y)))
    step = NativeStep(batch)
    step.run_forward()
    step.run_backward(step.curved())
    step._measure()
    return step


def measure(model: keras.Model, x: np.ndarray, y: np.ndarray, kind: str) -> list[dict]:
    """Errors and times of every player of one kind of a compiled model, and of the sum of all, on one batch."""
    step = measured_step(model, x, y)
    beta_squared, rows, exact_sum = step.objectives[0].beta_squared, [], 0.0
    sums = dict.fromkeys((title for title, *_ in FORMS[kind]), 0.0)

    def errors(found: np.ndarray, exact: np.ndarray) -> dict:
        return {
            "G": relative(found, exact),
            "diagonal": relative(np.diag(found), np.diag(exact)),
            "weights": relative(weights(found, beta_squared), weights(exact, beta_squared)),
        }

    for player in step.covered:
        capture, metric = step.captures[player.index], step.metrics[player.index]

        def form(name: str, limits: GramLimits, capture: Capture = capture, metric: Metric = metric) -> np.ndarray:
            return gram(capture, metric, None, name, limits).numpy()[0]

        exact = form("exact", RANK_ONE)
        exact_sum = exact_sum + exact
        ours = kind_of(capture) == ("positions" if kind == "mixtures" else kind)
        row: dict = {"layer": player.name, "ms exact": _milliseconds(lambda form=form: form("exact", RANK_ONE))}
        for title, name, limits in FORMS[kind]:
            found = form(name, limits) if ours else exact
            sums[title] = sums[title] + found
            timed = _milliseconds(lambda form=form, name=name, limits=limits: form(name, limits)) if ours else 0.0
            row[title] = errors(found, exact) | {"ms": timed}
        if ours:
            rows.append(row)
    total = {
        title: errors(found, exact_sum) | {"ms": sum(row[title]["ms"] for row in rows)} for title, found in sums.items()
    }
    return [*rows, {"layer": "all layers", "ms exact": sum(row["ms exact"] for row in rows), **total}]


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
    "64 channels, identity": (lambda: network(False, 64, 2), "identity", "many channels"),
    "64 channels, BatchNormalization": (lambda: network(True, 64, 2), "identity", "many channels"),
    "64 channels, BatchNormalization, adam": (lambda: network(True, 64, 2), "adam", "many channels"),
    "wide, rmsprop": (wide, "rmsprop", "wide"),
    "wide, adam": (wide, "adam", "wide"),
    "transformer, identity": (transformer, "identity", "positions"),
    "transformer, adam": (transformer, "adam", "positions"),
    "transformer, kfac": (transformer, "kfac", "mixtures"),
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="0,200", help="training steps after which to measure")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seeds", default="0", help="of the initial weights")
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
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
    for title in options.cases:
        make, curvature, kind = CASES[title]
        for seed in map(int, options.seeds.split(",")):
            keras.utils.set_random_seed(seed)
            model = make()
            rate = (
                options.learning_rate
                * {"rmsprop": 1.0 if kind == "convolution" else 0.1, "identity": 10, "adam": 0.1, "kfac": 0.3}[
                    curvature
                ]
            )
            optimizer = btf.GTDDP(rate, curvature=curvature, gram="features" if kind == "mixtures" else "auto")
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
        print(f"{'layer':28}{'ms exact':>9}  " + "".join(f"{t + ': G / weights / ms':>38}" for t, *_ in FORMS[kind]))
        for row in rows:
            cells = [f"{row[t]['G']:.3f} / {row[t]['weights']:.4f} / {row[t]['ms']:.1f}" for t, *_ in FORMS[kind]]
            print(
                f"{row['layer'][-28:]:28}{row['ms exact']:9.1f}  " + "".join(f"{cell:>38}" for cell in cells),
                flush=True,
            )


if __name__ == "__main__":
    main()
