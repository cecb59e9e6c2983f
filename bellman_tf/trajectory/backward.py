"""The backward sweep: one Bellman recursion along the nominal trajectory, repeated where it met an indefinite Q_uu."""

from typing import NamedTuple, TypeAlias

import tensorflow as tf

from bellman_tf.bellman import Value
from bellman_tf.linalg import factor_spd, solve_spd
from bellman_tf.trajectory.box import solve_box
from bellman_tf.trajectory.derivatives import Model
from bellman_tf.trajectory.options import Regularization
from bellman_tf.trajectory.regularisation import strengths, stronger

Limits: TypeAlias = tuple[tf.Tensor, tf.Tensor] | None

_SMALL = 4096  # multiplications of a product that is written out
_UNROLLED = 3  # unknowns of a system that is written out


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
    return Sweep._make([*(tf.zeros(shape, dtype) for shape in shapes), tf.zeros([B], tf.bool)])


def _times(A: tf.Tensor, B: tf.Tensor) -> tf.Tensor:
    """A B per instance, `[i, j, B]` and `[j, k, B]` to `[i, k, B]`.

    Small products are sums of elementwise ones, which XLA fuses with what stands around them: a call of a matrix
    product per instance takes longer than its arithmetic.

    Returns:
        The product.
    """
    if A.shape[0] * A.shape[1] * B.shape[1] > _SMALL:
        return tf.einsum("ijb,jkb->ikb", A, B)
    return tf.reduce_sum(A[:, :, None] * B[None], axis=1)


def _pulled(A: tf.Tensor, B: tf.Tensor) -> tf.Tensor:
    """A' B per instance, `[j, i, B]` and `[j, k, B]` to `[i, k, B]`."""
    return _times(tf.transpose(A, [1, 0, 2]), B)


def _applied(A: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """A' x per instance, `[j, i, B]` and `[j, B]` to `[i, B]`."""
    return tf.reduce_sum(A * x[:, None], axis=0)


def _symmetric(A: tf.Tensor) -> tf.Tensor:
    return A if A.shape[0] == 1 else 0.5 * (A + tf.transpose(A, [1, 0, 2]))


def _first(array: tf.Tensor) -> tf.Tensor:
    """The instances moved from the last axis to the first."""
    return tf.transpose(array, [array.shape.rank - 1, *range(array.shape.rank - 1)])


def _last(array: tf.Tensor, axis: int = 0) -> tf.Tensor:
    """The instances moved from `axis` to the last one."""
    rank = array.shape.rank
    return tf.transpose(array, [*range(axis), *range(axis + 1, rank), axis])


def solve_definite(A: tf.Tensor, rhs: tf.Tensor) -> tf.Tensor:
    """Solves A X = rhs by Cholesky factorisation, instance axis last.

    Args:
        A: `[m, m, B]`, symmetric.
        rhs: `[m, k, B]`.

    Returns:
        `[m, k, B]`, not finite where A is not positive definite.

    Numerics: up to three unknowns are eliminated entry by entry, elementwise over the instances; the factorisation of
        the library is a loop of its own under XLA.
    """
    m = A.shape[0]
    if m > _UNROLLED:
        return _last(solve_spd(factor_spd(_first(A)), _first(rhs)))
    L: list[list[tf.Tensor]] = [[] for _ in range(m)]
    for i in range(m):
        for j in range(i + 1):
            entry = A[i, j] - sum(L[i][k] * L[j][k] for k in range(j)) if j else A[i, j]
            L[i].append(tf.sqrt(entry) if i == j else entry / L[j][j])
    y: list[tf.Tensor] = []
    for i in range(m):
        y.append((rhs[i] - sum(L[i][k] * y[k] for k in range(i)) if i else rhs[i]) / L[i][i])
    x: list[tf.Tensor] = []
    for i in reversed(range(m)):
        x.insert(0, (y[i] - sum(L[k][i] * x[k - i - 1] for k in range(i + 1, m)) if x else y[i]) / L[i][i])
    return tf.stack(x)


def stage_gains(
    gradient: tf.Tensor, hessian: tf.Tensor, limits: Limits, alive: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Gains of one stage from the regularised Q, instance axis last.

    Args:
        gradient: `[m, B]`, Q_u.
        hessian: `[m, n + m, B]`, Q_ux and Q_uu.
        limits: least and largest step, `[m, B]` each, or `None`.
        alive: `[B]`, bool: the instances that have not failed behind this stage.

    Returns:
        k, `[m, B]`, and K, `[m, n, B]`, zero for the others and where Q_uu was not positive definite, and `[B]`, bool:
        those still alive.

    Source: Tassa, Erez, Todorov (2012), Eqs. 10; with limits Tassa, Mansard, Todorov (2014), Section III-B.
    """
    m = gradient.shape[0]
    n = hessian.shape[1] - m
    identity = tf.eye(m, dtype=hessian.dtype)[:, :, None]
    Q_ux, Q_uu = hessian[:, :n], _symmetric(hessian[:, n:])
    if m == 1 and limits is None:
        alive &= Q_uu[0, 0] > 0.0
    Q_uu = tf.where(alive, Q_uu, identity)
    if limits is None:
        both = -solve_definite(Q_uu, tf.concat([gradient[:, None], Q_ux], axis=1))
        k, K = both[:, 0], both[:, 1:]
    else:
        step, free, factor = solve_box(_first(Q_uu), _first(gradient), *map(_first, limits))
        K = _last(-solve_spd(factor, tf.cast(free, step.dtype)[..., None] * _first(Q_ux)))
        k = _last(step)
    alive &= tf.reduce_all(tf.math.is_finite(k), axis=0) & tf.reduce_all(tf.math.is_finite(K), axis=(0, 1))
    return tf.where(alive, k, tf.zeros_like(k)), tf.where(alive, K, tf.zeros_like(K)), alive


def sweep(
    model: Model,
    controls: tf.Tensor,
    limits: Limits,
    mu_state: tf.Tensor,
    mu_control: tf.Tensor,
    wanted: tf.Tensor | None = None,
) -> Sweep:
    """One backward recursion, which ends early once every instance that is wanted has failed.

    With z = (x, u), f the Jacobian in z and V the value behind a stage, Q_z = l_z + f' V_x and Q_zz = l_zz + f' V_xx f
    + V_x . f_zz; the gains are made from Q_uu + mu_state f_u' f_u + mu_control I and Q_ux + mu_state f_u' f_x in place
    of Q_uu and Q_ux. The value is that of the policy with these gains, so the expected reduction is right for
    regularised and for clamped gains. Next to it runs the adjoint, whose l_u + f_u' costate is the gradient of the
    total cost in u_t at the nominal trajectory, whatever the gains.

    Instances are the last axis here, so that every entry of a small matrix is a vector of instances.

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
    Checked against: `verification/references/trajectory.py`, `bellman.backward_dense`.
    """
    T, B, m = controls.shape
    n = model.jacobian.shape[-2]
    dtype = controls.dtype
    along = [_last(array, 1) for array in (model.cost_z, model.cost_zz, model.jacobian)]
    dynamics_zz = None if model.dynamics_zz is None else _last(model.dynamics_zz, 1)
    room = None if limits is None else tuple(_last(limit - controls, 1) for limit in limits)
    identity = tf.eye(m, dtype=dtype)[:, :, None]

    def stage(t, V_x, V_xx, costate, sums, definite, arrays):
        cost_z, Q_zz, f = (tf.gather(array, t) for array in along)  # [z, B], [z, z, B], [n, z, B]
        if dynamics_zz is not None:  # V_x . f_zz, once for its three blocks
            Q_zz += tf.reduce_sum(V_x[:, None, None] * tf.gather(dynamics_zz, t), axis=0)
        Q_z = cost_z + _applied(f, V_x)
        Q_zz += _pulled(f, _times(V_xx, f))
        adjoint = cost_z + _applied(f, costate)
        gradient, here = adjoint[n:], None
        if room is not None:
            here = tuple(tf.gather(limit, t) for limit in room)
            gradient = -tf.clip_by_value(-gradient, *here)
        used = Q_zz[n:] + mu_state * _pulled(f[:, n:], f)
        used = tf.concat([used[:, :n], used[:, n:] + mu_control * identity], axis=1)
        k, K, definite = stage_gains(Q_z[n:], used, here, definite)

        Q_ux, Q_uu = Q_zz[n:, :n], Q_zz[n:, n:]
        bent = _applied(Q_uu, k)  # Q_uu k
        slope, curvature, largest = sums
        sums = (
            slope + tf.reduce_sum(k * Q_z[n:], axis=0),
            curvature + tf.reduce_sum(k * bent, axis=0),
            tf.maximum(largest, tf.reduce_max(tf.abs(gradient), axis=0)),
        )
        V_x = Q_z[:n] + _applied(K, bent + Q_z[n:]) + _applied(Q_ux, k)
        V_xx = _symmetric(Q_zz[:n, :n] + _pulled(K, _times(Q_uu, K) + Q_ux) + _pulled(Q_ux, K))
        arrays = tuple(array.write(t, entry) for array, entry in zip(arrays, (k, K, V_x, V_xx), strict=True))
        return t - 1, V_x, V_xx, adjoint[:n], sums, definite, arrays

    def unfinished(t, V_x, V_xx, costate, sums, definite, arrays):
        return (t >= 0) & tf.reduce_any(definite if wanted is None else definite & wanted)

    zeros = tf.zeros([B], dtype)
    arrays = tuple(tf.TensorArray(dtype, T, element_shape=shape) for shape in ([m, B], [m, n, B], [n, B], [n, n, B]))
    last_x, last_xx = map(_last, model.terminal)
    start = (T - 1, last_x, last_xx, last_x, (zeros, zeros, zeros), tf.ones([B], tf.bool), arrays)
    *_, sums, definite, arrays = tf.while_loop(unfinished, stage, start, maximum_iterations=T)
    k, K, V_x, V_xx = (array.stack() for array in arrays)
    V_x = tf.concat([V_x, last_x[None]], axis=0)
    V_xx = tf.concat([V_xx, _symmetric(last_xx)[None]], axis=0)
    k, K, V_x, V_xx = (tf.transpose(x, [0, x.shape.rank - 1, *range(1, x.shape.rank - 1)]) for x in (k, K, V_x, V_xx))
    slope, curvature, largest = sums
    return Sweep(k, K, V_x, V_xx, slope, curvature, largest, definite)


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

    terminal = Value(zeroed(model.terminal.V_x, 0), zeroed(model.terminal.V_xx, 0))
    dynamics_zz = None if model.dynamics_zz is None else zeroed(model.dynamics_zz, 1)
    return Model(zeroed(model.cost_z, 1), zeroed(model.cost_zz, 1), zeroed(model.jacobian, 1), dynamics_zz, terminal)


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
        mu_state, mu_control = strengths(mu, schedule.on)
        done = sweep(model, controls, limits, mu_state, mu_control, wanted)
        return attempts + 1, done, mu, rate

    T, B, m = controls.shape
    nothing = no_sweep(T, B, m, model.jacobian.shape[-2], controls.dtype)
    return tf.while_loop(unfinished, attempt, (tf.constant(0), nothing, mu, rate))[1:]
