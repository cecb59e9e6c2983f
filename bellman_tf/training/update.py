"""New values of variables: clipping, decoupled decay, constraints, averages; and the guard against bad batches."""

import keras
import tensorflow as tf

from bellman_tf.curvature.capture import Tensors


def own_cost_gradient(variables: tuple) -> list[tf.Tensor | None]:
    """Gradient l_u of each variable's regularizer, `None` where there is none."""
    gradients: list[tf.Tensor | None] = []
    for variable in variables:
        if variable.regularizer is None:
            gradients.append(None)
            continue
        value = tf.convert_to_tensor(variable)
        with tf.GradientTape() as tape:
            tape.watch(value)
            cost = variable.regularizer(value)
        gradients.append(tape.gradient(cost, value))
    return gradients


def add_own_cost(gradient: Tensors, own: list[tf.Tensor | None]) -> Tensors:
    """`gradient + l_u`."""
    return [g if cost is None else g + cost for g, cost in zip(gradient, own, strict=True)]


def clip(gradient: Tensors, clipvalue: float | None, clipnorm: float | None) -> Tensors:
    """Clips each variable's gradient as Keras does."""
    if clipvalue is not None:
        return [tf.clip_by_value(g, -clipvalue, clipvalue) for g in gradient]
    if clipnorm is not None:
        return [tf.clip_by_norm(g, clipnorm) for g in gradient]
    return gradient


def move(variable: keras.Variable, decrease: tf.Tensor, decay: tf.Tensor | None) -> tf.Tensor:
    """New value of a variable: decoupled weight decay, the step, then the constraint.

    Args:
        variable: a trainable variable.
        decrease: what to subtract.
        decay: weight decay times learning rate, or `None`.

    Returns:
        The new value.
    """
    value = tf.convert_to_tensor(variable)
    if decay is not None:
        value -= value * tf.cast(decay, value.dtype)
    value -= tf.cast(decrease, value.dtype)
    return value if variable.constraint is None else variable.constraint(value)


def all_finite(tensors: Tensors) -> tf.Tensor:
    """Whether no tensor holds a NaN or an infinity, as a scalar.

    A sum is finite only if its terms are (or if they overflow it, which counts as bad as well), and costs one pass.
    """
    sums = [tf.cast(tf.reduce_sum(tensor), tf.float32) for tensor in tensors]
    return tf.math.is_finite(tf.add_n(sums))


class Assignments:
    """New values waiting for the verdict on the batch."""

    def __init__(self) -> None:
        self._pending: list[tuple[keras.Variable, tf.Tensor]] = []

    def add(self, variable: keras.Variable, value: tf.Tensor) -> None:
        """Queues one new value."""
        self._pending.append((variable, tf.cast(value, variable.dtype)))

    def by_variable(self) -> dict[int, tf.Tensor]:
        """The queued values by `id` of their variable."""
        return {id(variable): value for variable, value in self._pending}

    def replace(self, variable: keras.Variable, value: tf.Tensor) -> None:
        """Changes a queued value."""
        self._pending = [(v, value if v is variable else old) for v, old in self._pending]

    @property
    def values(self) -> Tensors:
        """The queued values."""
        return [value for _, value in self._pending]

    def apply(self, accepted: tf.Tensor, restore: list[tuple]) -> None:
        """Assigns the queued values, or on a bad batch puts back what the forward pass has changed.

        Args:
            accepted: boolean scalar.
            restore: (variable, value before the step) of floating-point variables that pass 1 wrote to.
        """
        for variable, value in self._pending:
            variable.assign(tf.where(accepted, value, tf.convert_to_tensor(variable)))
        for variable, value in restore:
            variable.assign(tf.where(accepted, tf.convert_to_tensor(variable), value))
