"""The recursion in sample coordinates, letter by letter, and its closed form.

V_X = C a, V_XX = C S C'. With Q = F_u' C: Q_u = l_u + Q a, Q_uX = Q S C_t', Q_uu = M + Q S Q', and by Woodbury and
push-through Q_uu^{-1} Q S = M^{-1} Q (I + S G)^{-1} S with G = Q' M^{-1} Q, so

    a <- a + S Q' k = a - S Q' Q_uu^{-1} (l_u + Q a) = R (a - S l),    S <- S - S Q' Q_uu^{-1} Q S = R S.
"""

import numpy as np
from scipy.linalg import block_diag


def start(batch_size, roots):
    """Terminal pair for columns [g | Z]: `roots` counts the columns of Z, or holds [B] values beta^2 (collinear).

    Returns:
        The pair a, S.
    """
    if np.ndim(roots):
        return np.full(batch_size, 1 / batch_size), np.diag(roots) / batch_size
    one = np.eye(1 + roots)[0]
    free = np.diag(1 - one)
    return np.tile(one, batch_size) / batch_size, block_diag(*[free] * batch_size) / batch_size


def recursion(a, S, grams, linears):
    """Stage by stage, by R = (I + S G)^{-1}.

    Returns:
        Per stage, first stage first: (a, S) before the stage.
    """
    steps = []
    for G, l in zip(reversed(grams), reversed(linears), strict=True):
        R = np.linalg.inv(np.eye(len(a)) + S @ G)
        a, S = R @ (a - S @ l), R @ S
        steps.insert(0, (a, S))
    return steps


def closed_form(a, S, grams, linears):
    """The same from the terminal pair and sums, one solve per stage.

    With X_t = I + S_T (G_t + ... + G_{T-1}): X_t = X_{t+1} (I + S_{t+1} G_t) since S_{t+1} = X_{t+1}^{-1} S_T.

    Returns:
        Per stage, first stage first: (a, S) before the stage.
    """
    steps = []
    for t in range(len(grams)):
        X = np.eye(len(a)) + S @ sum(grams[t:])
        steps.append((np.linalg.solve(X, a - S @ sum(linears[t:])), np.linalg.solve(X, S)))
    return steps
