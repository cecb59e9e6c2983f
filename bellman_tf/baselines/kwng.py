"""KWNG, the kernelized Wasserstein natural gradient, with its adaptive damping.

    forward     outputs X_n = h(Z_n) and loss J
    damping     every few steps epsilon follows the ratio of actual to predicted decrease
    basis       M points of the batch, a coordinate each, drawn anew
    backward    grad J, and the Jacobian T of M numbers in the parameters
    solve       (T' A^+ T + epsilon D)^{-1} grad J, a system in M unknowns (wasserstein.py)
    move        by its learning rate, no longer than a bound

Source: Arbel, Gretton, Li, Montufar 2020; what the paper leaves open is taken from its authors' code.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import keras
import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Tensors
from bellman_tf.baselines import wasserstein
from bellman_tf.baselines.base import Baseline
from bellman_tf.optimizers.keywords import LearningRate
from bellman_tf.training.round import Round, rows_of

Coordinates: TypeAlias = Literal["one", "all"]
COORDINATES = get_args(Coordinates)
# The schedule of the damping, constants of the method:
CHANGE = 0.85  # factor of epsilon
LOW, HIGH = 0.25, 0.75  # ratio of actual to predicted decrease below which it grows, above which it falls
LEAST, MOST = 1e-10, 1e5


@dataclasses.dataclass(frozen=True)
class KWNGOptions:
    """How the metric is estimated and damped.

    Attributes:
        basis: points drawn from each batch.
        coordinates: "one" at random for each point, or "all" of them.
        bandwidth: variance of the kernel over the mean squared distance between points and outputs.
        ridge: lambda, weight of the kernel's norm.
        epsilon: first damping.
        diagonal: whether D holds the roots of the metric's diagonal; else D = I.
        adapt_every: steps between changes of epsilon, `None` for none.
        max_norm: bound on the natural gradient's norm, `None` for none.
        seed: of the draws.
    """

    basis: int = 5
    coordinates: Coordinates = "one"
    bandwidth: float = 1.0
    ridge: float = 0.0
    epsilon: float = 1e-5
    diagonal: bool = True
    adapt_every: int | None = 5
    max_norm: float | None = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks every option.

        Raises:
            ValueError: for a value outside its range.
        """
        _checks.check_integer("basis", self.basis, least=1)
        _checks.check_choice("coordinates", self.coordinates, COORDINATES)
        _checks.check_real("bandwidth", self.bandwidth, above=0)
        _checks.check_real("ridge", self.ridge, least=0)
        _checks.check_real("epsilon", self.epsilon, above=0)
        _checks.check_flag("diagonal", self.diagonal)
        if self.adapt_every is not None:
            _checks.check_integer("adapt_every", self.adapt_every, least=1)
        if self.max_norm is not None:
            _checks.check_real("max_norm", self.max_norm, above=0)
        _checks.check_integer("seed", self.seed, least=0)


State: TypeAlias = keras.Variable | tf.Tensor


class Damping(NamedTuple):
    """State of the adaptive damping: variables of the optimizer, or their values.

    Attributes:
        epsilon: the damping.
        loss: J of the last step.
        predicted: learning rate times the product of gradient and step, of the last step; 0 before the first.
        ratio: the largest ratio of actual to predicted decrease since epsilon was last looked at.
        steps: since then.
    """

    epsilon: State
    loss: State
    predicted: State
    ratio: State
    steps: State


@keras.saving.register_keras_serializable("bellman_tf.baselines")
class KWNG(Baseline):
    """Kernelized Wasserstein natural gradient: steepest descent in how far the outputs have to travel.

    The metric is the Wasserstein metric of the distribution of the model's outputs, estimated in the span of M kernel
    derivatives at points of the batch, `G = T' A^+ T`, and the step `(G + epsilon D)^{-1} grad J`; formulas in
    `bellman_tf.baselines.wasserstein`. Any model whose outputs have one row per sample; the outputs are those that the
    model returns, logits or probabilities. A step costs one forward and M + 1 backward passes (times the outputs' width
    with `coordinates="all"`). Where the natural gradient points uphill the gradient itself is taken.

    Every `adapt_every` steps epsilon falls by 0.85 if the largest ratio `2 (J_old - J_new) / (rate . grad J' step)`
    since the last time exceeds 3/4, and grows by 1/0.85 if it is below 1/4. J_new is the loss of the next batch, as in
    the authors' code, so no pass is added.

    Args:
        learning_rate: float, schedule or callable.
        basis: M, points drawn from each batch; a smaller batch is gone through again.
        coordinates: "one" coordinate at random for each point (the paper), or "all" of them: M d unknowns.
        bandwidth: variance of the kernel over the mean squared distance between points and outputs.
        ridge: lambda, weight of the kernel's norm; 0 in the authors' code.
        epsilon: first damping.
        diagonal: damp every parameter in proportion to the root of its own entry of G; else all alike.
        adapt_every: steps between changes of epsilon, `None` for none.
        max_norm: bound on the norm of the natural gradient, `None` for none.
        seed: of the draws of points and coordinates; compiled with XLA the same seed draws others.
        weight_decay: decoupled, as in Keras.
        use_ema: as in Keras.
        ema_momentum: as in Keras.
        ema_overwrite_frequency: as in Keras.
        name: as in Keras.

    Attributes:
        damping_state: epsilon, and what its changes depend on.

    Raises:
        ValueError: for an option outside its range; at the first step if the outputs' rows are not the samples.

    Example:
        >>> model = btf.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(btf.baselines.KWNG(0.1, basis=5), "mse")

    Source: Arbel, Gretton, Li, Montufar 2020, "Kernelized Wasserstein natural gradient", Prop. 3, Alg. 1.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.1,
        *,
        basis: int = 5,
        coordinates: Coordinates = "one",
        bandwidth: float = 1.0,
        ridge: float = 0.0,
        epsilon: float = 1e-5,
        diagonal: bool = True,
        adapt_every: int | None = 5,
        max_norm: float | None = 1.0,
        seed: int = 0,
        weight_decay: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        name: str | None = None,
    ) -> None:
        kernel = KWNGOptions(basis, coordinates, bandwidth, ridge, epsilon, diagonal, adapt_every, max_norm, seed)
        super().__init__(
            learning_rate,
            rollout="linear",
            weight_decay=weight_decay,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            name=name,
        )
        self.kernel = kernel
        constant: Any = keras.initializers.Constant(epsilon)
        self.damping_state = Damping(
            self.add_variable((), initializer=constant, dtype="float32", name="epsilon"),
            self.add_variable((), dtype="float32", name="last_loss"),
            self.add_variable((), dtype="float32", name="last_predicted"),
            self.add_variable((), dtype="float32", name="largest_ratio"),
            self.add_variable((), dtype="int64", name="steps_since"),
        )

    @property
    def solver(self) -> Callable[[Round], None]:
        """The natural gradient."""
        return functools.partial(kwng_step, options=self.kernel, damping=self.damping_state)

    def get_config(self) -> dict[str, Any]:
        """The options, for Keras serialisation."""
        return self.options_of_keras() | dataclasses.asdict(self.kernel)


def kwng_step(batch: Round, options: KWNGOptions, damping: Damping) -> None:
    """Queues the new values of one step of KWNG, those of the damping's state included.

    Args:
        batch: the step.
        options: of KWNG.
        damping: variables of the optimizer.

    Raises:
        ValueError: if the rows of the outputs are not the samples.
    """
    variables = [v for player in batch.game.players for v in player.variables]
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch([v.value for v in variables])
        batch.y_pred = batch.call_model()
        outputs = _flat_outputs(batch)
        batch.compute_loss()
        terms = _kernel_terms(outputs, options, batch.context.iteration)
        sums = tf.einsum("mnj,nj->m", terms.C, outputs) / tf.cast(tf.shape(outputs)[0], outputs.dtype)
    gradient = _joined(tape.gradient(batch.loss, [v.value for v in variables], unconnected_gradients="zero"), batch)
    T = _jacobian(tape, sums, variables, batch)
    del tape
    batch.read_again(batch.game.written)

    state = adapted(Damping(*map(tf.convert_to_tensor, damping)), batch.loss, options.adapt_every)
    root = wasserstein.whitened(terms.A, T)
    diagonal = wasserstein.diagonal_of(root) if options.diagonal else tf.ones_like(gradient)
    natural = wasserstein.damped_solve(root, diagonal, state.epsilon, gradient)
    natural = tf.where(tf.tensordot(natural, gradient, 1) > 0, natural, gradient)
    if options.max_norm is not None:
        natural = tf.clip_by_norm(natural, options.max_norm)
    step = batch.step.learning_rate * natural
    predicted = tf.cast(tf.tensordot(step, gradient, 1), tf.float32)
    for variable, value in zip(damping, state._replace(predicted=predicted), strict=True):
        batch.assignments.add(variable, value)
    _queue(batch, step)


def adapted(state: Damping, loss: tf.Tensor, every: int | None) -> Damping:
    """The damping after one more loss is known.

    Args:
        state: before.
        loss: of this batch, scalar.
        every: steps between changes, `None` for none.

    Returns:
        The state; `predicted` is still the last step's.
    """
    loss = tf.cast(loss, tf.float32)
    known = state.predicted > 0
    ratio = tf.where(known, 2 * (state.loss - loss) / tf.where(known, state.predicted, 1), 0)
    largest = tf.maximum(state.ratio, ratio)
    steps = state.steps + 1
    if every is None:
        return state._replace(loss=loss, ratio=largest, steps=steps)
    due = tf.equal(steps % every, 0)
    grown = tf.where(largest < LOW, state.epsilon / CHANGE, state.epsilon)
    moved = tf.where(largest > HIGH, state.epsilon * CHANGE, grown)
    return Damping(
        tf.where(due, tf.clip_by_value(moved, LEAST, MOST), state.epsilon),
        loss,
        state.predicted,
        tf.where(due, 0.0, largest),
        tf.where(due, tf.zeros_like(steps), steps),
    )


class _Terms(NamedTuple):
    """C over the batch `[M, N, d]`, and A `[M, M]` in float64."""

    C: tf.Tensor
    A: tf.Tensor


def _kernel_terms(outputs: tf.Tensor, options: KWNGOptions, iteration: tf.Tensor) -> _Terms:
    """Draws the basis of a step; no gradient goes through what it is made of."""
    X = tf.stop_gradient(tf.cast(outputs, tf.float64))
    basis = _drawn(X, options, iteration)
    variance = options.bandwidth * wasserstein.mean_square_distance(basis.points, X)
    C = wasserstein.mixed_derivatives(basis, X, variance)
    return _Terms(tf.cast(C, outputs.dtype), wasserstein.energy(C, basis, variance, options.ridge))


def _drawn(X: tf.Tensor, options: KWNGOptions, iteration: tf.Tensor) -> wasserstein.Basis:
    """Points of the batch without repetition, as long as there are some, and their coordinates."""
    count, width = tf.shape(X)[0], X.shape[1]
    seed = tf.stack([tf.constant(options.seed, tf.int32), tf.cast(iteration, tf.int32)])
    order = tf.argsort(tf.random.stateless_uniform([count], seed))
    points = tf.gather(X, tf.gather(order, tf.range(options.basis) % count))
    if options.coordinates == "all":
        everything = tf.tile(tf.range(width), [options.basis])
        return wasserstein.Basis(tf.repeat(points, width, axis=0), everything)
    drawn = tf.random.stateless_uniform([options.basis], seed + 1, 0, width, tf.int32)
    return wasserstein.Basis(points, drawn)


def _flat_outputs(batch: Round) -> tf.Tensor:
    """All outputs of a sample in a row, `[N, d]`, in the dtype of the recursion."""
    outputs = [leaf for leaf in keras.tree.flatten(batch.y_pred) if leaf.dtype.is_floating]
    rows = rows_of(outputs) if outputs else None
    sizes = [math.prod(leaf.shape[1:]) if leaf.shape[1:].is_fully_defined() else None for leaf in outputs]
    if rows is None or None in sizes:
        raise _checks.error(
            "model", "return outputs of a known size with one row per sample for KWNG, which compares them",
            [tuple(leaf.shape) for leaf in outputs], "Use EKFAC or GTDDP, which read the loss instead.",
        )  # fmt: skip
    flat = [tf.reshape(tf.cast(leaf, batch.dtype), [-1, n]) for leaf, n in zip(outputs, sizes, strict=True)]
    return tf.concat(flat, axis=1)


def _joined(tensors: list[Any], batch: Round) -> tf.Tensor:
    """Gradients of all variables as one vector, `[q]`."""
    return tf.concat([tf.reshape(tf.cast(tf.convert_to_tensor(t), batch.dtype), [-1]) for t in tensors], axis=0)


def _jacobian(tape: tf.GradientTape, sums: tf.Tensor, variables: list[keras.Variable], batch: Round) -> tf.Tensor:
    """Derivatives of M numbers in all parameters, `[M, q]`, one backward pass after the other."""
    count = sums.shape[0]

    def row(number: tf.Tensor) -> tf.Tensor:
        seed = tf.one_hot(number, count, dtype=sums.dtype)
        parts = tape.gradient(sums, [v.value for v in variables], output_gradients=seed, unconnected_gradients="zero")
        return _joined(parts, batch)

    return tf.map_fn(row, tf.range(count), fn_output_signature=batch.dtype, parallel_iterations=1)


def _queue(batch: Round, step: tf.Tensor) -> None:
    """Queues `u - step`, weight decay included."""
    for player in batch.game.players:
        sizes = [math.prod(v.shape) for v in player.variables]
        own, step = step[: sum(sizes)], step[sum(sizes) :]
        parts: Tensors = tf.split(own, sizes)
        decreases = [tf.reshape(part, v.shape) for part, v in zip(parts, player.variables, strict=True)]
        for variable, value in zip(player.variables, batch.shifted(player, decreases), strict=True):
            batch.assignments.add(variable, value)
