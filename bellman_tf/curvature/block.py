"""The interface of one player's curvature: `Block` owns its running statistics, `Metric` applies them in one step.

A block is created once per player; its state is a list of tensors that the optimizer keeps in variables. Each step,
`update` turns statistics of the batch into the new state and a `Metric`. Nothing here assigns a variable.
"""

import dataclasses
from typing import NamedTuple

import tensorflow as tf

from bellman_tf.curvature.capture import Capture, MatrixLayout, Tensors


class Step(NamedTuple):
    """Scalars of the current step.

    Attributes:
        iteration: number of updates done so far, int64 scalar.
        learning_rate: scalar in the metric's dtype.
    """

    iteration: tf.Tensor
    learning_rate: tf.Tensor


@dataclasses.dataclass(frozen=True)
class StateSpec:
    """One tensor of a block's state.

    Attributes:
        name: for the optimizer variable.
        shape: static shape.
        initial: "zeros", "ones" or "identity".
    """

    name: str
    shape: tuple
    initial: str = "zeros"


@dataclasses.dataclass(frozen=True)
class PlayerLayout:
    """What a block needs to know about its player before training.

    Attributes:
        name: for messages and variable names.
        shapes: shapes of the player's variables.
        matrix: how they make one matrix, or `None` if they have no Kronecker structure.
        convolution: whether the layer is a convolution.
        taps: kernel taps when the layer is a convolution, else 1.
        covered: whether statistics per sample are available; `False` for open-loop players.
    """

    name: str
    shapes: tuple[tuple, ...]
    matrix: MatrixLayout | None = None
    convolution: bool = False
    taps: int = 1
    covered: bool = True


class Metric:
    """M^{-1} of one player at one step, learning rate included."""

    kronecker = (
        False  # whether M^{-1} acts on the two sides of the matrix form, through `input_solve`, `cotangent_solve`
    )
    tapwise = False  # whether the taps of a convolution do not mix, so that `solve_tap`, `solve_bias` exist

    def solve(self, parts: Tensors) -> Tensors:
        """`M^{-1}` applied to tensors in the shapes of the variables; leading axes are allowed."""
        raise NotImplementedError

    def step(self, gradient: Tensors) -> tuple[Tensors, dict[int, tf.Tensor]]:
        """The decrease of the variables for a gradient, and state entries that change with it."""
        return self.solve(gradient), {}


class Block:
    """Curvature of one player.

    Attributes:
        layout: the player.
        needs_gradient: whether `update` reads the mean gradient.
        needs_capture: whether `update` reads the capture.
    """

    needs_gradient = False
    needs_capture = False

    def __init__(self, layout: PlayerLayout) -> None:
        self.layout = layout

    def state_specs(self) -> list[StateSpec]:
        """The state, empty for metrics without memory."""
        return []

    def update(
        self, state: Tensors, capture: Capture | None, gradient: Tensors | None, step: Step
    ) -> tuple[Tensors, Metric]:
        """New state and this step's metric, from the batch's statistics."""
        raise NotImplementedError

    def describe(self) -> str:
        """A word or two for `game_summary`."""
        raise NotImplementedError


def running_mean(old: tf.Tensor, new: tf.Tensor, decay: float, count: tf.Tensor) -> tf.Tensor:
    """Exponential mean that starts as a plain mean: decay `min(decay, 1 - 1/(count + 1))`.

    Args:
        old: the mean so far.
        new: this step's value.
        decay: the eventual decay.
        count: updates done so far, integer scalar.

    Returns:
        The new mean; equal to `new` at the first update.
    """
    rate = tf.minimum(tf.constant(decay, new.dtype), 1 - 1 / (tf.cast(count, new.dtype) + 1))
    return rate * old + (1 - rate) * new


def every(period: int, iteration: tf.Tensor, refresh: object, keep: Tensors) -> Tensors:
    """Runs `refresh` on iterations divisible by `period`, returns `keep` on the others.

    Args:
        period: steps between refreshes.
        iteration: integer scalar.
        refresh: function of no arguments returning tensors like `keep`.
        keep: what stands otherwise.

    Returns:
        The chosen tensors.
    """
    if period == 1:
        return refresh()
    return tf.cond(tf.equal(iteration % period, 0), refresh, lambda: [tf.identity(part) for part in keep])
