"""What a step is taken with, and what comes of it: tensors that go in, tensors that come out."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from bellman_tf._typing import Nested, Restored, Tensors
from bellman_tf.curvature.stacks import StoredState
from bellman_tf.training.update import Assignments


class StepContext(NamedTuple):
    """Tensors of the optimizer before the step.

    Attributes:
        iteration: steps taken so far, int64 scalar.
        learning_rate: as the metrics see it, damped by step control, scalar in the recursion's dtype.
        decay: weight decay times learning rate, or `None`.
        state: of every player's curvature, then of every coupling.
        control: state of step control, or `None`.
        velocities: of every player's variables; empty without momentum.
        micro_batch: number of the batch among those that make one update of the weights, int64 scalar, or `None`.
        sums: of the gradients of the micro-batches so far, by player; empty without accumulation.
    """

    iteration: tf.Tensor
    learning_rate: tf.Tensor
    decay: tf.Tensor | None
    state: StoredState
    control: tf.Tensor | None = None
    velocities: Sequence[Tensors] = ()
    micro_batch: tf.Tensor | None = None
    sums: Sequence[Tensors] = ()


class Outcome(NamedTuple):
    """What the step does to J on its own batch, scalars.

    Attributes:
        predicted: decrease of the quadratic model.
        actual: decrease of J; NaN where the loss after the step is not computed.
        held_out: `[3]`, what the step does to samples that had no part in it, see `SamplePolicy.held_out_model`.
    """

    predicted: tf.Tensor
    actual: tf.Tensor
    held_out: tf.Tensor


class StepResult(NamedTuple):
    """What a step hands to its optimizer. Nothing is assigned yet.

    Attributes:
        loss: J before the step, scalar; of several replicas this one's term, and J is their sum. Of a loss that is not
            reduced the mean, which Keras shows, where J is the sum.
        y_pred: the model's outputs before the step.
        assignments: new values of the model's variables.
        state: new curvature state, by player and position, where it changes.
        old_state: the curvature state before the step, as it was given.
        restore: (variable, value before the step) of what the model wrote itself.
        accepted: whether the batch is good, boolean scalar.
        taken: whether its step is to be taken.
        kept: whether what the model wrote itself is to stay: not where a replica had no samples to write it from.
        control: new state of step control, or `None`.
        clamped: clamps of the papers' recursion.
        outcome: what the step does to J; `None` where neither step control nor a monitor reads it.
        telemetry: numbers about the sample weights, by name; empty without a monitor.
        searched: the step length that a line search took, or `None`.
        gradients: of the re-weighted loss, by player, where another optimizer moves the variables; else `None`.
        velocities: new ones, by player, with momentum.
        outcome_of: gives the outcome for new values by `id` of the variable, where another optimizer makes them.
        sums: of the micro-batches' gradients, as the next one finds them, by player; empty without accumulation.
        spoiled: whether the batch is good and the update that it completes is not, or `None`.
    """

    loss: tf.Tensor
    y_pred: Nested
    assignments: Assignments
    state: dict[tuple[int, int], tf.Tensor]
    old_state: StoredState
    restore: Restored
    accepted: tf.Tensor
    taken: tf.Tensor
    kept: tf.Tensor
    control: tf.Tensor | None
    clamped: tf.Tensor
    outcome: Outcome | None
    telemetry: dict[str, tf.Tensor]
    searched: tf.Tensor | None
    gradients: list[Tensors] | None
    velocities: dict[int, Tensors]
    outcome_of: Callable[[dict[int, tf.Tensor]], Outcome] | None
    sums: Sequence[Tensors] = ()
    spoiled: tf.Tensor | None = None


def recursion_dtype(variables: list[keras.Variable]) -> tf.DType:
    """Dtype of Gram matrices and sample weights.

    Args:
        variables: the model's trainable variables.

    Returns:
        float64 if any of them is, else float32.
    """
    return tf.float64 if any(v.dtype == "float64" for v in variables) else tf.float32
