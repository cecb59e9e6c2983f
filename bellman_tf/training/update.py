"""New values of variables: clipping, decoupled decay, constraints, averages; and the guard against bad batches."""

from collections.abc import Hashable

import keras
import tensorflow as tf

from bellman_tf._typing import Restored, SomeTensors, Tensors
from bellman_tf.layers.tensors import either
from bellman_tf.linalg.constants import constant

_SMALL = 2**14  # entries; of larger tensors a copy costs more than it saves


def own_cost_gradient(variables: tuple[keras.Variable, ...]) -> SomeTensors:
    """Gradient l_u of each variable's regularizer, `None` where there is none."""
    gradients: SomeTensors = []
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


def add_own_cost(gradient: Tensors, own: SomeTensors) -> Tensors:
    """`gradient + l_u`."""
    return [g if cost is None else g + cost for g, cost in zip(gradient, own, strict=True)]


def clip(gradient: Tensors, clipvalue: float | None, clipnorm: float | None) -> Tensors:
    """Clips each variable's gradient as Keras does, where a bound of 0 means none."""
    if clipnorm:
        return [tf.clip_by_norm(g, clipnorm) for g in gradient]
    if clipvalue:
        return [tf.clip_by_value(g, -clipvalue, clipvalue) for g in gradient]
    return gradient


def move(value: tf.Tensor, decrease: tf.Tensor, decay: tf.Tensor | None) -> tf.Tensor:
    """New value of a variable before its constraint: decoupled weight decay, then the step.

    Args:
        value: of the variable.
        decrease: what to subtract.
        decay: weight decay times learning rate, or `None`.

    Returns:
        The new value.
    """
    if decay is not None:
        value -= value * tf.cast(decay, value.dtype)
    return value - tf.cast(decrease, value.dtype)


def constrain(variable: keras.Variable, value: tf.Tensor) -> tf.Tensor:
    """The variable's constraint on a new value; averages (`use_ema`) see the value before it, as in Keras."""
    return value if variable.constraint is None else variable.constraint(value)


def all_finite(tensors: Tensors) -> tf.Tensor:
    """Whether no tensor holds a NaN or an infinity, as a scalar.

    A sum is finite only if its terms are (or if they overflow it, which counts as bad as well), and costs one pass.
    Small tensors of one shape are added first: a reduction is a kernel of its own to XLA.

    Args:
        tensors: floating-point tensors.

    Returns:
        Boolean scalar.
    """
    alike: dict[Hashable, Tensors] = {}
    for place, tensor in enumerate(tensors):
        shape = tensor.shape
        small = shape.rank and shape.is_fully_defined() and shape.num_elements() <= _SMALL
        alike.setdefault((tuple(shape), tensor.dtype) if small else place, []).append(tensor)
    tensors = [tf.add_n(group) for group in alike.values()]
    sums = [tf.reduce_sum(t, constant(range(t.shape.rank))) if t.shape.rank else t for t in tensors]
    if not sums:
        return tf.constant(True)
    dtype = tf.float64 if any(part.dtype == tf.float64 for part in sums) else tf.float32
    # Not added up: XLA would write the chain of additions out anew in every kernel that reads the verdict.
    return tf.reduce_all(tf.math.is_finite(tf.stack([tf.cast(part, dtype) for part in sums])), constant(0))


class Assignments:
    """New values waiting for the verdict on the batch.

    Attributes:
        before: values before the step, by `id` of their variable, where they have been read already.
    """

    def __init__(self, before: dict[int, tf.Tensor] | None = None) -> None:
        self.before = {} if before is None else before
        self._pending: list[tuple[keras.Variable, tf.Tensor]] = []
        self._steps: list[tuple[keras.Variable, tf.Tensor, tf.Tensor | None]] = []

    def add(self, variable: keras.Variable, value: tf.Tensor, before: tf.Tensor | None = None) -> None:
        """Queues one new value.

        Args:
            variable: to assign.
            value: the new one.
            before: the one before the step, if it has been read.
        """
        self._pending.append((variable, value))
        if before is not None:
            self.before[id(variable)] = before

    def subtract(self, variable: keras.Variable, direction: tf.Tensor, rate: tf.Tensor | None = None) -> None:
        """Queues `variable -= rate * direction`, the guard folded into the rate: no copy of the variable is made.

        Args:
            variable: to change.
            direction: in its shape.
            rate: scalar, `None` for 1.
        """
        if rate is not None and direction.dtype != variable.dtype:  # half precision holds the product, not its factors
            direction, rate = rate * direction, None
        self._steps.append((variable, tf.cast(direction, variable.dtype), rate))

    def by_variable(self) -> dict[int, tf.Tensor]:
        """The new values by `id` of their variable."""
        decreases = [(v, direction if rate is None else rate * direction) for v, direction, rate in self._steps]
        moved = {id(v): tf.convert_to_tensor(v) - decrease for v, decrease in decreases}
        return moved | {id(variable): tf.cast(value, variable.dtype) for variable, value in self._pending}

    def replace(self, variable: keras.Variable, value: tf.Tensor) -> None:
        """Changes what is queued for a variable to a new value."""
        self._steps = [step for step in self._steps if step[0] is not variable]
        self._pending = [pair for pair in self._pending if pair[0] is not variable]
        self.add(variable, value)

    @property
    def values(self) -> Tensors:
        """The queued floating-point tensors, and what they are multiplied with."""
        values = [value for _, value in self._pending if value.dtype.is_floating]
        directions = [direction for _, direction, _ in self._steps]
        rates = {id(rate): rate for _, _, rate in self._steps if rate is not None}
        return [*values, *directions, *rates.values()]

    def apply(
        self,
        optimizer: keras.optimizers.Optimizer,
        accepted: tf.Tensor,
        kept: tf.Tensor,
        restore: Restored,
    ) -> None:
        """Assigns the queued values, or on a bad batch puts back what the forward pass has changed.

        Args:
            optimizer: assigns, as Keras's own optimizers do.
            accepted: boolean scalar.
            kept: boolean scalar, whether what pass 1 wrote stays.
            restore: (variable, value before the step) of floating-point variables that pass 1 wrote to.
        """
        rates: dict[Hashable, tf.Tensor] = {}
        for variable, direction, rate in self._steps:
            key = direction.dtype if rate is None else id(rate)
            if key not in rates:
                factor = tf.cast(accepted, direction.dtype)
                rates[key] = factor if rate is None else tf.math.multiply_no_nan(rate, factor)
            guarded = rates[key]
            # 0 where the batch is bad, whatever the direction holds.
            optimizer.assign_sub(variable, tf.math.multiply_no_nan(direction, guarded))
        for variable, value in self._pending:
            new = constrain(variable, tf.cast(value, variable.dtype))
            old = self.before.get(id(variable))
            optimizer.assign(variable, either(accepted, new, tf.convert_to_tensor(variable) if old is None else old))
        for variable, value in restore:
            optimizer.assign(variable, either(kept, tf.convert_to_tensor(variable), value))
