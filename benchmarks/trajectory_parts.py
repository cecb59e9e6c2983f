"""Where an iteration of `bellman_tf.trajectory` spends its time, for one initial state and for many.

    python -m benchmarks.trajectory_parts [--horizon 50] [--starts 64] [--repeats 20]

The unicycle of `benchmarks.trajectory`, Gauss-Newton, float64, XLA, one thread. Every part is repeated within one
program, so that neither calling the program nor making its arrays counts. Printed are microseconds of processor time
per stage, lower quartile of the calls:

    roll-out         the policy followed, with a full step
    cost             of the whole trajectory
    sweep            with derivatives that are there
    with derivatives the same, derivatives made as the solver makes them
    sine and cosine  one of each per stage and initial state: what the dynamics cannot do without, once in the roll-out
                     and once in the derivatives
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from bellman_tf.bellman import Value
from bellman_tf.trajectory import backward, forward
from bellman_tf.trajectory.derivatives import Stages, model_along, model_of
from benchmarks.unicycle import START, unicycle


def seconds(function: Callable, arrays: list[tf.Tensor], repeats: int) -> float:
    """Processor time of one evaluation within a loop that no compiler can shorten."""

    def program(first: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
        def again(i: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            found = tf.nest.flatten(function(first * (1.0 + 1e-30 * total), *others))
            used = [tf.reduce_sum(x) for x in found if x is not None and x.dtype == first.dtype]
            return i + 1, total + tf.add_n(used)

        start = tf.constant(0), tf.zeros([], first.dtype)
        return tf.while_loop(lambda i, total: i < repeats, again, start)[1]

    compiled = tf.function(program, jit_compile=True, autograph=False)
    times = []
    for _ in range(31):
        start = time.process_time()
        compiled(*arrays)
        times.append((time.process_time() - start) / repeats)
    return statistics.quantiles(times[1:])[0]


def parts(horizon: int, starts: int, repeats: int) -> dict[str, float]:
    """Microseconds per stage of every part."""
    problem, rng = unicycle(horizon), np.random.default_rng(0)
    x0 = tf.constant(np.array(START)[:, None] + 0.1 * rng.standard_normal([3, starts]))
    nominal = forward.roll(problem, x0, tf.constant(0.1 * rng.standard_normal([horizon, 2, starts])))
    none, one = tf.zeros([starts], x0.dtype), tf.ones([starts], x0.dtype)
    along = [nominal.states, nominal.controls]

    @tf.function(jit_compile=True, autograph=False)
    def prepared(states: tf.Tensor, controls: tf.Tensor) -> tuple:
        model = model_along(problem, states, controls, False)
        stages = tf.map_fn(lambda t: tuple(model.at(t)[:3]), tf.range(horizon), fn_output_signature=(states.dtype,) * 3)
        return stages, model.terminal, backward.sweep(model, controls, None, none, none)

    stages, terminal, policy = prepared(*along)

    def roll_out(controls: tf.Tensor, states: tf.Tensor, gains: tf.Tensor) -> tuple:
        rollout = forward.Rollout(states, controls, none)
        return forward.follow(problem, rollout, policy._replace(gains=gains), one, None)[:2]

    def sweep(
        g: tf.Tensor, H: tf.Tensor, F: tf.Tensor, V_x: tf.Tensor, V_xx: tf.Tensor, controls: tf.Tensor
    ) -> backward.Sweep:
        return backward.sweep(model_of(Stages(g, H, F, None), Value(V_x, V_xx)), controls, None, none, none)

    def with_derivatives(states: tf.Tensor, controls: tf.Tensor) -> backward.Sweep:
        return backward.sweep(model_along(problem, states, controls, False), controls, None, none, none)

    def cost(states: tf.Tensor, controls: tf.Tensor) -> tf.Tensor:
        return forward.total_cost(problem, states, controls)

    measured = {
        "roll-out": seconds(roll_out, [nominal.controls, nominal.states, policy.gains], repeats),
        "cost": seconds(cost, along, repeats),
        "sweep": seconds(sweep, [*stages, *terminal, nominal.controls], repeats),
        "with derivatives": seconds(with_derivatives, along, repeats),
        "sine and cosine": seconds(lambda x: tf.sin(x) + tf.cos(x), [nominal.states[:-1, 2]], repeats),
    }
    return {name: 1e6 * value / horizon for name, value in measured.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--horizon", type=int, default=50)
    parser.add_argument("--starts", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    one, many = (parts(options.horizon, starts, options.repeats) for starts in (1, options.starts))
    print(f"microseconds per stage, horizon {options.horizon}: one start, {options.starts} starts, ratio")
    for name, value in one.items():
        print(f"{name:18}{value:8.2f}{many[name]:8.2f}{many[name] / value:8.1f}")


if __name__ == "__main__":
    main()
