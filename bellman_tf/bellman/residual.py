"""Inside an identity shortcut: the state is the pair (x, x_r), and the policy gains a skip term.

x_r is the state where the shortcut opened, at stage t_s; the block ends with x + x_r behind stage t_f. Only three
blocks are added to the recursion of a chain, and none of them changes Q_x, Q_u, Q_xx, Q_ux, Q_uu:

    policy:  du = k + K dx + Gamma dx_r,    Gamma = -Q_uu^{-1} f_u' V'_xr    (`Gains.skip`)
    update:  V_r = V'_r + Q_ur' k,  V_xr = f_x' V'_xr + Q_ux' Gamma,  V_rr = V'_rr + Q_ur' Gamma,  Q_ur = f_u' V'_xr

Open a block at its end (we go backwards) with `enter_block`, take its stages with `backward_block`, and leave it at
its first stage with `leave_block`, where x and x_r are one state again. A shortcut with parameters is a second
player: `players`.
"""

from typing import NamedTuple, TypedDict, Unpack

import tensorflow as tf

from bellman_tf._typing import Cube, Matrix, Square, Vector
from bellman_tf.bellman.dense import Gains, Value, expand, value_update
from bellman_tf.linalg import factor_spd, solve_spd, symmetrize
from bellman_tf.linalg.products import matmul, matvec


class Costs(TypedDict, total=False):
    """Running cost and second-order dynamics of a stage, as `expand` takes them."""

    cost_x: Vector | None
    cost_u: Vector | None
    cost_xx: Square | None
    cost_ux: Matrix | None
    cost_uu: Square | None
    dynamics_xx: Cube | None
    dynamics_ux: Cube | None
    dynamics_uu: Cube | None


class JointValue(NamedTuple):
    """Quadratic value of the joint state (x, x_r); r marks the skip state.

    Attributes:
        V_x: `[..., n]`.
        V_xx: `[..., n, n]`.
        V_r: `[..., n_skip]`.
        V_xr: `[..., n, n_skip]`.
        V_rr: `[..., n_skip, n_skip]`.

    Example:
        >>> joint = enter_block(Value(tf.constant([2.0]), tf.constant([[3.0]])))
        >>> joint.V_r.numpy().tolist(), joint.V_rr.numpy().tolist()
        ([2.0], [[3.0]])
    """

    V_x: tf.Tensor
    V_xx: tf.Tensor
    V_r: tf.Tensor
    V_xr: tf.Tensor
    V_rr: tf.Tensor


def enter_block(value: Value) -> JointValue:
    """Joint value just before the addition x + x_r: all derivatives are those of the sum.

    Args:
        value: `Value` behind the block.

    Returns:
        `JointValue`.

    Source: GTDDP Eqs. 8, 10.
    Checked against: `verification/references/residual.py`.

    Example:
        >>> enter_block(Value(tf.constant([2.0]), tf.constant([[3.0]]))).V_xr.numpy().tolist()
        [[3.0]]
    """
    V_x, V_xx = value
    return JointValue(V_x, V_xx, V_x, V_xx, V_xx)


def backward_block(
    joint: JointValue,
    jacobian_state: Matrix,
    jacobian_control: Matrix,
    *,
    metric: Square | None = None,
    **costs: Unpack[Costs],
) -> tuple[Gains, JointValue]:
    """One stage backwards under an open shortcut.

    Args:
        joint: `JointValue` behind the stage.
        jacobian_state: `[..., n_next, n]`.
        jacobian_control: `[..., n_next, m]`.
        metric: `[..., m, m]`, used in place of Q_uu; `None` is Q_uu itself.
        **costs: the other arguments of `expand`: running cost and second-order dynamics.

    Returns:
        `Gains` with `skip` `[..., m, n_skip]`, and the `JointValue` before the stage.

    Raises:
        ValueError: as `expand`.

    Numerics: NaN when Q_uu or the metric is not positive definite.
    Source: GTDDP Eqs. 9, 10, 27-30.
    Checked against: `verification/references/residual.py`.

    Example:
        >>> one = tf.constant([[1.0]])
        >>> gains, _ = backward_block(enter_block(Value(one[0], one)), one, one, cost_uu=3 * one)
        >>> gains.skip.numpy().tolist()
        [[-0.25]]
    """
    expansion = expand(Value(joint.V_x, joint.V_xx), jacobian_state, jacobian_control, **costs)
    Q_ur = matmul(jacobian_control, joint.V_xr, transpose_a=True)
    n = expansion.Q_x.shape[-1] if expansion.Q_x.shape[-1] is not None else tf.shape(expansion.Q_x)[-1]
    rhs = tf.concat([expansion.Q_u[..., None], expansion.Q_ux, Q_ur], axis=-1)
    solved = -solve_spd(factor_spd(expansion.Q_uu if metric is None else metric), rhs)
    skip = solved[..., 1 + n :]
    gains = Gains(solved[..., 0], solved[..., 1 : 1 + n], skip)
    V_x, V_xx = value_update(expansion, gains)
    V_xr = matmul(jacobian_state, joint.V_xr, transpose_a=True)
    V_xr += matmul(expansion.Q_ux, skip, transpose_a=True)
    V_r = joint.V_r + matvec(Q_ur, gains.open_loop, transpose_a=True)
    V_rr = symmetrize(joint.V_rr + matmul(Q_ur, skip, transpose_a=True))
    return gains, JointValue(V_x, V_xx, V_r, V_xr, V_rr)


def leave_block(joint: JointValue) -> Value:
    """Value before the first stage of the block, where x_r = x.

    V_x = V_x + V_r and V_xx = V_xx + V_xr + V_xr' + V_rr; likewise the gains of that stage act as feedback + skip.
    Unrolled over the block this is Prop. 2: the chain's value, plus that behind the block, minus what the skip gains
    save.

    Args:
        joint: `JointValue` before the first stage, n = n_skip.

    Returns:
        `Value`.

    Source: GTDDP Eqs. 11, 12, 31.
    Checked against: `verification/references/residual.py`.

    Example:
        >>> leave_block(enter_block(Value(tf.constant([2.0]), tf.constant([[3.0]])))).V_xx.numpy().tolist()
        [[12.0]]
    """
    cross = joint.V_xr + tf.linalg.matrix_transpose(joint.V_xr)
    return Value(joint.V_x + joint.V_r, symmetrize(joint.V_xx + cross + joint.V_rr))
