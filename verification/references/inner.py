"""Steps of a two-layer network whose variables another optimizer moves with the gradient of the re-weighted loss.

With per-sample gradients q_i of phi_i as rows of Q, the metric of the optimizer's standing variables as the diagonal D
of M^{-1}, own costs with gradient l_u, the slope of the loss a_i = 1/B and its curvature s_i = beta_i^2 / B along the
gradient,

    Gamma = Q D Q',    lambda = Q D l_u,    w = (I + S Gamma)^{-1} (a - S lambda),    g = Q' w + l_u

and the optimizer's own rule makes du of g. All variables are one vector; `parts` says where each of them ends.
"""

import numpy as np

# Numbers that every precision holds exactly: Keras rounds some of its constants to float32 on the way.
BETA_1, BETA_2, RHO, EPSILON = 0.875, 1 - 2.0**-6, 0.875, 2.0**-20


def per_sample(weights, x, labels):
    """Softmax cross-entropy of tanh(x W1 + b1) W2 + b2, sample by sample.

    Returns:
        Q `[B, P]` in the order W1, b1, W2, b2, and beta^2 `[B]`, the loss's curvature along its gradient.
    """
    W1, b1, W2, b2 = weights
    h = np.tanh(x @ W1 + b1)
    z = h @ W2 + b2
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    g = p - np.eye(z.shape[1])[labels]
    c = g @ W2.T * (1 - h**2)
    rows = [
        np.concatenate([np.outer(x[i], c[i]).ravel(), c[i], np.outer(h[i], g[i]).ravel(), g[i]]) for i in range(len(x))
    ]
    curvature = np.sum(p * g**2, axis=1) - np.sum(p * g, axis=1) ** 2
    return np.stack(rows), curvature / np.sum(g**2, axis=1) ** 2


def reweighted(Q, beta_squared, D, own):
    """The gradient that the optimizer is handed.

    Returns:
        w `[B]` and g `[P]`.
    """
    B = len(Q)
    S = np.diag(beta_squared) / B
    Gamma, lam = Q @ (D[:, None] * Q.T), Q @ (D * own)
    w = np.linalg.solve(np.eye(B) + S @ Gamma, np.full(B, 1 / B) - S @ lam)
    return w, Q.T @ w + own


class Rule:
    """An optimizer on one vector.

    Attributes:
        parts: where every variable ends.
    """

    def __init__(self, size, parts, rate):
        self.parts, self.rate, self.t = parts, rate, 0
        self.m, self.v, self.scales = np.zeros(size), np.zeros(size), np.zeros(size)

    def metric(self):
        """D `[P]` before the step; 0 where nothing is known."""
        raise NotImplementedError

    def step(self, g):
        """Displacement du `[P]`."""
        raise NotImplementedError

    def _known(self, D):
        return np.where(self.v > 0, D, 0.0)


class SGD(Rule):
    """du = beta du - rate g."""

    def __init__(self, size, parts, rate, momentum=0.0, gain=False):
        super().__init__(size, parts, rate)
        self.momentum, self.gain = momentum, gain

    def metric(self):
        """The rate, or rate / (1 - beta)."""
        return np.full(len(self.m), self.rate / (1 - self.momentum if self.gain else 1))

    def step(self, g):
        """Polyak's momentum."""
        self.m = self.momentum * self.m - self.rate * g
        return self.m


class RMSprop(Rule):
    """du = -rate g / sqrt(v + eps)."""

    def metric(self):
        """Rate / sqrt(v + eps)."""
        return self._known(self.rate / np.sqrt(self.v + EPSILON))

    def step(self, g):
        """Of the new mean square."""
        self.v = RHO * self.v + (1 - RHO) * g**2
        return -self.rate * g / np.sqrt(self.v + EPSILON)


class Adam(Rule):
    """du = -rate mhat / (sqrt(vhat) + eps'), with Keras's placement of epsilon; decay times rate off the variable."""

    def __init__(self, size, parts, rate, decay=0.0, largest=False):
        super().__init__(size, parts, rate)
        self.decay, self.largest, self.top = decay, largest, np.zeros(size)

    def _divisor(self):
        return np.sqrt(self.top if self.largest else self.v) + EPSILON

    def metric(self):
        """Rate sqrt(1 - beta_2^t) / (sqrt(v) + eps)."""
        return self._known(self.rate * np.sqrt(1 - BETA_2 ** max(self.t, 1)) / self._divisor())

    def step(self, g):
        """Both moments."""
        self.t += 1
        self.m, self.v = self.m + (1 - BETA_1) * (g - self.m), self.v + (1 - BETA_2) * (g**2 - self.v)
        self.top = np.maximum(self.top, self.v)
        rate = self.rate * np.sqrt(1 - BETA_2**self.t) / (1 - BETA_1**self.t)
        return -rate * self.m / self._divisor()


class Nadam(Rule):
    """Dozat's Nadam, with Keras's schedule of momentum."""

    product = 1.0

    def metric(self):
        """Rate / (sqrt(v / (1 - beta_2^t)) + eps)."""
        return self._known(self.rate / (np.sqrt(self.v / (1 - BETA_2 ** max(self.t, 1))) + EPSILON))

    def step(self, g):
        """Looks one step of momentum ahead."""
        self.t += 1
        now, ahead = (BETA_1 * (1 - 0.5 * 0.96**t) for t in (self.t, self.t + 1))
        self.product *= now
        self.m, self.v = self.m + (1 - BETA_1) * (g - self.m), self.v + (1 - BETA_2) * (g**2 - self.v)
        m = ahead * self.m / (1 - self.product * ahead) + (1 - now) * g / (1 - self.product)
        return -self.rate * m / (np.sqrt(self.v / (1 - BETA_2**self.t)) + EPSILON)


class Lion(Rule):
    """du = -rate sign(beta_1 m + (1 - beta_1) g): an optimizer that is known by its steps alone."""

    def metric(self):
        """|du| / |g| of the last step, variable by variable."""
        return self.scales

    def step(self, g):
        """The sign of an average."""
        du = -self.rate * np.sign(BETA_1 * self.m + (1 - BETA_1) * g)
        self.m = BETA_2 * self.m + (1 - BETA_2) * g
        pairs = zip(np.split(du, self.parts), np.split(g, self.parts), strict=True)
        self.scales = np.concatenate([np.full(len(d), np.linalg.norm(d) / np.linalg.norm(part)) for d, part in pairs])
        return du


def train(rule, weights, x, labels, penalty, steps):
    """Some steps on one batch, with `penalty |W1|^2` as own cost.

    Returns:
        The variables, and the sample weights of every step.
    """
    shapes = [part.shape for part in weights]
    weighed = []
    for _ in range(steps):
        Q, beta_squared = per_sample(weights, x, labels)
        own = np.zeros(Q.shape[1])
        own[: weights[0].size] = 2 * penalty * weights[0].ravel()
        w, g = reweighted(Q, beta_squared, rule.metric(), own)
        theta = np.concatenate([part.ravel() for part in weights])
        theta = theta * (1 - rule.rate * getattr(rule, "decay", 0.0)) + rule.step(g)
        weights = [part.reshape(shape) for part, shape in zip(np.split(theta, rule.parts), shapes, strict=True)]
        weighed.append(w)
    return weights, weighed
