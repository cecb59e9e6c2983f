"""Scalars of one step that the statistics of all players share, and the running means made with them."""

import tensorflow as tf

from bellman_tf import replicas
from bellman_tf._typing import Tensors
from bellman_tf.linalg.constants import once


class StepScalars:
    """Scalars of the current step.

    Attributes:
        iteration: number of updates done so far, int64 scalar.
        learning_rate: scalar in the metric's dtype.
        refreshing: whether factorisations may be renewed, boolean scalar; `None` for always. Of the micro-batches of
            one update the last one renews them, and the very first one of all: before it nothing is known.
        present: whether this replica has samples in the step, boolean scalar; `None` on a single one.
        compiled: whether XLA compiles the step, as far as the model says.
    """

    def __init__(
        self,
        iteration: tf.Tensor,
        learning_rate: tf.Tensor,
        present: tf.Tensor | None = None,
        micro_batch: tf.Tensor | None = None,
        micro_batches: int = 1,
        compiled: bool = False,
    ) -> None:
        """Stores the scalars.

        Args:
            iteration: number of updates done so far, int64 scalar.
            learning_rate: scalar.
            present: whether this replica has samples, or `None`.
            micro_batch: number of the batch among those that make one update, int64 scalar, or `None`.
            micro_batches: how many make one.
            compiled: whether XLA compiles the step.
        """
        self.compiled = compiled
        self.iteration, self.learning_rate, self.present = iteration, learning_rate, present
        self._micro_batch, self._micro_batches = micro_batch if micro_batches > 1 else None, micro_batches
        self.refreshing = None
        if self._micro_batch is not None:
            last = tf.equal(micro_batch, micro_batches - 1)
            self.refreshing = last | tf.equal(iteration + micro_batch, 0)
        self._rates: dict[tuple[float, int], tf.Tensor] = {}

    def mean(self, statistics: Tensors) -> Tensors:
        """Averages statistics of the batch over the replicas; not inside a branch of the graph.

        Args:
            statistics: of this replica's samples, or means that are linear in them.

        Returns:
            Those of the samples of all replicas; the same tensors on a single one.
        """
        return replicas.mean(statistics, self.present)

    def correction(self, beta: float, *, standing: bool = False) -> tf.Tensor:
        """What is missing from an exponential mean that starts at 0, one tensor for all players.

        Args:
            beta: weight of the old value.
            standing: of the mean before this step, at the first step as of one step; else with this step in it.

        Returns:
            `1 - beta^t` after t steps.
        """
        dtype = self.learning_rate.dtype

        def make() -> tf.Tensor:
            steps = tf.maximum(self.iteration, 1) if standing else self.iteration + 1
            return 1 - tf.pow(tf.constant(beta, dtype), tf.cast(steps, dtype))

        return once(self, f"correction {beta} {standing}", make)

    def corrected_rate(self, beta: float, *, standing: bool = False) -> tf.Tensor:
        """The learning rate of a metric whose roots of second moments are of such a mean.

        Args:
            beta: weight of the old value.
            standing: as in `correction`.

        Returns:
            `learning_rate sqrt(1 - beta^t)`.
        """

        def make() -> tf.Tensor:
            return self.learning_rate * tf.sqrt(self.correction(beta, standing=standing))

        return once(self, f"rate {beta} {standing}", make)

    def mean_rate(self, decay: float, period: int = 1) -> tf.Tensor:
        """Weight of the old value in an exponential mean that starts as a plain mean.

        Every call gives the same tensor: call it outside the branches of the graph that use it.

        With k micro-batches to an update the mean takes up k values one by one, so that in the end each of them has the
        weight (1 - rate) / k, whatever the order, and the old value the weight `rate`: as if their mean had been taken
        up at once. For that, micro-batch j has the weight e_j with `1 / e_j = k / (1 - rate) - (k - 1) + j`, because
        the later ones take from it what makes all equal, `e_j (1 - e_{j+1}) = e_{j+1}`.

        Args:
            decay: the eventual weight.
            period: steps between two updates of the mean.

        Returns:
            `min(decay, 1 - 1/(t + 1))` at update t, 0 at the first.
        """
        if (decay, period) not in self._rates:
            dtype = self.learning_rate.dtype
            count = tf.cast(self.iteration if period == 1 else self.iteration // period, dtype)
            rate = tf.minimum(tf.constant(decay, dtype), 1 - 1 / (count + 1))
            if self._micro_batch is not None:
                k = self._micro_batches
                rate = 1 - 1 / (k / (1 - rate) - (k - 1) + tf.cast(self._micro_batch, dtype))
            self._rates[decay, period] = rate
        return self._rates[decay, period]


def running_mean(old: tf.Tensor, new: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
    """Exponential mean.

    Args:
        old: the mean so far.
        new: this step's value.
        rate: weight of the old one, of `StepScalars.mean_rate`.

    Returns:
        The new mean.
    """
    return new + rate * (old - new)
