"""Two players, exactly."""

from collections.abc import Sequence

import tensorflow as tf

from bellman_tf._typing import LowerBlocks, Tensors
from bellman_tf.curvature.block import StateSpec
from bellman_tf.curvature.coupling.base import Coupling
from bellman_tf.curvature.coupling.joint import OwnGram, SampleGradients
from bellman_tf.curvature.gram.products import inner_products
from bellman_tf.linalg import PairFactor, factor_pair, solve_pair


class PairCoupling(Coupling):
    """Two players, exactly, by canonical correlations. The first is the smaller one: it carries the samples."""

    def _formed_numbers(self) -> int:
        formed = list(zip(self.inputs, self.outputs, strict=True))
        if self.positions == 1 and not self.eigen:
            formed = formed[:1]
        return self.positions * max(a * b for a, b in formed)

    def factor_specs(self) -> list[StateSpec]:
        """The fields of `PairFactor`, A and B in each other's place."""
        (a, other_a), (b, other_b) = self.inputs, self.outputs
        return [
            StateSpec("first_gradient", (b, b), "identity"),
            StateSpec("first_input", (a, a), "identity"),
            StateSpec("cross_gradient", (other_b, b)),
            StateSpec("cross_input", (other_a, a)),
            StateSpec("second_gradient", (other_b, other_b), "identity"),
            StateSpec("second_input", (other_a, other_a), "identity"),
            StateSpec("weights", (a, b), "ones"),
        ]

    def factor(self, A: LowerBlocks, B: LowerBlocks) -> Tensors:
        """Canonical correlations."""
        return list(factor_pair(B, A))

    def solve(self, factor: Tensors, matrices: Tensors) -> Tensors:
        """Eliminates the second player."""
        return solve_pair(PairFactor(*factor), matrices)

    def gram(
        self,
        factor: Tensors,
        samples: Sequence[SampleGradients],
        group_size: int | None,
        own: Sequence[OwnGram],
        scale: tf.Tensor | float,
    ) -> tf.Tensor:
        """The second player's own Gram matrix, and the first one's after the second has answered."""
        pair = PairFactor(*factor)
        first, second = samples
        Y = first.between(pair.first_B, pair.first_A) - second.between(pair.cross_B, pair.cross_A)
        return own[1]() + scale * inner_products([Y], [pair.weights * Y], group_size)
