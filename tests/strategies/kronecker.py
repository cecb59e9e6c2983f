"""Players that share signals: Kronecker factors, their cross blocks, and gradients."""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from verification.problems.matrices import partition, player_count, seeds


class KroneckerGame(NamedTuple):
    """Blocks `A_nm = E[z_n z_m^T]` and `B_nm = E[g_n g_m^T]`, damped on the diagonal, and gradients `[b_n, a_n]`."""

    A_blocks: list
    B_blocks: list
    gradients: list

    def astype(self, dtype):
        cast = lambda blocks: [[block.astype(dtype) for block in row] for row in blocks]
        return KroneckerGame(cast(self.A_blocks), cast(self.B_blocks), [G.astype(dtype) for G in self.gradients])


def moments(rng, sizes, shared, damping):
    """Second moments of N signals, a fraction `shared` of whose power is common, plus damping on the diagonal.

    At `shared = 1` and equal sizes the signals are identical.
    """
    samples = 3 * sum(sizes)
    common = rng.normal(size=(samples, max(sizes)))
    signals = [np.sqrt(1 - shared) * rng.normal(size=(samples, n)) + np.sqrt(shared) * common[:, :n] for n in sizes]
    stacked = np.concatenate(signals, axis=1)
    return partition(stacked.T @ stacked / samples + damping * np.eye(sum(sizes)), sizes)


def game(rng, inputs, outputs, shared, damping):
    """One `KroneckerGame` with these sizes per player."""
    gradients = [rng.normal(size=(b, a)) for a, b in zip(inputs, outputs, strict=True)]
    return KroneckerGame(moments(rng, inputs, shared, damping), moments(rng, outputs, shared, damping), gradients)


@st.composite
def correlated_kronecker_players(draw, players=player_count, max_size=4, min_damping=1e-4):
    """Games from independent to identical players (`shared = 1` with equal sizes), in float64."""
    count = draw(players)
    if draw(st.booleans()):  # equal sizes
        inputs, outputs = ([draw(st.integers(1, max_size))] * count for _ in range(2))
    else:
        inputs, outputs = ([draw(st.integers(1, max_size)) for _ in range(count)] for _ in range(2))
    shared = draw(st.sampled_from([0.0, 0.3, 0.9, 0.99, 1.0]))
    damping = 10.0 ** draw(st.floats(np.log10(min_damping), 0.0))
    return game(np.random.default_rng(draw(seeds)), inputs, outputs, shared, damping)
