"""One step with momentum as the minimum of the whole quadratic model, in all parameters at once.

With rows q_i of Q the samples' gradients, s_i = beta_i^2 / B their curvature, own costs l_u, the metric M and the
displacement D that the velocity v will cause, plain momentum is the prior centred at D,

    du = argmin  l_u' du + sum_i (q_i' du / B + s_i (q_i' du)^2 / 2) + (du - D)' M (du - D) / 2,    D = beta v

and Nesterov's, du = beta^2 v - (1 + beta) M^{-1} g, the same with M / (1 + beta) and D = beta^2 v. Both are one linear
solve of order P; no sample weights, Gram matrices or linear terms appear.
"""

import numpy as np

from verification.references.inner import per_sample


def step(Q, beta_squared, own, M, velocity, beta, nesterov):
    """Displacement and new velocity.

    Returns:
        du `[P]`, v' `[P]`.
    """
    B = len(Q)
    S = np.diag(beta_squared) / B
    prior, D = (M / (1 + beta), beta**2 * velocity) if nesterov else (M, beta * velocity)
    du = np.linalg.solve(prior + Q.T @ S @ Q, prior @ D - own - Q.T @ np.full(B, 1 / B))
    if not nesterov:
        return du, du
    return du, beta * velocity + (du - D) / (1 + beta)


def train(weights, x, labels, penalty, rate, beta, nesterov, steps):
    """Some steps of the network of `references/inner.py` on one batch, with M = I / rate.

    Returns:
        The variables.
    """
    shapes, parts = [part.shape for part in weights], np.cumsum([part.size for part in weights])[:-1]
    velocity = np.zeros(sum(part.size for part in weights))
    for _ in range(steps):
        Q, beta_squared = per_sample(weights, x, labels)
        own = np.zeros(Q.shape[1])
        own[: weights[0].size] = 2 * penalty * weights[0].ravel()
        du, velocity = step(Q, beta_squared, own, np.eye(len(own)) / rate, velocity, beta, nesterov)
        theta = np.concatenate([part.ravel() for part in weights]) + du
        weights = [part.reshape(shape) for part, shape in zip(np.split(theta, parts), shapes, strict=True)]
    return weights
