"""One block of tanh layers with a trainable shortcut that may act at any of the block's stages: alignments of DGN.

The network computes f_{T-1}(... f_0(x)) + h(x) whatever the stage at which h acts; only the cut into stages differs.
"""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from verification.problems.games import Network, random_spd


class Placed(NamedTuple):
    inputs: np.ndarray  # [B, n]
    targets: np.ndarray  # [B, n], half the squared distance is the loss
    controls: list[np.ndarray]  # T layers of the main path, then the shortcut
    metrics: list[np.ndarray]
    costs: list[np.ndarray]  # gradients of the running costs

    @property
    def depth(self):
        return len(self.controls) - 1

    def step(self, t, position, state, controls):
        """Next joint state, its Jacobian [B, n', n], and the Jacobians of the players acting, by player."""
        n = self.inputs.shape[1]
        x, r = state[:, :n], state[:, -n:]  # at the first stage they are the same
        eye = np.tile(np.eye(n), (len(x), 1, 1))
        main, by_x, by_u = Network.layer(x, controls[t], (n, n))
        side, by_r, by_v = Network.layer(r, controls[-1], (n, n)) if t == position else (r, eye, None)
        if t == self.depth - 1:  # added
            f_x = by_x + by_r if t == 0 else np.concatenate([by_x, by_r], axis=2)
            return main + side, f_x, {t: by_u} | ({self.depth: by_v} if by_v is not None else {})
        zero = np.zeros_like(eye)
        rows = [[by_x], [by_r]] if t == 0 else [[by_x, zero], [zero, by_r]]
        f_x = np.concatenate([np.concatenate(row, axis=2) for row in rows], axis=1)
        players = {t: np.concatenate([by_u, np.zeros_like(by_u)], axis=1)}
        if by_v is not None:
            players[self.depth] = np.concatenate([np.zeros_like(by_v), by_v], axis=1)
        return np.concatenate([main, side], axis=1), f_x, players

    def forward(self, position):
        """T + 1 states, and per stage (f_x, {player: f_u})."""
        states, jacobians = [self.inputs], []
        for t in range(self.depth):
            state, f_x, players = self.step(t, position, states[-1], self.controls)
            states.append(state)
            jacobians.append((f_x, players))
        return states, jacobians


def random_placed(rng, n, depth, batch_size, *, decay=False, condition=1.0):
    """Random weights, metrics and running costs."""
    size = n * (n + 1)
    return Placed(
        *rng.standard_normal((2, batch_size, n)),
        list(rng.standard_normal((depth + 1, size))),
        [random_spd(rng, size, condition) for _ in range(depth + 1)],
        list(rng.standard_normal((depth + 1, size)) * decay),
    )


@st.composite
def placed(draw, *, max_depth=3, max_batch=3, max_log_condition=3):
    """Random blocks of one to `max_depth` stages."""
    return random_placed(
        np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed")),
        draw(st.integers(1, 2), label="n"),
        draw(st.integers(1, max_depth), label="depth"),
        draw(st.integers(1, max_batch), label="batch_size"),
        decay=draw(st.booleans(), label="decay"),
        condition=10.0 ** draw(st.integers(0, max_log_condition), label="log10 condition"),
    )
