"""The feedback Nash recursion of players with terminal costs of their own, executed on linearised dynamics.

DGN Eqs. 3, 6, 9, 10 in the paper's letters, the samples of the batch stacked into one state and all matrices in full.
Player n has

    L_n = phi_n(x_T) + sum_t l_{t,n},    V_{T,n} = phi_n,    Q_{t,n} = l_{t,n} + V_{t+1,n} o F_t
    k = Q_theta,theta^{-1} Q_theta,      K = Q_theta,theta^{-1} Q_theta,x
    V_x = Q_x - Q_x,theta k,             V_xx = Q_xx - Q_x,theta K
    theta <- theta - k - K dx            (Eq. 12 with the sign corrected: claim DGN-E12)

in which the others' controls do not appear; dx is what all players have done to the state before.
"""

import numpy as np
from scipy.linalg import block_diag


def gains(cost, controls, jacobians, batch_size):
    """The policies of one player.

    Args:
        cost: of every sample at the end: gradient `[B, n]` and Hessian `[B, n, n]`.
        controls: per stage (F_theta, l_theta,theta, l_theta), or None where the player does not act.
        jacobians: F_x per stage.
        batch_size: samples in the mean.

    Returns:
        Per stage (k, K), or None.
    """
    V_x, V_xx, found = np.concatenate(list(cost[0])) / batch_size, block_diag(*cost[1]) / batch_size, []
    for control, F_x in zip(reversed(controls), reversed(jacobians), strict=True):
        Q_x, Q_xx = F_x.T @ V_x, F_x.T @ V_xx @ F_x
        if control is None:
            V_x, V_xx = Q_x, Q_xx
            found.insert(0, None)
            continue
        F_theta, M, l_theta = control
        Q_theta, Q_theta_x = l_theta + F_theta.T @ V_x, F_theta.T @ V_xx @ F_x
        Q_theta_theta = M + F_theta.T @ V_xx @ F_theta
        solved = np.linalg.solve(Q_theta_theta, np.column_stack([Q_theta, Q_theta_x]))
        k, K = solved[:, 0], solved[:, 1:]
        found.insert(0, (k, K))
        V_x = Q_x - Q_theta_x.T @ k
        # the value of the policy in the model, equal to Q_xx - Q_x,theta K with its rounding errors squared
        V_xx = Q_xx - Q_theta_x.T @ K - K.T @ Q_theta_x + K.T @ Q_theta_theta @ K
        V_xx = (V_xx + V_xx.T) / 2
    return found


def execute(costs, controls, jacobians, batch_size):
    """The step of all players on the linearised dynamics.

    Args:
        costs: per player, as in `gains`.
        controls: per player, as in `gains`.
        jacobians: F_x per stage, of the stacked samples.
        batch_size: samples in the mean.

    Returns:
        Per stage, per player the change of its control, None where it does not act.
    """
    policies = [gains(cost, own, jacobians, batch_size) for cost, own in zip(costs, controls, strict=True)]
    dx, changes = np.zeros(jacobians[0].shape[1]), []
    for t, F_x in enumerate(jacobians):
        changes.append([None if own[t] is None else -(own[t][0] + own[t][1] @ dx) for own in policies])
        moved = [controls[n][t][0] @ du for n, du in enumerate(changes[-1]) if du is not None]
        dx = F_x @ dx + sum(moved)
    return changes
