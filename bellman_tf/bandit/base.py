"""What all bandits share: the state, a draw that a seed reproduces, and what a reward does to the state.

One round is

    p = bandit.probabilities(state)
    arm = bandit.choose(state, seed)
    state = bandit.update(state, arm, reward, p[arm])

Nothing is kept between calls but the state, whose tensors have fixed shapes: it can live in variables, in a
`tf.while_loop`, under XLA. All functions are pure. Leading axes, written `...`, are independent bandits side by side.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._serial import Serialisable
from bellman_tf._typing import Array, Number


class State(NamedTuple):
    """What a bandit has seen of M arms.

    Attributes:
        rounds: `[...]`, int64, completed rounds, k - 1 in the round numbered k.
        pulls: `[..., M]`, int64, how often each arm was played.
        losses: `[..., M]`, L, unbiased estimates of what each arm would have lost in all rounds.
        rewards: `[..., M]`, sums of the rewards received.
        losses_carry: `[..., M]`, what rounding has left out of `losses` so far.
        rewards_carry: `[..., M]`, the same of `rewards`.

    Example:
        >>> from bellman_tf.bandit import Uniform
        >>> state = Uniform().update(Uniform().init(3), 1, reward=0.5)
        >>> state.pulls.numpy().tolist(), state.rewards.numpy().tolist()
        ([0, 1, 0], [0.0, 0.5, 0.0])
    """

    rounds: tf.Tensor
    pulls: tf.Tensor
    losses: tf.Tensor
    rewards: tf.Tensor
    losses_carry: tf.Tensor
    rewards_carry: tf.Tensor

    @property
    def arms(self) -> int:
        """M.

        Example:
            >>> from bellman_tf.bandit import Uniform
            >>> Uniform().init(3).arms
            3
        """
        return self.losses.shape[-1]


@dataclasses.dataclass(frozen=True)
class Bandit(Serialisable):
    """Base of the bandits; subclasses are frozen dataclasses with one function, `probabilities`.

    Example:
        >>> from bellman_tf.bandit import UCB1
        >>> bandit, state = UCB1(), UCB1().init(2)
        >>> for step in range(6):
        ...     arm = bandit.choose(state, seed=[0, step])
        ...     state = bandit.update(state, arm, reward=float(arm))  # the second arm pays
        >>> int(state.pulls.numpy().argmax())
        1
    """

    def init(self, arms: int, shape: tuple[int, ...] = (), dtype: tf.DType = tf.float32) -> State:
        """State before the first round.

        Args:
            arms: M, at least 1.
            shape: leading axes, for independent bandits side by side.
            dtype: float32 or float64.

        Returns:
            `State` of zeros.

        Raises:
            ValueError: if `arms` is not a positive integer or `dtype` is another one.

        Example:
            >>> from bellman_tf.bandit import Uniform
            >>> Uniform().init(3, shape=(2,)).pulls.numpy().tolist()  # two bandits of three arms
            [[0, 0, 0], [0, 0, 0]]
        """
        _checks.check_integer("arms", arms, least=1)
        zeros = tf.zeros((*shape, arms), dtype)
        _checks.check_float_dtype("state", zeros)
        counts = tf.zeros((*shape, arms), tf.int64)
        return State(tf.zeros(shape, tf.int64), counts, zeros, zeros, zeros, zeros)

    def probabilities(self, state: State) -> tf.Tensor:
        """Probability of each arm in the next round.

        Args:
            state: `State`.

        Returns:
            `[..., M]`, a distribution over the last axis.

        Raises:
            NotImplementedError: if the subclass does not say.

        Example:
            >>> class First(Bandit):
            ...     def probabilities(self, state):
            ...         return tf.one_hot(0, state.arms)
            >>> int(First().choose(First().init(3), seed=[0, 7]))
            0
        """
        raise NotImplementedError(f"{type(self).__name__} must define `probabilities`.")

    def choose(self, state: State, seed: tf.Tensor) -> tf.Tensor:
        """Draws the next arm.

        Args:
            state: `State`.
            seed: `[2]`, integers. The same state and seed draw the same arm, so pass a new seed every round.

        Returns:
            `[...]`, int32, in [0, M).

        Example:
            >>> from bellman_tf.bandit import Exp3PlusPlus
            >>> bandit = Exp3PlusPlus()
            >>> int(bandit.choose(bandit.init(3), seed=[0, 7])) in (0, 1, 2)
            True
        """
        return draw(self.probabilities(state), seed)

    def update(self, state: State, arm: tf.Tensor, reward: tf.Tensor, probability: tf.Tensor | None = None) -> State:
        """Learns from one round: the arm played adds (1 - reward) / probability to its loss, the others nothing.

        Then E[L_{k+1} - L_k] = 1 - reward for every arm, played or not.

        Args:
            state: `State` the arm was chosen from.
            arm: `[...]`, integers.
            reward: `[...]`, in [0, 1]; see `Rescaler`. Tensors are clipped to that range; NaN counts as 0.
            probability: `[...]`, of having chosen this arm, positive; `None` computes `probabilities(state)` again.

        Returns:
            `State` after the round, same shapes and dtypes.

        Raises:
            ValueError: if `reward` is a Python number outside [0, 1], or `arm` is not integer.

        Numerics: sums are compensated, so that float32 still counts a loss of 0.01 after 10^6 rounds.
        Source: DGN Alg. 3.

        Example:
            >>> from bellman_tf.bandit import Exp3PlusPlus
            >>> bandit = Exp3PlusPlus()
            >>> bandit.update(bandit.init(2), 1, 0.25).losses.numpy().tolist()
            [0.0, 1.5]
        """
        _check_reward(reward)
        arm = tf.convert_to_tensor(arm)
        if not arm.dtype.is_integer:
            raise _checks.error("arm", "hold integers", arm.dtype.name)
        dtype = state.losses.dtype
        played = tf.one_hot(arm, state.arms, dtype=dtype)  # [..., M]
        if probability is None:
            chance = tf.reduce_sum(played * self.probabilities(state), axis=-1)
        else:
            chance = to_dtype(probability, dtype)
        reward = to_dtype(reward, dtype)
        reward = tf.where(tf.math.is_nan(reward), tf.zeros_like(reward), tf.clip_by_value(reward, 0, 1))
        loss = (1 - reward) / tf.maximum(chance, _SMALLEST[dtype])
        losses, losses_carry = _add(state.losses, state.losses_carry, played * loss[..., None])
        rewards, rewards_carry = _add(state.rewards, state.rewards_carry, played * reward[..., None])
        pulls = state.pulls + tf.cast(played, tf.int64)
        return State(state.rounds + 1, pulls, losses, rewards, losses_carry, rewards_carry)


def draw(probabilities: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws one index per distribution: the first whose cumulative probability exceeds a uniform number.

    Args:
        probabilities: `[..., M]`, not negative, with a positive sum over the last axis.
        seed: `[2]`, integers.

    Returns:
        `[...]`, int32. An index of probability 0 is never drawn.

    Numerics: float64 inside: with 2^23 numbers in float32 an index of probability 1e-30 would be drawn once in
        10^7 rounds if one of them happened to fall on it. Eager, compiled and XLA draw the same.

    Example:
        >>> int(draw(tf.constant([0.0, 1.0, 0.0]), [0, 0]))
        1
    """
    cumulative = tf.cumsum(tf.cast(probabilities, tf.float64), axis=-1)
    bits = tf.random.stateless_uniform(
        tf.shape(cumulative)[:-1], seed, minval=None, maxval=None, dtype=tf.uint64, alg="philox"
    )
    bits = tf.ensure_shape(bits, cumulative.shape[:-1])
    # 52 bits and a half: in (0, 1), exact. Floating-point draws differ between TensorFlow and XLA, integers agree.
    u = (tf.cast(tf.bitwise.right_shift(bits, tf.constant(12, tf.uint64)), tf.float64) + 0.5) * 2.0**-52
    return tf.reduce_sum(tf.cast(cumulative <= u[..., None] * cumulative[..., -1:], tf.int32), axis=-1)


def mean_rewards(state: State) -> tf.Tensor:
    """Mean reward of each arm.

    Args:
        state: `State`.

    Returns:
        `[..., M]`, 0 for an arm never played.

    Example:
        >>> from bellman_tf.bandit import Uniform
        >>> mean_rewards(Uniform().update(Uniform().init(2), 1, 0.25)).numpy().tolist()
        [0.0, 0.25]
    """
    return tf.math.divide_no_nan(state.rewards, tf.cast(state.pulls, state.rewards.dtype))


def to_dtype(x: Array | float, dtype: tf.DType) -> tf.Tensor:
    """Casts a tensor or number; `tf.cast` alone would round Python numbers to float32 on the way to float64."""
    return tf.cast(x if tf.is_tensor(x) else tf.convert_to_tensor(np.asarray(x)), dtype)


def _check_reward(reward: Number) -> None:
    is_number = isinstance(reward, int | float) and not math.isnan(reward)
    if is_number and not 0 <= reward <= 1:
        raise _checks.error("reward", "lie in [0, 1]", reward, "Bring it there with `bellman_tf.bandit.Rescaler`.")


_SMALLEST = {tf.float32: 1.2e-38, tf.float64: 2.3e-308}  # their inverses are finite


# total + carry is the sum to twice the precision: carry is what `total` lost when it was rounded (Knuth's two-sum).
def _add(total: tf.Tensor, carry: tf.Tensor, term: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    term += carry
    new = total + term
    part = new - total
    return new, (total - (new - part)) + (term - part)
