"""K-FAC's metric, for dense layers and convolutions.

With x the input of a position, constant bias feature included, and c its cotangent,

    A = E[x x'],  B = E[c c'],  M = (A + pi sqrt(lambda) I) (x) (B + sqrt(lambda) / pi I) / learning_rate

where (x) acts on the matrix form of kernel and bias, `A^{-1} G B^{-1}`.

A convolution's matrix has the rows (tap, channel). Its input factor is the full matrix over those rows, or one
`[c_in, c_in]` matrix shared by all taps (`convolution="sua"`); then, as for "autocorrelation", the bias row stands
alone with the number of positions as its moment.
"""

from collections.abc import Sequence
from typing import Self

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Size, Tensors
from bellman_tf.curvature import config as options
from bellman_tf.curvature.block import PlayerLayout, StateSpec
from bellman_tf.curvature.cached import CachedBlock, RunningMean
from bellman_tf.curvature.inverses import damped_inverses
from bellman_tf.curvature.kronecker_rows import KroneckerRows
from bellman_tf.curvature.metric import GradientPair, Metric, MetricKind, TwoSided
from bellman_tf.curvature.periods import every
from bellman_tf.curvature.step_scalars import StepScalars, running_mean
from bellman_tf.curvature.whitening import mixtures
from bellman_tf.layers.capture import MatrixCapture
from bellman_tf.layers.tap_capture import TapCapture
from bellman_tf.linalg.constants import number, once
from bellman_tf.linalg.kronecker import split_by_means
from bellman_tf.linalg.products import matmul, times, trace


def kronecker_kind(rows: KroneckerRows, whitened: bool) -> MetricKind:
    """What K-FAC's metric offers.

    Args:
        rows: the row structure.
        whitened: whether it has mixtures of the input features.

    Returns:
        Two sides, where one factor holds every row; taps apart, where they share a factor.
    """
    apart = rows.repeats > 1
    return MetricKind(kronecker=rows.plain, tapwise=apart, sided=apart, whitened=whitened)


class KroneckerMetric(Metric, TwoSided):
    """M^{-1} = learning_rate A^{-1} (x) B^{-1}."""

    def __init__(
        self,
        rows: KroneckerRows,
        A_inv: tf.Tensor,
        B_inv: tf.Tensor,
        learning_rate: tf.Tensor,
        bias_inv: tf.Tensor | None = None,
        mixing: tf.Tensor | None = None,
    ) -> None:
        self._rows, self._A_inv, self._B_inv, self._bias_inv = rows, A_inv, B_inv, bias_inv
        self._right, self.scale, self._mixing = learning_rate * B_inv, learning_rate, mixing
        self.kind = kronecker_kind(rows, mixing is not None)

    def solve(self, parts: Tensors) -> Tensors:
        """`learning_rate A^{-1} G B^{-1}`; leading axes are allowed."""
        if self._rows.plain:
            layout = self._rows.layout
            return layout.unpack(matmul(matmul(self._A_inv, layout.pack(parts)), self._right))
        solved = [self._rows.apply_to_kernel(self._A_inv, parts[0], self._right)]
        return [*solved, self.solve_bias(parts[1])] if self._rows.bias_apart else solved

    def input_solve(self, x: tf.Tensor) -> tf.Tensor:
        """`x A^{-1}` for rows x with the bias feature, `[..., rows(+1)]`."""
        return times(x, self._A_inv)

    def cotangent_solve(self, c: tf.Tensor) -> tf.Tensor:
        """`c B^{-1}`, `[..., e]`."""
        return times(c, self._B_inv)

    def feature_pair(self, capture: MatrixCapture, count: int) -> GradientPair:
        """Mixtures `R' q` of the rows, `R R'` an unbiased estimate of `A^{-1}`, and `R' q B^{-1}`."""
        q = capture.mixed_gradients(_checks.given("mixture of the input features", self._mixing))
        return GradientPair([q], [matmul(q, self._right)])

    def bias_pair(self, capture: MatrixCapture) -> GradientPair | None:
        """The bias's gradients and their solve, where its row stands apart."""
        return super().bias_pair(capture) if self._rows.bias_apart else None

    def tap_input_solve(self, x: tf.Tensor) -> tf.Tensor:
        """`x A^{-1}` for what one tap sees, `[..., c_in]`."""
        return times(x, self._A_inv)

    def solve_tap(self, q: tf.Tensor, tap: int) -> tf.Tensor:
        """One tap of a convolution's kernel, `[..., c_in, c_out]`."""
        return matmul(matmul(self._A_inv, q), self._right)

    def tap_pair(self, capture: TapCapture, tap: int) -> GradientPair:
        """`q` and `A^{-1} q B^{-1}`."""
        q, solved = capture.rotated_tap_gradients(tap, self._A_inv, self._right)
        return GradientPair([q], [solved])

    def solve_bias(self, q: tf.Tensor) -> tf.Tensor:
        """The bias of a convolution, `[..., c_out]`."""
        bias_inv = _checks.given("inverse of the bias row's moment", self._bias_inv)
        return times(q, once(self, "bias", lambda: bias_inv * self._right))


def _mean_eigenvalues(factors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Traces over sizes of many matrices, `[count]`; those of one size from one stack, as they are factorised."""
    alike: dict[int, list[int]] = {}
    for place, factor in enumerate(factors):
        alike.setdefault(factor.shape[-1], []).append(place)
    means: dict[int, tf.Tensor] = {}
    for size, places in alike.items():
        found = trace(tf.stack([factors[k] for k in places])) / float(size)
        means.update(zip(places, tf.unstack(found, len(places)), strict=True))
    return tf.stack([means[place] for place in range(len(factors))])


def positions_of(capture: MatrixCapture) -> Size:
    """Positions at which a player is applied to a sample, static where known."""
    return tf.shape(capture.cotangents[0])[1] if capture.positions is None else capture.positions


class KFACBlock(CachedBlock[MatrixCapture]):
    """Running Kronecker factors and their damped inverses.

    Attributes:
        rows: how the input factor acts on the rows of the matrix form.
        mixtures: of the input features that are kept for Gram matrices from some of them; 0 where these are formed of
            all. Set before training, of a block that `mixes`.
    """

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
        if self.form == "autocorrelation" and layout.matrix_form.swapped:
            self.form = "patches"
        self.mixtures = 0
        repeats = layout.taps if self.form == "sua" else 1
        self.rows = KroneckerRows(layout.matrix_form, repeats, bias_apart=self.form != "patches")

    def state_specs(self) -> list[StateSpec]:
        """Factors A, B; their damped inverses; the inverse of the bias row's moment where it stands apart; mixtures."""
        size, width = self.rows.size, self.layout.matrix_form.width
        specs = [
            StateSpec("input_factor", (size, size)),
            StateSpec("gradient_factor", (width, width)),
            StateSpec("input_inverse", (size, size), "identity"),
            StateSpec("gradient_inverse", (width, width), "identity"),
        ]
        if self.rows.bias_apart:
            specs.append(StateSpec("bias_inverse", (), "ones"))
        return [*specs, StateSpec("feature_mixing", (size, self.mixtures))] if self.mixtures else specs

    @property
    def mixes(self) -> bool:
        """Whether whitened features can stand for each other: not where several taps share a factor."""
        return self.rows.repeats == 1

    @property
    def period(self) -> int:
        """Steps between factorisations."""
        return self.config.invert_every

    @property
    def sharded(self) -> bool:
        """As the option says."""
        return self.config.sharded

    def observe(self, state: Tensors, capture: MatrixCapture, step: StepScalars) -> Sequence[tf.Tensor | RunningMean]:
        """Running means of A and B, updated every `update_every` steps."""
        period = self.config.update_every
        rate = step.mean_rate(self.config.decay, period)

        def moments() -> list[RunningMean]:
            new = capture.input_moment(self.form), capture.cotangent_moment()
            return [RunningMean(old, moment, rate) for old, moment in zip(state[:2], new, strict=True)]

        if period == 1:
            return moments()
        return every(period, step.iteration, lambda: [running_mean(*mean) for mean in moments()], state[:2])

    @classmethod
    def matrices(cls, blocks: Sequence[Self], statistics: Sequence[Tensors]) -> list[list[tuple[tf.Tensor, ...]]]:
        """The factors and their dampings, those of all players from one set of operations."""
        dampings = tf.constant([block.config.damping for block in blocks], statistics[0][0].dtype)
        sides = list(zip(*statistics, strict=True))
        mean_A, mean_B = map(_mean_eigenvalues, sides)
        split = [tf.unstack(part, len(blocks)) for part in split_by_means(mean_A, mean_B, dampings)]
        pairs = [zip(side, own, strict=True) for side, own in zip(sides, split, strict=True)]
        return [list(both) for both in zip(*pairs, strict=True)]

    def cache(self, factors: list[Tensors], capture: MatrixCapture, kept: Tensors) -> Tensors:
        """Damped inverses of A, B and of the bias row's moment where it stands apart; mixtures of whitened features."""
        (A_inv, damping_A, W), (B_inv, *_) = factors
        made = [A_inv, B_inv]
        if self.rows.bias_apart:
            made.append(tf.math.reciprocal(number(positions_of(capture), A_inv.dtype) + damping_A))
        return [*made, mixtures(W, self.mixtures)] if self.mixtures else made

    def finish(
        self, statistics: Tensors, cached: Tensors, measured: Tensors, step: StepScalars
    ) -> tuple[Tensors, Metric]:
        """The inverses as a metric."""
        state = [*statistics, *cached]
        return state, self.standing(state, step)

    def standing(self, state: Tensors, step: StepScalars) -> Metric:
        """The cached inverses as a metric."""
        A_inv, B_inv, *more = state[2:]
        mixing = more.pop() if self.mixtures else None
        return KroneckerMetric(self.rows, A_inv, B_inv, step.learning_rate, *more, mixing=mixing)

    @property
    def kind(self) -> MetricKind:
        """As `kronecker_kind`."""
        return kronecker_kind(self.rows, self.mixtures > 0)

    def describe(self) -> str:
        """A word or two for `game_summary`."""
        size, width = self.rows.size, self.layout.matrix_form.width
        copies = f"{self.rows.repeats} x " if self.rows.repeats > 1 else ""
        return f"kfac {copies}{size} (x) {width}"
