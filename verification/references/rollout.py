"""A step of the game executed on its linearised dynamics, by the batch-augmented recursion with all matrices in full.

With the samples stacked, V_X = [g_i / B] and V_XX = blockdiag(H_i) / B at the end. A stage has the Jacobians F_X and,
per player, F_u, the metric M and the gradient l_u of its own cost:

    Q_u = l_u + F_u' V_X,    Q_uX = F_u' V_XX F_X,    Q_uu = M + F_u' V_XX F_u,    k = -Q_uu^{-1} Q_u,
    K = -Q_uu^{-1} Q_uX,     V_X <- F_X' V_X + Q_uX' k,     V_XX <- F_X' V_XX F_X + Q_uX' K

for all players of the stage as one (joint), or for each of them with a value of its own in which the others do not
move. The pass that executes the policy is dX_{t+1} = F_X dX_t + sum_p F_u,p du_p with du = k + K dX, or du = k without
feedback.
"""

from typing import NamedTuple

import numpy as np
from scipy.linalg import block_diag


class Executed(NamedTuple):
    """A step.

    Attributes:
        moves: per stage, per player, du `[m]`.
        deviations: dX_0 ... dX_T of the stacked samples, `[B n_t]`.
        decrease: of the quadratic model.
    """

    moves: list[list[np.ndarray]]
    deviations: list[np.ndarray]
    decrease: float


def end(gradient, hessian, batch_size):
    """V_X `[B n]` and V_XX `[B n, B n]` of the mean loss over `batch_size` samples, of those given.

    Returns:
        The pair.
    """
    return np.concatenate(list(gradient)) / batch_size, block_diag(*hessian) / batch_size


def gains(V, V_X, F_X, F_u, M, l_u):
    """One control against one value (V_X, V) behind the stage.

    Returns:
        k, K, and the value before the stage as the pair V_X, V_XX.
    """
    Q_u, Q_uX, Q_uu = l_u + F_u.T @ V_X, F_u.T @ V @ F_X, M + F_u.T @ V @ F_u
    solved = np.linalg.solve(Q_uu, np.column_stack([Q_u, Q_uX]))
    k, K = -solved[:, 0], -solved[:, 1:]
    # the value of the policy in the model itself: the Schur form above with its rounding errors squared
    V_XX = F_X.T @ V @ F_X + Q_uX.T @ K + K.T @ Q_uX + K.T @ Q_uu @ K
    return k, K, F_X.T @ V_X + Q_uX.T @ k + K.T @ (Q_u + Q_uu @ k), (V_XX + V_XX.T) / 2


def policies(gradient, hessian, stages, batch_size, *, joint):
    """The gains of every player at every stage.

    Args:
        gradient: `[B, n]`, of every sample's loss.
        hessian: `[B, n, n]`.
        stages: pairs (F_X, players), players a list of (F_u, M, l_u).
        batch_size: samples in the mean.
        joint: all players of a stage as one, or each with a value of its own.

    Returns:
        Per stage, per player: (k, K).
    """
    found = [[None] * len(players) for _, players in stages]
    for agent in [None] if joint else range(max(len(players) for _, players in stages)):
        V_X, V = end(gradient, hessian, batch_size)
        for t in reversed(range(len(stages))):
            F_X, players = stages[t]
            acting = [p for p in range(len(players)) if joint or p == agent]
            F_u, M, l_u = together(F_X, [players[p] for p in acting])
            k, K, V_X, V = gains(V, V_X, F_X, F_u, M, l_u)
            cuts = np.cumsum([players[p][0].shape[1] for p in acting])[:-1]
            for p, k_p, K_p in zip(acting, np.split(k, cuts), np.split(K, cuts), strict=False):
                found[t][p] = k_p, K_p
    return found


def together(F_X, players):
    """Players as one: F_u side by side, M block-diagonal, l_u stacked; without players a control of size zero.

    Returns:
        F_u, M, l_u.
    """
    if not players:
        return np.zeros((len(F_X), 0)), np.zeros((0, 0)), np.zeros(0)
    F_u, M, l_u = zip(*players, strict=True)
    return np.hstack(F_u), block_diag(*M), np.concatenate(l_u)


def execute(gradient, hessian, stages, *, joint, feedback, batch_size=None):
    """The step on the linearised dynamics.

    Args:
        gradient: `[B, n]`.
        hessian: `[B, n, n]`.
        stages: pairs (F_X, players) as in `policies`.
        joint: cooperative players, or each with a value of its own (FNE).
        feedback: du = k + K dX, or du = k.
        batch_size: samples in the mean; `None` is the number of those given.

    Returns:
        `Executed`.
    """
    B = len(gradient) if batch_size is None else batch_size
    dX, moves, deviations = np.zeros(stages[0][0].shape[1]), [], [np.zeros(stages[0][0].shape[1])]
    for (F_X, players), found in zip(stages, policies(gradient, hessian, stages, B, joint=joint), strict=True):
        moves.append([k + K @ dX if feedback else k for k, K in found])
        dX = F_X @ dX + sum(F_u @ du for (F_u, _, _), du in zip(players, moves[-1], strict=True))
        deviations.append(dX)
    return Executed(moves, deviations, decrease(gradient, hessian, stages, moves, B))


def decrease(gradient, hessian, stages, moves, batch_size):
    """Decrease of sum (l_u' du + du' M du / 2) + V_X' dX_T + dX_T' V_XX dX_T / 2 under given moves.

    Returns:
        The number.
    """
    V_X, V = end(gradient, hessian, batch_size)
    dX, cost = np.zeros(stages[0][0].shape[1]), 0.0
    for (F_X, players), chosen in zip(stages, moves, strict=True):
        dX = F_X @ dX + sum(F_u @ du for (F_u, _, _), du in zip(players, chosen, strict=True))
        cost += sum(l_u @ du + du @ M @ du / 2 for (_, M, l_u), du in zip(players, chosen, strict=True))
    return -(cost + V_X @ dX + dX @ V @ dX / 2)
