"""The joint metric of players that act together, and their gradients per sample as matrices.

A matrix form here is `[inputs, outputs]`, the transpose of `linalg`'s, so that A and B change places in its functions.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.curvature.block import Block
from bellman_tf.curvature.ekfac import Eigenbasis
from bellman_tf.curvature.gram.products import stacked
from bellman_tf.layers.capture import MatrixCapture
from bellman_tf.linalg.products import matmul


class SampleGradients:
    """One player's gradients per sample as matrices, `[B, m, inputs, outputs]`."""

    def between(self, left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        """`left' q right`."""
        return matmul(matmul(left, self.matrix(), transpose_a=True), right)

    def matrix(self) -> tf.Tensor:
        """`q` itself."""
        raise NotImplementedError


class FormedGradients(SampleGradients):
    """Gradients that are formed, of layers with positions or in an eigenbasis."""

    def __init__(self, matrix: tf.Tensor) -> None:
        self._matrix = matrix

    def matrix(self) -> tf.Tensor:
        """`q` itself."""
        return self._matrix


class OuterProductGradients(SampleGradients):
    """Gradients of a dense layer, `q = x c'`.

    Attributes:
        x: `[B, inputs]`.
        c: `[B, m, outputs]`.
    """

    def __init__(self, capture: MatrixCapture) -> None:
        self.x, self.c = capture.augmented(), stacked(capture.cotangents)

    def between(self, left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        """`(left' x) (right' c)'`."""
        return matmul(self.x, left)[:, None, :, None] * matmul(self.c, right)[:, :, None, :]

    def matrix(self) -> tf.Tensor:
        """`x c'`."""
        return self.x[:, None, :, None] * self.c[:, :, None, :]


OwnGram = Callable[[], tf.Tensor]  # the Gram matrix of one player under its own metric


class EigenScaling(NamedTuple):
    """EKFAC's D of one player: diagonal in the eigenbases.

    Attributes:
        basis: the eigenbases.
        ratio: the diagonal of D^{-1} with the root of the learning rate, `[rows(+1), e]`.
    """

    basis: Eigenbasis
    ratio: tf.Tensor


class JointInverse(Protocol):
    """What `JointMetric` needs of a coupling, whose methods `Coupling` describes."""

    positions: int
    joint_gram: bool

    @property
    def blocks(self) -> Sequence[Block]:
        """Of the players."""
        ...

    def solve(self, factor: Tensors, matrices: Tensors) -> Tensors:
        """The inverse on one matrix per player."""
        ...

    def gram(
        self,
        factor: Tensors,
        samples: Sequence[SampleGradients],
        group_size: int | None,
        own: Sequence[OwnGram],
        scale: tf.Tensor | float,
    ) -> tf.Tensor:
        """The Gram matrix of the inverse."""
        ...


class JointMetric:
    """M^{-1} of several players at one step, learning rate included."""

    def __init__(
        self, coupling: JointInverse, factor: Tensors, learning_rate: tf.Tensor, scalings: Sequence[EigenScaling] | None
    ) -> None:
        """Stores what the coupling has factored.

        Args:
            coupling: applies `factor`.
            factor: of the joint matrix, in the players' eigenbases for EKFAC.
            learning_rate: scalar.
            scalings: for EKFAC, what stands on both sides of the inverse, one per player; else `None`.
        """
        self._coupling, self._factor, self._learning_rate, self._scalings = coupling, factor, learning_rate, scalings

    @property
    def joint_gram(self) -> bool:
        """Whether `gram` is that of the joint metric, and not the sum of the players' own."""
        return self._coupling.joint_gram

    def _enter(self, n: int, matrix: tf.Tensor) -> tf.Tensor:
        if self._scalings is None:
            return matrix
        basis, ratio = self._scalings[n]
        return ratio * basis.rotate(matrix)

    def _leave(self, n: int, matrix: tf.Tensor) -> tf.Tensor:
        if self._scalings is None:
            return self._learning_rate * matrix
        basis, ratio = self._scalings[n]
        return basis.rotate_back(ratio * matrix)

    def solve(self, parts: list[Tensors]) -> list[Tensors]:
        """`M^{-1}` on one list of tensors per player, in the shapes of its variables; leading axes are allowed."""
        layouts = [block.layout.matrix_form for block in self._coupling.blocks]
        matrices = [layout.pack(own) for layout, own in zip(layouts, parts, strict=True)]
        solved = self._coupling.solve(self._factor, [self._enter(n, matrix) for n, matrix in enumerate(matrices)])
        return [layouts[n].unpack(self._leave(n, matrix)) for n, matrix in enumerate(solved)]

    def gram(self, captures: Sequence[MatrixCapture], group_size: int | None, own: Sequence[OwnGram]) -> tf.Tensor:
        """`sum_nm <q_n,i, [M^{-1}]_nm q_m,j>` inside groups.

        Args:
            captures: of the players, m columns.
            group_size: samples per group b; `None` is the whole batch.
            own: for each player, a function of nothing giving the Gram matrix under its own metric.

        Returns:
            `[G, b m, b m]`, zero where the last group is padded.
        """
        if not self._coupling.joint_gram:
            return tf.add_n([gram() for gram in own])
        if self._scalings is not None:
            formed = [FormedGradients(self._enter(n, c.matrix_per_sample())) for n, c in enumerate(captures)]
            return self._coupling.gram(self._factor, formed, group_size, own, 1.0)
        flat = self._coupling.positions == 1
        samples: list[SampleGradients] = [
            OuterProductGradients(c) if flat else FormedGradients(c.matrix_per_sample()) for c in captures
        ]
        return self._coupling.gram(self._factor, samples, group_size, own, self._learning_rate)
