"""Steps made of k micro-batches, each a game of its own, every game solved in all parameters at once.

The k m samples of an update have the mean loss of all of them. Micro-batch j knows its own samples, the own costs and
the displacement D that the velocity will cause, and nothing of the other samples: it expects

    du_j = argmin  l_u' du + sum_{i in j} (q_i' du / (k m) + s_i (q_i' du)^2 / 2) + (du - D)' M (du - D) / 2

with s_i = beta_i^2 / (k m), and gives its samples the weights w_i = 1 / (k m) + s_i q_i' du_j, the slope of the loss
where it expects the sample to end. The step is that of the gradient `sum_i w_i q_i + l_u` of all. One linear solve of
order P per micro-batch; no Gram matrix appears.
"""

import numpy as np

from verification.references.inner import per_sample


def weights_of(Q, beta_squared, own, M, D, total):
    """Weights of a micro-batch's samples, `[m]`; `total` is k m."""
    s = beta_squared / total
    du = np.linalg.solve(M + Q.T @ (s[:, None] * Q), M @ D - own - Q.sum(axis=0) / total)
    return 1 / total + s * (Q @ du)


def train(weights, batches, penalty, rate, beta, nesterov=False):
    """Steps of the network of `references/inner.py` with M = I / rate.

    Args:
        weights: of the network.
        batches: for every step its micro-batches (x, labels), of one size.
        penalty: L2, of the first kernel.
        rate: learning rate.
        beta: momentum.
        nesterov: Nesterov's momentum: the same with M / (1 + beta) and D = beta^2 v.

    Returns:
        The variables.
    """
    shapes, parts = [part.shape for part in weights], np.cumsum([part.size for part in weights])[:-1]
    velocity = np.zeros(sum(part.size for part in weights))
    for micro_batches in batches:
        own = np.zeros(len(velocity))
        own[: weights[0].size] = 2 * penalty * weights[0].ravel()
        total = sum(len(x) for x, _ in micro_batches)
        prior, D = np.eye(len(own)) / rate, beta * velocity
        if nesterov:
            prior, D = prior / (1 + beta), beta * D
        gradient = own
        for x, labels in micro_batches:
            Q, beta_squared = per_sample(weights, x, labels)
            gradient = gradient + Q.T @ weights_of(Q, beta_squared, own, prior, D, total)
        velocity = beta * velocity - rate * gradient
        du = beta * velocity - rate * gradient if nesterov else velocity
        theta = np.concatenate([part.ravel() for part in weights]) + du
        weights = [part.reshape(shape) for part, shape in zip(np.split(theta, parts), shapes, strict=True)]
    return weights
