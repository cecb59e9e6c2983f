"""Chains of layers sigma(W x + b) with costs, and all their derivatives up to the second, in closed form.

The control of a layer is u = [vec(W); b], vec stacking columns. Every formula accepts complex arguments, so a check may
also differentiate by the complex step.
"""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st


def _sigmoid(h):
    return 1 / (1 + np.exp(-h))


def _slope(h):
    return _sigmoid(h) * (1 - _sigmoid(h))


ACTIVATIONS = {  # the function, its first and its second derivative
    "identity": (lambda h: h, np.ones_like, np.zeros_like),
    "tanh": (np.tanh, lambda h: 1 - np.tanh(h) ** 2, lambda h: -2 * np.tanh(h) * (1 - np.tanh(h) ** 2)),
    "sigmoid": (_sigmoid, _slope, lambda h: _slope(h) * (1 - 2 * _sigmoid(h))),
    "softplus": (lambda h: np.log(1 + np.exp(h)), _sigmoid, _slope),
    "relu": (lambda h: np.where(h.real > 0, h, 0 * h), lambda h: (h.real > 0) + 0 * h, np.zeros_like),
}


class Derivatives(NamedTuple):
    """Of a layer at (x, u); `[n', ...]` tensors have one matrix per output."""

    f_x: np.ndarray  # [n', n]
    f_u: np.ndarray  # [n', m]
    f_xx: np.ndarray  # [n', n, n]
    f_ux: np.ndarray  # [n', m, n]
    f_uu: np.ndarray  # [n', m, m]


class Layer(NamedTuple):
    """x' = sigma(W x + b)."""

    rows: int
    cols: int
    activation: str

    @property
    def size(self):
        """Number of controls, n' (n + 1)."""
        return self.rows * (self.cols + 1)

    def split(self, u):
        """Weight [n', n] and bias [n']."""
        return u[: self.rows * self.cols].reshape(self.cols, self.rows).T, u[self.rows * self.cols :]

    def preactivation(self, x, u):
        """h = W x + b."""
        W, b = self.split(u)
        return W @ x + b

    def __call__(self, x, u):
        return ACTIVATIONS[self.activation][0](self.preactivation(x, u))

    def derivatives(self, x, u):
        """All derivatives up to the second."""
        W, h, eye = self.split(u)[0], self.preactivation(x, u), np.eye(self.rows)
        first, second = (derivative(h) for derivative in ACTIVATIONS[self.activation][1:])
        h_u = np.hstack([np.kron(x, eye), eye])  # [n', m]
        h_ux = np.concatenate([np.kron(np.eye(self.cols), eye), np.zeros((self.rows, self.cols * self.rows))])
        h_ux = h_ux.reshape(self.size, self.cols, self.rows).transpose(2, 0, 1)  # [n', m, n]
        f_xx = second[:, None, None] * W[:, :, None] * W[:, None, :]
        f_uu = second[:, None, None] * h_u[:, :, None] * h_u[:, None, :]
        f_ux = second[:, None, None] * h_u[:, :, None] * W[:, None, :] + first[:, None, None] * h_ux
        return Derivatives(first[:, None] * W, first[:, None] * h_u, f_xx, f_ux, f_uu)


class Chain(NamedTuple):
    """Layers in a row with costs l_t(x, u) = l' z + z' L z / 2, z = [x; u], and a terminal cost per sample.

    Attributes:
        layers: T of them.
        controls: their parameters, `[m_t]` each.
        running: T pairs (l `[n + m]`, L `[n + m, n + m]`), zero where a part is not wanted.
        inputs: `[B, n_0]`.
        targets: `[B, n_T]`.
        terminal: "square", half the squared error, or "cross_entropy" of softmax.
    """

    layers: list[Layer]
    controls: list[np.ndarray]
    running: list[tuple[np.ndarray, np.ndarray]]
    inputs: np.ndarray
    targets: np.ndarray
    terminal: str

    def states(self, sample=0, controls=None):
        """x_0 ... x_T of one sample."""
        controls = self.controls if controls is None else controls
        states = [self.inputs[sample]]
        for layer, u in zip(self.layers, controls, strict=True):
            states.append(layer(states[-1], u))
        return states

    def running_cost(self, t, x, u):
        """l_t(x, u)."""
        l, L = self.running[t]
        z = np.concatenate([x, u])
        return l @ z + z @ L @ z / 2

    def terminal_cost(self, x, sample=0):
        """phi(x)."""
        y = self.targets[sample]
        if self.terminal == "square":
            return (x - y) @ (x - y) / 2
        top = np.max(x.real)
        return top + np.log(np.sum(np.exp(x - top))) - y @ x

    def terminal_derivatives(self, x, sample=0):
        """phi_x [n_T] and phi_xx [n_T, n_T]."""
        y = self.targets[sample]
        if self.terminal == "square":
            return x - y, np.eye(len(x))
        p = np.exp(x - np.max(x)) / np.sum(np.exp(x - np.max(x)))
        return p - y, np.diag(p) - np.outer(p, p)

    def cost_from(self, t, x, controls, sample=0):
        """Cost from stage t on, J_t(x; u_t ... u_{T-1})."""
        total = 0.0
        for s in range(t, len(self.layers)):
            total = total + self.running_cost(s, x, controls[s])
            x = self.layers[s](x, controls[s])
        return total + self.terminal_cost(x, sample)

    def cost(self, controls=None, sample=0):
        """J, of one sample."""
        return self.cost_from(0, self.inputs[sample], self.controls if controls is None else controls, sample)

    def stage(self, t, x, second_order=True):
        """What `expand` needs of stage t at (x, u_t): f_x, f_u, the costs' derivatives, and the dynamics' tensors.

        Keys are those of `verification.references.dense.expand`.
        """
        u, (l, L), n = self.controls[t], self.running[t], len(x)
        d, gradient = self.layers[t].derivatives(x, u), l + L @ np.concatenate([x, u])
        costs = {"l_x": gradient[:n], "l_u": gradient[n:], "l_xx": L[:n, :n], "l_ux": L[n:, :n], "l_uu": L[n:, n:]}
        tensors = {"f_xx": d.f_xx, "f_ux": d.f_ux, "f_uu": d.f_uu} if second_order else {}
        return {"f_x": d.f_x, "f_u": d.f_u, **costs, **tensors}


def random_chain(
    rng, depth, batch_size, *, size=3, activation="tanh", terminal="square", running="control", weight=1.0
):
    """A chain with random sizes up to `size`, full random weights and costs.

    `running`: "none", "control" (in u only, positive definite) or "both" (in x and u jointly, positive definite).
    """
    sizes = rng.integers(1, size + 1, depth + 1)
    if terminal == "cross_entropy":
        sizes[-1] = max(2, sizes[-1])
    kinds = [activation] * (depth - 1) + ["identity"] if terminal == "cross_entropy" else [activation] * depth
    layers = [Layer(int(a), int(b), kind) for a, b, kind in zip(sizes[1:], sizes[:-1], kinds, strict=True)]
    controls = [rng.standard_normal(layer.size) / np.sqrt(layer.cols + 1) for layer in layers]
    costs = []
    for layer in layers:
        n, m = layer.cols, layer.size
        l, R = rng.standard_normal(n + m), rng.standard_normal((n + m, n + m)) / np.sqrt(n + m)
        L = weight * (R @ R.T + np.eye(n + m))
        keep = np.concatenate([np.full(n, running == "both"), np.full(m, running != "none")]).astype(float)
        costs.append((weight * l * keep, L * np.outer(keep, keep)))
    targets = rng.standard_normal((batch_size, sizes[-1]))
    if terminal == "cross_entropy":
        targets = np.eye(sizes[-1])[rng.integers(sizes[-1], size=batch_size)]
    return Chain(layers, controls, costs, rng.standard_normal((batch_size, sizes[0])), targets, terminal)


@st.composite
def chains(
    draw,
    *,
    max_depth=3,
    max_batch=1,
    max_size=3,
    activations=("tanh", "softplus", "sigmoid", "relu", "identity"),
    terminals=("square", "cross_entropy"),
    running=("none", "control", "both"),
):
    """Random chains; a draw is a seed, sizes and options, and NumPy makes the numbers."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    return random_chain(
        rng,
        draw(st.integers(1, max_depth), label="depth"),
        draw(st.integers(1, max_batch), label="batch_size"),
        size=max_size,
        activation=draw(st.sampled_from(activations), label="activation"),
        terminal=draw(st.sampled_from(terminals), label="terminal"),
        running=draw(st.sampled_from(running), label="running"),
        weight=10.0 ** draw(st.integers(-3, 1), label="log10 weight"),
    )
