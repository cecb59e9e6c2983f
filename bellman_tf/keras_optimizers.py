"""What Keras does not publish about its optimizers: `keras_access.py` goes on here.

Which optimizer moves a variable, by which update rule, and the second moments that it divides by.
"""

from typing import Any

import keras


def trained_variables(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Lists the model variables that an optimizer was built for.

    Args:
        optimizer: an optimizer.

    Returns:
        The variables; empty before `build`.
    """
    return list(optimizer._trainable_variables)


def averages_of(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Lists the moving averages that an optimizer with `use_ema=True` keeps.

    Args:
        optimizer: a built optimizer with `use_ema=True`.

    Returns:
        One variable per variable of `trained_variables`.
    """
    return list(optimizer._model_variables_moving_average)


def decays(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> bool:
    """Tells whether weight decay is meant for a variable, see `Optimizer.exclude_from_weight_decay`.

    Args:
        optimizer: a built optimizer.
        variable: one of its variables.

    Returns:
        Whether the variable decays.
    """
    return bool(optimizer._use_weight_decay(variable.value))  # a `tf.Variable`, as Keras asks: its name is the path


def updates_as(optimizer: keras.optimizers.Optimizer, kind: type) -> bool:
    """Tells whether an optimizer runs the update rule of a class: its own or an inherited `update_step`.

    Args:
        optimizer: an optimizer.
        kind: one of Keras's classes of optimizers.

    Returns:
        Whether both have the same `update_step`.
    """
    return isinstance(optimizer, kind) and type(optimizer).update_step is kind.update_step


def mover_of(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> keras.optimizers.Optimizer:
    """Finds the optimizer that moves a variable.

    Args:
        optimizer: any optimizer, built or not.
        variable: of the model.

    Returns:
        Inside a `keras.optimizers.MultiOptimizer` the one for the variable; else `optimizer` itself.
    """
    if not is_multi(optimizer):
        return optimizer
    if not optimizer.built:
        return optimizer._optimizer_map(variable)
    return optimizer.optimizers[optimizer._var_to_optimizer_idx[optimizer._var_key(variable)]]


def is_multi(optimizer: keras.optimizers.Optimizer) -> bool:
    """Tells whether an optimizer delegates variables to several others.

    Args:
        optimizer: an optimizer.

    Returns:
        Whether it is a `keras.optimizers.MultiOptimizer`; `False` where the installed Keras has none.
    """
    kind = getattr(keras.optimizers, "MultiOptimizer", None)
    return kind is not None and isinstance(optimizer, kind)


def parts_of(optimizer: keras.optimizers.Optimizer) -> list[keras.optimizers.Optimizer]:
    """Lists the optimizers that move variables.

    Args:
        optimizer: any optimizer.

    Returns:
        Those of a `keras.optimizers.MultiOptimizer`, which it may know only when it is built; else `optimizer` itself.
    """
    return list(optimizer.optimizers) if is_multi(optimizer) else [optimizer]


def counter_of(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    """Gets the variable that counts calls of `apply`; with gradient accumulation `iterations` is a fraction of it.

    Args:
        optimizer: any optimizer.

    Returns:
        The counter.
    """
    return optimizer._iterations


def accumulators_of(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Lists the sums of gradients that an optimizer with `gradient_accumulation_steps` keeps.

    Args:
        optimizer: one that moves variables, built.

    Returns:
        One per variable that it was built for; empty without accumulation.
    """
    return list(optimizer._accumulated_gradients) if optimizer.gradient_accumulation_steps else []


def rate_of(optimizer: keras.optimizers.Optimizer) -> Any:
    """Gets the learning rate of the update that the next gradient is part of.

    Args:
        optimizer: one that moves variables.

    Returns:
        `optimizer.learning_rate`; of a schedule with gradient accumulation, that of the last call of `apply`, which
        Keras counts, before the update.
    """
    steps, schedule = optimizer.gradient_accumulation_steps, optimizer._learning_rate
    if not steps or not isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        return optimizer.learning_rate
    count = keras.ops.convert_to_tensor(optimizer._iterations)
    return schedule(count - count % steps + steps - 1)


def moments_of(optimizer: keras.optimizers.Optimizer, variables: list[keras.Variable]) -> list[keras.Variable]:
    """Lists the second moments by which RMSprop, Adam, AdamW or Nadam divide.

    Args:
        optimizer: one of these, built.
        variables: some of those it was built for.

    Returns:
        One variable per entry of `variables`: the largest moments so far under `amsgrad`; followed, for RMSprop with
        `centered`, by the mean gradients.
    """
    kept = [optimizer._velocity_hats if getattr(optimizer, "amsgrad", False) else optimizer._velocities]
    if getattr(optimizer, "centered", False):
        kept.append(optimizer._average_gradients)
    places = [optimizer._get_variable_index(v) for v in variables]
    return [slots[place] for slots in kept for place in places]
