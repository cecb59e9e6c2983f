"""Samples of layers: inputs and output gradients; games whose curvature has Kronecker blocks of their moments."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from verification.problems.games import random_spd
from verification.problems.matrices import partition

seeds = st.integers(0, 2**32 - 1)


def per_sample(x, g):
    """q_i = x_i (x) g_i, `[B, a b]`."""
    return np.einsum("ia,ib->iab", x, g).reshape(len(x), -1)


class Samples(NamedTuple):
    """Inputs `[B, a_n]` and gradients of the pre-activation `[B, b_n]` of each player."""

    x: list[np.ndarray]
    g: list[np.ndarray]

    @property
    def q(self):
        """Parameter gradients of each player, `[B, a_n b_n]`."""
        return [per_sample(x, g) for x, g in zip(self.x, self.g, strict=True)]


def tanh_layer(rng, batch_size, sizes=(6, 6)):
    """Samples of one tanh layer between two others, under half the squared error."""
    n, m = sizes
    x = np.tanh(rng.normal(size=(batch_size, n)) @ rng.normal(size=(n, n)) / np.sqrt(n))
    y = np.tanh(x @ rng.normal(size=(n, m)) / np.sqrt(n) + 0.1 * rng.normal(size=m))
    C, target = rng.normal(size=(m, m)) / np.sqrt(m), rng.normal(size=(batch_size, m))
    return Samples([x], [(y @ C - target) @ C.T * (1 - y**2)])


def residual_layer(rng, batch_size, size=5):
    """Samples of a main-path layer and of a shortcut layer whose tanh outputs are added."""

    def W():
        return rng.normal(size=(size, size)) / np.sqrt(size)

    x_r = np.tanh(rng.normal(size=(batch_size, size)) @ W())
    x = np.tanh(x_r @ W())
    y_u, y_v = np.tanh(x @ W()), np.tanh(x_r @ W())
    C, target = W(), rng.normal(size=(batch_size, size))
    behind = ((y_u + y_v) @ C - target) @ C.T
    return Samples([x, x_r], [behind * (1 - y_u**2), behind * (1 - y_v**2)])


def shared_signal(rng, batch_size, fraction, inputs=(4, 4), outputs=(3, 3)):
    """Samples whose players have a fraction of the variance of their inputs and gradients in common."""

    def draw(sizes):
        common = rng.normal(size=(batch_size, max(sizes)))
        own = [rng.normal(size=(batch_size, n)) for n in sizes]
        mixed = [np.sqrt(fraction) * common[:, :n] + np.sqrt(1 - fraction) * z for n, z in zip(sizes, own, strict=True)]
        return [z @ random_spd(rng, z.shape[1], 4.0) for z in mixed]

    return Samples(draw(inputs), draw(outputs))


class KroneckerGame(NamedTuple):
    """Players with curvature blocks A_nm (x) B_nm.

    Attributes:
        A: joint matrix of the inputs, damped.
        B: joint matrix of the gradients, damped.
        inputs, outputs: sizes a_n and b_n.
        gradients: `[b_n, a_n]` of each player.
    """

    A: np.ndarray
    B: np.ndarray
    inputs: list[int]
    outputs: list[int]
    gradients: list[np.ndarray]

    @property
    def A_blocks(self):
        return partition(self.A, self.inputs)

    @property
    def B_blocks(self):
        return partition(self.B, self.outputs)

    @property
    def q(self):
        """Stacked vec of the gradients."""
        return np.concatenate([G.T.ravel() for G in self.gradients])

    @property
    def selected(self):
        """Positions, in the Kronecker product of the joint matrices, of the parameters that exist, player by player."""
        a, b = (np.repeat(np.arange(len(sizes)), sizes) for sizes in (self.inputs, self.outputs))
        owners = [(i, j) for i in a for j in b]
        return np.concatenate([[k for k, pair in enumerate(owners) if pair == (n, n)] for n in range(len(self.inputs))])

    @property
    def factor_condition(self):
        """Condition of A times that of B: of the Kronecker product, and so a bound for that of every part of it."""
        return np.linalg.cond(self.A) * np.linalg.cond(self.B)

    def tensors(self):
        """A_blocks, B_blocks, gradients for the core library."""
        blocks = [[[tf.constant(M) for M in row] for row in rows] for rows in (self.A_blocks, self.B_blocks)]
        return *blocks, [tf.constant(G) for G in self.gradients]


def from_samples(rng, samples, damping):
    """The game of the samples' moments, damping on the diagonal blocks."""
    x, g = np.concatenate(samples.x, axis=1), np.concatenate(samples.g, axis=1)
    A = x.T @ x / len(x) + damping * np.eye(x.shape[1])
    B = g.T @ g / len(g) + damping * np.eye(g.shape[1])
    inputs, outputs = ([z.shape[1] for z in side] for side in (samples.x, samples.g))
    gradients = [rng.normal(size=(b, a)) for a, b in zip(inputs, outputs, strict=True)]
    return KroneckerGame(A, B, inputs, outputs, gradients)


@st.composite
def kronecker_games(draw, *, players=(2, 2), max_size=3, max_log_damping=3):
    """Games from moments (of one sample among them), identical or uncorrelated players, and random matrices."""
    rng = np.random.default_rng(draw(seeds, label="seed"))
    N = draw(st.integers(*players), label="N")
    kind = draw(
        st.sampled_from([*["moments", "matrices"] * 2, "one sample", "identical", "uncorrelated"]), label="kind"
    )
    damping = 10.0 ** -draw(st.integers(0, max_log_damping), label="-log10 damping")
    inputs, outputs = ([int(k) for k in rng.integers(1, max_size + 1, N)] for _ in range(2))
    if kind == "matrices":
        A, B = (random_spd(rng, sum(sizes), 1 / damping) for sizes in (inputs, outputs))
        return KroneckerGame(
            A, B, inputs, outputs, [rng.normal(size=(b, a)) for a, b in zip(inputs, outputs, strict=True)]
        )
    samples = shared_signal(rng, 1 if kind == "one sample" else 20, rng.uniform(), inputs, outputs)
    if kind == "identical":
        samples = Samples([samples.x[0]] * N, [samples.g[0]] * N)
    game = from_samples(rng, samples, damping)
    if kind == "uncorrelated":
        blocks = [np.kron(np.diag([1.0] * len(s)), np.ones((1, 1))) for s in (inputs, outputs)]
        masks = [np.repeat(np.repeat(M, s, axis=0), s, axis=1) for M, s in zip(blocks, (inputs, outputs), strict=True)]
        game = game._replace(A=game.A * masks[0], B=game.B * masks[1])
    return game
