"""EKFAC's metric: the eigenbases U_A, U_B of K-FAC's factors, and the second moments s of the gradient in them.

M = U (s + lambda) U' / learning_rate,      U = U_A (x) U_B
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.curvature import config as options
from bellman_tf.curvature.block import PlayerLayout, StateSpec
from bellman_tf.curvature.damping import diagonal_damping
from bellman_tf.curvature.diagonal import RankOneMetric, rank_one_sides
from bellman_tf.curvature.kfac import KFACBlock, positions_of
from bellman_tf.curvature.kronecker_rows import KroneckerRows
from bellman_tf.curvature.metric import GradientPair, Metric, MetricKind
from bellman_tf.curvature.step_scalars import StepScalars, running_mean
from bellman_tf.layers.capture import Capture, MatrixCapture
from bellman_tf.layers.tap_capture import TapCapture
from bellman_tf.linalg import eigh
from bellman_tf.linalg.constants import number
from bellman_tf.linalg.products import matmul

# Per-sample gradients of a layer at up to this many positions are formed by `scalings="auto"`.
FEW_POSITIONS = 16


def eigen_kind(rows: KroneckerRows) -> MetricKind:
    """What a metric in an eigenbasis offers.

    Args:
        rows: the row structure.

    Returns:
        A diagonal, where the basis turns every row; taps apart, where they share a basis.
    """
    return MetricKind(tapwise=rows.repeats > 1, diagonal=rows.plain)


class RotatedRankOne(RankOneMetric):
    """`M^{-1} = (U_A diag(r) U_A') (x) (U_B diag(s) U_B')`."""

    def __init__(self, r: tf.Tensor, s: tf.Tensor, U_A: tf.Tensor, U_B: tf.Tensor) -> None:
        super().__init__(r, s)
        self._U_A, self._U_B = U_A, U_B

    def input_pair(self, capture: MatrixCapture) -> tuple[tf.Tensor, tf.Tensor, None]:
        """Inputs with the constant feature of the bias, which the basis mixes with the others."""
        x = capture.augmented()
        return x, self.input_solve(x), None

    def input_solve(self, x: tf.Tensor) -> tf.Tensor:
        """`x U_A diag(r) U_A'`."""
        return _scaled_in_basis(x, self.r, self._U_A)

    def cotangent_solve(self, c: tf.Tensor) -> tf.Tensor:
        """`c U_B diag(s) U_B'`."""
        return _scaled_in_basis(c, self.s, self._U_B)


def _scaled_in_basis(x: tf.Tensor, diagonal: tf.Tensor, U: tf.Tensor) -> tf.Tensor:
    return tf.tensordot(tf.tensordot(x, U, 1) * diagonal, U, [[-1], [1]])


class Eigenbasis:
    """The rotation U = U_A (x) U_B of the matrix form."""

    def __init__(self, rows: KroneckerRows, U_A: tf.Tensor, U_B: tf.Tensor) -> None:
        """Stores the basis.

        Args:
            rows: the row structure.
            U_A: `[size, size]`.
            U_B: `[e, e]`.
        """
        self._rows, self._U_A, self._U_B = rows, U_A, U_B

    @property
    def basis(self) -> tuple[tf.Tensor, tf.Tensor]:
        """U_A and U_B."""
        return self._U_A, self._U_B

    def rotate(self, matrix: tf.Tensor) -> tf.Tensor:
        """`U_A' G U_B`, `[..., rows(+1), e]`."""
        return matmul(self._rows.apply(tf.transpose(self._U_A), matrix), self._U_B)

    def rotate_back(self, matrix: tf.Tensor) -> tf.Tensor:
        """`U_A G U_B'`, the inverse of `rotate`."""
        return self._rows.apply(self._U_A, matmul(matrix, self._U_B, transpose_b=True))

    def rotate_input(self, x: tf.Tensor) -> tf.Tensor:
        """`x U_A`, `[..., size]`."""
        return tf.tensordot(x, self._U_A, 1)

    def rotate_cotangent(self, c: tf.Tensor) -> tf.Tensor:
        """`c U_B`, `[..., e]`."""
        return tf.tensordot(c, self._U_B, 1)


class EigenMetric(Eigenbasis, Metric):
    """M^{-1} = learning_rate U (1 / (s + damping)) U' with U = U_A (x) U_B."""

    def __init__(
        self, rows: KroneckerRows, U_A: tf.Tensor, U_B: tf.Tensor, moments: tf.Tensor, damping: tf.Tensor | float,
        rate: tf.Tensor,
    ) -> None:  # fmt: skip
        """Stores the basis.

        Args:
            rows: the row structure.
            U_A: `[size, size]`.
            U_B: `[e, e]`.
            moments: s, `[rows(+1), e]`.
            damping: added to s.
            rate: learning rate, scalar.
        """
        super().__init__(rows, U_A, U_B)
        self._moments, self._damping, self._rate = moments, damping, rate
        self.inverse = rate / (moments + damping)
        self.kind = eigen_kind(rows)

    def solve(self, parts: Tensors) -> Tensors:
        """Into the eigenbasis, through the diagonal, and back; leading axes are allowed."""
        layout = self._rows.layout
        return layout.unpack(self.rotate_back(self.inverse * self.rotate(layout.pack(parts))))

    def sample_pair(self, capture: Capture) -> GradientPair:
        """`U_A' q U_B / sqrt(s + damping)` on both sides."""
        formed = isinstance(capture, MatrixCapture)
        q = capture.matrix_per_sample() if formed else self._rows.layout.pack(capture.per_sample())
        r = [tf.sqrt(self.inverse) * self.rotate(q)]
        return GradientPair(r, r)

    def rotated(self, capture: MatrixCapture) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Inputs and cotangents in the eigenbases, and the diagonal there."""
        return self.rotate_input(capture.augmented()), self.rotate_cotangent(capture.cotangents[0]), self.inverse

    def rank_one(self) -> RotatedRankOne:
        """The second moments in the eigenbases, factored."""
        r, s = rank_one_sides(self._moments, self._rate, lambda v: v + self._damping)
        return RotatedRankOne(r, s, self._U_A, self._U_B)

    def solve_tap(self, q: tf.Tensor, tap: int) -> tf.Tensor:
        """One tap of a convolution's kernel, `[..., c_in, c_out]`; `tap` is its flat number."""
        rotated = self._tap_inverse(tap) * matmul(matmul(self._U_A, q, transpose_a=True), self._U_B)
        return matmul(matmul(self._U_A, rotated), self._U_B, transpose_b=True)

    def _tap_inverse(self, tap: int) -> tf.Tensor:
        rows = self._rows
        return tf.reshape(self.inverse[: rows.layout.rows], [rows.repeats, rows.size, rows.layout.width])[tap]

    def tap_pair(self, capture: TapCapture, tap: int) -> GradientPair:
        """`U_A' q U_B / sqrt(s + damping)` on both sides."""
        _, rotated = capture.rotated_tap_gradients(tap, self._U_A, self._U_B)
        r = [tf.sqrt(self._tap_inverse(tap)) * rotated]
        return GradientPair(r, r)

    def solve_bias(self, q: tf.Tensor) -> tf.Tensor:
        """The bias of a convolution, `[..., c_out]`."""
        rotated = self.inverse[-1] * tf.tensordot(q, self._U_B, 1)
        return tf.tensordot(rotated, self._U_B, [[-1], [1]])


def eigenbases(stacks: list[tuple[tf.Tensor, ...]], compiled: bool = False) -> list[Tensors]:
    """Eigenvalues and eigenvectors of stacks `[S, n, n]`, for `CachedBlock.factorise`."""
    return [list(eigh(matrices)) for (matrices,) in stacks]


class EigenBlock(KFACBlock):
    """Eigenbases of the factors, and second moments in them, which a subclass measures or takes from the factors."""

    factorise = staticmethod(eigenbases)

    @property
    def mixes(self) -> bool:
        """Never: the diagonal in the eigenbasis has cheaper forms."""
        return False

    def state_specs(self) -> list[StateSpec]:
        """Factors A, B; eigenbases; second moments."""
        size, width = self.rows.size, self.layout.matrix_form.width
        return [
            StateSpec("input_factor", (size, size)),
            StateSpec("gradient_factor", (width, width)),
            StateSpec("input_basis", (size, size), "identity"),
            StateSpec("gradient_basis", (width, width), "identity"),
            StateSpec("scalings", (self.layout.matrix_form.all_rows, width)),
        ]

    @classmethod
    def matrices(cls, blocks: Sequence[Any], statistics: Sequence[Tensors]) -> list[list[tuple[tf.Tensor, ...]]]:
        """The factors."""
        return [[(factor,) for factor in factors] for factors in statistics]

    def finish(
        self, statistics: Tensors, cached: Tensors, measured: Tensors, step: StepScalars
    ) -> tuple[Tensors, Metric]:
        """The scalings in the bases, running means where they are measured, and the metric."""
        U_A, U_B, s = cached
        for moments in measured:
            s = running_mean(s, moments, step.mean_rate(self.config.decay))
        state = [*statistics, U_A, U_B, s]
        return state, self.standing(state, step)

    def standing(self, state: Tensors, step: StepScalars) -> Metric:
        """The scalings so far in the cached bases."""
        U_A, U_B, s = state[2:5]
        damping = diagonal_damping([s], self.config.damping)
        return EigenMetric(self.rows, U_A, U_B, s, damping, step.learning_rate)

    @property
    def kind(self) -> MetricKind:
        """As `eigen_kind`."""
        return eigen_kind(self.rows)


class EKFACBlock(EigenBlock):
    """Second moments that are measured, as running means."""

    def __init__(self, layout: PlayerLayout, config: options.EKFAC) -> None:
        """Lays out the factors.

        Args:
            layout: the player; `layout.matrix` must not be `None`.
            config: the options.
        """
        super().__init__(layout, config)
        self.scalings = config.scalings

    def cache(self, factors: list[Tensors], capture: MatrixCapture, kept: Tensors) -> Tensors:
        """Eigenbases of A and B, and the scalings so far as the new bases see them."""
        (_, U_A), (_, U_B) = factors
        old_A, old_B, s = kept
        return [
            U_A,
            U_B,
            self._turned_scalings(matmul(old_A, U_A, transpose_a=True), s, matmul(old_B, U_B, transpose_a=True)),
        ]

    def _turned_scalings(self, R_A: tf.Tensor, s: tf.Tensor, R_B: tf.Tensor) -> tf.Tensor:
        """The diagonal of `R' diag(s) R`, R = R_A (x) R_B the rotation from the old bases to the new ones."""
        return matmul(self.rows.apply(tf.transpose(tf.square(R_A)), s), tf.square(R_B))

    def measure(self, cached: Tensors, capture: MatrixCapture) -> Tensors:
        """The second moments of this step in the bases."""
        return [self._second_moments(capture, Eigenbasis(self.rows, *cached[:2]))]

    def _second_moments(self, capture: MatrixCapture, metric: Eigenbasis) -> tf.Tensor:
        """`E[(U_A' q U_B)^2]`, `[rows(+1), e]`, from column 0."""
        batch = tf.cast(capture.batch_size, capture.cotangents[0].dtype)
        c = metric.rotate_cotangent(capture.cotangents[0])
        if capture.positions == 1 and not capture.extent.taps:
            x = metric.rotate_input(capture.augmented())
            return matmul(tf.square(x), tf.square(c), transpose_a=True) / batch
        few = capture.positions is not None and capture.positions <= FEW_POSITIONS
        if self.scalings == "exact" or (self.scalings == "auto" and few):
            q = metric.rotate(capture.matrix_per_sample()[:, 0])
            return tf.reduce_mean(tf.square(q), axis=0)
        c = tf.reshape(tf.square(c), [-1, self.layout.matrix_form.width])
        if not isinstance(capture, TapCapture):
            x = metric.rotate_input(capture.augmented())
            return matmul(tf.square(tf.reshape(x, [-1, x.shape[-1]])), c, transpose_a=True) / batch
        return self._convolution_moments(capture, metric, c) / batch

    def _convolution_moments(self, capture: TapCapture, metric: Eigenbasis, c: tf.Tensor) -> tf.Tensor:
        """`sum_il (rotated patch)^2 (rotated cotangent)^2'` with positions taken as uncorrelated."""
        if self.form == "sua":
            parts = [capture.tap_moments(*metric.basis)]
        else:
            patches = capture.features() if self.rows.bias_apart else capture.augmented()
            x = tf.square(tf.reshape(metric.rotate_input(patches), [-1, self.rows.size]))
            parts = [matmul(x, c, transpose_a=True)]
        if self.rows.bias_apart:
            parts.append(tf.reduce_sum(c, axis=0, keepdims=True))
        return tf.concat(parts, axis=0)

    def describe(self) -> str:
        """A word or two for `game_summary`."""
        return "e" + super().describe()


class KFACEigenBlock(EigenBlock):
    """K-FAC in its eigenbasis, where damping adds to eigenvalues as Corollary 7 has it: for `cooperative="rescale"`."""

    def cache(self, factors: list[Tensors], capture: MatrixCapture, kept: Tensors) -> Tensors:
        """Eigenbases of A and B, and the products of their eigenvalues."""
        (eig_A, U_A), (eig_B, U_B) = factors
        rows = [eig_A] * self.rows.repeats
        if self.rows.bias_apart:
            rows.append(number(positions_of(capture), eig_A.dtype)[None])
        return [U_A, U_B, tf.maximum(tf.concat(rows, 0), 0)[:, None] * tf.maximum(eig_B, 0)]
