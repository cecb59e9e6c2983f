"""Small quadratic programs with a box, by projected Newton: the control-limited step of a stage."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from bellman_tf._typing import Batch, Matrix, Scalar
from bellman_tf.linalg import factor_spd, solve_spd
from bellman_tf.linalg.products import matvec
from bellman_tf.linalg.solve import Factor

_STEPS = 0.5 ** np.arange(16)  # tried at once
_ARMIJO = 0.1


class BoxStep(NamedTuple):
    """Minimiser in a box, and what is free to move there.

    Attributes:
        step: `[B, m]`.
        free: `[B, m]`, bool: the entries that are not held at a limit.
        factor: `Factor` of the Hessian on the free entries, identity on the others; NaN where that is not positive
            definite.

    Example:
        >>> two = tf.constant([[2.0]])
        >>> found = solve_box(two[None], tf.constant([[-8.0]]), -two, two)  # the minimiser 4 is outside the box
        >>> found.step.numpy().tolist(), found.free.numpy().tolist()
        ([[2.0]], [[False]])
    """

    step: tf.Tensor
    free: tf.Tensor
    factor: Factor


def solve_box(
    hessian: tf.Tensor, gradient: tf.Tensor, lower: tf.Tensor, upper: tf.Tensor, *, max_iterations: int = 50
) -> BoxStep:
    """Minimises gradient' d + 1/2 d' hessian d within lower <= d <= upper, from d = 0.

    An entry is held where it stands at a limit and the gradient pushes it out; the others take a Newton step that is
    clipped to the box and halved until the objective falls enough. Only the Hessian on the free entries has to be
    positive definite.

    Args:
        hessian: `[B, m, m]`, symmetric.
        gradient: `[B, m]`.
        lower: `[B, m]`, not positive.
        upper: `[B, m]`, not negative.
        max_iterations: Newton steps.

    Returns:
        `BoxStep`.

    Numerics: for a positive definite Hessian the gradient on the free entries ends at rounding level. The program of
        an instance with a factor of NaN is given up; its step is finite and in the box but not a minimiser.
    Source: Tassa, Mansard, Todorov, "Control-limited differential dynamic programming" (2014), Algorithm 1.
    Checked against: `verification/references/trajectory.py`.

    Example:
        >>> two = tf.constant([[2.0]])
        >>> solve_box(two[None], tf.constant([[-8.0]]), -two, two).step.numpy().tolist()
        [[2.0]]
    """
    sizes = tf.constant(_STEPS, gradient.dtype)[:, None, None]
    eps = np.finfo(gradient.dtype.as_numpy_dtype).eps
    lowest, highest = (tf.reduce_max(tf.abs(array), axis=axis) for array, axis in ((gradient, 1), (hessian, (1, 2))))

    def at(step: Matrix) -> tuple[Matrix, Matrix, Factor]:
        slope = gradient + matvec(hessian, step)
        held = ((step <= lower) & (slope > 0.0)) | ((step >= upper) & (slope < 0.0))
        free = ~held
        both = free[:, :, None] & free[:, None, :]
        restricted = tf.where(both, hessian, tf.zeros_like(hessian))
        restricted += tf.linalg.diag(tf.cast(held, hessian.dtype))
        return slope, free, factor_spd(restricted)

    def objective(step: Matrix) -> Batch:  # [..., B, m] to [..., B]
        product = tf.reduce_sum(hessian * step[..., None, :], axis=-1)
        return tf.reduce_sum(step * (gradient + 0.5 * product), axis=-1)

    def unfinished(i: Scalar, step: Matrix, done: Batch) -> Scalar:
        return (i < max_iterations) & ~tf.reduce_all(done)

    def improve(i: Scalar, step: Matrix, done: Batch) -> tuple[Scalar, Matrix, Batch]:
        slope, free, factor = at(step)
        slope_free = tf.where(free, slope, tf.zeros_like(slope))
        newton = -solve_spd(factor, slope_free[..., None])[..., 0]
        usable = tf.reduce_all(tf.math.is_finite(newton), axis=1)
        rounding = 4.0 * eps * (lowest + highest * tf.reduce_max(tf.abs(step), axis=1))
        small = tf.reduce_max(tf.abs(slope_free), axis=1) <= rounding
        newton = tf.where(usable[:, None], newton, tf.zeros_like(newton))
        tried = tf.clip_by_value(step + sizes * newton, lower, upper)  # [steps, B, m]
        falls = objective(step) - objective(tried)
        enough = falls >= -_ARMIJO * tf.reduce_sum(slope * (tried - step), axis=-1)
        enough &= falls > 0.0
        first = tf.argmax(tf.cast(enough, tf.int32), axis=0)  # [B], the largest step that will do
        taken = tf.gather(tf.transpose(tried, [1, 0, 2]), first, batch_dims=1)
        move = ~done & ~small & usable & tf.reduce_any(enough, axis=0)
        return i + 1, tf.where(move[:, None], taken, step), ~move

    start = (tf.constant(0), tf.zeros_like(gradient), tf.zeros(gradient.shape[:1], tf.bool))
    _, step, _ = tf.while_loop(unfinished, improve, start)
    _, free, factor = at(step)
    return BoxStep(step, free, factor)
