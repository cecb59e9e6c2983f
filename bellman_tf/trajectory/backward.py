"""The backward sweep: one Bellman recursion along the nominal trajectory, repeated where it met an indefinite Q_uu."""

from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from bellman_tf._typing import Batch, Cube, Matrix, Scalar
from bellman_tf.linalg import solve_spd
from bellman_tf.trajectory.box import solve_box
from bellman_tf.trajectory.derivatives import Model
from bellman_tf.trajectory.options import Regularization
from bellman_tf.trajectory.regularisation import strengths, stronger
from bellman_tf.trajectory.small_matrices import finite, first, last, pulled, solve_definite, times, transposed

Limits: TypeAlias = tuple[tf.Tensor, tf.Tensor] | None


class Sweep(NamedTuple):
    """Policy and value along a trajectory, T stages of B instances.

    Attributes:
        gains: `[T, m, n + 1, B]`, K and k side by side.
        V_x: `[T + 1, n, B]`.
        V_xx: `[T + 1, n, n, B]`.
        slope: `[B]`, sum of k' Q_u.
        curvature: `[B]`, sum of k' Q_uu k: a step alpha is expected to lower the cost by
            -(alpha slope + alpha^2 / 2 curvature).
        gradient: `[B]`, largest entry of the projected gradient of the total cost in the controls.
        definite: `[B]`, bool: every Q_uu was positive definite with the regularisation.
        finite: `[B]`, bool: every derivative that was looked at is finite. Where one is not, or Q_uu was not definite,
            the sums are zero and the arrays without meaning.
    """

    gains: tf.Tensor
    V_x: tf.Tensor
    V_xx: tf.Tensor
    slope: tf.Tensor
    curvature: tf.Tensor
    gradient: tf.Tensor
    definite: tf.Tensor
    finite: tf.Tensor

    @property
    def feedback(self) -> tf.Tensor:
        """K, `[T, m, n, B]`."""
        return self.gains[:, :, :-1]

    @property
    def open_loop(self) -> tf.Tensor:
        """k, `[T, m, B]`."""
        return self.gains[:, :, -1]


def no_sweep(T: int, B: int, m: int, n: int, dtype: tf.DType) -> Sweep:
    """What stands in for a sweep before the first.

    Args:
        T: stages.
        B: instances.
        m: controls.
        n: states.
        dtype: of everything but the last two.

    Returns:
        `Sweep` of zeros and False.
    """
    shapes = [T, m, n + 1, B], [T + 1, n, B], [T + 1, n, n, B], [B], [B], [B]
    no = tf.zeros([B], tf.bool)
    return Sweep._make([*(tf.zeros(shape, dtype) for shape in shapes), no, no])


def stage_gains(used: tf.Tensor, limits: Limits, alive: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Gains of one stage from the regularised Q, instance axis last.

    Args:
        used: `[m, n + m + 1, B]`, Q_ux, Q_uu and Q_u.
        limits: least and largest step, `[m, B]` each, or `None`.
        alive: `[B]`, bool: the instances that have not failed behind this stage.

    Returns:
        K and k side by side, `[m, n + 1, B]`, zero for the others and where Q_uu was not positive definite, and `[B]`,
        bool: those still alive.

    Source: Tassa, Erez, Todorov (2012), Eqs. 10; with limits Tassa, Mansard, Todorov (2014), Section III-B.
    """
    m = used.shape[0]
    n = used.shape[1] - m - 1
    Q_uu, rest = used[:, n:-1], tf.concat([used[:, :n], used[:, -1:]], axis=1)
    Q_uu = 0.5 * (Q_uu + transposed(Q_uu)) if m > 1 else Q_uu
    Q_uu = tf.where(alive, Q_uu, tf.eye(m, dtype=used.dtype)[:, :, None])
    if limits is None:
        gains, definite = solve_definite(Q_uu, -rest)
        alive &= definite
    else:
        step, free, factor = solve_box(first(Q_uu), first(rest[:, n]), *map(first, limits))
        K = -solve_spd(factor, tf.cast(free, step.dtype)[..., None] * first(rest[:, :n]))
        gains = last(tf.concat([K, step[..., None]], axis=-1))
    alive &= finite(gains)
    return tf.where(alive, gains, tf.zeros_like(gains)), alive


class _Behind(NamedTuple):
    """What a stage needs of those behind it.

    Attributes:
        t: of the stage.
        V_x: `[n, B]`.
        V_xx: `[n, n, B]`.
        costate: `[n, B]`.
        sums: slope, curvature and gradient of a `Sweep` so far, `[B]` each.
        definite: `[B]`, as in a `Sweep`.
        usable: `[B]`, `finite` of a `Sweep`.
        arrays: gains, V_x and V_xx of a `Sweep`, as far as they are known.
    """

    t: Scalar
    V_x: Matrix
    V_xx: Cube
    costate: Matrix
    sums: tuple[Batch, Batch, Batch]
    definite: Batch
    usable: Batch
    arrays: tuple[tf.TensorArray, ...]


def sweep(
    model: Model,
    controls: tf.Tensor,
    limits: Limits,
    mu_state: tf.Tensor,
    mu_control: tf.Tensor,
    again: tf.Tensor | None = None,
) -> Sweep:
    """One backward recursion.

    It ends early where its result is thrown away: once an instance of `again` has failed, so that all are swept anew,
    and none of `again` is left that may fail as well.

    With z = (x, u), f the Jacobian in z and V the value behind a stage, Q_z = l_z + f' V_x and Q_zz = l_zz + f' V_xx f
    + V_x . f_zz; the gains are made from Q_uu + mu_state f_u' f_u + mu_control I and Q_ux + mu_state f_u' f_x in place
    of Q_uu and Q_ux. The value is that of the policy with these gains, so the expected reduction is right for
    regularised and for clamped gains. Next to it runs the adjoint, whose l_u + f_u' costate is the gradient of the
    total cost in u_t at the nominal trajectory, whatever the gains.

    The gradients ride along as columns: with y = (x, 1), [V_xx V_x] is the block of y in [1 K k]' Q [1 K k].

    Args:
        model: `Model`.
        controls: `[T, m, B]`.
        limits: of the controls, `[T, m, 1]` each, or `None`.
        mu_state: `[B]`.
        mu_control: `[B]`.
        again: `[B]`, bool: the instances whose failure asks for another sweep of all; `None` for none.

    Returns:
        `Sweep`, without meaning where not `definite`, and nowhere with one if it ended early.

    Source: Tassa, Erez, Todorov (2012), Eqs. 5, 10, 11.
    Checked against: `verification/references/trajectory.py`, `bellman.backward_dense`.
    """
    T, m, B = controls.shape
    n = model.terminal.V_x.shape[0]
    z, dtype = n + m, controls.dtype
    room = None if limits is None else tuple(limit - controls for limit in limits)
    ridge = tf.constant(np.eye(m, z + 1, n)[:, :, None], dtype)  # the identity on Q_uu

    def stage(behind: _Behind) -> tuple[_Behind]:
        t, V_x, V_xx, costate, sums, definite, usable, arrays = behind
        cost_z, cost_zz, f, f_zz = model.at(t)
        usable &= finite(cost_z, cost_zz, f, f_zz)
        if f_zz is not None:  # V_x . f_zz, once for its three blocks
            cost_zz += tf.reduce_sum(V_x[:, None, None] * f_zz, axis=0)
        # columns: z, the gradient of Q, the gradient of the total cost
        columns = tf.concat([times(V_xx, f), V_x[:, None], costate[:, None]], axis=1)
        Q = tf.concat([cost_zz, cost_z[:, None], cost_z[:, None]], axis=1) + pulled(f, columns)
        gradient, here = Q[n:, z + 1], None
        if room is not None:
            here = tuple(tf.gather(limit, t) for limit in room)
            gradient = -tf.clip_by_value(-gradient, *here)
        held = tf.pad(pulled(f[:, n:], f), [[0, 0], [0, 1], [0, 0]])
        gains, definite = stage_gains(Q[n:, : z + 1] + mu_state * held + mu_control * ridge, here, definite & usable)

        Q_u, k = Q[n:, z], gains[:, n]
        bent = times(Q[n:, n:z], gains)  # Q_uu [K k]
        twice = bent + 2.0 * tf.concat([Q[n:, :n], Q_u[:, None]], axis=1)
        change = pulled(gains[:, :n], twice) + pulled(twice[:, :n], gains)
        slope, curvature, largest = sums
        sums = (
            slope + tf.reduce_sum(k * Q_u, axis=0),
            curvature + tf.reduce_sum(k * bent[:, n], axis=0),
            tf.maximum(largest, tf.reduce_max(tf.abs(gradient), axis=0)),
        )
        V_x = Q[:n, z] + 0.5 * change[:, n]
        V_xx = 0.5 * (Q[:n, :n] + transposed(Q[:n, :n]) + change[:, :n])
        arrays = tuple(array.write(t, entry) for array, entry in zip(arrays, (gains, V_x, V_xx), strict=True))
        return (_Behind(t - 1, V_x, V_xx, Q[:n, z + 1], sums, definite, usable, arrays),)

    def unfinished(behind: _Behind) -> Scalar:
        useful = tf.reduce_any(behind.definite)
        if again is not None:
            failed = again & behind.usable & ~behind.definite
            useful &= ~tf.reduce_any(failed) | tf.reduce_any(again & behind.definite)
        return (behind.t >= 0) & useful

    zeros = tf.zeros([B], dtype)
    last_x, last_xx = model.terminal
    sizes = ((T, [m, n + 1, B]), (T + 1, [n, B]), (T + 1, [n, n, B]))
    gains, V_x, V_xx = (tf.TensorArray(dtype, size, element_shape=shape) for size, shape in sizes)
    arrays = gains, V_x.write(T, last_x), V_xx.write(T, 0.5 * (last_xx + transposed(last_xx)))
    sums, alive = (zeros, zeros, zeros), tf.ones([B], tf.bool)
    start = _Behind(tf.constant(T - 1), last_x, last_xx, last_x, sums, alive, finite(*model.terminal), arrays)
    (ended,) = tf.while_loop(unfinished, stage, (start,), maximum_iterations=T)
    *_, sums, definite, usable, arrays = ended
    gains, V_x, V_xx = (array.stack() for array in arrays)
    definite &= usable
    sums = (tf.where(definite, entry, zeros) for entry in sums)
    return Sweep(gains, V_x, V_xx, *sums, definite, usable)


def regularised_sweep(
    model: Model,
    controls: tf.Tensor,
    limits: Limits,
    mu: tf.Tensor,
    rate: tf.Tensor,
    wanted: tf.Tensor,
    schedule: Regularization,
) -> tuple[Sweep, tf.Tensor, tf.Tensor]:
    """Sweeps until Q_uu is positive definite in every instance that is wanted and finite, or mu is too large.

    Args:
        model: `Model`.
        controls: `[T, m, B]`.
        limits: of the controls, or `None`.
        mu: `[B]`.
        rate: `[B]`.
        wanted: `[B]`, bool; the others are swept along, and their mu stays.
        schedule: `Regularization`.

    Returns:
        `Sweep`, mu and rate.
    """

    def failed(done: Sweep, mu: Batch) -> Batch:
        return wanted & done.finite & ~done.definite & (mu <= schedule.largest)

    def unfinished(attempts: Scalar, done: Sweep, mu: Batch, rate: Batch) -> Scalar:
        return (attempts < 1) | tf.reduce_any(failed(done, mu))

    def attempt(
        attempts: Scalar, done: Sweep, mu: Batch, rate: Batch
    ) -> tuple[Scalar, Sweep, Batch, Batch]:  # the first as it is, so that the sweep is traced once
        failing = failed(done, mu) & (attempts > 0)
        raised, raised_rate = stronger(mu, rate, schedule)
        mu, rate = tf.where(failing, raised, mu), tf.where(failing, raised_rate, rate)
        mu_state, mu_control = strengths(mu, schedule.on)
        done = sweep(model, controls, limits, mu_state, mu_control, wanted & (mu <= schedule.largest))
        return attempts + 1, done, mu, rate

    T, m, B = controls.shape
    nothing = no_sweep(T, B, m, model.terminal.V_x.shape[0], controls.dtype)
    return tf.while_loop(unfinished, attempt, (tf.constant(0), nothing, mu, rate))[1:]
