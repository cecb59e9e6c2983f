"""Two players with correlated inputs and output gradients: samples, and the Kronecker moments of both."""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st


class Pair(NamedTuple):
    inputs: list[np.ndarray]  # z_n [S, a_n]
    outputs: list[np.ndarray]  # g_n [S, b_n]
    gradients: list[np.ndarray]  # P_n [b_n, a_n]
    damping: float

    @property
    def players(self):
        return range(len(self.inputs))

    def moments(self, signals):
        """E[x_n x_m'], damped on the diagonal, N rows of N blocks."""
        blocks = [[x.T @ y / len(x) for y in signals] for x in signals]
        for n, row in enumerate(blocks):
            row[n] = row[n] + self.damping * np.eye(len(row[n]))
        return blocks

    def blocks(self):
        """A_nm of the inputs and B_nm of the outputs' gradients."""
        return self.moments(self.inputs), self.moments(self.outputs)

    def parameter_gradients(self):
        """q_n = z_n (x) g_n per sample, [S, a_n b_n]."""
        return [
            np.einsum("si,sj->sij", z, g).reshape(len(z), -1) for z, g in zip(self.inputs, self.outputs, strict=True)
        ]


def random_pair(rng, samples, *, players=2, shared=0.6, damping=1e-3, kind="correlated", sizes=None):
    """`shared` is the part of the signal that all players see; "identical" players see nothing else.

    `sizes`: of every player's inputs and outputs; random and up to 3 if None.
    """

    def signals(size):
        common, keep = rng.standard_normal((samples, size or 3)), np.sqrt(shared)
        if kind == "identical":
            return [common] * players
        widths = [size] * players if size else rng.integers(1, 4, players)
        return [keep * common[:, :k] + np.sqrt(1 - shared) * rng.standard_normal((samples, k)) for k in widths]

    inputs, outputs = map(signals, sizes or (None, None))
    gradients = [rng.standard_normal((g.shape[1], z.shape[1])) for z, g in zip(inputs, outputs, strict=True)]
    if kind == "identical":
        gradients = [gradients[0]] * players
    return Pair(inputs, outputs, gradients, damping)


@st.composite
def pairs(draw, *, players=(2,), kinds=("correlated", "identical"), max_log_damping=4):
    """Two players or more; fewer samples than inputs are among them, so the damping can be all there is."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    return random_pair(
        rng,
        draw(st.integers(1, 30), label="samples"),
        players=draw(st.sampled_from(players), label="players"),
        shared=draw(st.sampled_from([0.0, 0.3, 0.6, 0.9, 0.99]), label="shared"),
        damping=10.0 ** -draw(st.integers(0, max_log_damping), label="-log10 damping"),
        kind=draw(st.sampled_from(kinds), label="kind"),
    )
