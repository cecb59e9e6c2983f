"""One stage of the Bellman recursion with every matrix written out, and the same for a stacked batch.

Gains carry their minus signs: the new control is `control + open_loop + feedback @ (state - nominal_state)`.
Nothing here is cheap: a batch of B states of size n makes matrices of (B n)^2 entries. The recursion that training
runs is `sample_space`, and this file is what it must agree with.
"""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Cube, Matrix, Square, Vector
from bellman_tf.linalg import factor_spd, solve_spd, symmetrize
from bellman_tf.linalg.products import matmul, matvec


class Value(NamedTuple):
    """Quadratic model of the value function, V(x + dx) - V(x) ~ V_x' dx + 1/2 dx' V_xx dx.

    Attributes:
        V_x: `[..., n]`.
        V_xx: `[..., n, n]`, symmetric.

    Example:
        >>> value, dx = Value(tf.constant([1.0]), tf.constant([[4.0]])), tf.constant([0.5])
        >>> float(tf.tensordot(value.V_x, dx, 1) + tf.tensordot(dx, tf.linalg.matvec(value.V_xx, dx), 1) / 2)
        1.0
    """

    V_x: tf.Tensor
    V_xx: tf.Tensor


class Expansion(NamedTuple):
    """Quadratic model of cost plus value behind a stage, in state and control.

    Attributes:
        Q_x: `[..., n]`.
        Q_u: `[..., m]`.
        Q_xx: `[..., n, n]`.
        Q_ux: `[..., m, n]`.
        Q_uu: `[..., m, m]`.

    Example:
        >>> one = tf.constant([[1.0]])
        >>> Q = expand(Value(one[0], one), 2 * one, 3 * one)  # of V'(2 x + 3 u)
        >>> [part.numpy().item() for part in (Q.Q_xx, Q.Q_ux, Q.Q_uu)]
        [4.0, 6.0, 9.0]
    """

    Q_x: tf.Tensor
    Q_u: tf.Tensor
    Q_xx: tf.Tensor
    Q_ux: tf.Tensor
    Q_uu: tf.Tensor


class Gains(NamedTuple):
    """Affine policy du = open_loop + feedback dx + skip dx_skip.

    Attributes:
        open_loop: `[..., m]`, k.
        feedback: `[..., m, n]`, K.
        skip: `[..., m, n_skip]`, or `None` where no shortcut is open.

    Example:
        >>> policy = Gains(open_loop=tf.constant([-0.5]), feedback=tf.constant([[-2.0]]))
        >>> (policy.open_loop + tf.linalg.matvec(policy.feedback, tf.constant([0.25]))).numpy().tolist()  # dx = 0.25
        [-1.0]
    """

    open_loop: tf.Tensor
    feedback: tf.Tensor
    skip: tf.Tensor | None = None


class StageDerivatives(NamedTuple):
    """Derivatives of one stage at the nominal trajectory: the arguments of `expand` and the metric of `gains`.

    Attributes:
        jacobian_state: `[..., n_next, n]`.
        jacobian_control: `[..., n_next, m]`.
        cost_x: `[..., n]` or `None`.
        cost_u: `[..., m]` or `None`.
        cost_xx: `[..., n, n]` or `None`.
        cost_ux: `[..., m, n]` or `None`.
        cost_uu: `[..., m, m]` or `None`.
        dynamics_xx: `[..., n_next, n, n]` or `None`.
        dynamics_ux: `[..., n_next, m, n]` or `None`.
        dynamics_uu: `[..., n_next, m, m]` or `None`.
        metric: `[..., m, m]` or `None`, what stands in place of Q_uu.

    Example:
        >>> one = tf.constant([[1.0]])
        >>> stage = StageDerivatives(one, one, cost_uu=3 * one)  # x' = x + u, cost 3/2 u^2
        >>> backward_dense(Value(one[0], one), [stage])[0][0].feedback.numpy().tolist()
        [[-0.25]]
    """

    jacobian_state: tf.Tensor
    jacobian_control: tf.Tensor
    cost_x: tf.Tensor | None = None
    cost_u: tf.Tensor | None = None
    cost_xx: tf.Tensor | None = None
    cost_ux: tf.Tensor | None = None
    cost_uu: tf.Tensor | None = None
    dynamics_xx: tf.Tensor | None = None
    dynamics_ux: tf.Tensor | None = None
    dynamics_uu: tf.Tensor | None = None
    metric: tf.Tensor | None = None


def as_jacobian(argument: str, jacobian: Matrix, value: Value) -> Matrix:
    """A Jacobian as a tensor that ends in the state of the value behind the stage.

    Args:
        argument: name of the Jacobian.
        jacobian: `[..., n_next, any]`.
        value: `Value` behind the stage.

    Returns:
        The tensor.

    Raises:
        ValueError: if the last but one axis is not that of `value.V_x`.
    """
    jacobian = tf.convert_to_tensor(jacobian)
    if jacobian.shape.rank < 2 or not jacobian.shape[-2:-1].is_compatible_with(value.V_x.shape[-1:]):
        rule = "end in [n_next, n] with n_next the size of `value.V_x`"
        received = {f"{argument}.shape": jacobian.shape, "value.V_x.shape": value.V_x.shape}
        raise _checks.misfit(f"{argument}.shape", rule, received)
    return jacobian


def _plus(term: tf.Tensor, *others: tf.Tensor | None) -> tf.Tensor:
    for other in others:
        if other is not None:
            term += other
    return term


def _contract(
    V_x: Vector, tensor: Cube | None
) -> Matrix | None:  # V_x . f_xx = sum_i V_x_i (f_xx)_i, or nothing for a linear stage
    return None if tensor is None else tf.einsum("...i,...ijk->...jk", V_x, tensor)


def expand(
    value: Value,
    jacobian_state: Matrix,
    jacobian_control: Matrix,
    *,
    cost_x: Vector | None = None,
    cost_u: Vector | None = None,
    cost_xx: Square | None = None,
    cost_ux: Matrix | None = None,
    cost_uu: Square | None = None,
    dynamics_xx: Cube | None = None,
    dynamics_ux: Cube | None = None,
    dynamics_uu: Cube | None = None,
) -> Expansion:
    """Second-order expansion of l(x, u) + V'(f(x, u)).

    With V' behind the stage: Q_x = l_x + f_x' V'_x, Q_u = l_u + f_u' V'_x, Q_xx = l_xx + f_x' V'_xx f_x + V'_x . f_xx,
    Q_ux = l_ux + f_u' V'_xx f_x + V'_x . f_ux, Q_uu = l_uu + f_u' V'_xx f_u + V'_x . f_uu. What is `None` is zero;
    leaving out the three tensors of the dynamics is the Gauss-Newton model.

    Args:
        value: `Value` behind the stage, V_x `[..., n_next]`.
        jacobian_state: `[..., n_next, n]`.
        jacobian_control: `[..., n_next, m]`.
        cost_x: `[..., n]`.
        cost_u: `[..., m]`.
        cost_xx: `[..., n, n]`.
        cost_ux: `[..., m, n]`.
        cost_uu: `[..., m, m]`.
        dynamics_xx: `[..., n_next, n, n]`.
        dynamics_ux: `[..., n_next, m, n]`.
        dynamics_uu: `[..., n_next, m, m]`.

    Returns:
        `Expansion`.

    Raises:
        ValueError: if a Jacobian does not end in the state behind the stage.

    Source: DDP1 Eq. 6, GTDDP Eq. 25.
    Checked against: `verification/references/dense.py`.

    Example:
        >>> one = tf.constant([[1.0]])
        >>> expand(Value(one[0], one), 2 * one, 3 * one).Q_ux.numpy().tolist()
        [[6.0]]
    """
    V_x, V_xx = value
    f_x = as_jacobian("jacobian_state", jacobian_state, value)
    f_u = as_jacobian("jacobian_control", jacobian_control, value)
    V_xx_f_x = matmul(V_xx, f_x)
    Q_xx = matmul(f_x, V_xx_f_x, transpose_a=True)
    Q_ux = matmul(f_u, V_xx_f_x, transpose_a=True)
    Q_uu = matmul(f_u, matmul(V_xx, f_u), transpose_a=True)
    return Expansion(
        Q_x=_plus(matvec(f_x, V_x, transpose_a=True), cost_x),
        Q_u=_plus(matvec(f_u, V_x, transpose_a=True), cost_u),
        Q_xx=symmetrize(_plus(Q_xx, cost_xx, _contract(V_x, dynamics_xx))),
        Q_ux=_plus(Q_ux, cost_ux, _contract(V_x, dynamics_ux)),
        Q_uu=symmetrize(_plus(Q_uu, cost_uu, _contract(V_x, dynamics_uu))),
    )


def gains(expansion: Expansion, metric: Square | None = None) -> Gains:
    """Minimiser of the expansion over the control, k = -Q_uu^{-1} Q_u and K = -Q_uu^{-1} Q_ux.

    Args:
        expansion: `Expansion`, with Q_uu positive definite unless a metric is given.
        metric: `[..., m, m]`, symmetric positive definite, used in place of Q_uu; `None` is Q_uu itself.

    Returns:
        `Gains`, from one Cholesky factorisation.

    Numerics: NaN when the matrix is not positive definite. Relative error grows like cond * eps.
    Source: GTDDP Eq. 4, DDP1 Eq. 7 (corrected).
    Checked against: `verification/references/dense.py`.

    Example:
        >>> one = tf.constant([[1.0]])
        >>> gains(Expansion(one[0], one[0], one, one, 4 * one)).feedback.numpy().tolist()
        [[-0.25]]
    """
    Q_uu = expansion.Q_uu if metric is None else metric
    rhs = tf.concat([expansion.Q_u[..., None], expansion.Q_ux], axis=-1)
    solved = -solve_spd(factor_spd(Q_uu), rhs)  # [..., m, 1 + n]
    return Gains(solved[..., 0], solved[..., 1:])


def value_update(expansion: Expansion, gains: Gains, *, policy: bool = False) -> Value:
    """Value before the stage.

    The Schur form V_x = Q_x + Q_ux' k, V_xx = Q_xx + Q_ux' K is what the papers run; it is the value of the policy
    only if the gains came from Q_uu itself. `policy=True` is the value of the policy for any gains (the Joseph form),

        V_x = Q_x + Q_ux' k + K' (Q_u + Q_uu k),    V_xx = Q_xx + Q_ux' K + K' Q_ux + K' Q_uu K,

    positive semi-definite whenever the expansion is; the two agree for k = -Q_uu^{-1} Q_u, K = -Q_uu^{-1} Q_ux.

    Args:
        expansion: `Expansion`.
        gains: `Gains`.
        policy: choose the Joseph form.

    Returns:
        `Value`.

    Raises:
        ValueError: if `policy` is not a bool.

    Numerics: the Schur form can become indefinite when a metric smaller than Q_uu made the gains; the Joseph form
        stays semi-definite, and grows without bound with depth when the metric is below Q_uu / 2.
    Source: GTDDP Eq. 6; claims OURS-5.
    Checked against: `verification/references/dense.py`.

    Example:
        >>> one = tf.constant([[1.0]])
        >>> Q = Expansion(one[0], one[0], one, one, 4 * one)
        >>> value_update(Q, gains(Q)).V_xx.numpy().tolist()
        [[0.75]]
    """
    _checks.check_flag("policy", policy)
    k, K = gains.open_loop, gains.feedback
    Q_ux_K = matmul(expansion.Q_ux, K, transpose_a=True)
    V_x = expansion.Q_x + matvec(expansion.Q_ux, k, transpose_a=True)
    if not policy:
        return Value(V_x, symmetrize(expansion.Q_xx + Q_ux_K))
    residual = expansion.Q_u + matvec(expansion.Q_uu, k)
    V_x += matvec(K, residual, transpose_a=True)
    V_xx = expansion.Q_xx + 2 * Q_ux_K + matmul(K, matmul(expansion.Q_uu, K), transpose_a=True)
    return Value(V_x, symmetrize(V_xx))


def backward_dense(
    terminal: Value, stages: Sequence[StageDerivatives], *, policy: bool = False
) -> tuple[list[Gains], list[Value]]:
    """The whole backward pass with everything kept.

    Args:
        terminal: `Value` behind the last stage.
        stages: `StageDerivatives` per stage, first stage first; one with a `metric` uses it in place of its Q_uu.
        policy: as in `value_update`.

    Returns:
        A list of T `Gains`, and a list of T + 1 `Value`: entry t before stage t, the last one `terminal`.

    Raises:
        ValueError: if `stages` is empty, or as `expand`.

    Source: GTDDP Alg. 1, DDP1 Eqs. 29-32.
    Checked against: `verification/references/dense.py`.

    Example:
        >>> one = tf.constant([[1.0]])
        >>> policy, values = backward_dense(Value(one[0], one), [StageDerivatives(one, one, cost_uu=3 * one)])
        >>> values[0].V_xx.numpy().tolist()
        [[0.75]]
    """
    if not stages:
        raise _checks.error("stages", "hold at least one stage", stages)
    policies, values = [], [terminal]
    for stage in reversed(stages):
        derivatives = stage._asdict()
        metric = derivatives.pop("metric")
        expansion = expand(values[0], **derivatives)
        policies.insert(0, gains(expansion, metric))
        values.insert(0, value_update(expansion, policies[0], policy=policy))
    return policies, values
