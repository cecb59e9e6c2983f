"""The control problem of `benchmarks.trajectory` and `benchmarks.trajectory_parts`."""

import tensorflow as tf

from bellman_tf.trajectory import Problem

START = (-1.0, -1.0, 1.0)  # position and angle


def unicycle(horizon: int) -> Problem:
    """Crocoddyl's `ActionModelUnicycle`: 1/2 (10^2 |x|^2 + |u|^2), steps of 0.1."""

    def dynamics(x: tf.Tensor, u: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
        speed, angle = u[:, 0], x[:, 2]
        return x + 0.1 * tf.stack([speed * tf.cos(angle), speed * tf.sin(angle), u[:, 1]], axis=1)

    def running_cost(x: tf.Tensor, u: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
        return 50.0 * tf.reduce_sum(x**2, axis=1) + 0.5 * tf.reduce_sum(u**2, axis=1)

    return Problem(dynamics, running_cost, lambda x: 50.0 * tf.reduce_sum(x**2, axis=1), horizon)
