"""Three players and more, by conjugate gradients."""

import tensorflow as tf

from bellman_tf._typing import LowerBlocks, Tensors
from bellman_tf.curvature.block import StateSpec
from bellman_tf.curvature.coupling.base import Coupling
from bellman_tf.linalg import GameFactor, factor_game, solve_game


class GameCoupling(Coupling):
    """Three players and more, by conjugate gradients."""

    def factor_specs(self) -> list[StateSpec]:
        """The fields of `GameFactor`, A and B in each other's place."""
        sides = (("gradient", self.outputs), ("input", self.inputs))
        roots = [
            StateSpec(f"{name}_root_{n}", (size, size), "identity")
            for name, sizes in sides
            for n, size in enumerate(sizes)
        ]
        cross = [
            StateSpec(f"{name}_correlation_{n}_{m}", (sizes[n], sizes[m]))
            for name, sizes in sides
            for n, m in self.pairs
        ]
        return roots + cross

    def factor(self, A: LowerBlocks, B: LowerBlocks) -> Tensors:
        """Whitened blocks."""
        return tf.nest.flatten(factor_game(B, A))

    def solve(self, factor: Tensors, matrices: Tensors) -> Tensors:
        """Conjugate gradients."""
        count, pairs = len(self.blocks), len(self.pairs)
        ends = [0, count, 2 * count, 2 * count + pairs, 2 * count + 2 * pairs]
        return solve_game(GameFactor(*[factor[i:j] for i, j in zip(ends[:-1], ends[1:], strict=True)]), matrices)
