"""The backward sweep: one Bellman recursion along the nominal trajectory, repeated where it met an indefinite Q_uu."""

from typing import NamedTuple, TypeAlias

import tensorflow as tf

from bellman_tf.bellman import Expansion, Gains, Value, expand, gains, value_update
from bellman_tf.linalg import symmetrize
from bellman_tf.linalg.products import matmul, matvec
from bellman_tf.linalg.solve import solve_spd
from bellman_tf.trajectory.box import solve_box
from bellman_tf.trajectory.derivatives import Model
from bellman_tf.trajectory.options import Regularization
from bellman_tf.trajectory.regularisation import strengths, stronger

Limits: TypeAlias = tuple[tf.Tensor, tf.Tensor] | None


class Sweep(NamedTuple):
    """Policy and value along a trajectory, T stages of B instances.

    Attributes:
        open_loop: `[T, B, m]`.
        feedback: `[T, B, m, n]`.
        V_x: `[T + 1, B, n]`.
        V_xx: `[T + 1, B, n, n]`.
        slope: `[B]`, sum of k' Q_u.
        curvature: `[B]`, sum of k' Q_uu k: a step alpha is expected to lower the cost by
            -(alpha slope + alpha^2 / 2 curvature).
        gradient: `[B]`, largest entry of the projected gradient of the total cost in the controls.
        definite: `[B]`, bool: every Q_uu was positive definite with the regularisation.
    """

    open_loop: tf.Tensor
    feedback: tf.Tensor
    V_x: tf.Tensor
    V_xx: tf.Tensor
    slope: tf.Tensor
    curvature: tf.Tensor
    gradient: tf.Tensor
    definite: tf.Tensor


def no_sweep(T: int, B: int, m: int, n: int, dtype: tf.DType) -> Sweep:
    """What stands in for a sweep before the first.

    Args:
        T: stages.
        B: instances.
        m: controls.
        n: states.
        dtype: of everything but `definite`.

    Returns:
        `Sweep` of zeros and False.
    """
    shapes = [T, B, m], [T, B, m, n], [T + 1, B, n], [T + 1, B, n, n], [B], [B], [B]
    return Sweep(*(tf.zeros(shape, dtype) for shape in shapes), tf.zeros([B], tf.bool))


def stage_expansion(
    value: Value, cost_z: tf.Tensor, cost_zz: tf.Tensor, jacobian: tf.Tensor, dynamics_zz: tf.Tensor | None
) -> Expansion:
    """`bellman.expand` from derivatives in z = (x, u).

    Args:
        value: `Value` behind the stage.
        cost_z: `[B, z]`.
        cost_zz: `[B, z, z]`.
        jacobian: `[B, n, z]`.
        dynamics_zz: `[B, n, z, z]` or `None`.

    Returns:
        `Expansion`.
    """
    n = jacobian.shape[-2]
    if dynamics_zz is not None:  # V_x . f_zz, once for its three blocks
        cost_zz += tf.reduce_sum(value.V_x[:, :, None, None] * dynamics_zz, axis=1)
    return expand(
        value,
        jacobian[..., :n],
        jacobian[..., n:],
        cost_x=cost_z[:, :n],
        cost_u=cost_z[:, n:],
        cost_xx=cost_zz[:, :n, :n],
        cost_ux=cost_zz[:, n:, :n],
        cost_uu=cost_zz[:, n:, n:],
    )


def stage_gains(
    expansion: Expansion,
    jacobian: tf.Tensor,
    mu_state: tf.Tensor,
    mu_control: tf.Tensor,
    limits: Limits,
    alive: tf.Tensor,
) -> tuple[Gains, tf.Tensor]:
    """Gains of one stage from a regularised expansion.

    With f = (f_x, f_u), Q_uu + mu_state f_u' f_u + mu_control I and Q_ux + mu_state f_u' f_x stand in place of Q_uu and
    Q_ux.

    Args:
        expansion: `Expansion`.
        jacobian: `[B, n, n + m]`.
        mu_state: `[B]`.
        mu_control: `[B]`.
        limits: least and largest step, `[B, m]` each, or `None`.
        alive: `[B]`, bool: the instances that have not failed behind this stage.

    Returns:
        `Gains`, zero for the others and where Q_uu was not positive definite, and `[B]`, bool: those still alive.

    Source: Tassa, Erez, Todorov (2012), Eqs. 10; with limits Tassa, Mansard, Todorov (2014), Section III-B.
    """
    n, m = jacobian.shape[-2], expansion.Q_u.shape[-1]
    pull = matmul(jacobian[..., n:], jacobian, transpose_a=True) * mu_state[:, None, None]  # [B, m, n + m]
    identity = tf.eye(m, batch_shape=[jacobian.shape[0]], dtype=jacobian.dtype)
    Q_uu = symmetrize(expansion.Q_uu + pull[..., n:] + mu_control[:, None, None] * identity)
    if m == 1 and limits is None:  # TensorFlow logs every failing Cholesky factorisation: here it can be foreseen
        alive &= Q_uu[:, 0, 0] > 0.0
    regularised = expansion._replace(
        Q_ux=expansion.Q_ux + pull[..., :n], Q_uu=tf.where(alive[:, None, None], Q_uu, identity)
    )
    if limits is None:
        k, K, _ = gains(regularised)
    else:
        k, free, factor = solve_box(regularised.Q_uu, expansion.Q_u, *limits)
        K = -solve_spd(factor, tf.cast(free, k.dtype)[..., None] * regularised.Q_ux)
    alive &= tf.reduce_all(tf.math.is_finite(k), axis=-1) & tf.reduce_all(tf.math.is_finite(K), axis=(-2, -1))
    k = tf.where(alive[:, None], k, tf.zeros_like(k))
    K = tf.where(alive[:, None, None], K, tf.zeros_like(K))
    return Gains(k, K), alive


def sweep(
    model: Model,
    controls: tf.Tensor,
    limits: Limits,
    mu_state: tf.Tensor,
    mu_control: tf.Tensor,
    wanted: tf.Tensor | None = None,
) -> Sweep:
    """One backward recursion, which ends early once every instance that is wanted has failed.

    The value is that of the policy with these gains (`value_update(policy=True)`), so the expected reduction is right
    for regularised and for clamped gains. Next to it runs the adjoint, whose l_u + f_u' costate is the gradient of the
    total cost in u_t at the nominal trajectory, whatever the gains.

    Args:
        model: `Model`.
        controls: `[T, B, m]`.
        limits: of the controls, `[T, 1, m]` each, or `None`.
        mu_state: `[B]`.
        mu_control: `[B]`.
        wanted: `[B]`, bool, or `None` for all.

    Returns:
        `Sweep`, without meaning where not `definite`.

    Source: Tassa, Erez, Todorov (2012), Eqs. 5, 10, 11.
    Checked against: `verification/references/trajectory.py`.
    """
    T, B, m = controls.shape
    n = model.jacobian.shape[-2]
    dtype = controls.dtype

    def stage(t, value, costate, sums, definite, arrays):
        cost_z, cost_zz, jacobian = (tf.gather(array, t) for array in (model.cost_z, model.cost_zz, model.jacobian))
        dynamics_zz = None if model.dynamics_zz is None else tf.gather(model.dynamics_zz, t)
        Q = stage_expansion(value, cost_z, cost_zz, jacobian, dynamics_zz)
        adjoint = cost_z + matvec(jacobian, costate, transpose_a=True)  # [B, n + m]
        gradient, room = adjoint[:, n:], None
        if limits is not None:
            u = tf.gather(controls, t)
            room = tuple(tf.gather(limit, t) - u for limit in limits)
            gradient = -tf.clip_by_value(-gradient, *room)
        policy, definite = stage_gains(Q, jacobian, mu_state, mu_control, room, definite)
        k = policy.open_loop
        slope, curvature, largest = sums
        sums = (
            slope + tf.reduce_sum(k * Q.Q_u, axis=-1),
            curvature + tf.reduce_sum(k * matvec(Q.Q_uu, k), axis=-1),
            tf.maximum(largest, tf.reduce_max(tf.abs(gradient), axis=-1)),
        )
        value = value_update(Q, policy, policy=True)
        value = Value(value.V_x, symmetrize(value.V_xx))
        new = (k, policy.feedback, value.V_x, value.V_xx)
        arrays = tuple(array.write(t, entry) for array, entry in zip(arrays, new, strict=True))
        return t - 1, value, adjoint[:, :n], sums, definite, arrays

    def unfinished(t, value, costate, sums, definite, arrays):
        return (t >= 0) & tf.reduce_any(definite if wanted is None else definite & wanted)

    zeros = tf.zeros([B], dtype)
    arrays = tuple(tf.TensorArray(dtype, T, element_shape=shape) for shape in ([B, m], [B, m, n], [B, n], [B, n, n]))
    start = (T - 1, model.terminal, model.terminal.V_x, (zeros, zeros, zeros), tf.ones([B], tf.bool), arrays)
    *_, sums, definite, arrays = tf.while_loop(unfinished, stage, start, maximum_iterations=T)
    k, K, V_x, V_xx = (array.stack() for array in arrays)
    return Sweep(
        k,
        K,
        tf.concat([V_x, model.terminal.V_x[None]], axis=0),
        tf.concat([V_xx, symmetrize(model.terminal.V_xx)[None]], axis=0),
        *sums,
        definite,
    )


def is_finite(model: Model) -> tf.Tensor:
    """Whether every derivative along a trajectory is finite.

    Args:
        model: `Model`.

    Returns:
        `[B]`, bool.
    """
    parts = [model.cost_z, model.cost_zz, model.jacobian, model.dynamics_zz]
    finite = tf.reduce_all(tf.math.is_finite(model.terminal.V_x), axis=1)
    finite &= tf.reduce_all(tf.math.is_finite(model.terminal.V_xx), axis=(1, 2))
    for part in parts:
        if part is not None:
            axes = [axis for axis in range(part.shape.rank) if axis != 1]
            finite &= tf.reduce_all(tf.math.is_finite(part), axis=axes)
    return finite


def zero_where(model: Model, bad: tf.Tensor) -> Model:
    """A model with zeros for the instances that have no usable derivatives.

    Args:
        model: `Model`.
        bad: `[B]`, bool.

    Returns:
        `Model`.
    """

    def zeroed(part, axis):
        shape = [1] * axis + [-1] + [1] * (part.shape.rank - axis - 1)
        return tf.where(tf.reshape(bad, shape), tf.zeros_like(part), part)

    terminal = Value(*(zeroed(part, 0) for part in model.terminal))
    parts = (None if part is None else zeroed(part, 1) for part in model[:4])
    return type(model)(*parts, terminal)


def regularised_sweep(
    model: Model,
    controls: tf.Tensor,
    limits: Limits,
    mu: tf.Tensor,
    rate: tf.Tensor,
    wanted: tf.Tensor,
    schedule: Regularization,
) -> tuple[Sweep, tf.Tensor, tf.Tensor]:
    """Sweeps until Q_uu is positive definite in every instance that is wanted, or mu is too large.

    Args:
        model: `Model`, finite.
        controls: `[T, B, m]`.
        limits: of the controls, or `None`.
        mu: `[B]`.
        rate: `[B]`.
        wanted: `[B]`, bool; the others are swept along, and their mu stays.
        schedule: `Regularization`.

    Returns:
        `Sweep`, mu and rate.
    """

    def failed(done, mu):
        return wanted & ~done.definite & (mu <= schedule.largest)

    def unfinished(attempts, done, mu, rate):
        return (attempts < 1) | tf.reduce_any(failed(done, mu))

    def attempt(attempts, done, mu, rate):  # the first as it is, so that the sweep is traced once
        failing = failed(done, mu) & (attempts > 0)
        raised, raised_rate = stronger(mu, rate, schedule)
        mu, rate = tf.where(failing, raised, mu), tf.where(failing, raised_rate, rate)
        done = sweep(model, controls, limits, *strengths(mu, schedule.on), wanted)
        return attempts + 1, done, mu, rate

    nothing = no_sweep(*controls.shape, model.jacobian.shape[-2], controls.dtype)
    return tf.while_loop(unfinished, attempt, (tf.constant(0), nothing, mu, rate))[1:]
