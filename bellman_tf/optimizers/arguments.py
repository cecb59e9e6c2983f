"""Checks of the constructor's arguments that belong together: the game's options, and what Keras's optimizers take."""

from bellman_tf import _checks
from bellman_tf.training.settings import GameOptions


def check_game(options: GameOptions, metric: object, step_control: object) -> None:
    """Checks curvature and step control against the game's options.

    Args:
        options: of the game, each checked by itself.
        metric: config object of the curvature.
        step_control: as the user passed it.

    Raises:
        ValueError: for a combination that cannot work.
    """
    if getattr(metric, "cooperative", False) and options.information == "feedback":
        raise _checks.error(
            "cooperative", "be False with information='feedback': players with their own values do not cooperate",
            metric.cooperative,
        )  # fmt: skip
    whole = options.value_hessian == "batch" and options.group_size is None and options.information != "open"
    if step_control is not None and not whole:
        raise _checks.error(
            "step_control", "be None unless value_hessian='batch', group_size=None and information is not 'open': "
            "only then is there a predicted decrease of the whole batch", step_control,
        )  # fmt: skip


def check_keras(
    learning_rate: object,
    options: GameOptions,
    *,
    weight_decay: object,
    clipnorm: object,
    clipvalue: object,
    global_clipnorm: object,
    loss_scale_factor: object,
    gradient_accumulation_steps: object,
) -> object:
    """Checks the arguments that every Keras optimizer has.

    Args:
        learning_rate: a number, or what Keras takes for one.
        options: of the game.
        weight_decay: `None` or a number.
        clipnorm: `None` or a number.
        clipvalue: `None` or a number.
        global_clipnorm: `None` or a number.
        loss_scale_factor: must be `None`.
        gradient_accumulation_steps: must be `None`.

    Returns:
        The learning rate; an integer as a float.

    Raises:
        ValueError: for a number outside its range, or an argument that cannot be had.
    """
    if isinstance(learning_rate, int) and not isinstance(learning_rate, bool):
        learning_rate = float(learning_rate)
    if isinstance(learning_rate, float):
        _checks.check_real("learning_rate", learning_rate, least=0)
    for argument, value in (
        ("weight_decay", weight_decay),
        ("clipnorm", clipnorm),
        ("clipvalue", clipvalue),
        ("global_clipnorm", global_clipnorm),
    ):
        if value is not None:
            _checks.check_real(argument, value, least=0)
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
    if gradient_accumulation_steps is not None:
        raise _checks.error(
            "gradient_accumulation_steps", "be None: the policy belongs to the batch it was computed on",
            gradient_accumulation_steps, "Use a larger batch with `group_size`.",
        )  # fmt: skip
    return learning_rate
