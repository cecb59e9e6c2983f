"""The interface of one player's metric at one step, and what a metric offers to the forms of a Gram matrix."""

import dataclasses
from typing import NamedTuple

import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.layers.capture import Capture, MatrixCapture
from bellman_tf.layers.tap_capture import TapCapture


@dataclasses.dataclass(frozen=True)
class MetricKind:
    """What a metric offers to the forms of a Gram matrix; known before training.

    Attributes:
        kronecker: M^{-1} acts on the two sides of the matrix form: `input_pair`, `input_solve`, `cotangent_solve`.
        tapwise: the taps of a convolution do not mix: `solve_tap`, `tap_pair`, `bias_pair`.
        sided: of a tapwise metric, each tap has two sides: `tap_input_solve`, `cotangent_solve`.
        rowwise: the rows of a table or of the matrix form do not mix: `solve_rows`, `feature_pair`, `bias_pair`.
        whitened: features of the inputs are mixed so that some stand for all: `feature_pair`, `bias_pair`.
        diagonal: M is a diagonal matrix once the two sides of the matrix form are turned: `rotated`, `rank_one`.
    """

    kronecker: bool = False
    tapwise: bool = False
    sided: bool = False
    rowwise: bool = False
    whitened: bool = False
    diagonal: bool = False


ONE = 1.0  # the factor that is left out


class GradientPair(NamedTuple):
    """Two lists of tensors `[B, m, ...]` and a number: their inner products times it are those of samples' gradients.

    Attributes:
        first: of one sample.
        second: of the other; the same list where the two sides are alike.
        scale: scalar.
    """

    first: Tensors
    second: Tensors
    scale: tf.Tensor | float = ONE


class Decrease(NamedTuple):
    """`scale * directions`, which is subtracted from variables without being formed.

    Attributes:
        directions: in the shapes of the variables.
        scale: scalar, `None` for 1.
        changed: state entries that change with the step, by position; not finite only where the directions are not.
    """

    directions: Tensors
    scale: tf.Tensor | None
    changed: dict[int, tf.Tensor]

    @property
    def formed(self) -> Tensors:
        """The product."""
        return self.directions if self.scale is None else [self.scale * part for part in self.directions]


class Metric:
    """M^{-1} of one player at one step, learning rate included.

    Attributes:
        kind: which of the methods below exist.
    """

    kind = MetricKind()

    def solve(self, parts: Tensors) -> Tensors:
        """`M^{-1}` applied to tensors in the shapes of the variables; leading axes are allowed."""
        raise NotImplementedError

    def step(self, gradient: Tensors) -> Decrease:
        """The decrease of the variables for a gradient."""
        return Decrease(self.solve(gradient), None, {})

    def sample_pair(self, capture: Capture) -> GradientPair:
        """The samples' gradients in a form whose inner products are theirs under M^{-1}."""
        parts = capture.per_sample()
        return GradientPair(parts, self.solve(parts))

    def solve_tap(self, q: tf.Tensor, tap: int) -> tf.Tensor:
        """`M^{-1}` on one tap of a kernel, `[..., c_in, c_out]`."""
        raise NotImplementedError

    def solve_bias(self, q: tf.Tensor) -> tf.Tensor:
        """`M^{-1}` on the bias of a convolution, `[..., c_out]`."""
        raise NotImplementedError

    def tap_pair(self, capture: TapCapture, tap: int) -> GradientPair:
        """The same of one tap of a convolution's kernel, tensors `[B, m, c_in, c_out]`; fewer rows of a thinned one."""
        q = capture.tap_gradients(tap)
        return GradientPair([q], [self.solve_tap(q, tap)])

    def feature_pair(self, capture: MatrixCapture, count: int) -> GradientPair:
        """As `sample_pair`, `[B, m, count, e]`: of the kernel's first rows or of mixtures, scaled to stand for all."""
        raise NotImplementedError

    def bias_pair(self, capture: MatrixCapture) -> GradientPair | None:
        """As `sample_pair`, of the bias, tensors `[B, m, e]`; `None` where `feature_pair` has it."""
        q = capture.bias_per_sample()
        return GradientPair([q], [self.solve_bias(q)])

    def solve_rows(self, tokens: tf.Tensor, c: tf.Tensor) -> tf.Tensor:
        """`M^{-1}` on rows of a table: `c` `[B, m, L, e]` in the rows `tokens` `[B, L]`."""
        raise NotImplementedError

    def rotated(self, capture: MatrixCapture) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Inputs and cotangents in the basis in which M^{-1} is a diagonal, and that, `[rows(+1), e]`."""
        raise NotImplementedError

    def rank_one(self) -> "TwoSided":
        """The nearest metric that acts on the two sides of the matrix form."""
        raise NotImplementedError


class TwoSided:
    """What acts on the two sides of the matrix form: `M^{-1} G = scale A^{-1} G B^{-1}`.

    Attributes:
        scale: scalar.
    """

    scale: tf.Tensor

    def input_solve(self, x: tf.Tensor) -> tf.Tensor:
        """`x A^{-1}` for rows x with the bias feature, `[..., rows(+1)]`."""
        raise NotImplementedError

    def cotangent_solve(self, c: tf.Tensor) -> tf.Tensor:
        """`c B^{-1}`, `[..., e]`."""
        raise NotImplementedError

    def tap_input_solve(self, x: tf.Tensor) -> tf.Tensor:
        """`x A^{-1}` for what one tap of a convolution sees, `[..., c_in]`."""
        raise NotImplementedError

    def input_pair(self, capture: MatrixCapture) -> tuple[tf.Tensor, tf.Tensor, float | tf.Tensor | None]:
        """Two tensors and a number: the products of inputs are the tensors' inner products plus the number, if any."""
        x = capture.augmented()
        return x, self.input_solve(x), None
