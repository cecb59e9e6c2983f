"""Kronecker-factored metrics: K-FAC and EKFAC, for dense layers and convolutions.

With x the input of a position, constant bias feature included, and c its cotangent,

    A = E[x x'],  B = E[c c'],  M = (A + pi sqrt(lambda) I) (x) (B + sqrt(lambda) / pi I) / learning_rate

where (x) acts on the matrix form of kernel and bias, `A^{-1} G B^{-1}`. EKFAC keeps the eigenbases U_A, U_B and
measures the second moments s of the gradient in them: `M = U (s + lambda) U' / learning_rate`.

A convolution's matrix has the rows (tap, channel). Its input factor is the full matrix over those rows, or one
`[c_in, c_in]` matrix shared by all taps (`convolution="sua"`); then, as for "autocorrelation", the bias row stands
alone with the number of positions as its moment.
"""

import tensorflow as tf

from bellman_tf.curvature import config as options
from bellman_tf.curvature.block import (
    CachedBlock,
    Metric,
    PlayerLayout,
    StateSpec,
    Step,
    TapwiseMetric,
    damped_inverses,
    every,
    running_mean,
)
from bellman_tf.curvature.capture import Capture, MatrixCapture, MatrixLayout, Tensors, after, leading
from bellman_tf.curvature.convolution import Convolution
from bellman_tf.curvature.linear_map import LinearMap
from bellman_tf.linalg import eigh, split_damping
from bellman_tf.linalg.products import matmul

# Per-sample gradients of a layer at up to this many positions are formed by `scalings="auto"`.
FEW_POSITIONS = 16


class KroneckerRows:
    """Applies an input-side matrix to the rows of the matrix form.

    Attributes:
        layout: kernel and bias as one matrix.
        repeats: copies of the input factor along the kernel's rows: taps for "sua", else 1.
        bias_apart: whether the bias row has its own scalar instead of a row of the factor.
    """

    def __init__(self, layout: MatrixLayout, repeats: int, bias_apart: bool) -> None:
        self.layout, self.repeats = layout, repeats
        self.bias_apart = bias_apart and layout.bias_shape is not None
        self.size = layout.rows // repeats + (layout.bias_shape is not None and not self.bias_apart)

    @property
    def plain(self) -> bool:
        """Whether one factor holds every row."""
        return self.repeats == 1 and not self.bias_apart

    def apply(self, left: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
        """`left` on every copy of the kernel's rows; a bias row that stands apart stays as it is.

        Args:
            left: `[size, size]`.
            matrix: `[..., rows(+1), e]`.

        Returns:
            Shape of `matrix`.
        """
        if self.plain:
            return matmul(left, matrix)
        kernel = matrix[..., : self.layout.rows, :]
        if self.repeats == 1:
            kernel = matmul(left, kernel)
        else:
            lead = leading(kernel, 2)
            copies = tf.reshape(kernel, [*lead, self.repeats, self.size, self.layout.width])
            kernel = tf.reshape(matmul(left, copies), [*lead, self.layout.rows, self.layout.width])
        if not self.bias_apart:
            return kernel
        return tf.concat([kernel, matrix[..., self.layout.rows :, :]], axis=-2)

    def apply_to_kernel(self, left: tf.Tensor, kernel: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        """`left K right` on every copy of a kernel's rows, for factors that leave the bias out.

        Args:
            left: `[size, size]`.
            kernel: in the shape of the variable; leading axes are allowed.
            right: `[e, e]`.

        Returns:
            Shape of `kernel`.
        """
        lead = leading(kernel, len(self.layout.kernel_shape))
        turned = tf.reshape(matmul(kernel, right), [*lead, self.repeats, self.size, self.layout.width])
        if not lead:  # copies of a small matrix for one batched product, made when it is due
            left = tf.broadcast_to(after(left, turned), [self.repeats, self.size, self.size])
        return tf.reshape(matmul(left, turned), [*lead, *self.layout.kernel_shape])


class KroneckerMetric(TapwiseMetric):
    """M^{-1} = learning_rate A^{-1} (x) B^{-1}."""

    def __init__(
        self, rows: KroneckerRows, A_inv: tf.Tensor, B_inv: tf.Tensor, bias_inv: tf.Tensor, learning_rate: tf.Tensor
    ) -> None:
        self._rows, self._A_inv, self._B_inv, self._bias_inv = rows, A_inv, B_inv, bias_inv
        self.scale = learning_rate
        self.kronecker = rows.plain
        self.tapwise = rows.repeats > 1

    def solve(self, parts: Tensors) -> Tensors:
        """`learning_rate A^{-1} G B^{-1}`; leading axes are allowed."""
        right = self.scale * self._B_inv
        if self._rows.plain:
            layout = self._rows.layout
            return layout.unpack(matmul(matmul(self._A_inv, layout.pack(parts)), right))
        solved = [self._rows.apply_to_kernel(self._A_inv, parts[0], right)]
        return [*solved, self.solve_bias(parts[1])] if self._rows.bias_apart else solved

    def input_solve(self, x: tf.Tensor) -> tf.Tensor:
        """`x A^{-1}` for rows x with the bias feature, `[..., rows(+1)]`."""
        return tf.tensordot(x, self._A_inv, 1)

    def cotangent_solve(self, c: tf.Tensor) -> tf.Tensor:
        """`c B^{-1}`, `[..., e]`."""
        return tf.tensordot(c, self._B_inv, 1)

    def solve_tap(self, q: tf.Tensor, tap: object) -> tf.Tensor:
        """One tap of a convolution's kernel, `[..., c_in, c_out]`."""
        return matmul(matmul(self._A_inv, q), self.scale * self._B_inv)

    def tap_pair(self, capture: Convolution, tap: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`q` and `A^{-1} q B^{-1}`."""
        return capture.tap_gradients(tap), capture.tap_gradients(tap, self._A_inv, self.scale * self._B_inv)

    def solve_bias(self, q: tf.Tensor) -> tf.Tensor:
        """The bias of a convolution, `[..., c_out]`."""
        return self._bias_inv * tf.tensordot(q, self.scale * self._B_inv, 1)


class EigenMetric(TapwiseMetric):
    """M^{-1} = learning_rate U (1 / (s + damping)) U' with U = U_A (x) U_B."""

    def __init__(self, rows: KroneckerRows, U_A: tf.Tensor, U_B: tf.Tensor, inverse: tf.Tensor) -> None:
        """Stores the basis.

        Args:
            rows: the row structure.
            U_A: `[size, size]`.
            U_B: `[e, e]`.
            inverse: `[rows(+1), e]`, learning_rate / (s + damping).
        """
        self._rows, self._U_A, self._U_B, self.inverse = rows, U_A, U_B, inverse
        self.tapwise = rows.repeats > 1

    def rotate(self, matrix: tf.Tensor) -> tf.Tensor:
        """`U_A' G U_B`, `[..., rows(+1), e]`."""
        return matmul(self._rows.apply(tf.transpose(self._U_A), matrix), self._U_B)

    def rotate_back(self, matrix: tf.Tensor) -> tf.Tensor:
        """`U_A G U_B'`, the inverse of `rotate`."""
        return self._rows.apply(self._U_A, matmul(matrix, self._U_B, transpose_b=True))

    def solve(self, parts: Tensors) -> Tensors:
        """Into the eigenbasis, through the diagonal, and back; leading axes are allowed."""
        layout = self._rows.layout
        return layout.unpack(self.rotate_back(self.inverse * self.rotate(layout.pack(parts))))

    def rotate_input(self, x: tf.Tensor) -> tf.Tensor:
        """`x U_A`, `[..., size]`."""
        return tf.tensordot(x, self._U_A, 1)

    def rotate_cotangent(self, c: tf.Tensor) -> tf.Tensor:
        """`c U_B`, `[..., e]`."""
        return tf.tensordot(c, self._U_B, 1)

    def solve_tap(self, q: tf.Tensor, tap: object) -> tf.Tensor:
        """One tap of a convolution's kernel, `[..., c_in, c_out]`; `tap` is its flat number."""
        turned = self._tap_inverse(tap) * matmul(matmul(self._U_A, q, transpose_a=True), self._U_B)
        return matmul(matmul(self._U_A, turned), self._U_B, transpose_b=True)

    def _tap_inverse(self, tap: object) -> tf.Tensor:
        rows = self._rows
        return tf.reshape(self.inverse[: rows.layout.rows], [rows.repeats, rows.size, rows.layout.width])[tap]

    def tap_pair(self, capture: Convolution, tap: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`r = U_A' q U_B` and `r / (s + damping)`."""
        r = capture.tap_gradients(tap, self._U_A, self._U_B)
        return r, self._tap_inverse(tap) * r

    def solve_bias(self, q: tf.Tensor) -> tf.Tensor:
        """The bias of a convolution, `[..., c_out]`."""
        turned = self.inverse[-1] * tf.tensordot(q, self._U_B, 1)
        return tf.tensordot(turned, self._U_B, [[-1], [1]])


class KFACBlock(CachedBlock):
    """Running Kronecker factors and their damped inverses."""

    needs_capture = True
    factorise = staticmethod(damped_inverses)

    def __init__(self, layout: PlayerLayout, config: options.KFAC) -> None:
        """Lays out the factors.

        Args:
            layout: the player; `layout.matrix` must not be `None`.
            config: the options.
        """
        super().__init__(layout)
        self.config = config
        self.form = config.convolution if layout.convolution else "patches"
        repeats = layout.taps if self.form == "sua" else 1
        self.rows = KroneckerRows(layout.matrix, repeats, bias_apart=self.form != "patches")

    def state_specs(self) -> list[StateSpec]:
        """Factors A, B; their damped inverses; the inverse of the bias row's moment."""
        size, width = self.rows.size, self.layout.matrix.width
        return [
            StateSpec("input_factor", (size, size)),
            StateSpec("gradient_factor", (width, width)),
            StateSpec("input_inverse", (size, size), "identity"),
            StateSpec("gradient_inverse", (width, width), "identity"),
            StateSpec("bias_inverse", (), "ones"),
        ]

    @property
    def period(self) -> int:
        """Steps between factorisations."""
        return self.config.invert_every

    def observe(self, state: Tensors, capture: MatrixCapture, step: Step) -> Tensors:
        """Running means of A and B, updated every `update_every` steps."""
        config = self.config
        rate = step.mean_rate(config.decay, config.update_every)

        def moments() -> Tensors:
            A = capture.input_moment(self.form) if self.layout.convolution else capture.input_moment()
            return [running_mean(state[0], A, rate), running_mean(state[1], capture.cotangent_moment(), rate)]

        return every(config.update_every, step.iteration, moments, state[:2])

    def _positions(self, capture: Capture, dtype: tf.DType) -> tf.Tensor:
        count = capture.positions
        return tf.cast(tf.shape(capture.cotangents[0])[1] if count is None else count, dtype)

    def matrices(self, statistics: Tensors) -> list[tuple[tf.Tensor, ...]]:
        """The factors and their dampings."""
        return list(zip(statistics, split_damping(*statistics, self.config.damping), strict=True))

    def cache(self, factors: list[Tensors], capture: MatrixCapture) -> Tensors:
        """Damped inverses of A, B and of the bias row's moment."""
        (A_inv, damping_A), (B_inv, _) = factors
        bias = self._positions(capture, A_inv.dtype) if self.rows.bias_apart else 1.0
        return [A_inv, B_inv, 1 / (bias + damping_A)]

    def finish(
        self, statistics: Tensors, cached: Tensors, capture: MatrixCapture, step: Step
    ) -> tuple[Tensors, Metric]:
        """The inverses as a metric."""
        return [*statistics, *cached], KroneckerMetric(self.rows, *cached, step.learning_rate)

    def describe(self) -> str:
        """A word or two for `game_summary`."""
        size, width = self.rows.size, self.layout.matrix.width
        copies = f"{self.rows.repeats} x " if self.rows.repeats > 1 else ""
        return f"kfac {copies}{size} (x) {width}"


class EKFACBlock(KFACBlock):
    """Eigenbases of the factors, and second moments in them."""

    factorise = staticmethod(eigh)

    def state_specs(self) -> list[StateSpec]:
        """Factors A, B; eigenbases; second moments."""
        size, width = self.rows.size, self.layout.matrix.width
        return [
            StateSpec("input_factor", (size, size)),
            StateSpec("gradient_factor", (width, width)),
            StateSpec("input_basis", (size, size), "identity"),
            StateSpec("gradient_basis", (width, width), "identity"),
            StateSpec("scalings", (self.layout.matrix.all_rows, width)),
        ]

    def matrices(self, statistics: Tensors) -> list[tuple[tf.Tensor, ...]]:
        """The factors."""
        return [(factor,) for factor in statistics]

    def cache(self, factors: list[Tensors], capture: MatrixCapture) -> Tensors:
        """Eigenbases of A and B, and K-FAC's own estimate of the scalings, which starts those of a new basis."""
        (eig_A, U_A), (eig_B, U_B) = factors
        rows = [eig_A] * self.rows.repeats
        if self.rows.bias_apart:
            rows.append(self._positions(capture, eig_A.dtype)[None])
        return [U_A, U_B, tf.maximum(tf.concat(rows, 0), 0)[:, None] * tf.maximum(eig_B, 0)]

    def finish(
        self, statistics: Tensors, cached: Tensors, capture: MatrixCapture, step: Step
    ) -> tuple[Tensors, Metric]:
        """The scalings of this step in the bases, and the metric."""
        U_A, U_B, s = cached
        metric = EigenMetric(self.rows, U_A, U_B, s)
        s = self._measured(s, capture, metric)
        metric.inverse = step.learning_rate / (s + self.config.damping)
        return [*statistics, U_A, U_B, s], metric

    def _measured(self, s: tf.Tensor, capture: MatrixCapture, metric: EigenMetric) -> tf.Tensor:
        """The scalings of this step."""
        return self.config.decay * s + (1 - self.config.decay) * self._second_moments(capture, metric)

    def _second_moments(self, capture: MatrixCapture, metric: EigenMetric) -> tf.Tensor:
        """`E[(U_A' q U_B)^2]`, `[rows(+1), e]`, from column 0."""
        batch = tf.cast(capture.batch_size, capture.cotangents[0].dtype)
        c = metric.rotate_cotangent(capture.cotangents[0])
        if isinstance(capture, LinearMap) and capture.flat:
            x = metric.rotate_input(capture.augmented())
            return matmul(tf.square(x), tf.square(c), transpose_a=True) / batch
        few = capture.positions is not None and capture.positions <= FEW_POSITIONS
        if self.config.scalings == "exact" or (self.config.scalings == "auto" and few):
            q = metric.rotate(capture.matrix_per_sample()[:, 0])
            return tf.reduce_mean(tf.square(q), axis=0)
        c = tf.reshape(tf.square(c), [-1, self.layout.matrix.width])
        if not isinstance(capture, Convolution):
            x = metric.rotate_input(capture.augmented())
            return matmul(tf.square(tf.reshape(x, [-1, x.shape[-1]])), c, transpose_a=True) / batch
        return self._convolution_moments(capture, metric, c) / batch

    def _convolution_moments(self, capture: Convolution, metric: EigenMetric, c: tf.Tensor) -> tf.Tensor:
        """`sum_il (rotated patch)^2 (rotated cotangent)^2'` with positions taken as uncorrelated."""
        if self.form == "sua":
            # One product per tap, over the rotated pixels.
            turned = capture.taps_of(tf.square(metric.rotate_input(capture.pixels)))
            parts = [
                matmul(tf.reshape(turned.tap(number), [-1, self.rows.size]), c, transpose_a=True)
                for number in range(len(turned.offsets))
            ]
        else:
            patches = capture.taps.patches() if self.rows.bias_apart else capture.augmented()
            x = tf.square(tf.reshape(metric.rotate_input(patches), [-1, self.rows.size]))
            parts = [matmul(x, c, transpose_a=True)]
        if self.rows.bias_apart:
            parts.append(tf.reduce_sum(c, axis=0, keepdims=True))
        return tf.concat(parts, axis=0)

    def describe(self) -> str:
        """A word or two for `game_summary`."""
        return "e" + super().describe()


class KFACEigenBlock(EKFACBlock):
    """K-FAC in its eigenbasis, where damping adds to eigenvalues as Corollary 7 has it: for `cooperative="rescale"`."""

    def _measured(self, s: tf.Tensor, capture: MatrixCapture, metric: EigenMetric) -> tf.Tensor:
        """K-FAC's own eigenvalues."""
        return s

    def describe(self) -> str:
        """A word or two for `game_summary`."""
        return KFACBlock.describe(self)
