"""Callbacks: numbers of the game while it trains, and rewards for alignments from data that are held out."""

import csv
import importlib.util
import os
import pathlib
from typing import Any

import keras
import numpy as np

from bellman_tf import _checks
from bellman_tf._typing import Array
from bellman_tf.optimizers.dgnopt import DGNOpt
from bellman_tf.optimizers.gtddp import GTDDP
from bellman_tf.training.monitor import names_of

__all__ = ["AlignmentReward", "GameMonitor"]


def _trained(callback: keras.callbacks.Callback) -> keras.Model:
    """The model that a callback watches."""
    return _checks.given("model", callback.model)


class GameMonitor(keras.callbacks.Callback):
    """Logs predicted and actual decrease of J, damping and sample weights, per epoch and on request per step.

    Per epoch the means over the steps go to the logs (so to `History`, `CSVLogger`, `TensorBoard` if these come after
    it), under the names of `bellman_tf.training.monitor`:

    - `predicted_reduction`, `actual_reduction`: of J, on the step's own batch, and `reduction_ratio`, that of their
      means (the prediction needs `value_hessian="batch"` without groups). For a step of our own curvatures the
      prediction is the decrease of the recursion's quadratic model, the metric's term included, so that the ratio goes
      to 2 where steps are short. With `momentum` or an inner optimizer, whose moves do not minimise that model, it is
      what slope and curvature at the end of the network make of the moves, without the metric, and goes to 1;
    - `damping`: the factor of step control on every metric, 1 without it;
    - `feedback_ratio/stage_t`: norm of the feedback part of the sample weights over that of the open-loop part;
    - `weight_spread`: standard deviation of the samples' weights over their mean, at the last stage;
    - `leverage`: mean over samples of `1 - B a_i`, how much of a sample's weight the stages take away;
    - `clamped_values`, `rejected_batches`, `refused_steps`: counts so far;
    - `alignment_probability/m`: of the bandit.

    Without this callback nothing of it is computed. Of `btf.DDP` there are only the counts, and with gradient
    accumulation, whose batches are parts of an update, there is no decrease.

    Args:
        csv: file for one line per step.
        tensorboard: directory for TensorBoard summaries, one per step; needs the package `tensorboard` to be read.
        every: steps between lines and summaries.

    Raises:
        ValueError: if `every` is below 1, if TensorBoard is asked for and not installed, or at `fit` if the model's
            optimizer is not of this package.

    Example:
        >>> model = btf.Sequential([keras.Input((2,)), keras.layers.Dense(3, activation="tanh"), keras.layers.Dense(1)])
        >>> model.compile(optimizer=btf.GTDDP(learning_rate=0.01, curvature="identity"), loss="mse")
        >>> x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], "float32")
        >>> history = model.fit(x, x[:, :1], epochs=2, verbose=0, callbacks=[btf.callbacks.GameMonitor()]).history
        >>> sorted(history)[:3], [0 < ratio < 3 for ratio in history["reduction_ratio"]]
        (['actual_reduction', 'damping', 'feedback_ratio/stage_1'], [True, True])
    """

    def __init__(self, csv: str | None = None, tensorboard: str | None = None, every: int = 1) -> None:
        super().__init__()
        _checks.check_integer("every", every, least=1)
        for argument, path in (("csv", csv), ("tensorboard", tensorboard)):
            if path is not None and not isinstance(path, str | os.PathLike):
                raise _checks.error(argument, "be a path or None", path)
        self._path = None if csv is None else pathlib.Path(csv)
        self._directory, self._every = tensorboard, every
        if tensorboard is not None and importlib.util.find_spec("tensorboard") is None:
            hint = "Install it: pip install tensorboard."
            raise _checks.error("tensorboard", "be None without the package of that name", tensorboard, hint)
        self._file = self._writer = self._rows = None

    def set_model(self, model: keras.Model) -> None:
        """Switches the optimizer's sums on; the train function is made anew.

        Args:
            model: the model that trains.
        """
        super().set_model(model)
        optimizer = self._optimizer
        if not optimizer.watched:
            optimizer.watched = True
            model.train_function = None

    @property
    def _optimizer(self) -> GTDDP:
        optimizer = _trained(self).optimizer
        if not isinstance(optimizer, GTDDP):
            raise _checks.error(
                "optimizer", "be of this package for GameMonitor", type(optimizer).__name__, "Compile with btf.GTDDP()."
            )
        return optimizer

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Opens the files."""
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w", newline="")
        if self._directory is not None:
            import tensorflow as tf

            self._writer = tf.summary.create_file_writer(str(self._directory))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the sums anew, so that a loss that is not finite stays in its epoch."""
        monitor = self._optimizer.monitor
        if monitor is not None:
            monitor.assign(np.stack([np.zeros(monitor.shape[1]), monitor.numpy()[1]]))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes a line."""
        step = int(self._optimizer.iterations.numpy())
        if (self._file is None and self._writer is None) or step % self._every:
            return
        values = self._latest()
        if self._file is not None:
            if self._rows is None:
                self._rows = csv.DictWriter(self._file, ["step", *values])
                self._rows.writeheader()
            self._rows.writerow({"step": step, **values})
        if self._writer is not None:
            import tensorflow as tf

            with self._writer.as_default():
                for name, value in values.items():
                    tf.summary.scalar(f"game/{name}", value, step=step)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Puts the epoch's means into the logs."""
        if logs is None:
            return
        monitor = self._optimizer.monitor
        *sums, steps = [0.0] if monitor is None else monitor.numpy()[0]
        if steps > 0:
            means = dict(zip(self._names(), np.array(sums) / steps, strict=True))
            logs |= {name: float(value) for name, value in means.items()}
            if means.get("predicted_reduction"):
                logs["reduction_ratio"] = float(means["actual_reduction"] / means["predicted_reduction"])
        logs |= self._counts()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the files and switches the optimizer's sums off."""
        for each in (self._file, self._writer):
            if each is not None:
                each.close()
        self._file = self._writer = self._rows = None
        self._optimizer.watched = False
        _trained(self).train_function = None

    def _names(self) -> list[str]:
        optimizer = self._optimizer
        return names_of(optimizer.options, _trained(self).game) if optimizer.watchable else []

    def _latest(self) -> dict[str, float]:
        monitor = self._optimizer.monitor
        last = [] if monitor is None else monitor.numpy()[1][:-1]
        values = dict(zip(self._names(), map(float, last), strict=True))
        return values | {name: float(value) for name, value in self._counts().items()}

    def _counts(self) -> dict[str, float]:
        optimizer = self._optimizer
        counts: dict[str, float] = {"rejected_batches": int(optimizer.rejected_batches.numpy())}
        if optimizer.options.published:
            counts["clamped_values"] = int(optimizer.clamped_values)
        if optimizer.step_control is not None:
            counts["refused_steps"] = int(optimizer.refused_steps.numpy())
        if isinstance(optimizer, DGNOpt) and optimizer.adaptive and optimizer.built:
            for k, p in enumerate(optimizer.probabilities.numpy()):
                counts[f"alignment_probability/{k}"] = float(p)
        return counts


class AlignmentReward(keras.callbacks.Callback):
    """Rewards an alignment with the accuracy on data that are held out, the papers' choice.

    For `DGNOpt(alignment="adaptive", reward="held_out")`: after every `every` steps a batch of the held-out data is
    classified, its accuracy is the reward, and the bandit draws the alignment of the next steps.

    Args:
        x: held-out inputs.
        y: held-out labels, integers or one row of probabilities each.
        every: steps that an alignment is tried for.
        batch_size: samples per reward, taken in turn.

    Raises:
        ValueError: if a number is below 1.

    Example:
        >>> x, y = np.eye(4, dtype="float32"), np.arange(4)
        >>> reward = btf.callbacks.AlignmentReward(x, y, every=5)
        >>> optimizer = btf.DGNOpt(0.1, alignment="adaptive", reward="held_out")  # then fit(..., callbacks=[reward])
    """

    def __init__(self, x: Array, y: Array, every: int = 10, batch_size: int = 256) -> None:
        super().__init__()
        _checks.check_integer("every", every, least=1)
        _checks.check_integer("batch_size", batch_size, least=1)
        self._x, self._y, self._every, self._size = np.asarray(x), np.asarray(y), every, batch_size
        if not self._x.ndim or not self._y.ndim or not 0 < len(self._x) == len(self._y):
            received = {"x.shape": self._x.shape, "y.shape": self._y.shape}
            raise _checks.misfit("x", "have one row per label, at least one", received)
        self._steps = self._rounds = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts steps; at the end of a round rewards the alignment."""
        self._steps += 1
        if self._steps % self._every:
            return
        picked = (np.arange(self._size) + self._size * self._rounds) % len(self._x)
        self._rounds += 1
        scores = np.asarray(_trained(self)(self._x[picked], training=False))
        labels = self._y[picked]
        labels = labels.argmax(axis=-1) if labels.ndim > 1 and labels.shape[-1] > 1 else labels.reshape(-1)
        _trained(self).optimizer.give_reward(float(np.mean(scores.argmax(axis=-1) == labels)))
