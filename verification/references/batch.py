"""Stacked samples: second-order tensors and costs of the augmented problem (DDP1 Eqs. 17, 18), by blocks."""

import numpy as np
from scipy.linalg import block_diag

from verification.references import dense


def block(i, size):
    """Indices of sample i."""
    return slice(i * size, (i + 1) * size)


def tensors(samples):
    """F_XX [B n', B n, B n], F_uX [B n', m, B n], F_uu [B n', m, m] of per-sample f_xx, f_ux, f_uu."""
    B, (out, m, n) = len(samples), samples[0]["f_ux"].shape
    F_XX, F_uX = np.zeros((B * out, B * n, B * n)), np.zeros((B * out, m, B * n))
    for i, s in enumerate(samples):
        F_XX[block(i, out), block(i, n), block(i, n)] = s["f_xx"]
        F_uX[block(i, out), :, block(i, n)] = s["f_ux"]
    return F_XX, F_uX, np.concatenate([s["f_uu"] for s in samples])


def costs(samples):
    """Derivatives of L(X, u), the mean of the samples' running costs."""
    B = len(samples)
    return {
        "l_x": np.concatenate([s["l_x"] for s in samples]) / B,
        "l_u": sum(s["l_u"] for s in samples) / B,
        "l_xx": block_diag(*[s["l_xx"] for s in samples]) / B,
        "l_ux": np.hstack([s["l_ux"] for s in samples]) / B,
        "l_uu": sum(s["l_uu"] for s in samples) / B,
    }


def augment(samples):
    """The augmented stage, under the keys of `dense.expand`."""
    F_X, F_u = dense.stack([s["f_x"] for s in samples], [s["f_u"] for s in samples])
    F_XX, F_uX, F_uu = tensors(samples)
    return {"f_x": F_X, "f_u": F_u, "f_xx": F_XX, "f_ux": F_uX, "f_uu": F_uu} | costs(samples)
