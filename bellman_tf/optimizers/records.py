"""What an optimizer keeps beside the weights: averages, counts, damping, monitored numbers."""

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf.game.players import Players
from bellman_tf.keras_optimizers import averages_of, counter_of, trained_variables
from bellman_tf.layers.tensors import either
from bellman_tf.optimizers.binding import ModelBound
from bellman_tf.training.context import Outcome, StepResult
from bellman_tf.training.monitor import names_of
from bellman_tf.training.update import Assignments


def first_control_state(shape: tuple[int, ...], dtype: str | None = None) -> tf.Tensor:
    """Damping 1, nothing measured.

    Args:
        shape: one axis.
        dtype: of the variable.

    Returns:
        The state of step control before the first step.
    """
    return tf.one_hot(0, shape[0], dtype=dtype)


class Records(ModelBound):
    """Averages of the weights, counts, the damping of step control, and the numbers that a monitor reads."""

    watched = False  # whether a `GameMonitor` reads the step's numbers
    watchable = True  # whether its steps have numbers for a monitor

    def conclude(self, result: StepResult, game: Players) -> None:
        """Assigns what a step has come to, if the verdict on it is good, and counts it.

        Args:
            result: of the step.
            game: in which it was taken.
        """
        if result.outcome is not None:
            self.observe(result.outcome, result.accepted)
        if self.watched and self.watchable:
            self.add_to_monitor(game, result.outcome, result.telemetry, result.accepted)
        self.queue_averages(result.assignments)
        for variable, tensor, before in self._store.changed(result.old_state, result.state):
            result.assignments.add(variable, tensor, before)
        for k, tensors in result.velocities.items():
            for variable, tensor in zip(self.velocities[k], tensors, strict=True):
                result.assignments.add(variable, tensor)
        result.assignments.apply(self, result.taken, result.kept, result.restore)
        for accumulators, tensors in zip(self.accumulators, result.sums, strict=True):
            for variable, tensor in zip(accumulators, tensors, strict=True):
                self.assign(variable, tensor)
        if result.control is not None:
            self.assign(self.control_state, result.control)
        self.count(result.accepted, result.taken, result.clamped, result.spoiled)

    def queue_averages(self, assignments: Assignments) -> None:
        """Queues the moving averages of the variables (`use_ema`), and their overwriting.

        Args:
            assignments: where to queue.
        """
        if not self.use_ema:
            return
        new = assignments.by_variable()
        dtype = tf.float32
        later = tf.cast(tf.not_equal(tf.convert_to_tensor(self.iterations), 0), dtype)
        momentum = later * self.ema_momentum
        frequency = self.ema_overwrite_frequency
        for variable, average in zip(trained_variables(self), averages_of(self), strict=True):
            rate = tf.cast(momentum, average.dtype)
            value = rate * tf.convert_to_tensor(average) + (1 - rate) * new[id(variable)]
            assignments.add(average, value)
            if frequency:
                due = tf.equal((tf.convert_to_tensor(self.iterations) + 1) % frequency, 0)
                assignments.replace(variable, either(due, value, new[id(variable)]))

    @property
    def damping(self) -> tf.Tensor:
        """The factor on every metric, with step control."""
        return self.control_state[0]

    @property
    def monitor(self) -> tf.Variable | None:
        """`[2, K + 1]`: sums over steps and latest values of what `names_of` names; the last column counts steps."""
        return self.__dict__.get("_monitor")

    def make_monitor(self, game: Players) -> None:
        """Makes the variable of `monitor`, if there is none for the numbers of this game.

        Args:
            game: the model's game.
        """
        shape = (2, len(names_of(self.options, game)) + 1)
        if self.monitor is None or self.monitor.shape != shape:
            object.__setattr__(self, "_monitor", tf.Variable(tf.zeros(shape), trainable=False))

    def prepare(self, game: Players) -> None:
        """Makes the variables of a step that cannot be made inside a replica, before it is traced.

        Args:
            game: the model's game.
        """
        if self.watched and self.watchable:
            self.make_monitor(game)

    def add_to_monitor(
        self, game: Players, outcome: Outcome | None, telemetry: dict[str, tf.Tensor], accepted: tf.Tensor
    ) -> None:
        """Adds the numbers of a step to the sums of `monitor`.

        Args:
            game: the game of the step.
            outcome: what it does to J.
            telemetry: numbers by name.
            accepted: whether the batch is good; a bad one is not counted.
        """
        names = names_of(self.options, game)
        with tf.init_scope():
            self.make_monitor(game)
        known = dict(telemetry)
        if outcome is not None:
            known |= {"predicted_reduction": outcome.predicted, "actual_reduction": outcome.actual}
        known["damping"] = tf.ones([]) if self.step_control is None else self.damping
        values = tf.stack([*(tf.cast(known[name], tf.float32) for name in names), tf.ones([])])
        old = tf.convert_to_tensor(self.monitor)
        _checks.given("monitor", self.monitor).assign(tf.where(accepted, tf.stack([old[0] + values, values]), old))

    def observe(self, outcome: Outcome, accepted: tf.Tensor) -> None:
        """Called with what a step does to J; for subclasses.

        Args:
            outcome: predicted and actual decrease.
            accepted: whether the batch is good.
        """

    def count(
        self, accepted: tf.Tensor, taken: tf.Tensor, clamped: tf.Tensor, spoiled: tf.Tensor | None = None
    ) -> None:
        """Advances the iteration on a step taken; counts rejected batches, refused steps and clamps.

        Args:
            accepted: boolean scalar, whether the batch is good.
            taken: boolean scalar, whether its step is taken.
            clamped: integer scalar.
            spoiled: boolean scalar, whether the micro-batches that were accumulated are dropped; `None` for no.
        """
        good, yes = tf.cast(accepted, tf.int64), tf.cast(taken, tf.int64)
        dropped = tf.zeros([], tf.int64)  # of those before this one
        if spoiled is not None:
            dropped = tf.cast(spoiled, tf.int64) * (self.options.micro_batches - 1)
        self.assign_add(counter_of(self), yes - dropped)
        self.assign_add(self.rejected_batches, 1 - good + dropped)
        self.assign(self.rejected_in_a_row, (tf.convert_to_tensor(self.rejected_in_a_row) + 1) * (1 - good))
        if self.step_control is not None:
            self.assign_add(self.refused_steps, good - yes)
        if self.options.published:
            self.assign_add(self.clamped_values, yes * tf.cast(clamped, tf.int64))
