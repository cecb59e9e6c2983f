"""Four bandits: Exp3++ for rewards that may be random or hostile, and three to compare it with.

In the round numbered k, with L the estimated losses of the M arms, N their pulls:

    Exp3      rho ~ exp(-eta_k L),    eta_k = rate sqrt(ln M / (k M))
    Exp3++    rho as Exp3 with rate 1/2, then (1 - sum epsilon) rho + epsilon,
              epsilon(m) = min{1 / (2 M), sqrt(ln M / (k M)) / 2, xi(m)}
    UCB1      the arm with the largest mean reward + sqrt(2 ln(k - 1) / N)
    uniform   1 / M

The exploration rate xi is what Exp3++ leaves to its analysis; gap(m) estimates how much worse arm m is than the best:

    2014   xi = c (ln k)^2 / (k gap^2), c >= 18,    gap = min{1, (L(m) - min L) / k}
    2017   xi = beta ln k / (k gap^2), beta = 256,  gap = max{0, lower bound of m's mean loss - least upper bound}

and where a gap is zero xi is infinite. With M = 4, 4000 rounds and gaps of 0.3 neither form binds (xi is not the least
of the three), and Exp3++ is then Exp3 with uniform exploration that decays like 1 / sqrt(k).
"""

import dataclasses
import math
from typing import Literal, TypeAlias, get_args

import keras
import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Serialised, Vector
from bellman_tf.bandit.base import Bandit, State, mean_rewards

_register = keras.saving.register_keras_serializable("bellman_tf.bandit")


def _round(state: State) -> tf.Tensor:  # k, with an axis for the arms
    return tf.cast(state.rounds + 1, state.losses.dtype)[..., None]


# sqrt(ln M / (k M)), in [0, 1): the step of exponential weights with M arms.
def _step(state: State) -> tf.Tensor:
    return tf.sqrt(math.log(state.arms) / (state.arms * _round(state)))


def _excess(losses: Vector) -> Vector:
    return losses - tf.reduce_min(losses, axis=-1, keepdims=True)


@_register
@dataclasses.dataclass(frozen=True)
class Exp3(Bandit):
    """Exponential weights on unbiased loss estimates, any time, without uniform exploration.

    Pseudo-regret against any sequence of rewards fixed in advance: (rate + 1 / rate) sqrt(M k ln M).

    Source: Auer et al. 2002; Bubeck and Cesa-Bianchi 2012, Thm. 3.1, in the form with k in the rate.

    Attributes:
        rate: of the step size; 1 has the least bound, 2 sqrt(M k ln M).

    Example:
        >>> bandit = Exp3()
        >>> state = bandit.update(bandit.init(2), 0, reward=0.0)  # the first arm has lost
        >>> first, second = bandit.probabilities(state).numpy()
        >>> bool(first < second)
        True
    """

    rate: float = 1.0

    def __post_init__(self) -> None:
        _checks.check_real("rate", self.rate, above=0)

    def probabilities(self, state: State) -> tf.Tensor:
        """Probability of each arm in the next round.

        Args:
            state: `State`.

        Returns:
            `[..., M]`, a distribution over the last axis.

        Example:
            >>> Exp3().probabilities(Exp3().init(2)).numpy().tolist()
            [0.5, 0.5]
        """
        return tf.nn.softmax(-self.rate * _step(state) * _excess(state.losses))


Analysis: TypeAlias = Literal["2014", "2017"]
ANALYSES = get_args(Analysis)
ALPHA = 3.0  # of the confidence bounds of 2017, the value that its proof is written for


@_register
@dataclasses.dataclass(frozen=True)
class Exp3PlusPlus(Bandit):
    """Exp3 with exploration of each arm according to how much worse it seems, epsilon <= 1 / (2 M).

    Pseudo-regret 4 sqrt(M k ln M) against any sequence fixed in advance whatever xi is, and of the order of
    sum_m (ln k)^3 / gap(m) ("2014") or sum_m (ln k)^2 / gap(m) ("2017") for random rewards.

    Source: DGN Alg. 3; Seldin and Slivkins 2014; Seldin and Lugosi 2017.

    Attributes:
        analysis: where the exploration rate xi comes from, "2014" or "2017"; see the head of this file.
        constant: c of 2014 or beta of 2017; `None` is 18 or 256, the least and the one for which the logarithmic
            bounds are proved. Smaller ones explore less; the bound 4 sqrt(M k ln M) does not depend on it.

    Example:
        >>> bandit = Exp3PlusPlus()
        >>> bandit.exploration(bandit.init(4)).numpy().tolist()
        [0.125, 0.125, 0.125, 0.125]
    """

    analysis: Analysis = "2014"
    constant: float | None = None

    def __post_init__(self) -> None:
        _checks.check_choice("analysis", self.analysis, ANALYSES)
        if self.constant is not None:
            _checks.check_real("constant", self.constant, above=0)

    def probabilities(self, state: State) -> tf.Tensor:
        """Probability of each arm in the next round.

        Args:
            state: `State`.

        Returns:
            `[..., M]`, a distribution, at least `exploration(state)`.

        Numerics: relative error a few eps (eta_k max(L - min L) + 1).
        Source: DGN Alg. 3, `sample`.
        Checked against: `verification/references/bandit.py`.

        Example:
            >>> bandit = Exp3PlusPlus()
            >>> bandit.probabilities(bandit.init(4)).numpy().tolist()
            [0.25, 0.25, 0.25, 0.25]
        """
        epsilon = self.exploration(state)
        rho = tf.nn.softmax(-0.5 * _step(state) * _excess(state.losses))
        return (1 - tf.reduce_sum(epsilon, axis=-1, keepdims=True)) * rho + epsilon

    def exploration(self, state: State) -> tf.Tensor:
        """The probability each arm has whatever its losses, epsilon.

        Args:
            state: `State`.

        Returns:
            `[..., M]`, between 0 and 1 / (2 M).

        Source: DGN Alg. 3, first line.
        Checked against: `verification/references/bandit.py`.

        Example:
            >>> Exp3PlusPlus().exploration(Exp3PlusPlus().init(2)).numpy().tolist()  # 1 / (2 M) at most
            [0.25, 0.25]
        """
        k, gap = _round(state), self.gaps(state)
        if self.analysis == "2014":
            root = tf.sqrt((self.constant or 18.0) / k) * tf.math.log(k)
        else:
            root = tf.sqrt((self.constant or 256.0) / k * tf.math.log(k))
        positive = gap > 0
        xi = tf.square(root / tf.where(positive, gap, tf.ones_like(gap)))  # gap^2 alone could underflow
        cap = tf.minimum(_step(state) / 2, 1 / (2 * state.arms))
        return tf.where(positive, tf.minimum(xi, cap), cap)

    def gaps(self, state: State) -> tf.Tensor:
        """How much worse each arm is than the best, as far as is known.

        Args:
            state: `State`.

        Returns:
            `[..., M]`, in [0, 1].

        Source: Seldin and Slivkins 2014, Sec. 3 (importance-weighted losses); Seldin and Lugosi 2017 (confidence
            bounds of the mean losses, 0 for an arm that was not played).

        Example:
            >>> bandit = Exp3PlusPlus()
            >>> bandit.gaps(bandit.update(bandit.init(2), 0, reward=0.0)).numpy().tolist()  # the first arm has lost
            [1.0, 0.0]
        """
        k = _round(state)
        if self.analysis == "2014":
            return tf.minimum(_excess(state.losses) / k, 1)
        pulls = tf.cast(state.pulls, k.dtype)
        logarithm = ALPHA * tf.math.log(k) + math.log(state.arms)  # alpha ln(k M^(1 / alpha))
        radius = tf.sqrt(logarithm / (2 * tf.maximum(pulls, 1)))
        loss = 1 - mean_rewards(state)
        unknown = pulls == 0
        upper = tf.where(unknown, tf.ones_like(loss), tf.minimum(loss + radius, 1))
        lower = tf.where(unknown, tf.zeros_like(loss), tf.maximum(loss - radius, 0))
        return tf.maximum(lower - tf.reduce_min(upper, axis=-1, keepdims=True), 0)


@_register
@dataclasses.dataclass(frozen=True)
class UCB1(Bandit):
    """The arm whose mean reward could be the largest; for random rewards only.

    Pseudo-regret sum over the worse arms of 8 ln k / gap + (1 + pi^2 / 3) gap. Deterministic up to ties, which are
    drawn uniformly, as are the arms never played: a hostile sequence can make it lose every round.

    Source: Auer, Cesa-Bianchi and Fischer 2002, Thm. 1.

    Attributes:
        exploration: factor of ln k / pulls under the root; the bound is for 2.

    Example:
        >>> bandit = UCB1()
        >>> bandit.probabilities(bandit.update(bandit.init(2), 0, 1.0)).numpy().tolist()  # the other was never played
        [0.0, 1.0]
    """

    exploration: float = 2.0

    def __post_init__(self) -> None:
        _checks.check_real("exploration", self.exploration, above=0)

    def probabilities(self, state: State) -> tf.Tensor:
        """Probability of each arm in the next round: uniform over the arms with the largest bound.

        Args:
            state: `State`.

        Returns:
            `[..., M]`, a distribution over the last axis.

        Example:
            >>> UCB1().probabilities(UCB1().update(UCB1().init(3), 0, reward=1.0)).numpy().tolist()
            [0.0, 0.5, 0.5]
        """
        pulls = tf.cast(state.pulls, state.losses.dtype)
        played = tf.maximum(_round(state) - 1, 1)
        bound = mean_rewards(state) + tf.sqrt(self.exploration * tf.math.log(played) / tf.maximum(pulls, 1))
        bound = tf.where(pulls == 0, bound.dtype.max, bound)
        best = tf.cast(bound == tf.reduce_max(bound, axis=-1, keepdims=True), bound.dtype)
        return best / tf.reduce_sum(best, axis=-1, keepdims=True)


@_register
@dataclasses.dataclass(frozen=True)
class Uniform(Bandit):
    """Every arm alike, whatever the rewards.

    Example:
        >>> Uniform().probabilities(Uniform().init(4)).numpy().tolist()
        [0.25, 0.25, 0.25, 0.25]
    """

    def probabilities(self, state: State) -> tf.Tensor:
        """Probability of each arm in the next round.

        Args:
            state: `State`.

        Returns:
            `[..., M]`, a distribution over the last axis.

        Example:
            >>> Uniform().probabilities(Uniform().init(2)).numpy().tolist()
            [0.5, 0.5]
        """
        return tf.ones_like(state.losses) / state.arms


BanditName: TypeAlias = Literal["exp3++", "exp3", "ucb1", "uniform"]
NAMES = {"exp3++": Exp3PlusPlus, "exp3": Exp3, "ucb1": UCB1, "uniform": Uniform}


def get(identifier: BanditName | Bandit | Serialised) -> Bandit:
    """Resolves a `bandit` option.

    Args:
        identifier: a name, a bandit, or a serialised bandit.

    Returns:
        The bandit.

    Raises:
        ValueError: if the name is not known or the object is not a bandit.

    Example:
        >>> get("exp3++")
        Exp3PlusPlus(analysis='2014', constant=None)
    """
    return _checks.resolve("bandit", identifier, NAMES, Bandit, "an object of `bellman_tf.bandit`")
