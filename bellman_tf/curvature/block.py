"""The interface of one player's curvature: `Block` owns its running statistics, `Metric` applies them in one step.

A block is created once per player; its state is a list of tensors that the optimizer keeps in variables. Each step,
`update` turns statistics of the batch into the new state and a `Metric`. Nothing here assigns a variable.
"""

import dataclasses
from collections.abc import Sequence

import keras

from bellman_tf import _checks
from bellman_tf._typing import Tensors
from bellman_tf.curvature.metric import Metric, MetricKind
from bellman_tf.curvature.step_scalars import StepScalars
from bellman_tf.layers.capture import Capture
from bellman_tf.layers.matrix_layout import MatrixLayout


def state_dtype(variables: Sequence[keras.Variable]) -> str:
    """The dtype of a player's curvature state: half precision has too few digits for running means and inverses.

    Args:
        variables: the player's, of one precision.

    Returns:
        "float64" for variables in float64, "float32" for all others.
    """
    return "float64" if keras.backend.standardize_dtype(variables[0].dtype) == "float64" else "float32"


@dataclasses.dataclass(frozen=True)
class StateSpec:
    """One tensor of a block's state.

    Attributes:
        name: for the optimizer variable.
        shape: static shape.
        initial: "zeros", "ones" or "identity".
    """

    name: str
    shape: tuple[int, ...]
    initial: str = "zeros"


@dataclasses.dataclass(frozen=True)
class PlayerLayout:
    """What a block needs to know about its player before training.

    Attributes:
        name: for messages and variable names.
        shapes: shapes of the player's variables.
        matrix: how they make one matrix, or `None` if they do not.
        convolution: whether the layer is a convolution.
        taps: kernel taps when the layer is a convolution, else 1.
        covered: whether statistics per sample are available; `False` for open-loop players.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    matrix: MatrixLayout | None = None
    convolution: bool = False
    taps: int = 1
    covered: bool = True

    @property
    def matrix_form(self) -> MatrixLayout:
        """`matrix`, of a player that has one.

        Raises:
            ValueError: if it has none.
        """
        return _checks.given(f"matrix form of {self.name}", self.matrix)


class Block:
    """Curvature of one player.

    Attributes:
        layout: the player.
        needs_gradient: whether `update` reads the mean gradient.
        needs_capture: whether `update` reads the capture.
        draws: steps between captures whose cotangents are drawn from the loss's Hessian; 0 where those of the loss
            itself are read.
    """

    needs_gradient = False
    needs_capture = False
    draws = 0

    def __init__(self, layout: PlayerLayout) -> None:
        self.layout = layout

    def state_specs(self) -> list[StateSpec]:
        """The state, empty for metrics without memory."""
        return []

    def update(
        self, state: Tensors, capture: Capture | None, gradient: Tensors | None, step: StepScalars
    ) -> tuple[Tensors, Metric]:
        """New state and this step's metric, from the batch's statistics."""
        raise NotImplementedError

    def standing(self, state: Tensors, step: StepScalars) -> Metric:
        """The metric of the statistics so far, where this step's have yet to come or will not come."""
        raise NotImplementedError

    @property
    def kind(self) -> MetricKind:
        """The kind of this block's metrics."""
        raise NotImplementedError

    def describe(self) -> str:
        """A word or two for `game_summary`."""
        raise NotImplementedError
