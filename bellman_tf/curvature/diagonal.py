"""The metric that all diagonal curvatures share, and the matrix of rank one that stands in for a wide one.

A diagonal metric has no two sides: its Gram matrix needs the samples' gradients, `B^2 P` multiplications and `B P`
numbers. Adafactor's factorisation of the second moments gives it two sides,

    V ~ R C' / mean(V),        R, C the means of V along rows and columns

(exact where V has rank one), with V the second moments as the metric's divisor takes them. So, with f the divisor,

    M^{-1}_ij = rate / f(V_ij) ~ r_i s_j,      r = rate / f(R),    s = f(mean(V)) / f(C)

The means are those of V and not of 1 / f(V): an input that is always zero has V = 0 and would swamp those.
Source: Shazeer and Stern 2018 (arXiv 1804.04235), Sec. 3.
"""

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Entrywise, Tensors
from bellman_tf.curvature.metric import Decrease, GradientPair, Metric, MetricKind, TwoSided
from bellman_tf.layers.capture import Capture, MatrixCapture
from bellman_tf.layers.matrix_layout import MatrixLayout
from bellman_tf.layers.tap_capture import TapCapture
from bellman_tf.linalg.constants import number, once, reshape

DIAGONAL = MetricKind(tapwise=True, rowwise=True, diagonal=True)


class RankOneMetric(TwoSided):
    """`M^{-1}_ij = r_i s_j`.

    Attributes:
        r: `[rows(+1)]`, positive.
        s: `[e]`, positive.
    """

    def __init__(self, r: tf.Tensor, s: tf.Tensor) -> None:
        self.r, self.s, self.scale = r, s, tf.ones([], r.dtype)

    def input_pair(self, capture: MatrixCapture) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        """The inputs without the constant feature of the bias, which adds its own factor to all products."""
        x, rows = capture.features(), capture.layout.rows
        return x, x * self.r[:rows], self.r[rows] if capture.bias else None

    def input_solve(self, x: tf.Tensor) -> tf.Tensor:
        """`x diag(r)`."""
        return x * self.r

    def cotangent_solve(self, c: tf.Tensor) -> tf.Tensor:
        """`c diag(s)`."""
        return c * self.s


def rank_one_sides(V: tf.Tensor, rate: tf.Tensor, divisor: Entrywise) -> tuple[tf.Tensor, tf.Tensor]:
    """Factors a diagonal metric in matrix form.

    Args:
        V: `[rows(+1), e]`, second moments, not negative.
        rate: learning rate, scalar.
        divisor: f, entry by entry.

    Returns:
        r `[rows(+1)]` and s `[e]` with `rate / f(V_ij) ~ r_i s_j`.
    """
    return _sides(tf.reduce_mean(V, axis=1), tf.reduce_mean(V, axis=0), rate, divisor)


def _sides(R: tf.Tensor, C: tf.Tensor, rate: tf.Tensor, divisor: Entrywise) -> tuple[tf.Tensor, tf.Tensor]:
    """The same from the means along rows and columns."""
    return rate / divisor(R), divisor(tf.reduce_mean(R)) / divisor(C)


def where_known(divisor: Entrywise) -> Entrywise:
    """A divisor for the Gram matrices of a metric whose gradient of this step has yet to come.

    Where no gradient has been seen (a token, a feature that occurs for the first time) the second moment is 0 and not
    a curvature; its inverse would take nearly all the weight from the samples that hold it.

    Args:
        divisor: f, entry by entry.

    Returns:
        f, and so large a number where the moment is 0 that its inverse counts for nothing.
    """
    return lambda v: tf.where(v > number(0, v.dtype), divisor(v), number(1e30, v.dtype))


class DiagonalMetric(Metric):
    """M = diag(f(v)) / learning rate.

    Attributes:
        moments: second moments v, in the shapes of the variables.
    """

    kind = DIAGONAL

    def __init__(self, moments: Tensors, rate: tf.Tensor, divisor: Entrywise, layout: MatrixLayout | None) -> None:
        """Stores the moments.

        Args:
            moments: second moments, in the shapes of the variables.
            rate: learning rate, scalar.
            divisor: f, a function of second moments entry by entry.
            layout: the player's matrix form, where it has one.
        """
        self.moments = moments
        self._rate, self._divisor, self._layout = rate, divisor, layout

    @property
    def _form(self) -> MatrixLayout:
        return _checks.given("layout", self._layout)

    @property
    def inverse(self) -> Tensors:
        """Learning rate / f(v), formed where it is asked for."""
        return once(self, "inverse", lambda: [self._rate / self._divisor(v) for v in self.moments])

    def solve(self, parts: Tensors) -> Tensors:
        """Entry by entry."""
        return [d * part for d, part in zip(self.inverse, parts, strict=True)]

    def step(self, gradient: Tensors) -> Decrease:
        """`g / f(v)`, scaled by the learning rate: for the step alone the inverse is not formed."""
        return Decrease(self._divided(gradient), self._rate, {})

    def _divided(self, parts: Tensors) -> Tensors:
        return [part / self._divisor(v) for v, part in zip(self.moments, parts, strict=True)]

    def sample_pair(self, capture: Capture) -> GradientPair:
        """The gradients times the root of the diagonal on both sides: half the numbers of one side solved."""
        parts = [tf.sqrt(d) * q for d, q in zip(self.inverse, capture.per_sample(), strict=True)]
        return GradientPair(parts, parts)

    def feature_pair(self, capture: MatrixCapture, count: int) -> GradientPair:
        """The gradients times the root of the diagonal on both sides."""
        q = [tf.sqrt(self._form.pack(self.inverse)[:count]) * capture.feature_gradients(count)]
        return GradientPair(q, q, capture.features_over(count))

    def tap_pair(self, capture: TapCapture, tap: int) -> GradientPair:
        """The gradients of one tap times the root of the diagonal on both sides."""
        q = capture.tap_gradients(tap)
        q = [tf.sqrt(self._form.kernel_taps(self.inverse[0])[tap][: q.shape[-2]]) * q]
        return GradientPair(q, q)

    def solve_tap(self, q: tf.Tensor, tap: int) -> tf.Tensor:
        """One tap of a convolution's kernel, `[..., c_in, c_out]`; `tap` is its flat number."""
        return self._form.kernel_taps(self.inverse[0])[tap] * q

    def solve_bias(self, q: tf.Tensor) -> tf.Tensor:
        """The bias, `[..., e]`, whatever axes the variable has."""
        return reshape(self.inverse[1], [-1]) * q

    def solve_rows(self, tokens: tf.Tensor, c: tf.Tensor) -> tf.Tensor:
        """Rows of a table, `[B, m, L, e]`."""
        return tf.gather(self.inverse[0], tokens)[:, None] * c

    def rotated(self, capture: MatrixCapture) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Inputs and cotangents as they are, and the diagonal in matrix form."""
        return capture.augmented(), capture.cotangents[0], capture.layout.pack(self.inverse)

    def rank_one(self) -> RankOneMetric:
        """The second moments factored, in matrix form."""
        layout = self._form
        kernel = layout.kernel_matrix(self.moments[0])
        R, C = tf.reduce_mean(kernel, axis=1), tf.reduce_mean(kernel, axis=0)
        if layout.bias_shape is not None:  # one more row; the matrix itself is not copied
            row = tf.reshape(self.moments[1], [-1])
            R, C = tf.concat([R, [tf.reduce_mean(row)]], 0), C + (row - C) / layout.all_rows
        return RankOneMetric(*_sides(R, C, self._rate, self._divisor))
