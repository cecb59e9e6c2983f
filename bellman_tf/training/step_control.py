"""Step control: the damping goes to where the step is best for samples that had no part in it.

What the step does to a sample that was left out of its computation follows from the Gram matrix, as far as the
quadratic model goes (`held_out.py`). What the model misses is measured by the loss of the new network on the same
batch, before anything is assigned; with `rollout="linear"` it costs one more forward pass, taken at every k-th step.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._serial import Serialisable
from bellman_tf.training.context import Outcome

STATE_SIZE = 8
_ROUNDINGS = 100  # of J, below which a decrease is not measured
_TOLD = 1e-3  # least share of the predicted decrease in the slope on the batch, which is above it in a quadratic model


@keras.saving.register_keras_serializable("bellman_tf")
@dataclasses.dataclass(frozen=True)
class LevenbergMarquardt(Serialisable):
    """Damping by what the step does to samples that it was not computed from, and by what its model misses.

    The damping multiplies every metric M, so the learning rate that a metric sees is the optimizer's divided by it. A
    step of tau times the size lowers J on samples without a part in it by

        slope tau - (curvature / 2 + missed) tau^2

    Slope and curvature come from the Gram matrix, with every sample left out of the step in turn, and cost no pass of
    the network. `missed` is how much less than predicted J falls on the batch itself, measured at every `every`-th
    step. All three are running means. The damping goes to where the step is `boldness` times the best one, by at most
    `lower_factor` a step downwards.

    One sample may refuse the step, but not spoil those that follow. Left out of its step, a sample that the network is
    sure of can have a slope or curvature of any size. A slope above the batch's own counts as that one: no step can
    promise more to others than to those that it was computed from. The means keep a slope of at least minus the batch's
    own and a curvature of at most `refuse_factor`^2 times it. A batch whose own slope is more than `refuse_factor`^2
    times the mean one weighs as if it were that, and a loss counts for at most so much above the mean of the losses.

    A step is refused (nothing is assigned, the damping is multiplied by `refuse_factor`) if it is `refuse_factor` times
    too long by this model; if its loss is measured and not finite; or if J is measured to fall by less than `low` times
    the predicted decrease and to end above the running mean of the losses before the steps. The first step that is
    taken has to reach `low` times the predicted decrease in any case: from initial weights almost any step lowers J,
    and one far too long leaves the network where later steps learn little.

    No length of training is assumed. What is best for the next step is less than what is best for a long run where the
    noise of the batch hides a slow descent: there `boldness` above 1 helps (and costs where steps are long already).
    So does a learning rate that falls to zero towards the end: the running means, and with them the damping, follow it
    late.

    Attributes:
        every: steps between forward passes that measure the loss after the step; 1 measures all.
        settling: steps at the beginning that are all measured, because a learning rate far too large does its harm in
            the first few; after so many refusals the first step need not reach `low` any more.
        low: ratio of actual to predicted decrease below which a step may be refused; below 1.
        lower_factor: at least 1.
        refuse_factor: at least 1.
        memory: of the running means of slope, curvature and loss, in [0, 1).
        missed_memory: of the running mean of what the model misses, per measurement, in [0, 1).
        trust: least slope on other samples, as a share of the batch's own: noise cannot raise the damping forever.
            Where nothing can be learnt, as from random labels, steps stay too long for it and the loss rises.
        boldness: above 1 takes longer steps than are best for the next step alone.
        least: smallest damping.
        most: largest damping.

    Source: Levenberg 1944, Marquardt 1963 for the damping; slope over curvature as the rate is Schaul, Zhang & LeCun
        2013; a sample left out of a linear solve in closed form is Allen's PRESS, 1974; refusing only what rises above
        a mean of losses is Zhang & Hager 2004.

    Example:
        >>> optimizer = btf.GTDDP(10.0, step_control=btf.LevenbergMarquardt(every=5))  # the rate matters little
        >>> float(optimizer.damping), int(optimizer.refused_steps)
        (1.0, 0)
    """

    every: int = 1
    settling: int = 20
    low: float = 0.25
    lower_factor: float = 1.5
    refuse_factor: float = 4.0
    memory: float = 0.97
    missed_memory: float = 0.9
    trust: float = 0.1
    boldness: float = 1.0
    least: float = 1e-6
    most: float = 1e10

    def __post_init__(self) -> None:
        """Checks every number.

        Raises:
            ValueError: for one outside its range.
        """
        _checks.check_integer("every", self.every, least=1)
        _checks.check_integer("settling", self.settling, least=0)
        for name in ("lower_factor", "refuse_factor"):
            _checks.check_real(name, getattr(self, name), least=1)
        for name in ("memory", "missed_memory"):
            _checks.check_real(name, getattr(self, name), least=0, below=1)
        _checks.check_real("low", self.low, below=1)
        _checks.check_real("trust", self.trust, least=0)
        _checks.check_real("boldness", self.boldness, above=0)
        _checks.check_real("least", self.least, above=0)
        _checks.check_real("most", self.most, least=self.least)


STEP_CONTROLS = {"levenberg_marquardt": LevenbergMarquardt}


def get(identifier: str | LevenbergMarquardt | Mapping[str, Any] | None) -> LevenbergMarquardt | None:
    """A step control from its name, an object, or a serialised one.

    Args:
        identifier: `None`, "levenberg_marquardt", a `LevenbergMarquardt`, or its configuration.

    Returns:
        The object, or `None`.

    Raises:
        ValueError: if it is none of these.
    """
    if identifier is None:
        return None
    return _checks.resolve(
        "step_control", identifier, STEP_CONTROLS, LevenbergMarquardt, "None or a `LevenbergMarquardt`"
    )


class Verdict(NamedTuple):
    """What step control says of one step.

    Attributes:
        taken: boolean scalar.
        state: `[STATE_SIZE]`, for the next step.
    """

    taken: tf.Tensor
    state: tf.Tensor


def measures(control: LevenbergMarquardt, iteration: tf.Tensor) -> tf.Tensor:
    """Whether the loss after a step is measured.

    Args:
        control: the rule.
        iteration: steps taken so far; a refused step does not count, so the one after it is measured too.

    Returns:
        Boolean scalar.
    """
    return tf.equal(iteration % control.every, 0) | (iteration < control.settling)


def judge(
    control: LevenbergMarquardt,
    state: tf.Tensor,
    outcome: Outcome,
    loss: tf.Tensor,
    measured: tf.Tensor,
    first: tf.Tensor,
) -> Verdict:
    """Judges one step.

    Args:
        control: the rule.
        state: `[STATE_SIZE]`: the damping of this step; running means, for this damping, of the slope on other samples,
            the slope on the batch itself, the curvature and the miss; that of the losses; how many steps and
            measurements they hold.
        outcome: what the step does to J; `actual` is read where `measured`.
        loss: J before the step, scalar.
        measured: whether the loss after the step is to be read, boolean scalar.
        first: whether no step has been taken yet, boolean scalar.

    Returns:
        The verdict. A predicted decrease of zero (a stationary point, or a first step whose metric is not known yet)
        leaves the state as it is, unless the step is refused. Differences in the rounding of J measure nothing.
    """
    kind = state.dtype
    damping, means, missed, level = state[0], state[1:4], state[4], state[5]
    steps, measurements = state[6], state[7]
    predicted, actual, loss = (tf.cast(x, kind) for x in (outcome.predicted, outcome.actual, loss))
    still = tf.equal(predicted, 0)
    rounding = _ROUNDINGS * tf.experimental.numpy.finfo(kind.as_numpy_dtype).eps * tf.abs(loss)
    finite = tf.math.is_finite(actual)
    measured &= ~finite | (tf.maximum(tf.abs(predicted), tf.abs(actual)) > rounding)

    slope, own, curvature = tf.unstack(tf.cast(outcome.held_out, kind))
    most, limit = tf.abs(own), control.refuse_factor**2
    # what overflows is forgotten, and a first step whose metric is not known yet: the Gram matrix says nothing of it
    silent = first & (most < _TOLD * tf.abs(predicted))
    known = tf.reduce_all(tf.math.is_finite(outcome.held_out)) & ~silent
    slope = tf.minimum(slope, most)
    bounded = tf.stack([tf.maximum(slope, -most), own, tf.minimum(curvature, limit * most)])
    share = tf.math.divide_no_nan(limit * tf.abs(means[1]), most)
    weight = tf.where((steps > 0) & (share > 0), tf.minimum(share, 1.0), 1.0)
    kept = tf.where(known, _mean(means, weight * bounded, steps, control.memory), means)
    means = tf.where(known, _mean(means, weight * tf.stack([slope, own, curvature]), steps, control.memory), means)
    # a loss that is not finite counts as if all of the slope were missed
    miss = tf.where(finite, tf.clip_by_value(predicted - actual, -most, most), most)
    read = measured & known
    missed = tf.where(read, _mean(missed, weight * miss, measurements, control.missed_memory), missed)
    highest = tf.where((steps > 0) & (level != 0), level + limit * tf.abs(level), loss)
    level = _mean(level, tf.minimum(loss, highest), steps, control.memory)

    slope = tf.maximum(means[0], control.trust * means[1])
    bends = means[2] + 2 * tf.maximum(missed, 0.0)
    usable = (slope > 0) & (bends > 0)
    factor = tf.where(usable, bends / tf.where(usable, slope, 1.0) / control.boldness, 1.0)
    lower = (loss - actual <= level) & ~(first & (steps < control.settling))
    good = finite & ((actual >= control.low * predicted) | lower)
    fails = measured & ~good
    taken = ~fails & (still | (factor <= control.refuse_factor))
    factor = tf.clip_by_value(factor, 1 / control.lower_factor, control.refuse_factor)
    new = tf.clip_by_value(damping * tf.where(taken, factor, control.refuse_factor), control.least, control.most)
    change = damping / new  # slopes grow with the rate, curvature and miss with its square
    scaled = [*tf.unstack(kept * tf.stack([change, change, change**2]), num=3), missed * change**2, level]
    counts = [steps + tf.cast(known, kind), measurements + tf.cast(read, kind)]
    return Verdict(taken, tf.where(still & taken, state, tf.stack([new, *scaled, *counts])))


def _mean(old: tf.Tensor, now: tf.Tensor, count: tf.Tensor, memory: float) -> tf.Tensor:
    """A running mean that starts as the plain one."""
    kept = tf.minimum(memory, count / (count + 1))
    return kept * old + (1 - kept) * now
