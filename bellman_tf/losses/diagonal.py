"""Losses that treat every entry of the output alone and take the mean over the last axis."""

import abc
from dataclasses import dataclass

import tensorflow as tf

from bellman_tf._checks import error
from bellman_tf.losses.closed_form import ClosedForm, LossForm
from bellman_tf.losses.head import Head
from bellman_tf.losses.samples import check_rank, dot_per_sample, entries_per_sample
from bellman_tf.losses.signs import Signs


@dataclass(frozen=True, eq=False)
class DiagonalHead(Head):
    """A terminal cost that is a sum over the entries of `z`: squares, Huber, binary cross-entropy.

    Attributes:
        kind: name of the closed form.
        slope: dphi/dz, shaped like `z`.
        curvature: d2phi/dz2, shaped like `z`.
    """

    kind: str
    slope: tf.Tensor
    curvature: tf.Tensor

    @property
    def size(self) -> int:
        """Entries of `z` per sample."""
        return entries_per_sample(self.curvature)

    def gradient(self) -> tf.Tensor:
        """dphi/dz, shaped like `z`."""
        return self.slope

    def hessian_times(self, v: tf.Tensor) -> tf.Tensor:
        """H v, shaped like `z`."""
        return self.curvature * v

    def quadratic(self, v: tf.Tensor) -> tf.Tensor:
        """The quadratic form v' H v, `[B]`."""
        return dot_per_sample(self.curvature, tf.square(v))

    def factor(self) -> tf.Tensor:
        """Diagonal factor, `[B, D, D]`; negative curvature (a negative weight) counts as 0."""
        return tf.linalg.diag(tf.sqrt(self._flat()))

    def draw(self, signs: Signs) -> tf.Tensor:
        """A sign for the root of every curvature, shaped like `z`."""
        return tf.sqrt(tf.maximum(self.curvature, 0.0)) * signs(self.curvature)

    def top_factor(self, rank: int) -> tf.Tensor:
        """Largest eigenpairs, which are entries of the diagonal, `[B, D, rank]`."""
        check_rank(rank, self.size)
        eigenvalues, chosen = tf.math.top_k(self._flat(), rank)
        return tf.sqrt(eigenvalues)[:, None, :] * tf.one_hot(chosen, self.size, axis=1, dtype=eigenvalues.dtype)

    def _flat(self) -> tf.Tensor:
        return tf.maximum(tf.reshape(self.curvature, [-1, self.size]), 0.0)


class ElementwiseForm(ClosedForm):
    """A mean over the last axis of a function of one entry and its label."""

    @abc.abstractmethod
    def derivatives(self, form: LossForm, z: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """First and second derivative of the function.

        Args:
            form: what `recognise` returned.
            z: the entries.
            target: the labels, of the same rank and dtype.

        Returns:
            Slope and curvature, shaped like `z`.
        """

    def fits(self, form: LossForm, y_true: tf.Tensor, z: tf.Tensor) -> bool:
        """Says whether every entry of the output has one label; labels must not stretch the output."""
        return align(y_true, z) is not None

    def head(self, form: LossForm, y_true: tf.Tensor, z: tf.Tensor, f: tf.Tensor) -> DiagonalHead:
        """Makes the diagonal.

        Args:
            form: what `recognise` returned.
            y_true: labels as they reach `Loss.call`.
            z: `[B, ..., C]`.
            f: `[B, ...]`.

        Returns:
            The head.

        Raises:
            ValueError: if the shapes do not fit.
        """
        aligned = align(tf.cast(y_true, z.dtype), z)
        if aligned is None:
            raise error("y_true.shape", f"fit the output's, {z.shape}", y_true.shape, "See `fits`.")
        target, entries = aligned
        mean = f[..., None] / tf.cast(tf.shape(entries)[-1], z.dtype)
        slope, curvature = (mean * part for part in self.derivatives(form, entries, target))
        return DiagonalHead(self.kind, tf.reshape(slope, tf.shape(z)), tf.reshape(curvature, tf.shape(z)))


def align(y_true: tf.Tensor, z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor] | None:
    """Brings labels and output to one rank, as Keras does.

    Args:
        y_true: labels.
        z: the output.

    Returns:
        Both, or None if the labels would stretch the output or the ranks stay apart.
    """
    true_rank, rank = y_true.shape.rank, z.shape.rank
    if true_rank is None or rank is None:
        return None
    if true_rank == rank + 1 and y_true.shape[-1] == 1:
        z, y_true = (z[:, None], y_true) if rank == 1 else (z, tf.squeeze(y_true, axis=-1))
    elif rank == true_rank + 1 and z.shape[-1] == 1:
        z, y_true = (z, y_true[:, None]) if true_rank == 1 else (tf.squeeze(z, axis=-1), y_true)
    fits = y_true.shape.rank == z.shape.rank and all(
        a in {1, None} or b is None or a == b for a, b in zip(y_true.shape, z.shape, strict=True)
    )
    return (y_true, z) if fits else None
