"""What an optimizer keeps beside the weights: averages, counts, damping, what a step tells, and how all is saved.

Parts of `GTDDP`, which mixes them in; each reads the attributes that `GTDDP` makes.
"""

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf.game.players import Players
from bellman_tf.training.context import Outcome, StepResult
from bellman_tf.training.monitor import names_of
from bellman_tf.training.update import Assignments

_SEED = "seed_"  # keys of the random generators' states in the saved file


def first_control_state(shape: tuple, dtype: object = None) -> tf.Tensor:
    """Damping 1, nothing measured.

    Args:
        shape: `[4]`.
        dtype: of the variable.

    Returns:
        The state of step control before the first step.
    """
    return tf.one_hot(0, shape[0], dtype=dtype)


class Records:
    """Averages of the weights, counts, the damping of step control, and what a watched step tells."""

    watched = False  # whether a `GameMonitor` listens
    tells = True  # whether its steps can be watched

    def conclude(self, result: StepResult, game: Players) -> None:
        """Assigns what a step has come to, if the verdict on it is good, and counts it.

        Args:
            result: of the step.
            game: in which it was taken.
        """
        if result.outcome is not None:
            self.observe(result.outcome, result.accepted)
        if self.watched and self.tells:
            self.tell(game, result.outcome, result.telemetry, result.accepted)
        self.queue_averages(result.assignments)
        for (k, j), tensor in result.state.items():
            result.assignments.add(self.state[k][j], tensor)
        result.assignments.apply(self, result.taken, result.restore)
        if result.control is not None:
            self.assign(self.control_state, result.control)
        self.count(result.accepted, result.taken, result.clamped)

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
        for variable, average in zip(self._trainable_variables, self._model_variables_moving_average, strict=True):
            rate = tf.cast(momentum, average.dtype)
            value = rate * tf.convert_to_tensor(average) + (1 - rate) * new[id(variable)]
            assignments.add(average, value)
            if frequency:
                due = tf.equal((tf.convert_to_tensor(self.iterations) + 1) % frequency, 0)
                assignments.replace(variable, tf.where(due, value, new[id(variable)]))

    @property
    def damping(self) -> tf.Tensor:
        """The factor on every metric, with step control."""
        return self.control_state[0]

    @property
    def monitor(self) -> tf.Variable | None:
        """`[2, K + 1]`: sums over steps and latest values of what a watched step tells, and the number of steps."""
        return self.__dict__.get("_monitor")

    def tell(self, game: Players, outcome: Outcome | None, telemetry: dict, accepted: tf.Tensor) -> None:
        """Adds what a step tells to the sums.

        Args:
            game: the game of the step.
            outcome: what it does to J.
            telemetry: numbers by name.
            accepted: whether the batch is good; a bad one is not counted.
        """
        names = names_of(self.options, game)
        if self.monitor is None or self.monitor.shape != (2, len(names) + 1):
            with tf.init_scope():
                object.__setattr__(self, "_monitor", tf.Variable(tf.zeros([2, len(names) + 1]), trainable=False))
        known = dict(telemetry)
        if outcome is not None:
            known |= {"predicted_reduction": outcome.predicted, "actual_reduction": outcome.actual}
        known["damping"] = tf.ones([]) if self.step_control is None else self.damping
        values = tf.stack([*(tf.cast(known[name], tf.float32) for name in names), tf.ones([])])
        old = tf.convert_to_tensor(self.monitor)
        self.monitor.assign(tf.where(accepted, tf.stack([old[0] + values, values]), old))

    def observe(self, outcome: Outcome, accepted: tf.Tensor) -> None:
        """Hears what a step does to J; for subclasses.

        Args:
            outcome: predicted and actual decrease.
            accepted: whether the batch is good.
        """

    def count(self, accepted: tf.Tensor, taken: tf.Tensor, clamped: tf.Tensor) -> None:
        """Advances the iteration on a step taken; counts rejected batches, refused steps and clamps.

        Args:
            accepted: boolean scalar, whether the batch is good.
            taken: boolean scalar, whether its step is taken.
            clamped: integer scalar.
        """
        good, yes = tf.cast(accepted, tf.int64), tf.cast(taken, tf.int64)
        self.assign_add(self.iterations, yes)
        self.assign_add(self.rejected_batches, 1 - good)
        if self.step_control is not None:
            self.assign_add(self.refused_steps, good - yes)
        if self.options.value_hessian == "outer_product":
            self.assign_add(self.clamped_values, yes * tf.cast(clamped, tf.int64))


class Saved:
    """Saving and loading with the states of the model's random generators, and refusing what does not fit."""

    def save_own_variables(self, store: dict) -> None:
        """Keras's own, and the states of the model's random generators, so that training resumes exactly.

        Args:
            store: where to save.
        """
        super().save_own_variables(store)
        model = None if self._model is None else self._model()
        for k, variable in enumerate(model.seed_variables() if model is not None else ()):
            store[f"{_SEED}{k}"] = variable.numpy()

    def load_own_variables(self, store: dict) -> None:
        """Loads the saved state.

        Args:
            store: the saved arrays, by position.

        Raises:
            ValueError: if number or shapes do not fit this optimizer and its model.
        """
        seeds = self._bound_model().seed_variables()
        places = {str(k): variable for k, variable in enumerate(self.variables)}
        places |= {f"{_SEED}{k}": variable for k, variable in enumerate(seeds)}
        hint = "The saved optimizer had another curvature, other options or another model."
        if set(store.keys()) != set(places):
            rule = f"hold the {len(places)} variables of {self.name}"
            raise _checks.error("store", rule, len(store.keys()), hint)
        for key, variable in places.items():
            saved = tuple(store[key].shape)
            if saved != tuple(variable.shape):
                raise _checks.error("store", f"hold shape {tuple(variable.shape)} for {variable.path}", saved, hint)
        for key, variable in places.items():
            variable.assign(store[key])
