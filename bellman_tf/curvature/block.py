"""The interface of one player's curvature: `Block` owns its running statistics, `Metric` applies them in one step.

A block is created once per player; its state is a list of tensors that the optimizer keeps in variables. Each step,
`update` turns statistics of the batch into the new state and a `Metric`. Nothing here assigns a variable.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from bellman_tf import _checks, replicas
from bellman_tf._typing import Tensors
from bellman_tf.layers.capture import Capture, MatrixCapture
from bellman_tf.layers.dense import LinearMap
from bellman_tf.layers.matrix_layout import MatrixLayout
from bellman_tf.layers.tap_capture import TapCapture
from bellman_tf.linalg.constants import once


class StepScalars:
    """Scalars of the current step.

    Attributes:
        iteration: number of updates done so far, int64 scalar.
        learning_rate: scalar in the metric's dtype.
        refreshing: whether factorisations may be renewed, boolean scalar; `None` for always. Of the micro-batches of
            one update the last one renews them, and the very first one of all: before it nothing is known.
        present: whether this replica has samples in the step, boolean scalar; `None` on a single one.
        compiled: whether XLA compiles the step, as far as the model says.
    """

    def __init__(
        self,
        iteration: tf.Tensor,
        learning_rate: tf.Tensor,
        present: tf.Tensor | None = None,
        micro_batch: tf.Tensor | None = None,
        micro_batches: int = 1,
        compiled: bool = False,
    ) -> None:
        """Stores the scalars.

        Args:
            iteration: number of updates done so far, int64 scalar.
            learning_rate: scalar.
            present: whether this replica has samples, or `None`.
            micro_batch: number of the batch among those that make one update, int64 scalar, or `None`.
            micro_batches: how many make one.
            compiled: whether XLA compiles the step.
        """
        self.compiled = compiled
        self.iteration, self.learning_rate, self.present = iteration, learning_rate, present
        self._micro_batch, self._micro_batches = micro_batch if micro_batches > 1 else None, micro_batches
        self.refreshing = None
        if self._micro_batch is not None:
            last = tf.equal(micro_batch, micro_batches - 1)
            self.refreshing = last | tf.equal(iteration + micro_batch, 0)
        self._rates: dict[tuple, tf.Tensor] = {}

    def mean(self, statistics: Tensors) -> Tensors:
        """Averages statistics of the batch over the replicas; not inside a branch of the graph.

        Args:
            statistics: of this replica's samples, or means that are linear in them.

        Returns:
            Those of the samples of all replicas; the same tensors on a single one.
        """
        return replicas.mean(statistics, self.present)

    def correction(self, beta: float, *, standing: bool = False) -> tf.Tensor:
        """What is missing from an exponential mean that starts at 0, one tensor for all players.

        Args:
            beta: weight of the old value.
            standing: of the mean before this step, at the first step as of one step; else with this step in it.

        Returns:
            `1 - beta^t` after t steps.
        """
        dtype = self.learning_rate.dtype

        def make() -> tf.Tensor:
            steps = tf.maximum(self.iteration, 1) if standing else self.iteration + 1
            return 1 - tf.pow(tf.constant(beta, dtype), tf.cast(steps, dtype))

        return once(self, f"correction {beta} {standing}", make)

    def corrected_rate(self, beta: float, *, standing: bool = False) -> tf.Tensor:
        """The learning rate of a metric whose roots of second moments are of such a mean.

        Args:
            beta: weight of the old value.
            standing: as in `correction`.

        Returns:
            `learning_rate sqrt(1 - beta^t)`.
        """

        def make() -> tf.Tensor:
            return self.learning_rate * tf.sqrt(self.correction(beta, standing=standing))

        return once(self, f"rate {beta} {standing}", make)

    def mean_rate(self, decay: float, period: int = 1) -> tf.Tensor:
        """Weight of the old value in an exponential mean that starts as a plain mean.

        Every call gives the same tensor: call it outside the branches of the graph that use it.

        With k micro-batches to an update the mean takes up k values one by one, so that in the end each of them has the
        weight (1 - rate) / k, whatever the order, and the old value the weight `rate`: as if their mean had been taken
        up at once. For that, micro-batch j has the weight e_j with `1 / e_j = k / (1 - rate) - (k - 1) + j`, because
        the later ones take from it what makes all equal, `e_j (1 - e_{j+1}) = e_{j+1}`.

        Args:
            decay: the eventual weight.
            period: steps between two updates of the mean.

        Returns:
            `min(decay, 1 - 1/(t + 1))` at update t, 0 at the first.
        """
        if (decay, period) not in self._rates:
            dtype = self.learning_rate.dtype
            count = tf.cast(self.iteration if period == 1 else self.iteration // period, dtype)
            rate = tf.minimum(tf.constant(decay, dtype), 1 - 1 / (count + 1))
            if self._micro_batch is not None:
                k = self._micro_batches
                rate = 1 - 1 / (k / (1 - rate) - (k - 1) + tf.cast(self._micro_batch, dtype))
            self._rates[decay, period] = rate
        return self._rates[decay, period]


def state_dtype(variables: Sequence) -> str:
    """The dtype of a player's curvature state: half precision has too few digits for running means and inverses.

    Args:
        variables: the player's, of one precision.

    Returns:
        "float64" for variables in float64, "float32" for all others.
    """
    return "float64" if keras.backend.standardize_dtype(variables[0].dtype) == "float64" else "float32"


@dataclasses.dataclass(frozen=True)
class StateSpec:
    """One tensor of a block's state.

    Attributes:
        name: for the optimizer variable.
        shape: static shape.
        initial: "zeros", "ones" or "identity".
    """

    name: str
    shape: tuple
    initial: str = "zeros"


@dataclasses.dataclass(frozen=True)
class PlayerLayout:
    """What a block needs to know about its player before training.

    Attributes:
        name: for messages and variable names.
        shapes: shapes of the player's variables.
        matrix: how they make one matrix, or `None` if they do not.
        convolution: whether the layer is a convolution.
        taps: kernel taps when the layer is a convolution, else 1.
        covered: whether statistics per sample are available; `False` for open-loop players.
    """

    name: str
    shapes: tuple[tuple, ...]
    matrix: MatrixLayout | None = None
    convolution: bool = False
    taps: int = 1
    covered: bool = True

    @property
    def matrix_form(self) -> MatrixLayout:
        """`matrix`, of a player that has one.

        Raises:
            ValueError: if it has none.
        """
        return _checks.given(f"matrix form of {self.name}", self.matrix)


@dataclasses.dataclass(frozen=True)
class MetricKind:
    """What a metric offers to the forms of a Gram matrix; known before training.

    Attributes:
        kronecker: M^{-1} acts on the two sides of the matrix form: `input_pair`, `input_solve`, `cotangent_solve`.
        tapwise: the taps of a convolution do not mix: `solve_tap`, `tap_pair`, `solve_bias`.
        sided: of a tapwise metric, each tap has two sides: `tap_input_solve`, `cotangent_solve`.
        rowwise: the rows of a table or of the matrix form do not mix: `solve_rows`, `feature_pair`, `bias_pair`.
        diagonal: M is a diagonal matrix once the two sides of the matrix form are turned: `turned`, `rank_one`.
    """

    kronecker: bool = False
    tapwise: bool = False
    sided: bool = False
    rowwise: bool = False
    diagonal: bool = False


ONE = 1.0  # the factor that is left out


class Pair(NamedTuple):
    """Two lists of tensors `[B, m, ...]` and a number: their inner products times it are those of samples' gradients.

    Attributes:
        first: of one sample.
        second: of the other; the same list where the two sides are alike.
        scale: scalar.
    """

    first: Tensors
    second: Tensors
    scale: tf.Tensor | float = ONE


class Metric:
    """M^{-1} of one player at one step, learning rate included.

    Attributes:
        kind: which of the methods below exist.
    """

    kind = MetricKind()

    def solve(self, parts: Tensors) -> Tensors:
        """`M^{-1}` applied to tensors in the shapes of the variables; leading axes are allowed."""
        raise NotImplementedError

    def step(self, gradient: Tensors) -> tuple[Tensors, dict[int, tf.Tensor]]:
        """The decrease of the variables for a gradient, and state entries that change with it."""
        return self.solve(gradient), {}

    def sample_pair(self, capture: Capture) -> Pair:
        """The samples' gradients in a form whose inner products are theirs under M^{-1}."""
        parts = capture.per_sample()
        return Pair(parts, self.solve(parts))

    def solve_tap(self, q: tf.Tensor, tap: int) -> tf.Tensor:
        """`M^{-1}` on one tap of a kernel, `[..., c_in, c_out]`."""
        raise NotImplementedError

    def solve_bias(self, q: tf.Tensor) -> tf.Tensor:
        """`M^{-1}` on the bias of a convolution, `[..., c_out]`."""
        raise NotImplementedError

    def tap_pair(self, capture: TapCapture, tap: int) -> Pair:
        """The same of one tap of a convolution's kernel, tensors `[B, m, c_in, c_out]`; fewer rows of a thinned one."""
        q = capture.tap_gradients(tap)
        return Pair([q], [self.solve_tap(q, tap)])

    def feature_pair(self, capture: LinearMap, count: int) -> Pair:
        """As `sample_pair`, of the kernel rows of the first `count` input features, tensors `[B, m, count, e]`."""
        raise NotImplementedError

    def bias_pair(self, capture: MatrixCapture) -> Pair:
        """As `sample_pair`, of the bias, tensors `[B, m, e]`."""
        raise NotImplementedError

    def solve_rows(self, tokens: tf.Tensor, c: tf.Tensor) -> tf.Tensor:
        """`M^{-1}` on rows of a table: `c` `[B, m, L, e]` in the rows `tokens` `[B, L]`."""
        raise NotImplementedError

    def turned(self, capture: MatrixCapture) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
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


class Block:
    """Curvature of one player.

    Attributes:
        layout: the player.
        needs_gradient: whether `update` reads the mean gradient.
        needs_capture: whether `update` reads the capture.
    """

    needs_gradient = False
    needs_capture = False

    def __init__(self, layout: PlayerLayout) -> None:
        self.layout = layout

    def state_specs(self) -> list[StateSpec]:
        """The state, empty for metrics without memory."""
        return []

    def update(
        self, state: Tensors, capture: Capture | None, gradient: Tensors | None, step: StepScalars
    ) -> tuple[Tensors, Metric]:
        """New state and this step's metric, from the batch's statistics."""
        raise NotImplementedError

    def standing(self, state: Tensors, step: StepScalars) -> Metric:
        """The metric of the statistics so far, where this step's have yet to come or will not come."""
        raise NotImplementedError

    @property
    def kind(self) -> MetricKind:
        """The kind of this block's metrics."""
        raise NotImplementedError

    def describe(self) -> str:
        """A word or two for `game_summary`."""
        raise NotImplementedError


def running_mean(old: tf.Tensor, new: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
    """Exponential mean.

    Args:
        old: the mean so far.
        new: this step's value.
        rate: weight of the old one, of `StepScalars.mean_rate`.

    Returns:
        The new mean.
    """
    return new + rate * (old - new)
