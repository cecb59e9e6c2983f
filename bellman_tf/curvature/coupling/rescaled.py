"""Players taken as identical."""

from bellman_tf._typing import Tensors
from bellman_tf.curvature.block import StateSpec
from bellman_tf.curvature.coupling.base import Coupling
from bellman_tf.curvature.coupling.joint import JointMetric
from bellman_tf.curvature.damping import diagonal_damping
from bellman_tf.curvature.ekfac import EigenMetric
from bellman_tf.curvature.metric import Metric
from bellman_tf.curvature.step_scalars import StepScalars
from bellman_tf.layers.capture import MatrixCapture


class RescaledCoupling(Coupling):
    """Players taken as identical: no cross moments, only less curvature for each."""

    joint = False

    def _formed_numbers(self) -> int:
        return 0

    def state_specs(self) -> list[StateSpec]:
        """None."""
        return []

    def update(
        self,
        state: Tensors,
        captures: list[MatrixCapture],
        own: list[Tensors],
        metrics: list[Metric],
        step: StepScalars,
    ) -> tuple[Tensors, JointMetric | list[Metric]]:
        """The players' own metrics, rescaled; arguments as `Coupling.update`."""
        others = len(self.players) - 1
        new: list[Metric] = []
        for block, (_, _, U_A, U_B, s) in zip(self.blocks, own, strict=True):
            damping = diagonal_damping([s], self.config.damping)
            moments = s * damping / (damping + others * s)
            new.append(EigenMetric(block.rows, U_A, U_B, moments, damping, step.learning_rate))
        return [], new

    def describe(self, names: list[str]) -> list[str]:
        """For each player, what to add to its block's description; arguments as `Coupling.describe`."""
        return [f"rescaled for {len(names)} players"] * len(names)
