"""Step control from the loss of the new network on the same batch, known before anything is assigned.

With `rollout="linear"` that loss costs one more forward pass; the nonlinear roll-out's second pass ends in it anyway.
The predicted decrease is that of the recursion's quadratic model.
"""

import dataclasses
from typing import NamedTuple

import keras
import tensorflow as tf

from bellman_tf import _checks


@keras.saving.register_keras_serializable("bellman_tf")
@dataclasses.dataclass(frozen=True)
class LevenbergMarquardt:
    """Damping by what the step does to its own batch, and by what it should do to others.

    The damping multiplies every metric M, so the learning rate that a metric sees is the optimizer's divided by it. Two
    things move it:

    - *The own batch.* After a ratio of actual to predicted decrease below `low` it is multiplied by `raise_factor`. A
      step that raises J by more than `bound` times the predicted decrease, or to a number that is not finite, is
      refused: nothing is assigned and the damping is multiplied by `refuse_factor`.
    - *Other samples.* On a small batch the ratio stays near one at learning rates that ruin the loss of all other
      samples. The Gram matrix knows what the step does to a sample that had no part in it (its entries off the
      diagonal): J falls by `slope tau - curvature tau^2 / 2` for a step of tau times the size. The damping goes to
      where tau = `boldness` is best for the running means of slope and curvature, by at most `lower_factor` a step
      downwards; a step further than `refuse_factor` beyond that is refused.

    Attributes:
        low: ratio below which the model is not trusted.
        raise_factor: at least 1.
        lower_factor: at least 1.
        refuse_factor: at least 1.
        bound: at least 0; 0 refuses every step that raises J on its batch.
        memory: of the running means of slope and curvature, in [0, 1).
        trust: least slope on other samples, as a share of the batch's own: noise cannot raise the damping forever.
        boldness: above 1 takes longer steps than the model of the plain step allows, which the recursion's own
            curvature may bear: 2 or 3 trained faster at B = 64 on DIGITS, and broke at B = 8.
        least: smallest damping.
        most: largest damping.

    Source: Levenberg 1944, Marquardt 1963; algorithm.md, Section 7. The second rule is that of Schaul, Zhang & LeCun
        2013 with slope and curvature read off the Gram matrix.
    """

    low: float = 0.25
    raise_factor: float = 1.5
    lower_factor: float = 1.5
    refuse_factor: float = 4.0
    bound: float = 1.0
    memory: float = 0.97
    trust: float = 0.1
    boldness: float = 1.0
    least: float = 1e-6
    most: float = 1e10

    def __post_init__(self) -> None:
        """Checks every number.

        Raises:
            ValueError: for one outside its range.
        """
        for name in ("raise_factor", "lower_factor", "refuse_factor"):
            _checks.check_real(name, getattr(self, name), least=1)
        _checks.check_real("bound", self.bound, least=0)
        _checks.check_real("memory", self.memory, least=0, below=1)
        _checks.check_real("low", self.low, below=1)
        _checks.check_real("trust", self.trust, least=0)
        _checks.check_real("boldness", self.boldness, above=0)
        _checks.check_real("least", self.least, above=0)
        _checks.check_real("most", self.most, least=self.least)

    def get_config(self) -> dict:
        """The numbers, for Keras serialisation."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict) -> "LevenbergMarquardt":
        """The inverse of `get_config`."""
        return cls(**config)


STEP_CONTROLS = {"levenberg_marquardt": LevenbergMarquardt}


def get(identifier: object) -> LevenbergMarquardt | None:
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
        state: `[4]`, for the next step.
    """

    taken: tf.Tensor
    state: tf.Tensor


def judge(
    control: LevenbergMarquardt, state: tf.Tensor, predicted: tf.Tensor, actual: tf.Tensor, held_out: tuple
) -> Verdict:
    """Judges one step.

    Args:
        control: the rule.
        state: `[4]`, the damping of this step and the running means of `held_out`, all for damping 1.
        predicted: decrease of the quadratic model, scalar.
        actual: J before less J after, scalar; NaN or infinite when J after is.
        held_out: `[3]`, slope on other samples, slope on the batch itself, curvature on other samples.

    Returns:
        The verdict. A predicted decrease of zero (a stationary point) leaves the damping as it is.
    """
    damping, means = state[0], state[1:]
    still = tf.equal(predicted, 0)
    ratio = tf.where(still, tf.ones_like(actual), actual / tf.where(still, tf.ones_like(predicted), predicted))
    # Slopes fall with the damping, curvature with its square: kept for damping 1.
    now = tf.cast(held_out, state.dtype) * tf.stack([damping, damping, damping**2])
    now = tf.where(tf.reduce_all(tf.math.is_finite(now)), now, means)  # what overflows is forgotten
    means = control.memory * means + (1 - control.memory) * now
    slope = tf.maximum(means[0], control.trust * means[1])
    known = (slope > 0) & (means[2] > 0)
    best = tf.where(known, means[2] / tf.where(known, slope, 1.0) / control.boldness, damping)
    taken = tf.math.is_finite(actual) & (still | (ratio >= -control.bound)) & (best <= control.refuse_factor * damping)
    moved = tf.maximum(best, damping / control.lower_factor)
    moved = tf.where(ratio < control.low, tf.maximum(moved, damping * control.raise_factor), moved)
    moved = tf.where(taken, moved, tf.maximum(moved, damping * control.refuse_factor))
    moved = tf.clip_by_value(tf.where(still, damping, moved), control.least, control.most)
    return Verdict(taken, tf.concat([moved[None], means], axis=0))
