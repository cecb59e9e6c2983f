"""Whose samples meet in a game: those of one replica, or those of all."""

import math
from collections.abc import Sequence

import tensorflow as tf

from bellman_tf import replicas
from bellman_tf._typing import SomeTensors
from bellman_tf.bellman.sample_space import SampleValue
from bellman_tf.linalg import symmetrize


class OwnSamples:
    """The samples of this replica: every replica plays a game of its own, with a = 1/B and S = beta^2/B of all."""

    def curvatures(self, own: Sequence[tf.Tensor | None]) -> SomeTensors:
        """beta^2 of the samples in the game.

        Args:
            own: `[b]` of this replica's samples, for every objective; `None` for one of higher rank.

        Returns:
            The same of all samples in the game.
        """
        return list(own)

    def value(self, value: SampleValue, columns: int) -> SampleValue:
        """The terminal value as a part of J.

        Args:
            value: of the mean loss of the samples in the game, `sample_space.init`.
            columns: m, columns per sample.

        Returns:
            The value with every sample's weight in J.
        """
        count = replicas.count()
        return value if count == 1 else SampleValue(replicas.share(value.a), value.L / math.sqrt(count))

    def whole(self, grams: tf.Tensor) -> tf.Tensor:
        """Gram matrices of the game, of the rows `[..., k, n]` of this replica's samples."""
        return grams

    def all(self, columns: tf.Tensor) -> tf.Tensor:
        """Numbers of all samples in the game, of those `[b, m]` of this replica's."""
        return columns

    def own(self, columns: tf.Tensor) -> tf.Tensor:
        """Numbers of this replica's samples, of those `[B, m]` of all in the game."""
        return columns

    def term(self, value: tf.Tensor) -> tf.Tensor:
        """This replica's term of a sum over all replicas, of a number about the samples in the game."""
        return value


OWN = OwnSamples()


class AllSamples(OwnSamples):
    """The samples of all replicas, replica after replica.

    Attributes:
        count: B, scalar.
        before: samples of the replicas before this one, scalar.
    """

    def __init__(self, numbers: tf.Tensor, weights: tf.Tensor, curvatures: Sequence[tf.Tensor | None]) -> None:
        """Stores what is known of all samples.

        Args:
            numbers: number of the replica of every sample, `[B]`.
            weights: of every sample in J, `[B]`, 1/B where replicas hold equally many.
            curvatures: beta^2 `[B]` for every objective; `None` for one of higher rank.
        """
        own = tf.cast(replicas.own_number(), numbers.dtype)
        self.count = tf.size(numbers)
        self.before = tf.math.count_nonzero(numbers < own, dtype=tf.int32)
        self._own = tf.math.count_nonzero(tf.equal(numbers, own), dtype=tf.int32)
        self._weights, self._curvatures = weights, list(curvatures)

    def curvatures(self, own: Sequence[tf.Tensor | None]) -> SomeTensors:
        """beta^2 of all samples, that have been exchanged."""
        return self._curvatures

    def value(self, value: SampleValue, columns: int) -> SampleValue:
        """Multiplies a and S by B times every sample's weight."""
        share = tf.repeat(self._weights * tf.cast(self.count, self._weights.dtype), columns)
        return SampleValue(value.a * share, value.L * tf.sqrt(share)[:, None])

    def whole(self, grams: tf.Tensor) -> tf.Tensor:
        """The rows of all replicas, exchanged, and made symmetric to the last bit."""
        return symmetrize(replicas.gather_rows(grams))

    def all(self, columns: tf.Tensor) -> tf.Tensor:
        """Exchanged."""
        [found] = replicas.gather([columns])
        return found

    def own(self, columns: tf.Tensor) -> tf.Tensor:
        """A slice."""
        return columns[self.before : self.before + self._own]

    def term(self, value: tf.Tensor) -> tf.Tensor:
        """The n-th part of it."""
        return replicas.share(value)

    def apart(self, gram: tf.Tensor) -> tf.Tensor:
        """Rows of a Gram matrix that is block-diagonal over replicas.

        Args:
            gram: of this replica's samples, `[b m, b m]`.

        Returns:
            `[b m, B m]`, zero where other replicas' samples stand.
        """
        m = tf.shape(gram)[0] // tf.maximum(self._own, 1)
        return tf.pad(gram, [[0, 0], [self.before * m, (self.count - self.before - self._own) * m]])
