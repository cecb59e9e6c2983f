"""The papers' form: blocks of the inverses of the joint factors."""

from collections.abc import Sequence

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Blocks, LowerBlocks, Tensors
from bellman_tf.curvature.block import StateSpec
from bellman_tf.curvature.coupling.base import Coupling
from bellman_tf.curvature.coupling.joint import OuterProductGradients, OwnGram, SampleGradients
from bellman_tf.curvature.gram.plan import LIMITS
from bellman_tf.curvature.gram.products import inner_products
from bellman_tf.curvature.kfac import KFACBlock
from bellman_tf.linalg import factor_block_form, solve_block_form
from bellman_tf.linalg.products import matmul


class PublishedCoupling(Coupling):
    """The papers' form: blocks of the inverses of the joint factors."""

    word = "published"

    def __init__(
        self, players: list[int], blocks: list[KFACBlock], positions: int, joint_up_to: float = LIMITS.joint_up_to
    ) -> None:
        super().__init__(players, blocks, positions, joint_up_to)
        self.sign = self.config.cooperative_sign
        if self.sign < 0 and len(players) > 2:
            raise _checks.error(
                "cooperative_sign", "be 1 in a stage of more than two players", self.sign,
                f"Such a stage holds {', '.join(block.layout.name for block in blocks)}.",
            )  # fmt: skip
        self.word += " (+)" if self.sign > 0 else " (-)"

    def _formed_numbers(self) -> int:
        return 0 if self.positions == 1 and not self.eigen else super()._formed_numbers()

    def factor_specs(self) -> list[StateSpec]:
        """Inverses of the joint factors."""
        a, b = sum(self.inputs), sum(self.outputs)
        return [
            StateSpec("gradient_inverse", (b, b), "identity"),
            StateSpec("input_inverse", (a, a), "identity"),
        ]

    def factor(self, A: LowerBlocks, B: LowerBlocks) -> Tensors:
        """The two inverses."""
        return list(factor_block_form(B, A))

    def _cut(self, factor: Tensors) -> tuple[Blocks, Blocks]:
        B, A = (
            [tf.split(rows, sizes, axis=1) for rows in tf.split(inverse, sizes, axis=0)]
            for inverse, sizes in zip(factor, (self.outputs, self.inputs), strict=True)
        )
        return B, A

    def solve(self, factor: Tensors, matrices: Tensors) -> Tensors:
        """Block by block."""
        return solve_block_form(*self._cut(factor), matrices, self.sign)

    def gram(
        self,
        factor: Tensors,
        samples: Sequence[SampleGradients],
        group_size: int | None,
        own: Sequence[OwnGram],
        scale: tf.Tensor | float,
    ) -> tf.Tensor:
        """For dense layers `sum_nm (x_n [A^{-1}]_nm x_m') * (c_n [B^{-1}]_nm c_m')`."""
        outer = [player for player in samples if isinstance(player, OuterProductGradients)]
        if len(outer) < len(samples):
            return super().gram(factor, samples, group_size, own, scale)
        B, A = self._cut(factor)
        total = [self._products(player, player, A[n][n], B[n][n], group_size) for n, player in enumerate(outer)]
        for n, m in self.pairs:
            cross = self.sign * self._products(outer[n], outer[m], A[n][m], B[n][m], group_size)
            total += [cross, tf.linalg.matrix_transpose(cross)]
        return scale * tf.add_n(total)

    def _products(
        self, n: OuterProductGradients, m: OuterProductGradients, A: tf.Tensor, B: tf.Tensor, size: int | None
    ) -> tf.Tensor:
        inputs = inner_products([n.x[:, None]], [matmul(m.x, A, transpose_b=True)[:, None]], size)
        columns = n.c.shape[1]
        if columns > 1:
            inputs = tf.repeat(tf.repeat(inputs, columns, axis=1), columns, axis=2)
        return inputs * inner_products([n.c], [matmul(m.c, B, transpose_b=True)], size)
