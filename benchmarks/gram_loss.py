"""Loss after training with each form of a convolution's Gram matrix, and with samples coupled in groups.

    python -m benchmarks.gram_loss [--quick] [--only taps|wide|errors|groups] [--seeds 2] [--steps 200] [--out FILE]

Taps: five small nets on DIGITS (16 x 16: each pixel two by two), B = 64, with exact Gram matrices, with the centre tap
of every convolution (`gram="sketch"`) and with a tap drawn anew at every step, which exists in this script only.
Errors: relative ones of Gamma, the sum of all players' Gram matrices, and of the sample weights that one stage with it
gives, on one batch after training with exact matrices; of the random tap the mean over ten draws. Wide: an MLP
64-90-90-90-10, B = 64, with Adam's metric as it is and as one of rank one, which "auto" takes of layers of 5,850 and
8,190 parameters. Groups: an MLP
64-128-128-10 on DIGITS, B = 512, samples coupled in groups of several sizes, beside SGD. Every form starts from the
same weights and sees the same batches, at three to five rates with a cosine schedule; reported is the mean over
seeds of the loss on the training set at the rate that is best for it, accuracy on 360 test images, and milliseconds of
processor time of a step on one thread. Results accumulate in the JSON file, and what stands there is not run again.
"""

import argparse
import contextlib
import functools
import json
import math
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Generator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import bellman_tf as btf
from bellman_tf.curvature.gram import gram
from bellman_tf.curvature.gram.blocks import with_bias
from bellman_tf.curvature.gram.compute import RUN
from bellman_tf.curvature.gram.products import inner_products
from benchmarks.gram_error import measured_step, relative, weights

TRAINED = 1437
RATES = {"identity": (0.03, 0.1, 0.3), "momentum": (0.01, 0.03, 0.1), "adam": (0.003, 0.01, 0.03, 0.1)}
GROUP_RATES = (0.1, 0.3, 1.0, 3.0, 10.0)


def conv_net(
    *, normalised: bool = False, blocks: int = 2, kernel: int = 3, strides: tuple[int, ...] = ()
) -> Callable[[], keras.Model]:
    """A residual net of 8 channels, behind it convolutions with strides.

    Args:
        normalised: a BatchNormalization behind every convolution.
        blocks: of two convolutions each.
        kernel: taps per axis.
        strides: of the convolutions at the end, which double the channels.

    Returns:
        A function that makes it.
    """

    def unit(x: object, channels: int = 8, stride: int = 1) -> object:
        x = keras.layers.Conv2D(channels, kernel, stride, padding="same", use_bias=not normalised)(x)
        return keras.layers.BatchNormalization()(x) if normalised else x

    def make() -> keras.Model:
        inputs, relu, channels = keras.Input((16, 16, 1)), keras.layers.ReLU, 8
        x = relu()(unit(inputs))
        for _ in range(blocks):
            x = relu()(keras.layers.Add()([x, unit(relu()(unit(x)))]))
        for stride in strides:
            channels *= 2
            x = relu()(unit(x, channels, stride))
        cells = keras.layers.Flatten()(keras.layers.AveragePooling2D(x.shape[1] // 4)(x))
        return keras.Model(inputs, keras.layers.Dense(10)(cells))

    return make


NETS = {
    "residual, 5 convolutions": conv_net(),
    "with BatchNormalization": conv_net(normalised=True),
    "deeper, 11 convolutions": conv_net(blocks=5),
    "strided": conv_net(blocks=0, strides=(2, 2)),
    "5 x 5 kernels": conv_net(blocks=1, kernel=5),
}
FORMS = {"exact": "exact", "centre tap": "sketch", "random tap": "sketch"}


WIDE = {"exact": "exact", "rank one": "auto"}


def mlp(*widths: int) -> keras.Model:
    """A tanh MLP on 64 pixels, ten classes."""
    dense = keras.layers.Dense
    return keras.Sequential([keras.Input((64,)), *(dense(width, "tanh") for width in widths), dense(10)])


@contextlib.contextmanager
def a_random_tap() -> Generator[None, None, None]:
    """Sketches convolutions by a tap that is drawn at every step."""

    def sketch(capture: object, metric: object, group_size: int | None, limits: object, load: object) -> tf.Tensor:
        taps = capture.extent.taps

        def of_tap(number: int) -> tf.Tensor:
            first, second, scale = metric.tap_pair(capture, number)
            return scale * inner_products(first, second, group_size)

        drawn = tf.random.uniform([], 0, taps, tf.int32)
        kernel = taps * tf.switch_case(drawn, [lambda n=n: of_tap(n) for n in range(taps)])
        return with_bias(kernel, capture, metric, group_size)

    own, RUN["sketch"] = RUN["sketch"], sketch
    try:
        yield
    finally:
        RUN["sketch"] = own


def optimizer_of(metric: str, **options: object) -> keras.optimizers.Optimizer:
    """GTDDP with a metric; "momentum" is the identity with momentum 0.9."""
    if metric == "momentum":
        return btf.GTDDP(0.1, curvature="identity", momentum=0.9, **options)
    return btf.GTDDP(0.1, curvature=metric, **options)


class Trained:
    """A model whose step is traced once and trained again from other weights, with other rates."""

    def __init__(self, make: Callable, optimizer: keras.optimizers.Optimizer, x: np.ndarray, y: np.ndarray) -> None:
        self.make, self.x, self.y = make, tf.constant(x), tf.constant(y)
        model = make()
        self.model = btf.as_game(model) if isinstance(optimizer, btf.GTDDP) else model
        self.model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        optimizer.build(self.model.trainable_variables)
        self.start = [tf.identity(v.value) for v in optimizer.variables]
        self.step = tf.function(
            lambda chosen: self.model.train_step((tf.gather(self.x, chosen), tf.gather(self.y, chosen))),
            autograph=False,
        )

    def run(self, rate: float, seed: int, steps: int, batch: int) -> dict:
        """Trains from the weights of a seed.

        Args:
            rate: the first one; a cosine leads to zero.
            seed: of weights and batches.
            steps: how many.
            batch: samples of each.

        Returns:
            Loss on the training set, accuracy on the test set, milliseconds of a step.
        """
        keras.utils.set_random_seed(seed)
        self.model.set_weights(self.make().get_weights())
        optimizer, rng, times = self.model.optimizer, np.random.default_rng(seed), []
        for variable, value in zip(optimizer.variables, self.start, strict=True):
            variable.assign(value)
        for step in range(steps):
            optimizer.learning_rate.assign(rate * (1 + math.cos(math.pi * step / steps)) / 2)
            chosen = tf.constant(rng.choice(TRAINED, batch, replace=False))
            begin = time.process_time()
            self.step(chosen)["loss"].numpy()
            times.append(time.process_time() - begin)
        logits = self.model(self.x, training=False)
        losses = keras.losses.sparse_categorical_crossentropy(self.y, logits, from_logits=True).numpy()
        right = np.argmax(logits, axis=1) == self.y.numpy()
        return {
            "loss": float(np.mean(losses[:TRAINED])),
            "accuracy": float(np.mean(right[TRAINED:])),
            "ms": 1e3 * statistics.median(times[2:]),
        }


def errors(model: keras.Model, x: np.ndarray, y: np.ndarray) -> dict[str, tuple[float, float]]:
    """Relative errors of Gamma and of its sample weights on one batch, for each approximate form."""
    step = measured_step(model, x, y)

    def summed(form: str) -> np.ndarray:
        return sum(
            gram(step.captures[p.index], step.metrics[p.index], None, form).numpy()[0].astype("float64")
            for p in step.covered
        )

    def of(gram: np.ndarray) -> np.ndarray:
        return weights(gram.astype("float32"), step.objectives[0].beta_squared)

    exact = summed("exact")
    right = of(exact)

    def error(form: str) -> tuple[float, float]:
        found = summed(form)
        return relative(found, exact), relative(of(found), right)

    drawn = {"centre tap": [error("sketch")]}
    with a_random_tap():
        drawn["random tap"] = [error("sketch") for _ in range(10)]
    return {name: tuple(np.mean(some, axis=0).tolist()) for name, some in drawn.items()}


class Store:
    """Results in a JSON file, written after every run."""

    def __init__(self, path: pathlib.Path | None) -> None:
        self.path = path
        known = json.loads(path.read_text()) if path is not None and path.exists() else {}
        self.results: dict = known.get("results", {})
        self.errors: dict = known.get("errors", {})

    def missing(self, row: str, rates: tuple, seeds: int) -> list[tuple[float, int]]:
        """Rates and seeds that a row has no result of."""
        known = self.results.get(row, {})
        return [(rate, seed) for rate in rates for seed in range(seeds) if f"{rate}, seed {seed}" not in known]

    def add(self, row: str, rate: float, seed: int, found: dict) -> None:
        """Adds a result and writes the file."""
        self.results.setdefault(row, {})[f"{rate}, seed {seed}"] = found
        self.write()

    def write(self) -> None:
        """Writes the file."""
        if self.path is not None:
            head = {"tensorflow": tf.__version__, "keras": keras.__version__}
            self.path.write_text(json.dumps({**head, "errors": self.errors, "results": self.results}, indent=1) + "\n")

    def best_rate(self, row: str) -> tuple[float, list[dict]]:
        """The rate with the smallest mean loss, and its results; not a number where all diverge."""
        by_rate: dict[float, list[dict]] = {}
        for key, found in self.results[row].items():
            by_rate.setdefault(float(key.split(",")[0]), []).append(found)
        finite = {r: v for r, v in by_rate.items() if all(math.isfinite(f["loss"]) for f in v)}
        if not finite:
            return math.nan, []
        rate = min(finite, key=lambda r: statistics.fmean(f["loss"] for f in finite[r]))
        return rate, finite[rate]

    def best(self, row: str) -> str:
        """The row at its best rate: means over seeds, and the two ends of the losses."""
        rate, results = self.best_rate(row)
        if not results:
            return "diverges at every rate"
        mean = {key: statistics.fmean(f[key] for f in results) for key in ("loss", "accuracy", "ms")}
        losses = [f["loss"] for f in results]
        return (
            f"rate {rate:<6} loss {mean['loss']:.4f} ({min(losses):.4f}-{max(losses):.4f}) "
            f"accuracy {100 * mean['accuracy']:.1f} %  {mean['ms']:.1f} ms"
        )


def _fill(store: Store, row: str, make: Callable, rates: tuple, options: argparse.Namespace, batch: int) -> None:
    """Runs what a row misses, and prints its best."""
    missing = store.missing(row, rates, options.seeds)
    if missing:
        trained = make()
        for rate, seed in missing:
            store.add(row, rate, seed, trained.run(rate, seed, options.steps, batch))
    print(f"{row:56} {store.best(row)}", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one net, one rate, three steps, to see that it works")
    parser.add_argument("--only", choices=("taps", "wide", "errors", "groups"))
    parser.add_argument("--metrics", default="momentum,adam")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=pathlib.Path, help="JSON file")
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    nets, rates, group_rates = NETS, RATES, GROUP_RATES
    if options.quick:
        options.seeds, options.steps = 1, 3
        nets = {"strided": NETS["strided"]}
        rates, group_rates = {name: some[:1] for name, some in RATES.items()}, GROUP_RATES[:1]
    digits, store = load_digits(), Store(options.out)
    x, y = digits.images.astype("float32") / 16, digits.target
    images = np.kron(x, np.ones((1, 2, 2), "float32"))[..., None]
    if options.only in {None, "taps"}:
        for net, make in nets.items():
            for metric in options.metrics.split(","):
                for form, option in FORMS.items():

                    def trained(make: Callable = make, metric: str = metric, option: str = option) -> Trained:
                        return Trained(make, optimizer_of(metric, gram=option), images, y)

                    with a_random_tap() if form == "random tap" else contextlib.nullcontext():
                        _fill(store, f"{net}; {metric}; {form}", trained, rates[metric], options, 64)
    if options.only in {None, "wide"}:
        for form, option in WIDE.items():

            def trained(option: str = option) -> Trained:
                make = functools.partial(mlp, 90, 90, 90)
                return Trained(make, optimizer_of("adam", gram=option), x.reshape(-1, 64), y)

            _fill(store, f"MLP 64-90-90-90-10; adam; {form}", trained, rates["adam"], options, 64)
    if options.only in {None, "errors"}:
        for net, make in nets.items():
            for metric in options.metrics.split(","):
                rate, known = store.best_rate(f"{net}; {metric}; exact")
                if known:
                    trained = Trained(make, optimizer_of(metric, gram="exact"), images, y)
                    trained.run(rate, 0, options.steps, 64)
                    found = errors(trained.model, images[:64], y[:64])
                    store.errors[f"{net}; {metric}"] = found
                    store.write()
                    shown = "; ".join(f"{form}: Gamma {g:.3f}, weights {w:.4f}" for form, (g, w) in found.items())
                    print(f"{net}; {metric}: {shown}", flush=True)
    if options.only in {None, "groups"}:
        for size in (0, 1, 32, 128, None):
            row = "SGD" if size == 0 else "whole batch of 512" if size is None else f"groups of {size}"

            def trained(size: int | None = size) -> Trained:
                ours = size != 0
                optimizer = optimizer_of("identity", group_size=size) if ours else keras.optimizers.SGD(0.1)
                return Trained(functools.partial(mlp, 128, 128), optimizer, x.reshape(-1, 64), y)

            _fill(store, f"MLP, B = 512; {row}", trained, group_rates, options, 512)


if __name__ == "__main__":
    main()
