"""Another Keras optimizer inside ours: it gets the gradient of the re-weighted loss and moves the variables with it.

    ours    forward, backward, Gram matrices under the metric of the other's standing variables, sample weights
    inner   clipping, weight decay, its own statistics, the move, constraints, averages, schedules
    ours    the verdict: where a new value is not finite, variables and the other's state are put back

Gradient accumulation is the other's to have: every micro-batch hands its gradient over, and the other moves the
variables with the last one, see `training/accumulation.py`.

Measured in `keras_examples/README.md`, "Against the best".
"""

from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from bellman_tf import _checks, keras_optimizers, replicas
from bellman_tf._typing import Tensors
from bellman_tf.curvature.block import Block
from bellman_tf.curvature.inner import ScaledBlock
from bellman_tf.game.held import variables_in
from bellman_tf.game.players import Players
from bellman_tf.layers.tensors import either
from bellman_tf.training.context import StepResult
from bellman_tf.training.settings import GameOptions
from bellman_tf.training.update import all_finite

_keras_rate: Any = keras.optimizers.Optimizer.learning_rate  # a property, read off the class

if TYPE_CHECKING:
    _Mixed = keras.optimizers.Optimizer  # what the mixin stands in front of
else:
    _Mixed = object


class InnerOptimizerMixin(_Mixed):
    """Part of an optimizer that may hold another one.

    The other optimizer is chosen once: curvature state and sample weights belong to its variables.
    """

    options: GameOptions
    blocks: list[Block]
    _chosen = False  # set at the end of the constructor

    @property
    def inner(self) -> keras.optimizers.Optimizer | None:
        """The other optimizer, or `None`."""
        return self.__dict__.get("inner_optimizer")

    @property
    def inner_optimizer(self) -> keras.optimizers.Optimizer:
        """The other optimizer.

        Raises:
            AttributeError: without one; Keras's callbacks ask by `hasattr`.
        """
        if self.inner is None:
            raise AttributeError(f"{type(self).__name__} has no inner optimizer")
        return self.inner

    @inner_optimizer.setter
    def inner_optimizer(self, value: Any) -> None:
        if not self._chosen:
            self.__dict__["inner_optimizer"] = value
            return
        raise _checks.error(
            "inner_optimizer", "be given to the constructor", value,
            f"Compile the model with a new {type(self).__name__}(inner_optimizer=...).",
        )  # fmt: skip

    @property
    def inner_state(self) -> list[keras.Variable | tf.Variable]:
        """Everything that the other optimizer may change besides the model's variables; empty without one."""
        weights = [] if self.inner is None else keras_optimizers.trained_variables(self.inner)
        weights = {id(v) for v in [*weights, *keras_optimizers.trained_variables(self)]}
        return [v for v in variables_in(self.inner, (keras.optimizers.Optimizer,)) if id(v) not in weights]

    # ---- what stands for the two of them

    @property
    def iterations(self) -> Any:
        """Moves of the variables; with gradient accumulation the batches so far over those of a move, as in Keras."""
        if self.inner is None or self.options.micro_batches == 1:
            return super().iterations
        return keras.ops.floor_divide(super().iterations, self.options.micro_batches)

    @property
    def micro_batch(self) -> tf.Tensor | None:
        """Number of the next batch among those of a move; `None` without gradient accumulation."""
        if self.options.micro_batches == 1:
            return None
        mover = self if self.inner is None else self._movers[0]
        return tf.convert_to_tensor(keras_optimizers.counter_of(mover)) % self.options.micro_batches

    @property
    def _movers(self) -> list[keras.optimizers.Optimizer]:
        """The optimizers inside that move variables, built."""
        return [part for part in keras_optimizers.parts_of(self.inner_optimizer) if part.built]

    @property
    def learning_rate(self) -> Any:
        """The learning rate, of the other optimizer where there is one."""
        return super().learning_rate if self.inner is None else self.inner.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        if self.inner is None:
            _keras_rate.__set__(self, value)
        else:
            self.inner.learning_rate = value

    @property
    def own_variables(self) -> list[keras.Variable]:
        """Our own state, without that of the other optimizer."""
        return super().variables

    @property
    def variables(self) -> list[keras.Variable]:
        """Our own state, then the other optimizer's."""
        return self.own_variables + ([] if self.inner is None else self.inner.variables)

    def set_weights(self, weights: list[Any]) -> None:
        """Sets the state, in the order of `variables`.

        Args:
            weights: arrays.
        """
        count = len(self.own_variables)
        super().set_weights(weights[:count])
        if self.inner is not None:
            self.inner.set_weights(weights[count:])

    def finalize_variable_values(self, var_list: list[keras.Variable]) -> None:
        """Ends training: averages kept with `use_ema` become the weights.

        Args:
            var_list: the model's trainable variables.
        """
        if self.inner is None:
            super().finalize_variable_values(var_list)
        else:
            self.inner.finalize_variable_values(var_list)

    def exclude_from_weight_decay(
        self, var_list: list[keras.Variable] | None = None, var_names: list[str] | None = None
    ) -> None:
        """As in Keras; reaches the other optimizer, whose weight decay it is.

        Args:
            var_list: variables.
            var_names: parts of names of variables.
        """
        if self.inner is None:
            super().exclude_from_weight_decay(var_list, var_names)
        else:
            self.inner.exclude_from_weight_decay(var_list, var_names)

    # ---- the step

    def build_inner(self, variables: list[keras.Variable]) -> None:
        """Builds the other optimizer for the model's trainable variables.

        Args:
            variables: in the order of the model.

        Raises:
            ValueError: if it has been built for others.
        """
        if self.inner is None:
            return
        with tf.init_scope():  # values that it begins with are set once, and not in every traced step
            self.inner.build(variables)  # does nothing where it is built
        if [id(v) for v in keras_optimizers.trained_variables(self.inner)] != [id(v) for v in variables]:
            raise _checks.error(
                "inner_optimizer", "be new, or have been built for this model", self.inner.name,
                f"Create another {type(self.inner).__name__}.",
            )  # fmt: skip
        if accumulation_of(self.inner) != self.options.micro_batches:  # its optimizers are known only now
            raise _checks.error(
                "inner_optimizer", "accumulate gradients as it did when the optimizer was made",
                accumulation_of(self.inner), "Make the optimizers outside the function that chooses them.",
            )  # fmt: skip

    def hand_over(self, result: StepResult, game: Players) -> StepResult:
        """Lets the other optimizer move the variables, and puts everything back on a bad batch.

        Args:
            result: of the step, with its gradients.
            game: in which it was taken.

        Returns:
            The result with the final verdict, and with the measured scales of the blocks that have some.
        """
        variables = keras_optimizers.trained_variables(self)
        handed = _checks.given("gradients", result.gradients)
        gradients = {
            id(v): g
            for player, parts in zip(game.players, handed, strict=True)
            for v, g in zip(player.variables, parts, strict=True)
        }
        touched = [*variables, *self.inner_state]
        before = [tf.identity(tf.convert_to_tensor(v)) for v in touched]
        moving, completes = gradients, None
        if self.micro_batch is not None:
            completes = tf.equal(self.micro_batch, self.options.micro_batches - 1)
            moving = self._mean_with(gradients)
        self.inner_optimizer.apply([tf.cast(gradients[id(v)], v.dtype) for v in variables], variables)
        after = [tf.convert_to_tensor(v) for v in touched]
        outcome = None
        if result.outcome_of is not None:
            outcome = result.outcome_of({id(v): new for v, new in zip(variables, after, strict=False)})
        accepted = result.accepted & all_finite([value for value in after if value.dtype.is_floating])
        spoiled = None if completes is None else result.accepted & completes & ~accepted
        accepted = _put_back_unless(accepted, touched, before, after)
        if spoiled is not None:
            self._drop(spoiled)
        moves = {id(v): new - old for v, old, new in zip(variables, before, after, strict=False)}
        scaled = {k: block for k, block in enumerate(self.blocks) if isinstance(block, ScaledBlock)}
        whole = replicas.total([[moving[id(v)] for v in block.variables] for block in scaled.values()])
        measured = {}
        for (k, block), own in zip(scaled.items(), whole, strict=True):
            old = result.old_state[k][0]
            new = block.measured(old, [moves[id(v)] for v in block.variables], own)
            measured[k, 0] = new if completes is None else tf.where(completes, new, old)
        state = {**result.state, **measured}
        kept = accepted if replicas.count() == 1 else accepted & result.kept
        return result._replace(
            accepted=accepted, taken=accepted, kept=kept, state=state, outcome=outcome, spoiled=spoiled
        )

    def _mean_with(self, gradients: dict[int, tf.Tensor]) -> dict[int, tf.Tensor]:
        """Mean of a micro-batch's gradients and of those that the other optimizer has summed up, by `id`."""
        found = {}
        for mover in self._movers:
            sums = zip(keras_optimizers.trained_variables(mover), keras_optimizers.accumulators_of(mover), strict=True)
            for v, s in sums:
                g = gradients[id(v)]
                found[id(v)] = (g + tf.cast(s, g.dtype)) / self.options.micro_batches
        return found

    def _drop(self, spoiled: tf.Tensor) -> None:
        """Drops what the other optimizer has accumulated, as if those batches had not been."""
        for mover in self._movers:
            for variable in keras_optimizers.accumulators_of(mover):
                variable.assign(either(spoiled, tf.zeros_like(variable), tf.convert_to_tensor(variable)))
        dropped = tf.cast(spoiled, tf.int64) * (self.options.micro_batches - 1)
        for optimizer in {id(o): o for o in [*self._movers, self.inner_optimizer]}.values():
            keras_optimizers.counter_of(optimizer).assign_sub(dropped)


def accumulation_of(optimizer: keras.optimizers.Optimizer) -> int:
    """How many batches an optimizer makes one move of.

    Args:
        optimizer: that is to stand inside.

    Returns:
        Its `gradient_accumulation_steps`, 1 for `None`.

    Raises:
        ValueError: if it holds several optimizers that do not agree.
    """
    parts = keras_optimizers.parts_of(optimizer)
    found = {part.gradient_accumulation_steps or 1 for part in parts} or {1}
    if len(found) > 1:
        raise _checks.error(
            "inner_optimizer.gradient_accumulation_steps", "be the same in all optimizers: a game is part of one "
            "update of all players", sorted(found),
        )  # fmt: skip
    return found.pop()


def _put_back_unless(
    accepted: tf.Tensor, variables: list[keras.Variable], before: Tensors, after: Tensors
) -> tf.Tensor:
    """Gives variables their old values back unless the batch is good.

    Args:
        accepted: whether it is, boolean scalar.
        variables: those that may have changed.
        before: their values before the step.
        after: and after it.

    Returns:
        `accepted`, once that is done.
    """
    if replicas.count() > 1:  # TensorFlow assigns nothing mirrored inside a branch
        for variable, old, new in zip(variables, before, after, strict=True):
            variable.assign(either(accepted, new, old))
        return accepted

    def put_back() -> tf.Tensor:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
        return tf.constant(False)

    return tf.cond(accepted, lambda: tf.constant(True), put_back)
