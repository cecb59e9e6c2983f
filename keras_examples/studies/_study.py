"""Training one network with one method at many learning rates and seeds, and comparing methods.

All methods see the same initial weights and the same batches for the same seed. A method is compiled once: between
runs the weights, the optimizer's state and the learning rate are assigned, so that nothing is traced again.
"""

import dataclasses
import functools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_examples.studies._data import Data, batch_rows
from keras_examples.studies._methods import BASE, DECADE, Method, learning_rates, rate_of

COPIED = 2**28  # bytes of a run's batches that are written out, one copy per seed
LOSS = functools.partial(keras.losses.SparseCategoricalCrossentropy, from_logits=True)


@dataclasses.dataclass
class Task:
    """A network, its data and the length of a run.

    Attributes:
        name: what the report calls it.
        network: makes the network.
        data: images and labels.
        batch_size: B.
        steps: of one run.
        every: steps between points of the loss curve; divides `steps`.
        middles: metric -> middle of its learning rates.
        tail: the score is the mean train loss of so many last steps; 0 = the loss on all training images, mean over
            the ends of the last sixth of the pieces (at a constant rate single iterates are noisy).
        jit: compile with XLA.
        beyond: also run at ten times the best rates where that is outside the grid.
        loss: makes the loss.
        classes: whether labels are classes, so that there is an accuracy.
        stepwise: callbacks are called after every step; else a piece is one call of the compiled function.
    """

    name: str
    network: Callable[[], keras.Model]
    data: Data
    batch_size: int
    steps: int
    every: int
    middles: dict[str, float]
    tail: int = 0
    jit: bool = False
    beyond: bool = True
    loss: Callable[[], keras.losses.Loss] = LOSS
    classes: bool = True
    stepwise: bool = False

    def __post_init__(self) -> None:
        self._initial: dict[int, list] = {}
        self._batches: dict[tuple[int, int], tf.data.Dataset] = {}

    def initial_weights(self, seed: int) -> list[np.ndarray]:
        """The network's weights before training."""
        if seed not in self._initial:
            keras.utils.set_random_seed(seed)
            self._initial[seed] = self.network().get_weights()
        return self._initial[seed]

    def batches(self, seed: int) -> tf.data.Dataset:
        """The batches of a whole run, see `batch_rows`."""
        if (seed, self.steps) not in self._batches:
            self._batches = {key: value for key, value in self._batches.items() if key[1] == self.steps}
            shaped = batch_rows(len(self.data.x_train), self.batch_size, self.steps, seed)
            x, y = self.data.x_train, self.data.y_train
            if shaped.size * x[0].nbytes > COPIED:
                x, y = tf.constant(x), tf.constant(y)
                rows = tf.data.Dataset.from_tensor_slices(shaped)
                made = rows.map(lambda batch: (tf.gather(x, batch), tf.gather(y, batch))).prefetch(2)
            else:
                made = tf.data.Dataset.from_tensor_slices((x[shaped], y[shaped]))
            self._batches[seed, self.steps] = made
        return self._batches[seed, self.steps]


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run gave. A loss that is not finite is `inf`.

    Attributes:
        task: the task's name.
        metric: of the method.
        form: of the method.
        method: its name.
        rate: learning rate.
        number: of the learning rate, see `rate_of`.
        seed: of weights and batches.
        curve: mean train loss of every `every` steps.
        loss: the score, see `Task.tail`.
        accuracy: on the test images at the end.
        rejected: batches that our optimizers refused because something was not finite.
        milliseconds: per step, median over the curve's pieces, tracing excluded.
    """

    task: str
    metric: str
    form: str
    method: str
    rate: float
    number: int
    seed: int
    curve: tuple[float, ...]
    loss: float
    accuracy: float
    rejected: int
    milliseconds: float


class Clock(keras.callbacks.Callback):
    """Seconds of every piece of a run.

    Attributes:
        seconds: one number per piece.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        """Takes a clock.

        Args:
            now: says the time in seconds.
        """
        super().__init__()
        self._now, self.seconds = now, list[float]()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Starts a piece."""
        self._start = self._now()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Ends it."""
        self.seconds.append(self._now() - self._start)


class _Curve(keras.callbacks.Callback):
    """Loss of every piece of a run; stops a run whose weights are lost."""

    def __init__(self, optimizer: keras.optimizers.Optimizer, first: int, evaluate: Callable[[], float] | None) -> None:
        super().__init__()
        self._rejected = getattr(optimizer, "rejected_batches", None)
        self._first, self._evaluate = first, evaluate
        self.ends: list[float] = []
        self._seen = 0
        self.losses: list[float] = []

    @property
    def rejected(self) -> int:
        """Batches refused so far; the loss that Keras reports leaves them out."""
        return 0 if self._rejected is None else int(self._rejected.numpy())

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Notes the loss."""
        loss, rejected = float(logs["loss"]), self.rejected
        lost = rejected > self._seen or not math.isfinite(loss)
        self.losses.append(math.inf if lost else loss)
        self._seen = rejected
        if not math.isfinite(loss):
            self.model.stop_training = True
        if self._evaluate is not None and epoch >= self._first:
            self.ends.append(self._evaluate())


class Trainer:
    """One method on one task, compiled once."""

    def __init__(self, task: Task, method: Method) -> None:
        self.task, self.method = task, method
        self.model = task.network()
        self.optimizer = method.make()
        steps = 1 if task.stepwise else task.every
        self.model.compile(optimizer=self.optimizer, loss=task.loss(), steps_per_execution=steps, jit_compile=task.jit)
        self.optimizer.build(self.model.trainable_variables)
        self._fresh = [variable.numpy() for variable in self.optimizer.variables]
        self._predict = tf.function(functools.partial(self.model, training=False), reduce_retracing=True)
        self.run(0, 0, steps=task.every, test=False)  # traces

    def run(
        self,
        number: int,
        seed: int,
        steps: int | None = None,
        rate: float | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        test: bool = True,
    ) -> Run:
        """Trains from the start.

        Args:
            number: of the learning rate.
            seed: of weights and batches.
            steps: to train for; all of the task's by default.
            rate: the learning rate where it has no number.
            callbacks: further ones; an epoch is a piece of the curve.
            test: whether to measure the accuracy.

        Returns:
            The result.
        """
        task = self.task
        steps = steps or task.steps
        self.model.set_weights(task.initial_weights(seed))
        for variable, value in zip(self.optimizer.variables, self._fresh, strict=True):
            variable.assign(value)
        rate = rate_of(number) if rate is None else rate
        self.optimizer.learning_rate = rate
        pieces = steps // task.every
        clock, curve = (
            Clock(),
            _Curve(self.optimizer, pieces - max(1, pieces // 6), None if task.tail else self._train_loss),
        )
        with warnings.catch_warnings():  # a sweep goes on to rates that break; the table says where
            warnings.filterwarnings("ignore", message=".* has rejected the last")
            self.model.fit(
                task.batches(seed), epochs=pieces, steps_per_epoch=task.every, verbose=0, shuffle=False,
                callbacks=[clock, curve, *callbacks],
            )  # fmt: skip
        losses = curve.losses + [math.inf] * (pieces - len(curve.losses))
        if task.tail:
            loss = float(np.mean(losses[-(task.tail // task.every) :]))
        else:
            loss = float(np.mean(curve.ends)) if math.isfinite(losses[-1]) else math.inf
        accuracy = self.test()[1] if test and task.classes else math.nan
        return Run(
            task.name, self.method.metric, self.method.form, self.method.name, rate, number, seed,
            tuple(losses), loss, accuracy, curve.rejected, 1e3 * float(np.median(clock.seconds)) / task.every,
        )  # fmt: skip

    def runs(self, rates: Sequence[float], seeds: int, progress: object) -> Iterator[Run]:
        """Trains at every rate and seed, one run at a time.

        Args:
            rates: learning rates.
            seeds: runs per rate.
            progress: told about every run.

        Yields:
            Each result, while the model is as that run left it.
        """
        for rate in rates:
            for seed in range(seeds):
                run = self.run(0, seed, rate=rate)
                progress.add(run)
                yield run

    def _train_loss(self) -> float:
        """Loss on all training images, `inf` if it is not finite."""
        return self._loss(self._logits(self.task.data.x_train), self.task.data.y_train)

    def test(self, most: int | None = None) -> tuple[float, float]:
        """Loss and accuracy on the test part, as the last run left the model; `inf`, `nan` where there is none.

        Args:
            most: samples, the first ones; all by default.

        Returns:
            Both.
        """
        x, y = self.task.data.x_test[:most], self.task.data.y_test[:most]
        logits = self._logits(x)
        accuracy = float(np.mean(logits.argmax(-1) == y)) if self.task.classes else math.nan
        return self._loss(logits, y), accuracy

    def _loss(self, logits: np.ndarray, y: np.ndarray) -> float:
        value = float(self.task.loss()(y, logits))
        return value if math.isfinite(value) else math.inf

    def _logits(self, x: np.ndarray) -> np.ndarray:
        return np.concatenate([self._predict(x[k : k + 2000]).numpy() for k in range(0, len(x), 2000)])


def mean_loss(runs: list[Run], number: int) -> float:
    """Mean score over the seeds at one learning rate; `inf` if there is none or one run broke."""
    losses = [run.loss for run in runs if run.number == number]
    return float(np.mean(losses)) if losses else math.inf


def best_rate(runs: list[Run]) -> int:
    """Number of the learning rate with the lowest mean score."""
    return min(sorted({run.number for run in runs}), key=lambda number: mean_loss(runs, number))


def compare(
    task: Task, methods: list[Method], decades: int, per_decade: int, seeds: int, progress: object
) -> list[Run]:
    """Runs every method at its learning rates, and perhaps at ten times the best of them and of its baseline's.

    Every method of one metric gets the same rates; the baseline must come before the others.

    Args:
        task: network and data.
        methods: the rows.
        decades: spanned by the learning rates.
        per_decade: rates in each, 2 or 4.
        seeds: runs per rate.
        progress: told about every run, see `keras_examples.studies._report.Progress`.

    Returns:
        All runs.
    """
    everything: list[Run] = []
    base: dict[str, int] = {}
    for method in methods:
        trainer = Trainer(task, method)
        grid = learning_rates(task.middles[method.metric], decades, per_decade)
        runs: list[Run] = []

        def cover(numbers: list[int], trainer: Trainer = trainer, runs: list[Run] = runs) -> None:
            for number in numbers:
                for seed in range(seeds):
                    runs.append(trainer.run(number, seed))
                    progress.add(runs[-1])

        cover(grid)
        best = best_rate(runs)
        if method.form == BASE:
            base[method.metric] = best
        wanted = {best + DECADE, base.get(method.metric, best) + DECADE} if task.beyond else set()
        beyond = sorted(wanted - set(grid))
        progress.expect(len(beyond) * seeds)
        cover(beyond)
        everything += runs
    return everything
