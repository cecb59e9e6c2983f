"""The numbers that `GameMonitor` logs: a vector per step, summed over steps, in a fixed order of names."""

import tensorflow as tf

from bellman_tf import replicas
from bellman_tf.game.players import Players
from bellman_tf.training.information import INFORMATION
from bellman_tf.training.linear_policy import LinearPolicy
from bellman_tf.training.settings import GameOptions

OF_OUTCOMES = ("predicted_reduction", "actual_reduction", "damping")  # numbers that do not come from sample weights


def predicts(options: GameOptions) -> bool:
    """Whether the recursion's model is that of the whole batch and of J, so that its predicted decrease is one of J.

    Args:
        options: a `GameOptions`.

    Returns:
        Whether it is.
    """
    whole = options.value_hessian == "batch" and options.group_size is None and options.micro_batches == 1
    return whole and not options.player_losses


def names_of(options: GameOptions, game: Players) -> list[str]:
    """The numbers that a watched step yields, in order; none for an open-loop step.

    Args:
        options: of the game.
        game: the model's game.

    Returns:
        Names.
    """
    information = INFORMATION[options.information]
    if not information.curved or not game.stages:
        return []
    names = ["predicted_reduction"] if predicts(options) else []
    names += ["actual_reduction"] if options.micro_batches == 1 else []  # a step is not one batch's
    names += ["damping", "weight_spread", "leverage"]
    return names + ([f"feedback_ratio/stage_{t}" for t in range(1, len(game.stages))] if information.feedback else [])


def numbers_of(
    policy: LinearPolicy | None, options: GameOptions, game: Players, dtype: tf.DType
) -> dict[str, tf.Tensor]:
    """The numbers of a watched step of the linear roll-out that come from its sample weights.

    Args:
        policy: the weights, `None` where no player has a Gram form in this step.
        options: of the game.
        game: the model's game.
        dtype: of the recursion.

    Returns:
        A scalar for each name, that of a stage's first player.
    """
    names = [name for name in names_of(options, game) if name not in OF_OUTCOMES]
    zero: tf.Tensor = tf.zeros([], dtype)
    numbers = dict.fromkeys(names, zero)
    if policy is None:
        return numbers
    plain, weights = policy.plain(), policy.first_weights()
    numbers |= {"leverage": leverage(plain[0]), "weight_spread": spread(weights[-1])}
    if INFORMATION[options.information].feedback:
        stages = range(1, min(len(game.stages), len(plain)))
        numbers |= {f"feedback_ratio/stage_{t}": feedback_ratio(weights[t], plain[t]) for t in stages}
    return numbers


def spread(weights: tf.Tensor) -> tf.Tensor:
    """Standard deviation over mean of the samples' weights.

    Args:
        weights: `[B, m]`, the gradient's column first.

    Returns:
        Scalar.
    """
    w = weights[:, 0]
    return tf.math.divide_no_nan(tf.math.reduce_std(w), tf.abs(tf.reduce_mean(w)))


def leverage(weights: tf.Tensor) -> tf.Tensor:
    """Mean over the samples of 1 - B a_i: the share of a sample's weight that the stages take away.

    Args:
        weights: `[B, m]`, a of the first stage.

    Returns:
        Scalar.
    """
    total = tf.reduce_sum(weights[:, 0])  # of the samples of one replica
    return 1 - (total if replicas.count() == 1 else total * replicas.count())


def feedback_ratio(weights: tf.Tensor, plain: tf.Tensor) -> tf.Tensor:
    """Norm of the part of the weights that comes from the state's deviation, over that of the rest.

    Args:
        weights: `[B, m]`.
        plain: the same without feedback.

    Returns:
        Scalar.
    """
    return tf.math.divide_no_nan(tf.norm(weights - plain), tf.norm(plain))
