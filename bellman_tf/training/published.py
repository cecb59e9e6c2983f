"""The papers' backward pass: the metric in place of Q_uu, samples uncoupled, stage by stage from the last.

`outer_product` keeps two numbers per sample, `per_sample` a small matrix, where the terminal Hessian has more columns
than the gradient or V_xx has a Tikhonov term.
"""

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import SomeTensors
from bellman_tf.bellman import outer_product, per_sample
from bellman_tf.training.derivatives import Derivatives, Units
from bellman_tf.training.settings import GameOptions

SCALED_DOWN = ("mean", "batch")


def batch_factor(options: GameOptions, total: tf.Tensor) -> tf.Tensor:
    """The number c of the recursion, see `bellman/outer_product.py`.

    Args:
        options: of the game.
        total: B.

    Returns:
        1/B where the value is that of the mean loss, 1 where it is each sample's own.
    """
    return 1 / total if options.outer_scale in SCALED_DOWN else tf.ones([], total.dtype)


def terminal_value(
    options: GameOptions, found: Derivatives, batch_size: tf.Tensor | int, total: tf.Tensor
) -> outer_product.OuterValue | per_sample.MatrixValue:
    """The value at the end of the network.

    Where g g' stands for the Hessian of the mean loss, z is the gradient of that, g/B, and B z z' is g g'/B.

    Args:
        options: of the game.
        found: where the recursion starts.
        batch_size: samples.
        total: the same as a scalar, B.

    Returns:
        Two numbers per sample, or a matrix where there are more columns than the gradient.
    """
    beta_squared = found.beta_squared
    if beta_squared is not None and options.terminal_hessian == "outer_product" and options.outer_scale == "mean":
        beta_squared /= total
    if found.columns == 1:
        return outer_product.init(batch_size, _checks.given("beta_squared", beta_squared))
    units = sum(unit.count for unit in found.units.values())
    rank = found.columns - 1 - units if beta_squared is None else 0
    return per_sample.init(batch_size, beta_squared=beta_squared, rank=rank, units=units, dtype=total.dtype)


class PublishedPolicy:
    """The papers' recursion, solved while the stages are visited from the last to the first.

    Attributes:
        joint: whether the players of a stage share one value.
        clamped: number of clamps so far.
    """

    def __init__(
        self,
        value: outer_product.OuterValue | per_sample.MatrixValue,
        joint: bool,
        agents: int,
        total: tf.Tensor,
        factor: tf.Tensor,
    ) -> None:
        """Stores the terminal value.

        Args:
            value: made by `outer_product.init` or `per_sample.init`.
            joint: whether the players of a stage share one value.
            agents: players of the largest stage.
            total: B.
            factor: c of the recursion.
        """
        self.joint, self._total, self._factor = joint, total, factor
        self._current: list[outer_product.OuterValue | per_sample.MatrixValue] = [value] * (1 if joint else agents)
        self._behind: dict[int, list[outer_product.OuterValue | per_sample.MatrixValue]] = {}
        self.clamped = tf.zeros([], tf.int32)

    def slopes(self, agent: int) -> tf.Tensor:
        """Slope of the value after the current stage along each column, `[B, m]`."""
        value = self._current[0 if self.joint else agent]
        return value.alpha[:, None] if isinstance(value, outer_product.OuterValue) else value.a

    def own_gain(self, agent: int, gram: tf.Tensor, pull: tf.Tensor | None) -> tf.Tensor:
        """`<q_ij, k_i>` with each sample's own gain, `k_i = -c M^{-1} (l_u + Q_i a_i)`: the letter of DDPN Alg. 3.

        Args:
            agent: position of the player in its stage.
            gram: `[B, m, m]`, `q_ij' M^{-1} q_ik`.
            pull: `[B, m]`, `<q_ij, M^{-1} l_u>`, or `None` without own cost.

        Returns:
            `[B, m]`.
        """
        inner = tf.linalg.matvec(gram, self.slopes(agent))
        return -self._factor * (inner if pull is None else inner + pull)

    def visit(
        self,
        stage: int,
        inner_k: SomeTensors,
        grams: SomeTensors,
        units: Units | None = None,
        damping: float = 0.0,
    ) -> None:
        """One stage backwards.

        Args:
            stage: number of the stage.
            inner_k: `<q_ij, k>` `[B, m]` of each player, `None` for open-loop players.
            grams: `[B, m, m]` of each player, likewise.
            units: columns that are unit vectors of the state before the stage.
            damping: eps_V, added to V_xx along them.
        """
        self._behind[stage] = list(self._current)
        acting = [
            (agent, k, G)
            for agent, (k, G) in enumerate(zip(inner_k, grams, strict=True))
            if k is not None and G is not None
        ]
        if self.joint and acting:
            _, inner, gram = zip(*acting, strict=True)
            acting = [(0, tf.add_n(list(inner)), tf.add_n(list(gram)))]
        for agent, k, G in acting:
            self._move(agent, k, G)
        if units is not None and damping:
            amount = damping / self._factor
            self._current = [
                per_sample.damped(value, *units, amount) if isinstance(value, per_sample.MatrixValue) else value
                for value in self._current
            ]

    def _move(self, agent: int, inner_k: tf.Tensor, gram: tf.Tensor) -> None:
        value = self._current[agent]
        if isinstance(value, outer_product.OuterValue):
            inner_k, gram = inner_k[:, 0], gram[:, 0, 0]
            new, clamped = outer_product.backward(value, inner_k, gram, batch_factor=self._factor)
        else:
            new, clamped = per_sample.backward(value, inner_k, gram, batch_factor=self._factor)
        self._current[agent] = new
        self.clamped += clamped

    def weights(self, stage: int, agent: int, deviation: tf.Tensor | None) -> tf.Tensor:
        """Weights of one player, `[B, m]`; arguments as `SamplePolicy.weights`."""
        value = self._behind[stage][0 if self.joint else agent]
        if not isinstance(value, outer_product.OuterValue):
            return per_sample.weights(value, deviation) / self._total
        d = None if deviation is None else deviation[:, 0]
        return outer_product.weights(value, d)[:, None] / self._total
