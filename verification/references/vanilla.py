"""One step of batch DDP on stacked tanh layers, second derivatives included, from `dense` alone.

A network is a list of kernels W `[n, n']` and biases b `[n']`; every layer is tanh(x W + b) but the last, which is
linear. A control is [W row by row; b].
"""

import numpy as np

from verification.references import dense


def layer(x, W, b, linear):
    """One layer at a batch `[B, n]`, stacked sample by sample.

    Returns:
        Output, and the derivatives F_X, F_u, F_XX, F_uX, F_uu of the stacked output in the stacked input and control.
    """
    B, (n, m), P = len(x), W.shape, W.size + b.size
    h = x @ W + b
    y = h if linear else np.tanh(h)
    first = np.ones_like(h) if linear else 1 - y**2
    second = np.zeros_like(h) if linear else -2 * y * first
    h_x, h_u, h_ux = np.zeros((B * m, B * n)), np.zeros((B * m, P)), np.zeros((B * m, P, B * n))
    for i in range(B):
        for j in range(m):
            row = i * m + j
            h_x[row, i * n : (i + 1) * n] = W[:, j]
            for k in range(n):
                h_u[row, k * m + j] = x[i, k]
                h_ux[row, k * m + j, i * n + k] = 1
            h_u[row, W.size + j] = 1
    s, c = first.ravel(), second.ravel()
    F_xx = c[:, None, None] * h_x[:, :, None] * h_x[:, None, :]
    F_uu = c[:, None, None] * h_u[:, :, None] * h_u[:, None, :]
    F_ux = c[:, None, None] * h_u[:, :, None] * h_x[:, None, :] + s[:, None, None] * h_ux
    return y, s[:, None] * h_x, s[:, None] * h_u, F_xx, F_ux, F_uu


def forward(x, weights):
    """States of every cut, `[B, n_t]`, and the layers' derivatives."""
    states, derivatives = [x], []
    for t, (W, b) in enumerate(weights):
        y, *rest = layer(states[-1], W, b, t == len(weights) - 1)
        states.append(y)
        derivatives.append(rest)
    return states, derivatives


def step(x, weights, g, H, rate, *, second_order, value_damping=0.0, alpha=1.0):
    """New weights under u + alpha k + K dX, from gradient g `[B, n]` and Hessian H `[B, n, n]` of each sample's loss.

    Returns:
        The weights, and the decrease that the model predicts for alpha = 1.
    """
    states, derivatives = forward(x, weights)
    v, M = dense.augment(g, H)
    policy, decrease = [], 0.0
    for F_x, F_u, F_xx, F_ux, F_uu in reversed(derivatives):
        tensors = {"f_xx": F_xx, "f_ux": F_ux, "f_uu": F_uu} if second_order else {}
        P, N = F_u.shape[1], F_x.shape[1]
        stiff = M + value_damping * np.eye(len(M))
        gradient, hessian = dense.expand(v, stiff, F_x, F_u, l_uu=np.eye(P) / rate, **tensors)
        if second_order:
            shift = max(0.0, 1 / rate - np.linalg.eigvalsh(hessian[N:, N:])[0])
            hessian[N:, N:] += shift * np.eye(P)
        k, K = dense.minimise(gradient, hessian, N)
        decrease -= gradient[N:] @ k / 2
        v, M = dense.schur_value(gradient, hessian, k, K)
        policy.insert(0, (k, K))
    moved, y = [], x
    for t, ((W, b), (k, K)) in enumerate(zip(weights, policy, strict=True)):
        du = alpha * k + K @ (y - states[t]).ravel()
        W, b = W + du[: W.size].reshape(W.shape), b + du[W.size :]
        moved.append((W, b))
        y = layer(y, W, b, t == len(weights) - 1)[0]
    return moved, decrease
