"""The regularisation mu from one sweep or step to the next."""

import tensorflow as tf

from bellman_tf.trajectory.options import Place, Regularization


def strengths(mu: tf.Tensor, on: Place) -> tuple[tf.Tensor, tf.Tensor]:
    """The two places where mu can act.

    Args:
        mu: `[B]`.
        on: as in `Regularization`.

    Returns:
        mu_state and mu_control, `[B]` each.
    """
    none = tf.zeros_like(mu)
    return (none if on == "control" else mu), (none if on == "state" else mu)


def stronger(mu: tf.Tensor, rate: tf.Tensor, schedule: Regularization) -> tuple[tf.Tensor, tf.Tensor]:
    """One step up of the regularisation.

    Args:
        mu: `[B]`.
        rate: `[B]`.
        schedule: `Regularization`.

    Returns:
        New mu and rate.
    """
    rate = tf.maximum(tf.constant(schedule.factor, mu.dtype), rate * schedule.factor)
    return tf.maximum(tf.constant(schedule.smallest, mu.dtype), mu * rate), rate


def weaker(mu: tf.Tensor, rate: tf.Tensor, schedule: Regularization) -> tuple[tf.Tensor, tf.Tensor]:
    """One step down of the regularisation, to zero once it is small.

    Args:
        mu: `[B]`.
        rate: `[B]`.
        schedule: `Regularization`.

    Returns:
        New mu and rate.
    """
    rate = tf.minimum(tf.constant(1.0 / schedule.factor, mu.dtype), rate / schedule.factor)
    mu = mu * rate
    return tf.where(mu >= schedule.smallest, mu, tf.zeros_like(mu)), rate
