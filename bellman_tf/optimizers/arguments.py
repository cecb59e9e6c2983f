"""Checks of the constructor's arguments that belong together: the game's options, and what Keras's optimizers take."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras

from bellman_tf import _checks, keras_optimizers
from bellman_tf.curvature.config import KFAC, Adam, Config
from bellman_tf.curvature.gram.plan import LIMITS, GramForm, GramLimits
from bellman_tf.curvature.inner import METRICS, InnerMetric
from bellman_tf.optimizers.inner import InnerOptimizerMixin, accumulation_of
from bellman_tf.optimizers.keywords import Gram, InnerOptimizer, LearningRate, StepControl
from bellman_tf.training.momentum import Momentum
from bellman_tf.training.settings import VALUE_HESSIANS, GameOptions, Rollout, ValueHessian


def rollout_for(rollout: Rollout | None, value_hessian: ValueHessian, bilinear: bool) -> Rollout:
    """The roll-out of a game, chosen where it is left out.

    Args:
        rollout: as the user passed it.
        value_hessian: as the user passed it.
        bilinear: as the user passed it.

    Returns:
        `rollout`; for `None` the one that the other two need.

    Raises:
        ValueError: if it is to be chosen by options that are none.
    """
    if rollout is not None:
        return rollout
    _checks.check_choice("value_hessian", value_hessian, VALUE_HESSIANS)
    _checks.check_flag("bilinear", bilinear)
    return "nonlinear" if value_hessian in {"outer_product", "per_sample"} or bilinear else "linear"


def check_averages(use_ema: bool, ema_momentum: float, ema_overwrite_frequency: int | None, name: str | None) -> None:
    """Checks Keras's options of moving averages, and the name.

    Args:
        use_ema: whether there are averages.
        ema_momentum: of the averages.
        ema_overwrite_frequency: steps after which they become the weights, or `None`.
        name: of the optimizer, or `None`.

    Raises:
        ValueError: for an option outside its range.
    """
    _checks.check_flag("use_ema", use_ema)
    _checks.check_real("ema_momentum", ema_momentum, least=0, most=1)
    if ema_overwrite_frequency is not None:
        _checks.check_integer("ema_overwrite_frequency", ema_overwrite_frequency, least=1)
    if name is not None and not isinstance(name, str):
        raise _checks.error("name", "be a string or None", name)


def check_game(options: GameOptions, metric: Config | None, step_control: StepControl | None) -> None:
    """Checks curvature and step control against the game's options.

    Args:
        options: of the game, each checked by itself.
        metric: config object of the curvature.
        step_control: as the user passed it.

    Raises:
        ValueError: for a combination that cannot work.
    """
    if isinstance(metric, KFAC) and metric.cooperative and options.information == "feedback":
        raise _checks.error(
            "cooperative", "be False with information='feedback': players with their own values do not cooperate",
            metric.cooperative,
        )  # fmt: skip
    if metric is not None and metric.draws and options.rollout == "nonlinear":
        raise _checks.error(
            "fisher", "be 'empirical' with rollout='nonlinear', the pass of the papers", "model",
            "Leave `rollout`, `bilinear` and value_hessian='outer_product' or 'per_sample' out.",
        )  # fmt: skip
    whole = options.value_hessian == "batch" and options.group_size is None and options.information != "open"
    if step_control is not None and not whole:
        raise _checks.error(
            "step_control", "be None unless value_hessian='batch', group_size=None and information is not 'open': "
            "only then is there a predicted decrease of the whole batch", step_control,
        )  # fmt: skip
    if step_control is not None and options.player_losses:
        raise _checks.error(
            "step_control", "be None where players have losses of their own: no player minimises J", step_control,
            "Leave `step_control` or `player_losses` out.",
        )  # fmt: skip
    if step_control is not None and options.micro_batches > 1:
        raise _checks.error(
            "step_control", "be None with gradient accumulation: a predicted decrease belongs to one micro-batch, the "
            "step to all of them", step_control, "Leave `step_control` or `gradient_accumulation_steps` out.",
        )  # fmt: skip
    if step_control is not None and isinstance(metric, Adam) and metric.beta_1:
        raise _checks.error(
            "step_control", "be None with Adam's mean of gradients, of which the quadratic model of the step knows "
            "nothing", step_control, "Pass curvature=btf.curvature.Adam(beta_1=0.0), or another curvature.",
        )  # fmt: skip


def check_keras(
    learning_rate: LearningRate,
    options: GameOptions,
    *,
    weight_decay: float | None,
    clipnorm: float | None,
    clipvalue: float | None,
    global_clipnorm: float | None,
    loss_scale_factor: float | None,
    step_control: StepControl | None,
) -> LearningRate:
    """Checks the arguments that every Keras optimizer has.

    Args:
        learning_rate: a number, or what Keras takes for one.
        options: of the game.
        weight_decay: `None` or a number.
        clipnorm: `None` or a number.
        clipvalue: `None` or a number.
        global_clipnorm: `None` or a number.
        loss_scale_factor: must be `None`.
        step_control: as the user passed it.

    Returns:
        The learning rate; an integer as a float.

    Raises:
        ValueError: for a number outside its range, or an argument that cannot be had.
    """
    if isinstance(learning_rate, int) and not isinstance(learning_rate, bool):
        learning_rate = float(learning_rate)
    if isinstance(learning_rate, float):
        _checks.check_real("learning_rate", learning_rate, least=0)
    elif not isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule) and not callable(learning_rate):
        raise _checks.error(
            "learning_rate", "be a number, a `keras.optimizers.schedules.LearningRateSchedule` or a callable",
            learning_rate, "Of a number of NumPy or TensorFlow take `float(...)`.",
        )  # fmt: skip
    for argument, value in (
        ("weight_decay", weight_decay),
        ("clipnorm", clipnorm),
        ("clipvalue", clipvalue),
        ("global_clipnorm", global_clipnorm),
    ):
        if value is not None:
            _checks.check_real(argument, value, least=0)
        if value and argument != "weight_decay" and step_control is not None:
            raise _checks.error(
                argument, "be None with step control: a clipped step does less than its model predicts at any damping",
                value, "Step control shortens steps that are too long itself; leave one of the two out.",
            )  # fmt: skip
    if global_clipnorm is not None and options.information != "open" and options.rollout == "nonlinear":
        raise _checks.error(
            "global_clipnorm", "be None with rollout='nonlinear': a stage moves before later gradients are known",
            global_clipnorm, "Use `clipnorm`, which clips per variable, or rollout='linear'.",
        )  # fmt: skip
    if loss_scale_factor is not None:
        raise _checks.error(
            "loss_scale_factor", "be None: curvature needs unscaled cotangents", loss_scale_factor,
            "bfloat16 needs no loss scaling.",
        )  # fmt: skip
    return learning_rate


def inner_named(identifier: InnerOptimizer | None) -> keras.optimizers.Optimizer | None:
    """Resolves the `inner_optimizer` option.

    Args:
        identifier: `None`, an optimizer, its name, or its serialised form.

    Returns:
        The optimizer, or `None`.

    Raises:
        ValueError: if it is none of these, or one that takes a whole step or scales losses itself.
    """
    if identifier is None:
        return None
    wrong = _checks.error(
        "inner_optimizer", "be None, a `keras.optimizers.Optimizer` or the name of one", identifier,
        "For example `keras.optimizers.AdamW(1e-3)`, an object.",
    )  # fmt: skip
    optimizer: Any = identifier
    if isinstance(identifier, str | dict):
        optimizer = _checks.deserialised(identifier, wrong, keras.optimizers.get)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise wrong
    if isinstance(optimizer, InnerOptimizerMixin | keras.optimizers.LossScaleOptimizer):
        raise _checks.error(
            "inner_optimizer", "be an optimizer that moves variables by their gradients alone", optimizer.name,
            "Pass the optimizer that it wraps, or choose a `curvature`.",
        )  # fmt: skip
    for part in keras_optimizers.parts_of(optimizer):
        if part.loss_scale_factor is not None:
            raise _checks.error(
                "inner_optimizer.loss_scale_factor", "be None: its gradients are not scaled", part.loss_scale_factor
            )
    return optimizer


def micro_batches_of(inner: keras.optimizers.Optimizer | None, steps: int | None) -> int:
    """How many batches make one update of the weights.

    Args:
        inner: the other optimizer, or `None`.
        steps: the argument `gradient_accumulation_steps`, of an optimizer without another one inside.

    Returns:
        The number, 1 without accumulation.

    Raises:
        ValueError: if it is no integer of at least 2, or the optimizers inside do not agree.
    """
    if inner is not None:
        return accumulation_of(inner)
    if steps is None:
        return 1
    _checks.check_integer("gradient_accumulation_steps", steps, least=2)
    return steps


def gram_named(gram: Gram, memory: int | None) -> tuple[GramForm, GramLimits]:
    """Resolves the options `gram` and `gram_memory`.

    Args:
        gram: the name of a form, a `GramLimits`, or a serialised one.
        memory: the argument `gram_memory`.

    Returns:
        The form's name, and the sizes from which on it is approximated or formed in blocks.

    Raises:
        ValueError: for a `memory` that is no positive integer, or stands beside a `GramLimits`, which has one.
    """
    chosen: Any = gram
    if isinstance(gram, Mapping):
        chosen = _checks.deserialised(gram, _checks.error("gram", "be the name of a form or a `GramLimits`", gram))
    if not isinstance(chosen, GramLimits):
        return chosen, LIMITS if memory is None else GramLimits(memory=memory)
    if memory is not None:
        raise _checks.error("gram_memory", "be left out with gram=GramLimits(...)", memory, "Set its `memory`.")
    return "auto", chosen


def game_config(options: GameOptions) -> dict[str, Any]:
    """The options of the game as the constructor's arguments, for Keras serialisation.

    Args:
        options: of the game.

    Returns:
        All but `gradient_accumulation_steps`, which Keras's own configuration has.
    """
    config, limits = dataclasses.asdict(options), options.gram_limits
    del config["micro_batches"], config["gram_limits"]
    config["player_losses"] = {pattern: list(names) for pattern, names in options.player_losses} or None
    if limits == GramLimits(memory=limits.memory):
        return config | {"gram_memory": limits.memory}
    return config | {"gram": keras.saving.serialize_keras_object(limits), "gram_memory": None}


def check_inner(
    inner: keras.optimizers.Optimizer | None,
    options: GameOptions,
    inner_metric: InnerMetric,
    *,
    step_control: StepControl | None,
    **others: object,
) -> None:
    """Checks what goes with another optimizer inside.

    Args:
        inner: the other optimizer, or `None`.
        options: of the game.
        inner_metric: one of `METRICS`.
        step_control: as the user passed it.
        **others: arguments that are the other optimizer's to have, `None` where the user has left them out.

    Raises:
        ValueError: for a combination that cannot work.
    """
    _checks.check_choice("inner_metric", inner_metric, METRICS)
    if inner is None:
        return
    for argument, value in others.items():
        if value is not None:
            what = "its step is the metric" if argument == "curvature" else "it has its own"
            raise _checks.error(
                argument, f"be left out with an inner optimizer: {what}", value,
                f"Give it to {type(inner).__name__}, or leave `inner_optimizer` out.",
            )  # fmt: skip
    if step_control is not None:
        raise _checks.error(
            "step_control", "be None with an inner optimizer, whose step is not that of the quadratic model: a damping "
            "of the metric would change the sample weights and not the step", step_control,
            "Use a `curvature` of ours, or a schedule in the inner optimizer.",
        )  # fmt: skip
    if options.rollout != "linear":
        raise _checks.error(
            "rollout", "be 'linear' with an inner optimizer: stage after stage no gradient of the whole model is known",
            options.rollout, "Leave `rollout`, `bilinear` and value_hessian='outer_product' out.",
        )  # fmt: skip


def check_momentum(
    momentum: Momentum, options: GameOptions, metric: Config | None, step_control: StepControl | None
) -> None:
    """Checks what goes with momentum.

    Args:
        momentum: the options, each checked by itself.
        options: of the game.
        metric: config object of the curvature.
        step_control: as the user passed it.

    Raises:
        ValueError: for a combination that cannot work.
    """
    if not momentum.beta:
        if momentum.nesterov:
            raise _checks.error("nesterov", "be False without momentum", momentum.nesterov, "Pass momentum=0.9.")
        return
    if options.rollout != "linear":
        raise _checks.error(
            "momentum", "be 0 with rollout='nonlinear', whose stages see only each other's steps", momentum.beta,
            "Leave `rollout`, `bilinear` and value_hessian='outer_product' out.",
        )  # fmt: skip
    if isinstance(metric, Adam):
        raise _checks.error(
            "momentum", "be 0 with curvature='adam', which averages gradients itself", momentum.beta,
            "Set `beta_1` of `btf.curvature.Adam`.",
        )  # fmt: skip
    if step_control is not None:
        raise _checks.error(
            "momentum", "be 0 with step control, whose damping does not shorten what a velocity adds to the step",
            momentum.beta, "Leave `momentum` or `step_control` out.",
        )  # fmt: skip
