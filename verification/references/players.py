"""Games in one stage: the joint minimiser, the papers' two-player Schur form, and their feedback Nash recursion."""

import numpy as np
from scipy.linalg import block_diag

from verification.references import dense


def joint(v, W, f_x, f_us, l_us, l_uus):
    """The joint control (u_1, ..., u_N) as one control.

    Returns:
        A list of (k, K), one per player, and the value before the stage.
    """
    gradient, hessian = dense.expand(v, W, f_x, np.hstack(f_us), l_u=np.concatenate(l_us), l_uu=block_diag(*l_uus))
    k, K = dense.minimise(gradient, hessian, f_x.shape[1])
    cuts = np.cumsum([f_u.shape[1] for f_u in f_us])[:-1]
    return list(zip(np.split(k, cuts), np.split(K, cuts), strict=True)), dense.follow(gradient, hessian, k, K)


def schur_form(v, W, f_x, f_us, l_us, l_uus):
    """First player's cooperative gains for two players, GTDDP Eqs. 14-15 letter by letter.

    Returns:
        The pair k, K.
    """
    (f_u, f_v), (l_u, l_v), (l_uu, l_vv) = f_us, l_us, l_uus
    Q_uu, Q_vv, Q_uv = l_uu + f_u.T @ W @ f_u, l_vv + f_v.T @ W @ f_v, f_u.T @ W @ f_v
    I_v = -np.linalg.inv(Q_vv) @ (l_v + f_v.T @ v)
    L_v = -np.linalg.inv(Q_vv) @ (f_v.T @ W @ f_x)
    Q_uu_coop = Q_uu - Q_uv @ np.linalg.inv(Q_vv) @ Q_uv.T
    k = -np.linalg.inv(Q_uu_coop) @ (l_u + f_u.T @ v + Q_uv @ I_v)
    K = -np.linalg.inv(Q_uu_coop) @ (f_u.T @ W @ f_x + Q_uv @ L_v)
    return k, K


def alone(v, W, f_x, f_u, l_u, l_uu):
    """One player when the others' moves are left out (DGN Eqs. 9, 10); f_u None: it does not act.

    Returns:
        Its gains (k, K) or None, and its value before the stage.
    """
    if f_u is None:
        return None, (f_x.T @ v, f_x.T @ W @ f_x)
    gradient, hessian = dense.expand(v, W, f_x, f_u, l_u=l_u, l_uu=l_uu)
    k, K = dense.minimise(gradient, hessian, f_x.shape[1])
    return (k, K), dense.follow(gradient, hessian, k, K)
