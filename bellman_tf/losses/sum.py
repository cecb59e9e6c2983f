"""Several losses on one output."""

from dataclasses import dataclass, field

import tensorflow as tf

from bellman_tf.losses.head import Head
from bellman_tf.losses.samples import top_factor
from bellman_tf.losses.signs import Signs


@dataclass(frozen=True, eq=False)
class SumOfHeads(Head):
    """Several losses on one output, cut at the same place; methods as in `Head`.

    Attributes:
        heads: the summands.
    """

    heads: tuple[Head, ...]

    kind: str = field(default="sum", init=False)

    @property
    def size(self) -> int:
        """Entries of `z` per sample."""
        return self.heads[0].size

    def gradient(self) -> tf.Tensor:
        """dphi/dz, shaped like `z`."""
        return tf.add_n([head.gradient() for head in self.heads])

    def hessian_times(self, v: tf.Tensor) -> tf.Tensor:
        """H v, shaped like `z`."""
        return tf.add_n([head.hessian_times(v) for head in self.heads])

    def quadratic(self, v: tf.Tensor) -> tf.Tensor:
        """The quadratic form v' H v, `[B]`."""
        return tf.add_n([head.quadratic(v) for head in self.heads])

    def factor(self) -> tf.Tensor:
        """Columns of all summands, `[B, D, r]`."""
        return tf.concat([head.factor() for head in self.heads], axis=2)

    def draw(self, signs: Signs) -> tf.Tensor:
        """The sum of independent draws, shaped like `z`."""
        return tf.add_n([head.draw(signs) for head in self.heads])

    def top_factor(self, rank: int) -> tf.Tensor:
        """Largest eigenpairs of the sum, `[B, D, rank]`."""
        Z = self.factor()
        return top_factor(tf.matmul(Z, Z, transpose_b=True), rank)
