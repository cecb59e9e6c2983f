"""What a cooperative step does to samples that have no part in it, from steps that are really computed without them."""

import numpy as np


def cooperative_step(q, inverse, a, S, own):
    """The step of one control whose cost at the end of the network has slope a and curvature S.

    Args:
        q: columns of every sample, `[n, samples, columns]`.
        inverse: of the metric, `[n, n]`.
        a: `[samples, columns]`.
        S: `[samples columns, samples columns]`.
        own: gradient of the control's own cost, `[n]`.

    Returns:
        The decrease -du, `[n]`.
    """
    Q = q.reshape(len(own), -1)
    w = np.linalg.solve(np.eye(len(S)) + S @ Q.T @ inverse @ Q, a.ravel() - S @ Q.T @ inverse @ own)
    return inverse @ (own + Q @ w)


def held_out_model(q, inverse, a, L, own):
    """What the steps from which each sample was left out do to the sample.

    Args:
        q: `[n, samples, columns]`.
        inverse: `[n, n]`.
        a: `[samples, columns]`.
        L: a factor of S, `[samples columns, k]`.
        own: `[n]`.

    Returns:
        Slope on samples left out in turn, slope on the samples themselves, curvature on those left out.
    """
    samples, columns = a.shape
    S = (L @ L.T).reshape(samples, columns, samples, columns)
    moved, apart = np.empty((samples, columns)), np.empty((samples, columns))
    for i in range(samples):
        others = [j for j in range(samples) if j != i]
        n = (samples - 1) * columns
        S_others = S[others][:, :, others].reshape(n, n)
        apart[i] = q[:, i].T @ cooperative_step(q[:, others], inverse, a[others], S_others, own)
        moved[i] = q[:, i].T @ cooperative_step(q, inverse, a, L @ L.T, own)
    return [np.sum(a * apart), np.sum(a * moved), np.sum((L.T @ apart.ravel()) ** 2)]
