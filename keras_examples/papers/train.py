"""Running cells: one compiled step for all cells that differ in rate and seed only."""

import functools
import time
from collections.abc import Iterable, Iterator

import keras
import numpy as np
import tensorflow as tf

import bellman_tf as btf
from keras_examples.papers import data as paper_data
from keras_examples.papers.cells import CONSTANT, Cell, Outcome
from keras_examples.studies import _study
from keras_examples.studies._methods import Variant

PIECES = 30  # points of a loss curve, at least, where the steps allow
LARGE = 5000  # training samples above which the train loss is the mean over the last batches
HELD_OUT = 500  # training samples of `AlignmentReward`
WATCHED = 2000  # test samples of the accuracies between; more would take longer than the steps do
FALLS = (0.5, 0.75)


def piece(steps: int) -> int:
    """Steps between points of a loss curve: a divisor of all steps.

    Args:
        steps: of a run.

    Returns:
        The largest divisor that makes at least `PIECES` points.
    """
    return max(k for k in range(1, max(1, steps // PIECES) + 1) if steps % k == 0)


def groups(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells that share a compiled step, in the order in which they come."""
    found: dict[Cell, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.compiled, []).append(cell)
    return list(found.values())


def run(group: list[Cell], data_dir: str | None) -> Iterator[tuple[Cell, Outcome]]:
    """Trains every cell of a group.

    Args:
        group: of `groups`.
        data_dir: TFDS directory.

    Yields:
        Each cell and what it gave.
    """
    first = group[0]
    data = paper_data.load(first.data, data_dir, first.share)
    held_out = (data.x_train[-HELD_OUT:], data.y_train[-HELD_OUT:])
    every = piece(first.steps)
    tail = max(every, first.steps // 6 // every * every) if len(data.x_train) > LARGE else 0
    network = functools.partial(first.network.make, data.x_train.shape[1:])
    task = _study.Task(first.data, network, data, first.batch, first.steps, every, {}, tail=tail, stepwise=first.reward)
    trainer = _study.Trainer(task, Variant(str(first.method), functools.partial(first.method.make, first.rate)))
    for cell in group:
        watch, clock = _Accuracies(trainer), _study.Clock(time.process_time)
        callbacks: list[keras.callbacks.Callback] = [clock, *[watch] * cell.watch]
        if cell.schedule != CONSTANT:
            callbacks.append(_Drops(cell.rate, cell.steps // every))
        if cell.reward:
            callbacks.append(btf.callbacks.AlignmentReward(*held_out, every=1))
        ended = trainer.run(0, cell.seed, rate=cell.rate, callbacks=callbacks)
        yield cell, Outcome(
            ended.loss, ended.accuracy, _short(ended.curve), _short(watch.seen), ended.rejected,
            *_short([ended.milliseconds, 1e3 * float(np.median(clock.seconds)) / every]),
        )  # fmt: skip
    tf.keras.backend.clear_session()


def _short(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.4g}") for value in values)


class _Accuracies(keras.callbacks.Callback):
    """Test accuracy after every piece, on the first `WATCHED` samples."""

    def __init__(self, trainer: _study.Trainer) -> None:
        super().__init__()
        self._trainer = trainer
        self.seen: list[float] = []

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Measures it."""
        self.seen.append(self._trainer.test(WATCHED)[1])


class _Drops(keras.callbacks.Callback):
    """A tenth of the learning rate after each of `FALLS`."""

    def __init__(self, rate: float, pieces: int) -> None:
        super().__init__()
        self._rate, self._pieces = rate, pieces

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Sets the rate of the coming piece."""
        passed = sum(epoch >= part * self._pieces for part in FALLS)
        self.model.optimizer.learning_rate = self._rate * 0.1**passed
