"""What the captures of a convolution's calls have in common: their kernel has taps, each with a gradient of its own."""

import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.layers.capture import MatrixCapture


class TapCapture(MatrixCapture):
    """One call of a convolution, or several.

    Attributes:
        groups: channel groups.
    """

    groups: int

    @property
    def centre(self) -> int:
        """Number of the kernel's centre tap."""
        raise NotImplementedError

    def thinned(self, channels: int) -> "TapCapture":
        """The same cotangents with the first input channels only; layout and `extent` stay the whole layer's."""
        raise NotImplementedError

    def sides(self, number: int) -> tuple[tf.Tensor, Tensors]:
        """What one tap brings together: inputs `[B, L, c_in]`, and cotangents `[B, L, c_out]` of every column."""
        raise NotImplementedError

    def tap_gradients(self, number: int) -> tf.Tensor:
        """Per-sample gradients of one tap, `q_ij[delta]`, `[B, m, c_in / groups, c_out]`."""
        raise NotImplementedError

    def rotated_tap_gradients(self, number: int, left: tf.Tensor, right: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Per-sample gradients of one tap, and the same as `left' q_ij[delta] right`."""
        raise NotImplementedError

    def tap_moments(self, left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        """`sum_il (left' x_il[delta])^2 (right' c_il)^2'` of every tap, `[taps * c_in, c_out]`, from column 0."""
        raise NotImplementedError

    def group_input_moments(self, form: str) -> tf.Tensor:
        """`input_moment` of every channel group, `[groups, rows(+1), rows(+1)]` or `[groups, c_in, c_in]` for "sua"."""
        raise NotImplementedError
