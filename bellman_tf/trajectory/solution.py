"""What a solve gives back, and why it stopped."""

import enum
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from bellman_tf.bellman import Gains, Value
from bellman_tf.trajectory.constraints import Inequalities


class Status(enum.IntEnum):
    """Why an instance stopped.

    Attributes:
        RUNNING: it has not; never returned.
        CONVERGED_GRADIENT: the projected gradient of the cost in the controls is within tolerance, and so is the
            reduction that the next step promises. A maximum or saddle is such a point too: `history.regularization`
            is above zero there.
        CONVERGED_COST: a full step without regularisation lowered the cost, or is expected to, by no more than the
            tolerance.
        MAX_ITERATIONS: the iterations were used up.
        LINE_SEARCH_FAILED: no step lowered the cost as expected, for any regularisation up to the largest.
        INDEFINITE: Q_uu was not positive definite for any regularisation up to the largest. Gains and value of such
            an instance are zero.
        NON_FINITE: the cost, a state or a derivative of the nominal trajectory is not finite: at the start, or
            where a derivative is infinite at a finite cost. Gains and value of such an instance are zero.
        INFEASIBLE: the inequalities are violated, or bind against their multipliers, by more than the tolerance at the
            largest penalty: most often they contradict each other, the limits or the dynamics. The trajectory is one
            with little violation.

    Example:
        >>> Status(1).name
        'CONVERGED_GRADIENT'
    """

    RUNNING = 0
    CONVERGED_GRADIENT = 1
    CONVERGED_COST = 2
    MAX_ITERATIONS = 3
    LINE_SEARCH_FAILED = 4
    INDEFINITE = 5
    NON_FINITE = 6
    INFEASIBLE = 7


class History(NamedTuple):
    """One entry per iteration; entry 0 is the first trajectory. After an instance has stopped its last is repeated.

    `iterations` is that of the instance that took most, and `max_iterations` where `solve` was called inside a
    `tf.function`, which needs a length that does not depend on data.

    Attributes:
        cost: `[..., iterations + 1]`; with inequalities it is the augmented cost, which jumps where the step is 0 and
            the multipliers were renewed.
        gradient: `[..., iterations + 1]`, largest entry of the projected gradient of the cost in the controls.
        expected: `[..., iterations + 1]`, reduction that the model promises for the full step that comes next.
        step: `[..., iterations + 1]`, step size that led here, 0 where none was accepted or the instance had stopped.
        regularization: `[..., iterations + 1]`, mu of the sweep made here.

    Example:
        >>> history = History(*tf.constant([[9.0, 4.0], [1.0, 0.5], [2.0, 0.1], [0.0, 1.0], [0.0, 0.0]]))
        >>> history.cost.numpy().tolist(), history.step.numpy().tolist()  # the first iteration took the full step
        ([9.0, 4.0], [0.0, 1.0])
    """

    cost: tf.Tensor
    gradient: tf.Tensor
    expected: tf.Tensor
    step: tf.Tensor
    regularization: tf.Tensor


def continued(history: tf.Tensor, entries: tf.Tensor) -> tf.Tensor:
    """A history whose instances have all stopped, as it would go on beside others that have not.

    Args:
        history: `[fields of History, ..., max_iterations + 1]`.
        entries: how many entries were written, a scalar.

    Returns:
        The same shape: the last entry repeated, with steps of 0.

    Example:
        >>> history = tf.constant([[9.0, 4.0, 0.0], [1.0, 0.5, 0.0], [2.0, 0.1, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
        >>> History(*continued(history, 2).numpy().tolist())[::3]
        ([9.0, 4.0, 4.0], [0.0, 1.0, 0.0])
    """
    entry = tf.range(history.shape[-1])
    repeated = tf.gather(history, tf.minimum(entry, entries - 1), axis=-1)
    is_step = np.reshape([name == "step" for name in History._fields], [-1] + [1] * (len(history.shape) - 1))
    return tf.where(is_step & (entry >= entries), tf.zeros_like(repeated), repeated)


class Solution(NamedTuple):
    """A trajectory, the policy around it, `control + open_loop + feedback @ (state - nominal_state)`, and its value.

    The gains and the value are those of the trajectory returned. `open_loop` is the step that would be tried next.

    Attributes:
        states: `[..., T + 1, n]`.
        controls: `[..., T, m]`.
        gains: `Gains`, `[..., T, m]` and `[..., T, m, n]`; feedback rows of controls at a limit are zero.
        value: `Value`, `[..., T + 1, n]` and `[..., T + 1, n, n]`: the expansion of the cost-to-go of the policy.
        cost: `[...]`, without what the augmented Lagrangian adds.
        status: `[...]`, int32, see `Status`.
        iterations: `[...]`, int32.
        history: `History`.
        multipliers: `Inequalities`, `[..., T, p]` and `[..., q]`, not negative; gains and value are those of the cost
            augmented with them.
        violation: `[...]`, the largest violation of an inequality, 0 where all hold or there are none.

    Example:
        >>> blank = Solution(**dict.fromkeys(Solution._fields, tf.zeros([2])))  # of two instances; `solve` fills it in
        >>> found = blank._replace(status=tf.constant([Status.CONVERGED_COST, Status.MAX_ITERATIONS]))
        >>> found.converged.numpy().tolist()
        [True, False]
    """

    states: tf.Tensor
    controls: tf.Tensor
    gains: Gains
    value: Value
    cost: tf.Tensor
    status: tf.Tensor
    iterations: tf.Tensor
    history: History
    multipliers: Inequalities
    violation: tf.Tensor

    @property
    def converged(self) -> tf.Tensor:
        """`[...]`, bool: whether one of the two convergence tests was met, within all inequalities."""
        return (self.status == Status.CONVERGED_GRADIENT) | (self.status == Status.CONVERGED_COST)
