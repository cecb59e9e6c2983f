"""Small tanh networks with shortcuts, a loss and weight decay: the objective, and its gradient by the complex step."""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from verification.problems.games import Network, random_kinds

STEP = 1e-100


class Objective(NamedTuple):
    """count * mean of phi over the samples + decay / 2 * the squares of all parameters."""

    network: Network
    inputs: np.ndarray  # [B, n_0]
    targets: np.ndarray  # [B, n_T]
    decay: float
    terminal: str  # "square" or "cross_entropy"

    @property
    def parameters(self):
        return self.network.parameters

    def losses(self, outputs):
        """phi of every sample."""
        if self.terminal == "square":
            return np.sum((outputs - self.targets) ** 2, axis=1) / 2
        top = np.max(outputs.real, axis=1, keepdims=True)
        return (top + np.log(np.sum(np.exp(outputs - top), axis=1, keepdims=True)))[:, 0] - np.sum(
            self.targets * outputs, axis=1
        )

    def terminal_derivatives(self, outputs):
        """phi_x [B, n] and phi_xx [B, n, n]."""
        if self.terminal == "square":
            return outputs - self.targets, np.tile(np.eye(outputs.shape[1]), (len(outputs), 1, 1))
        p = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        p = p / p.sum(axis=1, keepdims=True)
        return p - self.targets, p[:, :, None] * np.eye(p.shape[1]) - p[:, :, None] * p[:, None, :]

    def run(self, start, state, parameters):
        """Output of the stages from `start` on."""
        for t in range(start, len(self.network.kinds)):
            state = self.network.stage(t, state, parameters[t])[0]
        return state

    def value(self, parameters, count=1.0):
        """The objective."""
        loss = count * np.mean(self.losses(self.run(0, self.inputs, parameters)))
        return loss + self.decay / 2 * sum(np.sum(u * u) for stage in parameters for u in stage)

    def gradient(self, parameters=None, count=1.0):
        """Of the objective, per stage and player."""
        parameters = self.parameters if parameters is None else parameters
        gradient = [[np.zeros_like(u) for u in stage] for stage in parameters]
        moved = [[u.astype(complex) for u in stage] for stage in parameters]
        for t, stage in enumerate(moved):
            for p, u in enumerate(stage):
                for i in range(len(u)):
                    u[i] += 1j * STEP
                    gradient[t][p][i] = self.value(moved, count).imag / STEP
                    u[i] -= 1j * STEP
        return gradient

    def state_gradient(self, t, state, count=1.0):
        """Of count * phi in the joint state before stage t, [B, n]."""
        gradient = np.zeros_like(state)
        for j in range(state.shape[1]):
            moved = state.astype(complex)
            moved[:, j] += 1j * STEP
            gradient[:, j] = count * self.losses(self.run(t, moved, self.parameters)).imag / STEP
        return gradient


def random_objective(rng, kinds, batch_size, *, decay=0.1, terminal="square", size=2):
    """A network of these stages with random weights."""
    network = Network(rng, kinds, size)
    inputs = rng.standard_normal((batch_size, network.n))
    width = network.forward(inputs)[0][-1].shape[1]
    targets = rng.standard_normal((batch_size, width))
    if terminal == "cross_entropy":
        targets = np.eye(width)[rng.integers(width, size=batch_size)]
    return Objective(network, inputs, targets, decay, terminal)


@st.composite
def objectives(draw, *, max_depth=3, max_batch=1, decays=(0.0, 0.1), shortcuts=(False, True), size=2):
    """Random chains, residual networks and networks with parallel players."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    kinds = random_kinds(rng, draw(st.integers(1, max_depth), label="depth"), draw(st.sampled_from(shortcuts)))
    return random_objective(
        rng,
        kinds,
        draw(st.integers(1, max_batch), label="batch_size"),
        decay=draw(st.sampled_from(decays), label="decay"),
        terminal=draw(st.sampled_from(["square", "cross_entropy"]), label="terminal"),
        size=size,
    )
