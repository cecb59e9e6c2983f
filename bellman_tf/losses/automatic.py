"""Terminal costs without a closed form, differentiated twice.

Second derivatives need not exist where the loss and its gradient do: a `where` that guards the gradient of a square
root at 0, or of a logarithm of nothing, does not guard what is differentiated once more. Such a sample counts as one
without curvature.
"""

from dataclasses import dataclass, field

import tensorflow as tf

from bellman_tf.losses.head import Head
from bellman_tf.losses.probe import LossCurvature, flatten_samples
from bellman_tf.losses.samples import (
    at_least_float32,
    check_rank,
    entries_per_sample,
    finite_samples,
    top_factor,
)
from bellman_tf.losses.signs import Signs


@dataclass(frozen=True, eq=False)
class AutomaticHead(Head):
    """Everything of J that has no closed form; `z` is the outputs concerned, flattened and side by side, `[B, D]`.

    Attributes:
        curvature: the derivatives of B J.
        separate: whether J is taken for a sum over samples, see `LossCurvature.hessian`.
    """

    curvature: LossCurvature
    separate: bool = True

    kind: str = field(default="automatic", init=False)

    @property
    def size(self) -> int:
        """Entries per sample over all outputs."""
        return sum(entries_per_sample(z) for z in self.curvature.z)

    def gradient(self) -> tf.Tensor:
        """dphi/dz, `[B, D]`."""
        return flatten_samples(self.curvature.gradient, at_least_float32(self.curvature.gradient[0]).dtype)

    def hessian_times(self, v: tf.Tensor) -> tf.Tensor:
        """H v, `[B, D]`, with the part of other samples where J couples them; 0 for samples where it is not finite."""
        return finite_samples(self.curvature.flat_hessian_times(v))

    def factor(self) -> tf.Tensor:
        """Factor of every sample's diagonal block, `[B, D, D]`; negative eigenvalues count as 0."""
        return self.top_factor(self.size)

    def draw(self, signs: Signs) -> tf.Tensor:
        """The columns of the factor with a sign each, added up, `[B, D]`: takes what `factor` takes."""
        Z = self.factor()
        return tf.linalg.matvec(Z, signs(Z[:, 0]))

    def top_factor(self, rank: int) -> tf.Tensor:
        """Largest eigenpairs of every sample's diagonal block, `[B, D, rank]`; 0 where it is not finite."""
        check_rank(rank, self.size)
        return top_factor(finite_samples(self.curvature.hessian(self.separate)), rank)
