"""
Title: A control problem
Author: bellman_tf
Date created: 2026/11/26
Last modified: 2026/11/26
Description: Swings up a pendulum with a limited torque, by differential dynamic programming.
"""

"""
## From layers to time

`btf.GTDDP(...)` treats the layers of a network as the stages of a control problem. `btf.trajectory.solve` is the
same recursion for control problems that are given as such: a state `x`, a control `u`, a cost, a horizon.
"""

import numpy as np
import tensorflow as tf

import bellman_tf as btf

STEP, HORIZON, TORQUE = 0.05, 60, 5.0

"""
## The problem

The state is the angle from upright and its speed. Functions see rows, one per instance or stage, and are
differentiated automatically.
"""


def dynamics(x, u, t):
    speed = x[:, 1] + STEP * (9.81 * tf.sin(x[:, 0]) + u[:, 0])
    return tf.stack([x[:, 0] + STEP * speed, speed], axis=1)


def running_cost(x, u, t):
    return 0.01 * STEP * u[:, 0] ** 2


def terminal_cost(x):
    return 100.0 * (1.0 - tf.cos(x[:, 0])) + 10.0 * x[:, 1] ** 2


problem = btf.trajectory.Problem(dynamics, running_cost, terminal_cost, HORIZON, lower=-TORQUE, upper=TORQUE)

"""
## The solution

The pendulum hangs at rest, and the first controls are a small push. The torque is too weak to lift it at once
(gravity pulls with up to 9.81), so that the plan first swings it back.
"""

hanging = tf.constant([np.pi, 0.0], tf.float64)
push = tf.fill([HORIZON, 1], tf.constant(0.1, tf.float64))
plan = btf.trajectory.solve(problem, hanging, push, jit_compile=False)
print(f"{btf.trajectory.Status(int(plan.status)).name} after {int(plan.iterations)} iterations")
print(f"cost {float(plan.cost):.4f}; largest entry of the gradient: {plan.history.gradient.numpy()[-4:]}")

"""
## Feedback

The solver returns gains beside the plan: `u = plan.controls + feedback (x - plan.states)`. We try both on a
pendulum on which the torque has a tenth less effect.
"""


def final_angle(gain, strength=0.9):
    x = hanging[None]
    for t in range(HORIZON):
        correction = tf.linalg.matvec(plan.gains.feedback[t], x[0] - plan.states[t])
        u = tf.clip_by_value(plan.controls[t] + gain * correction, -TORQUE, TORQUE)
        x = dynamics(x, strength * u[None], t)
    return abs(np.degrees(np.arctan2(np.sin(x[0, 0]), np.cos(x[0, 0]))))


open_loop, feedback = final_angle(0.0), final_angle(1.0)
print(f"final angle from upright: {open_loop:.1f} degrees open-loop, {feedback:.2f} with feedback")

"""
## What to see

The limits hold, the gradient falls faster with every iteration at the end, and the gains repair what the plan did
not know of.
"""

assert bool(plan.converged) and float(tf.reduce_max(tf.abs(plan.controls))) <= TORQUE
assert feedback < 1.0 < 90.0 < open_loop
