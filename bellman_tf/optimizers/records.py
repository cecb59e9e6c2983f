"""What an optimizer keeps beside the weights: averages, counts, damping, monitored numbers, and how all is saved.

Mixed into the classes of an optimizer: `Saved` into `binding.Bound`, `Records` into `stepping.Stepping`. Both read the
counters that `GTDDP` makes.
"""

import warnings

import keras
import numpy as np
import tensorflow as tf

from bellman_tf import _checks
from bellman_tf.game.players import Players
from bellman_tf.keras_access import averages_of, trained_variables
from bellman_tf.keras_optimizers import counter_of
from bellman_tf.layers.tensors import either
from bellman_tf.training.context import Outcome, StepResult
from bellman_tf.training.monitor import names_of
from bellman_tf.training.update import Assignments

_SEED = "seed_"  # keys of the random generators' states in the saved file
_NEW = "For another model, make a new optimizer of the same options: `type(o).from_config(o.get_config())`."
_OTHER = (
    "The saved optimizer had other options or another model. `load_weights(path, skip_mismatch=True)` loads the layers "
    "alone."
)


def first_control_state(shape: tuple, dtype: object = None) -> tf.Tensor:
    """Damping 1, nothing measured.

    Args:
        shape: one axis.
        dtype: of the variable.

    Returns:
        The state of step control before the first step.
    """
    return tf.one_hot(0, shape[0], dtype=dtype)


class Records:
    """Averages of the weights, counts, the damping of step control, and the numbers that a monitor reads."""

    watched = False  # whether a `GameMonitor` listens
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

    def add_to_monitor(self, game: Players, outcome: Outcome | None, telemetry: dict, accepted: tf.Tensor) -> None:
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
        self.monitor.assign(tf.where(accepted, tf.stack([old[0] + values, values]), old))

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


class Saved:
    """Saving, loading and copying: state of the optimizer and of its model's random generators.

    As in Keras, a file with another number of variables is of another optimizer: loading warns and leaves the
    optimizer as it is, so that `load_weights` still loads the layers. A copy (`copy`, `pickle`) takes options and
    state along, not the model; it is compiled into another one, and what belongs to the players waits until then.
    """

    # state of a copy, ours and that of an optimizer inside, until `build` makes the variables for it
    _waiting: tuple[tuple[np.ndarray, ...], ...] | None = None

    def save_own_variables(self, store: dict) -> None:
        """State of the optimizer and of the model's random generators, so that training resumes exactly.

        Args:
            store: where to save.
        """
        for k, variable in enumerate(self.own_variables):  # Keras saves an optimizer inside this one by itself
            store[str(k)] = variable.numpy()
        for k, variable in enumerate(self._generators()):
            store[f"{_SEED}{k}"] = variable.numpy()

    def load_own_variables(self, store: dict) -> None:
        """Loads the saved state; warns and loads nothing if it is that of another optimizer.

        Args:
            store: the saved arrays, by position.

        Raises:
            ValueError: if the number of variables fits, and a shape does not.
        """
        keys = set(store.keys())
        seeds = {key for key in keys if key.startswith(_SEED)}
        own = {key: store[key] for key in keys - seeds}
        if set(own) != {str(k) for k in range(len(self.own_variables))} or not self._counters_in(own):
            self._warn_skipped(own)
            return
        self._assign(self.own_variables, [own[str(k)] for k in range(len(own))], _OTHER)
        generators = self._generators()
        if len(generators) != len(seeds):
            warnings.warn(
                f"Skipping {len(seeds)} saved random generators for '{self.name}': the model has {len(generators)}. "
                "Dropout draws other masks than in an uninterrupted run.",
                stacklevel=2,
            )
            return
        for k, variable in enumerate(generators):
            variable.assign(store[f"{_SEED}{k}"])

    def _generators(self) -> list:
        model = None if self._model is None else self._model()
        return [] if model is None else model.seed_variables()

    def _counters_in(self, own: dict) -> bool:
        """Whether our integer counters stand at their places, which no optimizer of Keras has there."""
        counters = {id(self.rejected_batches), id(self.clamped_values)}
        places = [str(k) for k, variable in enumerate(self.own_variables) if id(variable) in counters]
        return all(tuple(own[k].shape) == () and np.issubdtype(own[k].dtype, np.integer) for k in places)

    def _warn_skipped(self, own: dict) -> None:
        reason = "it was saved by an optimizer of another kind"
        if len(own) != len(self.own_variables):
            reason = f"it has {len(self.own_variables)} variables whereas the saved optimizer has {len(own)} variables"
        if not self.built:
            reason += (
                "; this one makes its state at the first training step or when a `.keras` file is loaded. To go on "
                "where the saved one stood, call `model.optimizer.build(model.trainable_variables)` before loading"
            )
        warnings.warn(f"Skipping variable loading for optimizer '{self.name}', because {reason}.", stacklevel=3)

    def _assign(self, variables: list, values: list, hint: str) -> None:
        for variable, value in zip(variables, values, strict=True):
            if tuple(value.shape) != tuple(variable.shape):
                name = variable.path if isinstance(variable, keras.Variable) else variable.name
                rule = f"hold shape {tuple(variable.shape)} for {name}"
                raise _checks.error("store", rule, tuple(value.shape), hint)
        with tf.init_scope():  # a model without Input is built, and its optimizer with it, while its step is traced
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)

    def __reduce__(self) -> tuple:
        """Copies by options and state; the model stays behind, and so do the states of its random generators."""
        parts = self.own_variables, self.inner_state
        state = tuple(tuple(v.numpy() for v in part) for part in parts) if self._waiting is None else self._waiting
        return _copied, (type(self), self.get_config(), state)

    def restore(self) -> None:
        """Gives a copied optimizer the state it was copied with, as soon as there are variables for it.

        Raises:
            ValueError: if the state does not fit the model.
        """
        if self._waiting is None:
            return
        own, inner = self._waiting
        if not self.built:
            first = len(self.own_variables)  # iteration, rate, counters; the rest is made by `build`
            for variable, value in zip(self.own_variables, own[:first], strict=True):
                variable.assign(value)
            place = self.inner_state
            if len(own) == first and len(inner) == len(place):  # all there is, with or without a build
                self._assign(place, inner, _NEW)
                self._waiting = None
            return
        places = [*self.own_variables, *self.inner_state]
        if len(own) != len(self.own_variables) or len(own) + len(inner) != len(places):
            rule = f"give {self.name} the {len(own) + len(inner)} variables that it was copied with"
            raise _checks.error("model", rule, len(places), _NEW)
        self._assign(places, [*own, *inner], _NEW)
        self._waiting = None


def _copied(cls: type, config: dict, state: tuple) -> object:
    """An optimizer with the options and state of another one."""
    optimizer = cls.from_config(config)
    optimizer._waiting = state
    optimizer.restore()
    return optimizer
