"""Rewards of unknown scale brought to [0, 1], the range of a bandit's rewards.

A decrease of the loss is 1 in the first epoch and 1e-4 in the last, and now and then a step fails and loses 1e6. The
reward given to the bandit is therefore where the raw one lies among the last few, with q_lower, q_upper two quantiles
of these, the new one included:

    reward = (raw - q_lower) / (q_upper - q_lower),  clipped to [0, 1].

It does not change when all raw rewards are shifted or multiplied by a positive number, depends on nothing older
than the window, and is not moved by outliers, as long as they are rarer than the quantiles.
"""

import dataclasses
from typing import NamedTuple

import keras
import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._serial import Serialisable
from bellman_tf._typing import Scalar, Vector
from bellman_tf.bandit.base import to_dtype


class RescalerState(NamedTuple):
    """The last raw rewards.

    Attributes:
        values: `[window]`, a ring.
        count: scalar, int64, how many finite rewards came so far.

    Example:
        >>> state, _ = Rescaler(window=3).update(Rescaler(window=3).init(), 5.0)
        >>> state.values.numpy().tolist(), int(state[1])
        ([5.0, 0.0, 0.0], 1)
    """

    values: tf.Tensor
    count: tf.Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  # hides tuple.count, which nobody asks of a state


@keras.saving.register_keras_serializable("bellman_tf.bandit")
@dataclasses.dataclass(frozen=True)
class Rescaler(Serialisable):
    """Running rescaling of rewards to [0, 1] by quantiles of the last `window` of them.

    Attributes:
        window: how many raw rewards are remembered.
        lower: the quantile that becomes 0, in [0, 1).
        upper: the quantile that becomes 1, in (lower, 1]. With 0 and 1 the range is from the least to the largest.

    Example:
        >>> rescaler = Rescaler(window=10, lower=0.0, upper=1.0)
        >>> state, scaled = rescaler.init(), []
        >>> for reward in (3.0, 5.0, 4.0):
        ...     state, value = rescaler.update(state, reward)
        ...     scaled.append(float(value))
        >>> scaled[1:]
        [1.0, 0.5]
    """

    window: int = 100
    lower: float = 0.1
    upper: float = 0.9

    def __post_init__(self) -> None:
        _checks.check_integer("window", self.window, least=1)
        _checks.check_real("lower", self.lower, least=0, below=1)
        _checks.check_real("upper", self.upper, above=self.lower)
        if self.upper > 1:
            raise _checks.error("upper", "be at most 1", self.upper)

    def init(self, dtype: tf.DType = tf.float32) -> RescalerState:
        """State before the first reward.

        Args:
            dtype: float32 or float64.

        Returns:
            `RescalerState`.

        Raises:
            ValueError: if `dtype` is another one.

        Example:
            >>> Rescaler(window=3).init().values.numpy().tolist()
            [0.0, 0.0, 0.0]
        """
        values = tf.zeros([self.window], dtype)
        _checks.check_float_dtype("state", values)
        return RescalerState(values, tf.zeros([], tf.int64))

    def update(self, state: RescalerState, raw: tf.Tensor) -> tuple[RescalerState, tf.Tensor]:
        """Adds a raw reward to the window and scales it by what the window holds.

        Args:
            state: `RescalerState`.
            raw: scalar of any size.

        Returns:
            The state after it, and the reward, a scalar in [0, 1]. The first reward is 1/2, and so is each one of
            a constant sequence. A raw reward that is not finite is a reward of 0 and leaves the state as it is.

        Numerics: finite for every input; the spread of the window may overflow the dtype.
        Checked against: `numpy.quantile` with its default, linear interpolation.

        Example:
            >>> state, first = Rescaler().update(Rescaler().init(), -3.0)
            >>> state, second = Rescaler().update(state, 200.0)
            >>> float(first), float(second)
            (0.5, 1.0)
        """
        dtype = state.values.dtype
        raw = to_dtype(raw, dtype)
        finite = tf.math.is_finite(raw)
        safe = tf.where(finite, raw, tf.zeros_like(raw))
        place = tf.math.floormod(state.count, self.window)
        here = tf.range(self.window, dtype=tf.int64) == place
        values = tf.where(here, safe, state.values)
        filled = tf.minimum(state.count + 1, self.window)
        past = tf.range(self.window, dtype=tf.int64) >= filled
        ordered = tf.sort(tf.where(past, dtype.max, values)) / 2  # halves: their differences do not overflow
        low, high = (_quantile(ordered, filled, q) for q in (self.lower, self.upper))
        width, above = high - low, safe / 2 - low
        spread = width > 0
        inside = tf.clip_by_value(above / tf.where(spread, width, tf.ones_like(width)), 0, 1)
        reward = tf.where(spread, inside, (1 + tf.sign(above)) / 2)
        after = RescalerState(tf.where(finite, values, state.values), state.count + tf.cast(finite, tf.int64))
        return after, tf.where(finite, reward, tf.zeros_like(reward))


# The q-quantile of the first `count` of sorted values, interpolated between its two neighbours.
def _quantile(ordered: Vector, count: Scalar, q: float) -> Scalar:
    position = q * tf.cast(count - 1, ordered.dtype)
    below = tf.floor(position)
    index = tf.cast(below, tf.int32)
    least, next_one = tf.gather(ordered, index), tf.gather(ordered, tf.minimum(index + 1, tf.cast(count, tf.int32) - 1))
    return least + (position - below) * (next_one - least)  # exact where the neighbours are equal
