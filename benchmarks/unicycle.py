"""The control problem of `benchmarks.trajectory`, `trajectory_threads` and `trajectory_parts`."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from bellman_tf.trajectory import Problem, solve

START = (-1.0, -1.0, 1.0)  # position and angle


def unicycle(horizon: int) -> Problem:
    """Crocoddyl's `ActionModelUnicycle`: 1/2 (10^2 |x|^2 + |u|^2), steps of 0.1."""

    def dynamics(x: tf.Tensor, u: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
        speed, angle = u[:, 0], x[:, 2]
        return x + 0.1 * tf.stack([speed * tf.cos(angle), speed * tf.sin(angle), u[:, 1]], axis=1)

    def running_cost(x: tf.Tensor, u: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
        return 50.0 * tf.reduce_sum(x**2, axis=1) + 0.5 * tf.reduce_sum(u**2, axis=1)

    return Problem(dynamics, running_cost, lambda x: 50.0 * tf.reduce_sum(x**2, axis=1), horizon)


def ours(
    horizon: int,
    iterations: int,
    second_order: bool,
    jit_compile: bool,
    starts: int | None = None,
    threads: int = 1,
    dtype: tf.DType = tf.float64,
) -> Callable[[], tuple[int, float]]:
    """One solve by us: iterations done and cost reached, of the first initial state if there are several."""
    problem = unicycle(horizon)
    x0, u_init = np.array(START), np.zeros([horizon, 2])
    if starts is not None:
        x0 = x0 + 0.1 * np.random.default_rng(0).standard_normal([starts, 3])
        x0[0], u_init = START, np.zeros([starts, horizon, 2])
    x0, u_init = tf.constant(x0, dtype), tf.constant(u_init, dtype)

    def run() -> tuple[int, float]:
        found = solve(
            problem,
            x0,
            u_init,
            second_order=second_order,
            max_iterations=iterations,
            gradient_tolerance=0.0,
            cost_tolerance=0.0,
            jit_compile=jit_compile,
            threads=threads,
        )
        done, cost = found.iterations.numpy(), found.cost.numpy()
        return int(done.max()), float(cost.flat[0])

    return run
