"""K-FAC of a convolution with channel groups: one Kronecker product per group.

The groups have inputs, outputs and weights of their own, so the Fisher matrix has a block for each and blocks between
them; the latter are left out, and each block is taken as K-FAC takes that of a convolution (damping split per group):

    M = blockdiag_g (A_g + pi_g sqrt(lambda) I) (x) (B_g + sqrt(lambda) / pi_g I) / learning_rate
"""

from collections.abc import Sequence
from typing import Self

import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.curvature import config as options
from bellman_tf.curvature.block import PlayerLayout, StateSpec
from bellman_tf.curvature.cached import CachedBlock
from bellman_tf.curvature.inverses import damped_inverses
from bellman_tf.curvature.kfac import positions_of
from bellman_tf.curvature.metric import Metric, MetricKind
from bellman_tf.curvature.periods import every
from bellman_tf.curvature.step_scalars import StepScalars, running_mean
from bellman_tf.layers.matrix_layout import MatrixLayout
from bellman_tf.layers.tap_capture import TapCapture
from bellman_tf.layers.tensors import leading
from bellman_tf.linalg import split_damping
from bellman_tf.linalg.products import matmul


class GroupedMetric(Metric):
    """`M^{-1} = learning_rate blockdiag_g A_g^{-1} (x) B_g^{-1}`."""

    def __init__(
        self, layout: MatrixLayout, kind: MetricKind, A_inv: tf.Tensor, B_inv: tf.Tensor, bias_inv: tf.Tensor,
        rate: tf.Tensor,
    ) -> None:  # fmt: skip
        """Stores the inverses.

        Args:
            layout: the player's matrix form.
            kind: with `tapwise`, the taps share `A_inv` and the bias stands apart.
            A_inv: `[groups, size, size]`.
            B_inv: `[groups, e, e]`.
            bias_inv: `[groups]`, inverse of the bias row's moment where it stands apart.
            rate: learning rate, scalar.
        """
        self._layout, self.kind, self._groups = layout, kind, layout.groups
        self._A_inv, self._B_inv, self._bias_inv = A_inv, rate * B_inv, bias_inv

    def _solve_rows(self, matrix: tf.Tensor) -> tf.Tensor:
        """`A_g^{-1} G B_g^{-1}` on `[..., copies * size, groups * e]`, copies of the factor's rows."""
        lead, size, width = leading(matrix, 2), self._A_inv.shape[-1], self._B_inv.shape[-1]
        copies = matrix.shape[-2] // size
        apart = tf.reshape(matrix, [*lead, copies, size, self._groups, width])
        solved = tf.einsum("gab,...cbgy->...cagy", self._A_inv, apart)
        solved = tf.einsum("...cagy,gyz->...cagz", solved, self._B_inv)
        return tf.reshape(solved, [*lead, copies * size, self._groups * width])

    def solve(self, parts: Tensors) -> Tensors:
        """Group by group; leading axes are allowed."""
        if not self.kind.tapwise:
            return self._layout.unpack(self._solve_rows(self._layout.pack(parts)))
        kernel = self._layout.kernel_variable(self._solve_rows(self._layout.kernel_matrix(parts[0])))
        return [kernel, *map(self.solve_bias, parts[1:])]

    def solve_tap(self, q: tf.Tensor, tap: int) -> tf.Tensor:
        """One tap of the kernel, `[..., c_in / groups, c_out]`."""
        return self._solve_rows(q)

    def solve_bias(self, q: tf.Tensor) -> tf.Tensor:
        """The bias, `[..., c_out]`."""
        apart = tf.reshape(q, [*leading(q, 1), self._groups, 1, self._B_inv.shape[-1]])
        solved = self._bias_inv[:, None, None] * matmul(apart, self._B_inv)
        return tf.reshape(solved, [*leading(q, 1), q.shape[-1]])


class GroupedKFACBlock(CachedBlock[TapCapture]):
    """Running Kronecker factors of every group and their damped inverses."""

    needs_capture = True
    factorise = staticmethod(damped_inverses)

    def __init__(self, layout: PlayerLayout, config: options.KFAC) -> None:
        """Lays out the factors.

        Args:
            layout: the player; `layout.matrix` has several groups.
            config: the options; "autocorrelation" is formed from patches.
        """
        super().__init__(layout)
        self.config, self.groups = config, layout.matrix_form.groups
        self.apart = config.convolution == "sua"
        matrix = layout.matrix_form
        self.size = matrix.rows // layout.taps if self.apart else matrix.all_rows
        self.width = matrix.width // self.groups

    def state_specs(self) -> list[StateSpec]:
        """Factors A, B of the groups; their damped inverses; the inverses of the bias rows' moments."""
        inputs, outputs = (self.groups, self.size, self.size), (self.groups, self.width, self.width)
        return [
            StateSpec("input_factor", inputs),
            StateSpec("gradient_factor", outputs),
            StateSpec("input_inverse", inputs),
            StateSpec("gradient_inverse", outputs),
            StateSpec("bias_inverse", (self.groups,), "ones"),
        ]

    @property
    def period(self) -> int:
        """Steps between factorisations."""
        return self.config.invert_every

    @property
    def sharded(self) -> bool:
        """As the option says."""
        return self.config.sharded

    @property
    def kind(self) -> MetricKind:
        """Taps apart, where they share a factor."""
        return MetricKind(tapwise=self.apart)

    def observe(self, state: Tensors, capture: TapCapture, step: StepScalars) -> Tensors:
        """Running means of A and B, updated every `update_every` steps."""
        rate = step.mean_rate(self.config.decay, self.config.update_every)

        def moments() -> Tensors:
            A = capture.group_input_moments("sua" if self.apart else "patches")
            c = tf.reshape(capture.cotangents[0], [-1, self.groups, self.width])
            B = tf.einsum("ngi,ngj->gij", c, c) / tf.cast(tf.shape(c)[0], c.dtype)
            return [running_mean(state[0], A, rate), running_mean(state[1], B, rate)]

        return every(self.config.update_every, step.iteration, moments, state[:2])

    @classmethod
    def matrices(cls, blocks: Sequence[Self], statistics: Sequence[Tensors]) -> list[list[tuple[tf.Tensor, ...]]]:
        """The factors of all groups and their dampings."""
        return [
            list(zip((A, B), split_damping(A, B, block.config.damping), strict=True))
            for block, (A, B) in zip(blocks, statistics, strict=True)
        ]

    def cache(self, factors: list[Tensors], capture: TapCapture, kept: Tensors) -> Tensors:
        """Damped inverses of A, B and of the bias rows' moments."""
        (A_inv, damping_A, _), (B_inv, *_) = factors
        return [A_inv, B_inv, 1 / (tf.cast(positions_of(capture), A_inv.dtype) + damping_A)]

    def finish(
        self, statistics: Tensors, cached: Tensors, measured: Tensors, step: StepScalars
    ) -> tuple[Tensors, Metric]:
        """The inverses as a metric."""
        state = [*statistics, *cached]
        return state, self.standing(state, step)

    def standing(self, state: Tensors, step: StepScalars) -> Metric:
        """The cached inverses as a metric."""
        A_inv, B_inv, bias_inv = state[2:]
        return GroupedMetric(self.layout.matrix_form, self.kind, A_inv, B_inv, bias_inv, step.learning_rate)

    def describe(self) -> str:
        """A word or two for `game_summary`."""
        copies = f"{self.layout.taps} x " if self.apart else ""
        return f"kfac, {self.groups} groups of {copies}{self.size} (x) {self.width}"
