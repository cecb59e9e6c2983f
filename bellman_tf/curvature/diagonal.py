"""The metric that all diagonal curvatures share."""

import tensorflow as tf

from bellman_tf.curvature.block import TapwiseMetric
from bellman_tf.layers.capture import Tensors


class DiagonalMetric(TapwiseMetric):
    """M = diag(1 / inverse)."""

    tapwise = True

    def __init__(self, inverse: Tensors) -> None:
        self.inverse = inverse

    def solve(self, parts: Tensors) -> Tensors:
        """Entry by entry."""
        return [d * part for d, part in zip(self.inverse, parts, strict=True)]

    def solve_tap(self, q: tf.Tensor, tap: object) -> tf.Tensor:
        """One tap of a convolution's kernel, `[..., c_in, c_out]`; `tap` is its flat number."""
        d = self.inverse[0]
        return tf.reshape(d, [-1, *d.shape[-2:]])[tap] * q

    def solve_bias(self, q: tf.Tensor) -> tf.Tensor:
        """The bias of a convolution, `[..., c_out]`."""
        return self.inverse[1] * q
