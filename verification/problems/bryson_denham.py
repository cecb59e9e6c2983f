"""The Bryson-Denham problem with held controls, for our solver: limits are a batch, and carried by the state."""

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from bellman_tf import trajectory
from bellman_tf.trajectory import AugmentedLagrangian, Problem, Solution
from verification.references import bryson_denham as reference

GAP = 1e-12  # up to which inequalities are met
OPTIONS = {
    "augmented_lagrangian": AugmentedLagrangian(tolerance=GAP),
    "gradient_tolerance": 1e-11,
    "cost_tolerance": 0.0,
    "second_order": False,  # nothing is left out: dynamics and inequalities are linear
    "max_iterations": 400,
    "jit_compile": False,
}


@functools.cache
def problem(cells: int) -> Problem:
    """The problem; its state is x, v and the limit."""
    h = 1.0 / cells

    def dynamics(state, u, t):
        x, v, limit = tf.unstack(state, axis=1)
        return tf.stack([x + h * v + 0.5 * h**2 * u[:, 0], v + h * u[:, 0], limit], axis=1)

    def ends(state):  # two equalities, each as two inequalities
        x, v, _ = tf.unstack(state, axis=1)
        return tf.stack([x, -x, v + 1.0, -v - 1.0], axis=1)

    return Problem(
        dynamics,
        lambda state, u, t: 0.5 * h * u[:, 0] ** 2,
        lambda state: tf.zeros_like(state[:, 0]),
        cells,
        inequality=lambda state, u, t: state[:, :1] - state[:, 2:],
        terminal_inequality=ends,
    )


def solve(limits, cells: int) -> Solution:
    """Our solution under each of the limits, from controls of zero."""
    x0 = np.stack([np.zeros(len(limits)), np.ones(len(limits)), limits], axis=1)
    return trajectory.solve(problem(cells), x0, np.zeros([len(limits), cells, 1]), **OPTIONS)


class Allowed(NamedTuple):
    """How far the solver may end from the optimum, by its tolerance."""

    cost: float
    control: float
    multiplier: float


def allowed(limit, cells: int) -> Allowed:
    """The errors that inequalities met up to GAP leave, by the published multipliers, which add up to S.

    Multipliers are prices: violations of GAP at most lower the cost by S GAP at most. The augmented cost at its
    minimiser is at most that at the optimum, which is at most the optimal cost; it differs from the cost by less than
    GAP times the multipliers found. Two rows of an equality may share more than they need, hence 2 S: the cost is off
    by 2 S GAP at most. By the identity of the reference the controls U then have h/2 |U - U*|^2 <= 3 S GAP. U are the
    means of a line whose slope falls by the multipliers, so that every second difference of U is -h/2 times the sum of
    two adjacent ones.
    """
    total = reference.masses(limit) + np.abs(reference.end_multipliers(limit)).sum()
    control = np.sqrt(6.0 * total * GAP * cells)
    return Allowed(2.0 * total * GAP, control, 8.0 * control * cells)
