"""E-MSA on stacked layers z W + b, tanh or linear, in float64; reference for `bellman_tf/baselines/emsa.py`.

A network is a list of (kernel `[n, n']`, bias `[n']`, whether linear). States z_t and co-states p_t are `[B, n_t]`,
with p_T the gradient of each sample's own loss. The mean over the samples of

    p_{t+1} . f(z_t) + rho/2 |f(z_t) - z_{t+1}|^2 + rho/2 |f_z' p_{t+1} - p_t|^2

is what layer t minimises; the last term is left out at t = 0. Why: with H = p . f,

    J(phi) - J(theta) = sum_t [H_t(phi) - H_t(theta)] + (second order in dz_t, dp_t and in dz_t . d(H_z)_t),

and dz_t, dp_t are at most sums of the gaps |f(phi) - f(theta)| behind and |H_z(phi) - H_z(theta)| in front. The gaps
enter squared (Li, Chen, Tai, E 2018, Lemma 2), and (H_z)_0 only beside dz_0 = 0.
"""

import numpy as np


def layer(z, W, b, linear):
    """f(z) = act(z W + b) and the slope of act, `[B, n']` each."""
    h = z @ W + b
    return (h, np.ones_like(h)) if linear else (np.tanh(h), 1 - np.tanh(h) ** 2)


def trajectory(x, network, terminal):
    """States z_0 ... z_T and co-states p_0 ... p_T.

    Args:
        x: `[B, n_0]`.
        network: the layers.
        terminal: gradient of each sample's loss in its outputs, from the outputs.

    Returns:
        Two lists of `[B, n_t]`.
    """
    states, slopes = [x], []
    for W, b, linear in network:
        z, slope = layer(states[-1], W, b, linear)
        states.append(z)
        slopes.append(slope)
    costates = [terminal(states[-1])]
    for (W, _, _), slope in zip(reversed(network), reversed(slopes), strict=True):
        costates.insert(0, (costates[0] * slope) @ W.T)
    return states, costates


def augmented(t, states, costates, W, b, linear, rho):
    """The augmented Hamiltonian of layer t at other weights; complex arguments pass."""
    f, slope = layer(states[t], W, b, linear)
    behind, gap = costates[t + 1], f - states[t + 1]
    total = np.sum(behind * f) + rho / 2 * np.sum(gap * gap)
    if t > 0:
        miss = (behind * slope) @ W.T - costates[t]
        total = total + rho / 2 * np.sum(miss * miss)
    return total / len(f)


def linear_minimum(t, states, costates, rho):
    """Kernel and bias that minimise it for a linear layer: the normal equations in [W; b], written out.

    In W, b the function is quadratic: with Z = [z_t, 1] and P = p_{t+1} the derivative vanishes where

        rho Z' Z [W; b] + rho [W P' P; 0] = rho Z' z_{t+1} - Z' P + rho [p_t' P; 0]

    Args:
        t: number of the layer.
        states: z of every cut.
        costates: p of every cut.
        rho: weight of the squares.

    Returns:
        Kernel and bias.
    """
    z, P, ahead = states[t], costates[t + 1], states[t + 1]
    Z = np.hstack([z, np.ones((len(z), 1))])
    n, m = Z.shape[1], P.shape[1]
    left = rho * np.kron(Z.T @ Z, np.eye(m))
    right = rho * Z.T @ ahead - Z.T @ P
    if t > 0:
        kernel = np.diag([1.0] * (n - 1) + [0.0])
        left += rho * np.kron(kernel, P.T @ P)
        right[:-1] += rho * costates[t].T @ P
    solved = np.linalg.lstsq(left, right.ravel(), rcond=None)[0].reshape(n, m)
    return solved[:-1], solved[-1]
