"""The interface of a terminal cost's Hessian."""

import abc

import tensorflow as tf

from bellman_tf.losses.samples import dot_per_sample
from bellman_tf.losses.signs import Signs


class Head(abc.ABC):
    """Hessian H of the terminal cost of one output `z`, the loss's weights multiplied in.

    `z` has the shape `[B, ..., C]` and D = prod(...) x C entries per sample. Cotangents are shaped like `z`; factors
    run over the flattened entries.

    Attributes:
        kind: name of the loss's form, as in `LossForm.kind`.
        size: D, a Python int.
    """

    kind: str

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Entries of `z` per sample.

        Raises:
            ValueError: if an axis of `z` other than the first has no static size.
        """

    @abc.abstractmethod
    def gradient(self) -> tf.Tensor:
        """dphi/dz, shaped like `z`."""

    @abc.abstractmethod
    def hessian_times(self, v: tf.Tensor) -> tf.Tensor:
        """H v.

        Args:
            v: shaped like `z`.

        Returns:
            Shaped like `z`.
        """

    def quadratic(self, v: tf.Tensor) -> tf.Tensor:
        """The quadratic form v' H v.

        Args:
            v: shaped like `z`.

        Returns:
            `[B]`.
        """
        return dot_per_sample(v, self.hessian_times(v))

    @abc.abstractmethod
    def factor(self) -> tf.Tensor:
        """Z with Z Z' = H; negative eigenvalues count as 0.

        Returns:
            `[B, D, r]`, r static.
        """

    @abc.abstractmethod
    def draw(self, signs: Signs) -> tf.Tensor:
        """Z e with Z Z' = H and e of random signs, so that the mean of (Z e)(Z e)' over all e is H.

        Args:
            signs: where e comes from.

        Returns:
            Shaped like `z`; negative curvature counts as 0.
        """

    @abc.abstractmethod
    def top_factor(self, rank: int) -> tf.Tensor:
        """Columns sqrt(lambda) v of the largest eigenpairs of H, largest first; negative eigenvalues count as 0.

        Args:
            rank: number of columns, at most D.

        Returns:
            `[B, D, rank]`.

        Raises:
            ValueError: if `rank` is not an integer from 1 to D.
        """
