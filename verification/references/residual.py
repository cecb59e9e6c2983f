"""Identity shortcuts: the joint state (x, x_r) as one big state, and Prop. 2 of GTDDP as printed (its equation 12)."""

import numpy as np

from verification.references import dense


def joint_block(v, W, stages):
    """Recursion over the stages of a block on the stacked state (x, x_r), from the value behind it.

    Stages are (f_x, f_u, l_u, l_uu), first stage first; the last maps (x, x_r) to f(x, u) + x_r.

    Returns:
        Per stage (k, [K Gamma], v, W) on the stacked state, the value before the stage.
    """
    r = len(v)
    steps = []
    for position, (f_x, f_u, l_u, l_uu) in enumerate(reversed(stages)):
        n, m = f_x.shape[1], f_u.shape[1]
        if position == 0:
            F_x, F_u = np.hstack([f_x, np.eye(r)]), f_u
        else:
            F_x = np.block([[f_x, np.zeros((f_x.shape[0], r))], [np.zeros((r, n)), np.eye(r)]])
            F_u = np.vstack([f_u, np.zeros((r, m))])
        gradient, hessian = dense.expand(v, W, F_x, F_u, l_u=l_u, l_uu=l_uu)
        k, K = dense.minimise(gradient, hessian, n + r)
        v, W = dense.follow(gradient, hessian, k, K)
        steps.insert(0, (k, K, v, W))
    return steps


def proposition_2(v, W, stages):
    """Chain value, plus value behind the block, minus the sums over skip gains, plus the cross terms (Eqs. 11, 12).

    Returns:
        Gradient and Hessian before the block.
    """
    chain_v, chain_W, cross = v, W, W
    v_block, W_block = v.copy(), W.copy()
    for f_x, f_u, l_u, l_uu in reversed(stages):
        n = f_x.shape[1]
        gradient, hessian = dense.expand(chain_v, chain_W, f_x, f_u, l_u=l_u, l_uu=l_uu)
        Q_uu = hessian[n:, n:]
        k, K = dense.minimise(gradient, hessian, n)
        skip = -np.linalg.solve(Q_uu, f_u.T @ cross)
        v_block -= skip.T @ Q_uu @ k
        W_block -= skip.T @ Q_uu @ skip
        cross = f_x.T @ cross - K.T @ Q_uu @ skip
        chain_v, chain_W = dense.follow(gradient, hessian, k, K)
    return chain_v + v_block, chain_W + W_block + cross + cross.T
