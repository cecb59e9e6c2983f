"""N players in one stage, who move the state together: x' = f(x, u_1, ..., u_N).

Cooperative (group rationality, GR): one value, and each player's policy answers those of its partners. The joint
minimiser, written player by player, has the Schur complements of GTDDP Eqs. 14-15; the tilde of the papers, "after the
partners have answered", is what `cooperative_gains` returns.

Feedback Nash as published (FNE): every player has its own value and its own recursion, and leaves the moves of the
others out of its expansion. It is N single-player recursions; the equilibrium of the quadratic game itself, for players
of one shared cost, is the cooperative solution.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import LowerBlocks, Matrix, Square, Vector
from bellman_tf.bellman.dense import Gains, Value, as_jacobian, expand, value_update
from bellman_tf.bellman.dense import gains as minimise
from bellman_tf.linalg import cooperative_solve, symmetrize
from bellman_tf.linalg.products import matmul, matvec

Entry = TypeVar("Entry")


class JointExpansion(NamedTuple):
    """Quadratic model in the state and in the controls of N players.

    Attributes:
        Q_x: `[..., n]`.
        Q_u: N tensors `[..., m_p]`.
        Q_xx: `[..., n, n]`.
        Q_ux: N tensors `[..., m_p, n]`.
        Q_uu: N rows of N tensors `[..., m_p, m_q]`.

    Example:
        >>> one = tf.constant([[1.0]])
        >>> Q = expand_players(Value(one[0], one), one, [one, 2 * one])
        >>> [[block.numpy().item() for block in row] for row in Q.Q_uu]
        [[1.0, 2.0], [2.0, 4.0]]
    """

    Q_x: tf.Tensor
    Q_u: list[tf.Tensor]
    Q_xx: tf.Tensor
    Q_ux: list[tf.Tensor]
    Q_uu: list[list[tf.Tensor]]


def _one_per_player(argument: str, given: Sequence[Entry] | None, count: int) -> Sequence[Entry | None]:
    if given is None:
        return [None] * count
    _check_count(argument, given, count)
    return given


def _check_count(argument: str, given: Sequence[object], count: int) -> None:
    if len(given) != count:
        raise _checks.error(argument, f"hold one entry per player, {count}", len(given))


def _check_players(jacobian_controls: Sequence[Matrix | None]) -> None:
    if not jacobian_controls:
        raise _checks.error("jacobian_controls", "hold one Jacobian per player", jacobian_controls)


def expand_players(
    value: Value,
    jacobian_state: Matrix,
    jacobian_controls: Sequence[Matrix],
    *,
    cost_u: Sequence[Vector | None] | None = None,
    cost_uu: Sequence[Square | None] | None = None,
) -> JointExpansion:
    """Second-order expansion of sum_p l_p(u_p) + V'(f(x, u_1, ..., u_N)), linear dynamics.

    Args:
        value: `Value` behind the stage.
        jacobian_state: `[..., n_next, n]`.
        jacobian_controls: N tensors `[..., n_next, m_p]`.
        cost_u: N tensors `[..., m_p]` or `None`.
        cost_uu: N tensors `[..., m_p, m_p]` or `None`: each player's metric M_p.

    Returns:
        `JointExpansion`.

    Raises:
        ValueError: if there is no player, the lists differ in length, or a Jacobian does not fit the value.

    Source: GTDDP Eqs. 35-37, DGN Eq. 19.
    Checked against: `verification/references/players.py`.

    Example:
        >>> one = tf.constant([[1.0]])
        >>> expand_players(Value(one[0], one), one, [one, 2 * one]).Q_uu[1][0].numpy().tolist()
        [[2.0]]
    """
    _check_players(jacobian_controls)
    cost_u = _one_per_player("cost_u", cost_u, len(jacobian_controls))
    cost_uu = _one_per_player("cost_uu", cost_uu, len(jacobian_controls))
    alone, Q_uu = [], []
    for p, f_u in enumerate(jacobian_controls):
        alone.append(expand(value, jacobian_state, f_u, cost_u=cost_u[p], cost_uu=cost_uu[p]))
        V_xx_f_u = matmul(value.V_xx, f_u)
        Q_uu.append([matmul(V_xx_f_u, f_v, transpose_a=True) for f_v in jacobian_controls])
        Q_uu[p][p] = alone[p].Q_uu
    return JointExpansion(alone[0].Q_x, [Q.Q_u for Q in alone], alone[0].Q_xx, [Q.Q_ux for Q in alone], Q_uu)


def cooperative_gains(expansion: JointExpansion, metric: LowerBlocks | None = None) -> list[Gains]:
    """Joint minimiser over all players' policies.

    For two players u, v: k_u = -Q~_uu^{-1} (Q_u + Q_uv I_v), K_u = -Q~_uu^{-1} (Q_ux + Q_uv L_v) with
    Q~_uu = Q_uu - Q_uv Q_vv^{-1} Q_vu, I_v = -Q_vv^{-1} Q_v and L_v = -Q_vv^{-1} Q_vx.

    Args:
        expansion: `JointExpansion`; the joint Q_uu positive definite.
        metric: N rows of N blocks, used in place of Q_uu; `None` is Q_uu itself.

    Returns:
        N `Gains`, feedback on the shared state.

    Raises:
        ValueError: if the blocks do not fit the players.

    Numerics: NaN when the joint matrix is not positive definite. Backward stable.
    Source: GTDDP Eqs. 14, 15, 38-40; DGN Eqs. 11, 21, 22 (with damped blocks).
    Checked against: `verification/references/players.py`.

    Example:
        >>> one = tf.constant([[1.0]])
        >>> Q = expand_players(Value(one[0], one), one, [one, one], cost_uu=[one, one])
        >>> [round(float(gain.open_loop[0]), 6) for gain in cooperative_gains(Q)]
        [-0.333333, -0.333333]
    """
    blocks = expansion.Q_uu if metric is None else metric
    pairs = zip(expansion.Q_u, expansion.Q_ux, strict=True)
    solved = cooperative_solve(blocks, [tf.concat([Q_u[..., None], Q_ux], axis=-1) for Q_u, Q_ux in pairs])
    return [Gains(-x[..., 0], -x[..., 1:]) for x in solved]


def cooperative_update(expansion: JointExpansion, gains: Sequence[Gains]) -> Value:
    """Value before the stage: V_x = Q_x + sum_p Q_px' k_p and V_xx = Q_xx + sum_p Q_px' K_p.

    Args:
        expansion: `JointExpansion`.
        gains: N `Gains` from `cooperative_gains`.

    Returns:
        `Value`.

    Raises:
        ValueError: if there is not one `Gains` per player.

    Source: DGN Eq. 24, whose two halves are equal for these gains.
    Checked against: `verification/references/players.py`.

    Example:
        >>> one = tf.constant([[1.0]])
        >>> Q = expand_players(Value(one[0], one), one, [one, one], cost_uu=[one, one])
        >>> round(float(cooperative_update(Q, cooperative_gains(Q)).V_x[0]), 6)
        0.333333
    """
    _check_count("gains", gains, len(expansion.Q_u))
    V_x, V_xx = expansion.Q_x, expansion.Q_xx
    for Q_ux, (k, K, _) in zip(expansion.Q_ux, gains, strict=True):
        V_x += matvec(Q_ux, k, transpose_a=True)
        V_xx += matmul(Q_ux, K, transpose_a=True)
    return Value(V_x, symmetrize(V_xx))


def feedback_nash(
    values: Sequence[Value],
    jacobian_state: Matrix,
    jacobian_controls: Sequence[Matrix | None],
    *,
    cost_u: Sequence[Vector | None] | None = None,
    cost_uu: Sequence[Square | None] | None = None,
    metrics: Sequence[Square | None] | None = None,
) -> tuple[list[Gains | None], list[Value]]:
    """One stage of the papers' feedback Nash recursion: each player by itself.

    Args:
        values: N `Value` behind the stage, one per player.
        jacobian_state: `[..., n_next, n]`.
        jacobian_controls: N entries: `[..., n_next, m_p]`, or `None` for a player who does not act here.
        cost_u: N tensors `[..., m_p]` or `None`.
        cost_uu: N tensors `[..., m_p, m_p]` or `None`.
        metrics: N tensors `[..., m_p, m_p]` or `None`, used in place of that player's Q_uu.

    Returns:
        N `Gains` (`None` for a player who does not act) and N `Value` before the stage.

    Raises:
        ValueError: if there is no player, the lists differ in length, or a Jacobian does not fit a value.

    Numerics: as `gains`. It is not the Nash equilibrium of the quadratic game: the others' reactions are left out.
    Source: DGN Eqs. 9, 10.
    Checked against: `verification/references/players.py`.

    Example:
        >>> one = tf.constant([[1.0]])
        >>> value = Value(one[0], one)
        >>> gains, _ = feedback_nash([value, value], one, [one, None], cost_uu=[3 * one, None])
        >>> gains[0].open_loop.numpy().tolist(), gains[1]
        ([-0.25], None)
    """
    _check_players(jacobian_controls)
    count = len(jacobian_controls)
    _check_count("values", values, count)
    cost_u, cost_uu = _one_per_player("cost_u", cost_u, count), _one_per_player("cost_uu", cost_uu, count)
    metrics = _one_per_player("metrics", metrics, count)
    policies, before = [], []
    for p, (value, f_u) in enumerate(zip(values, jacobian_controls, strict=True)):
        if f_u is None:
            policies.append(None)
            before.append(_propagate(value, jacobian_state))
            continue
        expansion = expand(value, jacobian_state, f_u, cost_u=cost_u[p], cost_uu=cost_uu[p])
        policies.append(minimise(expansion, metrics[p]))
        before.append(value_update(expansion, policies[p]))
    return policies, before


def _propagate(value: Value, f_x: Matrix) -> Value:  # the value where nobody acts
    f_x = as_jacobian("jacobian_state", f_x, value)
    V_xx = matmul(f_x, matmul(value.V_xx, f_x), transpose_a=True)
    return Value(matvec(f_x, value.V_x, transpose_a=True), symmetrize(V_xx))
