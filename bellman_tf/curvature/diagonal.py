"""First-order metrics: identity, RMSprop, Adam, and the diagonal Fisher matrix that stands in where K-FAC cannot."""

import tensorflow as tf

from bellman_tf.curvature import config as options
from bellman_tf.curvature.block import Block, Metric, PlayerLayout, StateSpec, Step, TapwiseMetric, running_mean
from bellman_tf.curvature.capture import Capture, Tensors
from bellman_tf.curvature.embedding import Lookup


class IdentityMetric(TapwiseMetric):
    """M = I / learning rate."""

    kronecker = True
    tapwise = True

    def __init__(self, learning_rate: tf.Tensor) -> None:
        self.scale = learning_rate

    def solve(self, parts: Tensors) -> Tensors:
        """`learning_rate * parts`."""
        return [self.scale * part for part in parts]

    def input_solve(self, x: tf.Tensor) -> tf.Tensor:
        """The input side: identity."""
        return x

    def cotangent_solve(self, c: tf.Tensor) -> tf.Tensor:
        """The cotangent side: identity."""
        return c

    def solve_tap(self, q: tf.Tensor, tap: object) -> tf.Tensor:
        """One tap of a convolution's kernel, `[..., c_in, c_out]`."""
        return self.scale * q

    def solve_bias(self, q: tf.Tensor) -> tf.Tensor:
        """The bias of a convolution, `[..., c_out]`."""
        return self.scale * q


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


class AdamMetric(DiagonalMetric):
    """A diagonal metric whose step averages the gradient first."""

    def __init__(self, inverse: Tensors, first: Tensors, beta_1: float, correction: tf.Tensor) -> None:
        super().__init__(inverse)
        self._first, self._beta_1, self._correction = first, beta_1, correction

    def step(self, gradient: Tensors) -> tuple[Tensors, dict[int, tf.Tensor]]:
        """`M^{-1} m / (1 - beta_1^t)` with the new first moment m; state entries 0.. are the first moments."""
        moved = [m + (g - m) * (1 - self._beta_1) for m, g in zip(self._first, gradient, strict=True)]
        return [d * m / self._correction for d, m in zip(self.inverse, moved, strict=True)], dict(enumerate(moved))


class IdentityBlock(Block):
    """Plain gradient descent."""

    def update(
        self, state: Tensors, capture: Capture | None, gradient: Tensors | None, step: Step
    ) -> tuple[Tensors, Metric]:
        """No state; the metric is the learning rate."""
        return [], IdentityMetric(step.learning_rate)

    def describe(self) -> str:
        """A word for `game_summary`."""
        return "identity"


class RMSpropBlock(Block):
    """Running mean of squared gradients, as in Keras."""

    needs_gradient = True

    def __init__(self, layout: PlayerLayout, config: options.RMSprop) -> None:
        super().__init__(layout)
        self.config = config

    def state_specs(self) -> list[StateSpec]:
        """One second moment per variable."""
        return [StateSpec(f"velocity_{k}", shape) for k, shape in enumerate(self.layout.shapes)]

    def update(
        self, state: Tensors, capture: Capture | None, gradient: Tensors | None, step: Step
    ) -> tuple[Tensors, Metric]:
        """V <- rho v + (1 - rho) g^2, M = diag(sqrt(v + epsilon)) / learning_rate."""
        rho = self.config.rho
        state = [rho * v + (1 - rho) * tf.square(g) for v, g in zip(state, gradient, strict=True)]
        return state, DiagonalMetric([step.learning_rate * tf.math.rsqrt(v + self.config.epsilon) for v in state])

    def describe(self) -> str:
        """A word for `game_summary`."""
        return "rmsprop"


class AdamBlock(Block):
    """Both moments of Adam; the first is kept beside the metric because it averages the direction."""

    needs_gradient = True

    def __init__(self, layout: PlayerLayout, config: options.Adam) -> None:
        super().__init__(layout)
        self.config = config

    def state_specs(self) -> list[StateSpec]:
        """First moments, then second moments."""
        first = [StateSpec(f"momentum_{k}", shape) for k, shape in enumerate(self.layout.shapes)]
        return first + [StateSpec(f"velocity_{k}", shape) for k, shape in enumerate(self.layout.shapes)]

    def update(
        self, state: Tensors, capture: Capture | None, gradient: Tensors | None, step: Step
    ) -> tuple[Tensors, Metric]:
        """V <- v + (1 - beta_2)(g^2 - v), M = diag(sqrt(v) + epsilon) / (learning_rate sqrt(1 - beta_2^t))."""
        count = len(self.layout.shapes)
        first, second = state[:count], state[count:]
        beta_1, beta_2 = self.config.beta_1, self.config.beta_2
        dtype = step.learning_rate.dtype
        t = tf.cast(step.iteration + 1, dtype)
        rate = step.learning_rate * tf.sqrt(1 - tf.pow(tf.constant(beta_2, dtype), t))
        second = [v + (tf.square(g) - v) * (1 - beta_2) for v, g in zip(second, gradient, strict=True)]
        inverse = [rate / (tf.sqrt(v) + self.config.epsilon) for v in second]
        correction = 1 - tf.pow(tf.constant(beta_1, dtype), t)
        return first + second, AdamMetric(inverse, first, beta_1, correction)

    def describe(self) -> str:
        """A word for `game_summary`."""
        return "adam"


class DiagonalFisherBlock(Block):
    """M = (diag E[q^2] + damping) / learning rate.

    For covered players the mean is over per-sample gradients. An open-loop player has only its mean gradient g:
    with samples independent and g small against their spread, `E[q^2] ~ batch size * g^2`.
    """

    def __init__(self, layout: PlayerLayout, damping: float, decay: float) -> None:
        super().__init__(layout)
        self.damping, self.decay = damping, decay
        self.needs_capture = layout.covered
        self.needs_gradient = not layout.covered

    def state_specs(self) -> list[StateSpec]:
        """One running mean per variable."""
        return [StateSpec(f"fisher_{k}", shape) for k, shape in enumerate(self.layout.shapes)]

    def update(
        self, state: Tensors, capture: Capture | None, gradient: Tensors | None, step: Step
    ) -> tuple[Tensors, Metric]:
        """Running mean of squares, then the inverse of the damped diagonal."""
        if not self.layout.covered:
            batch = tf.cast(capture.batch_size, step.learning_rate.dtype)
            squares = [batch * tf.square(g) for g in gradient]
        elif isinstance(capture, Lookup):
            squares = capture.squares()
        else:
            squares = [tf.reduce_mean(tf.square(q[:, 0]), axis=0) for q in capture.per_sample()]
        rate = step.mean_rate(self.decay)
        state = [running_mean(v, new, rate) for v, new in zip(state, squares, strict=True)]
        return state, DiagonalMetric([step.learning_rate / (v + self.damping) for v in state])

    def describe(self) -> str:
        """A word for `game_summary`."""
        return "fisher diagonal"
