"""Diagonal metrics as whole histories in float64; reference for `bellman_tf/curvature/diagonal.py` and `full.py`.

Each function takes what every step saw and returns the metric M of the last step, as the vector of its diagonal.
"""

import numpy as np


def rmsprop(gradients, rho, epsilon, learning_rate):
    """sqrt(v + epsilon) / learning_rate with `v_T = (1 - rho) sum_t rho^(T - t) g_t^2` (Keras's RMSprop)."""
    last = len(gradients) - 1
    v = sum((1 - rho) * rho ** (last - t) * g**2 for t, g in enumerate(gradients))
    return np.sqrt(v + epsilon) / learning_rate


def adam(gradients, beta_2, epsilon, learning_rate):
    """(sqrt(v) + epsilon) / (learning_rate sqrt(1 - beta_2^T)), Kingma and Ba 2015, Sec. 2, as Keras rearranges it."""
    last = len(gradients) - 1
    v = sum((1 - beta_2) * beta_2 ** (last - t) * g**2 for t, g in enumerate(gradients))
    return (np.sqrt(v) + epsilon) / (learning_rate * np.sqrt(1 - beta_2 ** len(gradients)))


def adam_direction(gradients, beta_1):
    """Bias-corrected first moment."""
    last = len(gradients) - 1
    m = sum((1 - beta_1) * beta_1 ** (last - t) * g for t, g in enumerate(gradients))
    return m / (1 - beta_1 ** len(gradients))


def running_mean(values, decay):
    """Mean whose t-th value enters with weight `1 - min(decay, 1 - 1/t)` (Martens and Grosse 2015, Sec. 5)."""
    weights = np.zeros(len(values))
    for t in range(1, len(values) + 1):
        keep = min(decay, 1 - 1 / t)
        weights[: t - 1] *= keep
        weights[t - 1] = 1 - keep
    return sum(w * value for w, value in zip(weights, values, strict=True))


def fisher(q):
    """Empirical Fisher matrix `(1/B) sum_i q_i q_i'` of per-sample gradients `[B, P]`."""
    return sum(np.outer(row, row) for row in q) / len(q)
