"""One warning, when batch after batch has been rejected, that names the player to look at."""

import warnings
from typing import Any

import keras
import numpy as np

from bellman_tf import _checks
from bellman_tf.optimizers.binding import ModelBound

IN_A_ROW = 5  # rejected batches after which chance is no explanation


class Rejections(ModelBound):
    """Part of `GTDDP`: looks at the count of batches rejected in a row, and warns once until a batch is accepted."""

    _said = False

    def warn_rejected(self) -> None:
        """Warns if the last batches were all rejected."""
        count = int(self.rejected_in_a_row.numpy())
        if count < IN_A_ROW:
            self._said = False
        elif not self._said:
            self._said = True
            warnings.warn(self._rejection(count), stacklevel=3)

    def _rejection(self, count: int) -> str:
        sizes = [max(float(np.max(np.abs(v.numpy()), initial=0)) for v in player.variables) for player in self.players]
        largest = int(np.argmax(sizes))
        return (
            f"{type(self).__name__} has rejected the last {count} batches: the loss or a new weight was not finite, "
            f"and nothing has been assigned since. The largest weights, {sizes[largest]:.1e}, are those of "
            f"'{self.players[largest].name}' ({self.blocks[largest].describe()}). If the data are finite, the steps "
            "before were too large: lower `learning_rate`, raise the curvature's `damping`, or use "
            "step_control='levenberg_marquardt'; then start again from weights of ordinary size."
        )


class RejectionWatch(keras.callbacks.Callback):
    """Lets the optimizer look at its count at the end of every epoch."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Warns if the epoch ended in rejected batches."""
        _checks.given("model", self.model).optimizer.warn_rejected()


def watching(callbacks: Any, model: keras.Model) -> list[keras.callbacks.Callback] | keras.callbacks.CallbackList:
    """Adds a `RejectionWatch` to what `fit` was given.

    Args:
        callbacks: `None`, a list, or a `keras.callbacks.CallbackList`.
        model: that is fitted.

    Returns:
        The same with one more; a `CallbackList` is extended in place.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        watch = RejectionWatch()
        watch.set_model(model)  # as the list has done with its own
        callbacks.callbacks.append(watch)
        return callbacks
    given = [] if callbacks is None else list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]
    return [*given, RejectionWatch()]
