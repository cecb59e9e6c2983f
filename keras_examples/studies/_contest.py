"""Runs the cells of a contest with Keras, and times its methods' steps.

A method is compiled once per task; runs assign weights, state and rate, so that nothing is traced again
(`_study.Trainer`). The time of a step is measured apart, over whole runs, because no two steps need cost the same: step
control measures the first twenty and then some. Methods of a task are timed in one process and in turns, some of them
later beside one that was timed before, and can be timed again without repeating a run.
"""

import statistics
from collections.abc import Sequence

import keras

from keras_examples.studies import _rounds
from keras_examples.studies._cells import Entry, Setting, Store
from keras_examples.studies._methods import Variant
from keras_examples.studies._study import Clock, Task, Trainer


class Schedule(keras.callbacks.Callback):
    """Sets the learning rate of a setting, piece by piece."""

    def __init__(self, setting: Setting, pieces: int) -> None:
        super().__init__()
        self._setting, self._pieces = setting, pieces

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Sets the rate of the coming piece."""
        self.model.optimizer.learning_rate = self._setting.rate_in(epoch, self._pieces)


class Ring(_rounds.Ring):
    """The methods of one task, each compiled when it is first needed and kept.

    Attributes:
        task: network and data.
        name: of the task.
        every: steps of a piece of a loss curve.
        store: what has been run.
    """

    def __init__(self, task: Task, store: Store) -> None:
        self.task, self.name, self.every, self.store = task, task.name, task.every, store
        self._trainers: dict[str, Trainer] = {}

    def trainer(self, entry: Entry) -> Trainer:
        """A method compiled on the task."""
        if entry.name not in self._trainers:
            self._trainers[entry.name] = Trainer(self.task, Variant(entry.name, entry.make))
        return self._trainers[entry.name]

    def once(self, entry: Entry, setting: Setting) -> tuple[float, float, Sequence[float]]:
        """Trains a method with Keras, see `_rounds.Ring`."""
        self.task.steps = max(self.task.steps, setting.steps)
        trainer = self.trainer(entry)
        callbacks = [Schedule(setting, setting.steps // self.every)]
        run = trainer.run(0, setting.seed, steps=setting.steps, rate=setting.rate, callbacks=callbacks, test=False)
        return (*trainer.test(), run.curve)

    def milliseconds(self, entry: Entry, steps: int) -> float:
        """Times a run without its evaluation, see `_rounds.Ring`."""
        clock = Clock()
        self.trainer(entry).run(0, 0, steps=steps, rate=entry.middle / 10, callbacks=[clock], test=False)
        return 1e3 * statistics.mean(clock.seconds) / self.every
