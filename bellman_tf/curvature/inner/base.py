"""The block of a player that another optimizer moves: it assigns nothing and reads that optimizer's variables."""

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import keras
import tensorflow as tf

from bellman_tf import _checks, keras_optimizers
from bellman_tf._typing import Tensors
from bellman_tf.curvature.block import Block, PlayerLayout
from bellman_tf.curvature.metric import Metric
from bellman_tf.curvature.step_scalars import StepScalars
from bellman_tf.layers.capture import Capture

InnerMetric: TypeAlias = Literal["rate", "gain"]
METRICS = get_args(InnerMetric)


class InnerBlock(Block):
    """M^{-1} of an optimizer's step, from its standing variables: those before the step.

    The state that a step is given begins with what `state_specs` names, which is ours, and goes on with what `read`
    returns, which only the other optimizer changes.

    Attributes:
        metric: "rate" (learning rate times the optimizer's diagonal: what a gradient moves in its own step) or "gain"
            (that divided by 1 - momentum: what it moves in the end, where momentum adds gradients up).
    """

    name: str

    def __init__(
        self,
        layout: PlayerLayout,
        optimizer: keras.optimizers.Optimizer,
        variables: Sequence[keras.Variable],
        metric: InnerMetric,
    ) -> None:
        """Stores where to read.

        Args:
            layout: the player.
            optimizer: the one that the user has passed; it may be built later.
            variables: the player's, in the order of the layout's shapes.
            metric: one of `METRICS`.
        """
        super().__init__(layout)
        self.metric, self.variables = metric, list(variables)
        self._optimizer = optimizer

    @property
    def mover(self) -> keras.optimizers.Optimizer:
        """The optimizer that moves this player: inside a `MultiOptimizer` the one for its variables."""
        return keras_optimizers.mover_of(self._optimizer, self.variables[0])

    def read(self) -> Tensors:
        """The optimizer's tensors that the metric is made of, before the step."""
        raise NotImplementedError

    def update(
        self, state: Tensors, capture: Capture | None, gradient: Tensors | None, step: StepScalars
    ) -> tuple[Tensors, Metric]:
        """The state as it is, and the standing metric: the other optimizer has yet to see this step's gradient."""
        return list(state), self.standing(state, step)

    def describe(self) -> str:
        """Whose step it is, for `game_summary`."""
        return f"{self.name} inside"

    def times_gain(self, rate: tf.Tensor, momentum: float) -> tf.Tensor:
        """The factor on a gradient.

        Args:
            rate: learning rate, scalar.
            momentum: share of the last displacement that the next one keeps.

        Returns:
            `rate`, or with `metric="gain"` `rate / (1 - momentum)`.

        Raises:
            ValueError: if the displacement has no end.
        """
        if self.metric == "rate":
            return rate
        if momentum >= 1:
            raise _checks.error("inner_metric", "be 'rate' with momentum=1, whose displacements never end", self.metric)
        return rate / (1 - momentum)
