"""Linear-quadratic games of N players over T stages: every player acts at every stage, the terminal cost is shared."""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from scipy.linalg import block_diag

from verification.problems.games import random_spd
from verification.references import dense

RUNNING = ("full", "diagonal", "none")


class Stage(NamedTuple):
    f_x: np.ndarray  # [n', n]
    f_us: list[np.ndarray]  # [n', m_p]
    l_us: list[np.ndarray]  # [m_p], gradient of the player's own cost
    l_uus: list[np.ndarray]  # [m_p, m_p], its Hessian

    def joint(self):
        """The players as one, with the keys of `verification.references.dense.expand`."""
        costs = {"l_u": np.concatenate(self.l_us), "l_uu": block_diag(*self.l_uus)}
        return {"f_x": self.f_x, "f_u": np.hstack(self.f_us), **costs}


class LinearGame(NamedTuple):
    stages: list[Stage]
    v: np.ndarray  # gradient of phi
    W: np.ndarray  # Hessian of phi

    @property
    def players(self):
        return len(self.stages[0].f_us)

    def scaled(self, factor):
        """The same game with every player's own cost times `factor`."""
        stages = [
            s._replace(l_us=[factor * l for l in s.l_us], l_uus=[factor * l for l in s.l_uus]) for s in self.stages
        ]
        return self._replace(stages=stages)

    def without_gradients(self):
        """The same game with running costs that have their minimum at the present controls."""
        return self._replace(stages=[s._replace(l_us=[0 * l for l in s.l_us]) for s in self.stages])

    def condition(self, count=1.0):
        """Of the backward pass with the terminal cost counted so often: the product over the stages, at least 1."""
        v, W, condition = count * self.v, count * self.W, 1.0
        for stage in reversed(self.stages):
            gradient, hessian = dense.expand(v, W, **stage.joint())
            n = stage.f_x.shape[1]
            condition *= np.linalg.cond(hessian[n:, n:])
            v, W = dense.follow(gradient, hessian, *dense.minimise(gradient, hessian, n))
        return condition


def random_linear_game(rng, players, depth, *, running="full", condition=10.0, size=3, kind="full"):
    """Without running costs the state is large enough for the stages not to exhaust the terminal Hessian.

    `kind`: "full", "rank one" (Hessian g g'), "identical" players or "zero gradient".
    """
    if running == "none":
        sizes, controls = [players * depth + 1] * (depth + 1), [1] * players
    else:
        sizes, controls = rng.integers(1, size + 1, depth + 1), rng.integers(1, size, players)
    if kind == "identical":
        controls = [controls[0]] * players
    stages = []
    for n, new in zip(sizes[:-1], sizes[1:], strict=True):
        f_us = [rng.standard_normal((new, m)) for m in controls]
        l_us = [rng.standard_normal(m) * (running != "none") for m in controls]
        l_uus = [random_spd(rng, m, condition) * (running != "none") for m in controls]
        if running == "diagonal":
            l_uus = [np.eye(m) for m in controls]
        if kind == "identical":
            f_us, l_us, l_uus = ([parts[0]] * players for parts in (f_us, l_us, l_uus))
        stages.append(Stage(rng.standard_normal((new, n)) / np.sqrt(n), f_us, l_us, l_uus))
    g = rng.standard_normal(sizes[-1])
    W = np.outer(g, g) if kind == "rank one" else random_spd(rng, sizes[-1], 10.0)
    return LinearGame(stages, g * (kind != "zero gradient"), W)


@st.composite
def linear_games(draw, *, players=(1, 2, 3), max_depth=3, running=("full", "diagonal"), max_log_condition=4):
    """Random games; without running costs only those whose joint curvature is regular."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    running = draw(st.sampled_from(running), label="running cost")
    kinds = ["full", "zero gradient"] if running == "none" else ["full", "rank one", "identical", "zero gradient"]
    return random_linear_game(
        rng,
        draw(st.sampled_from(players), label="players"),
        draw(st.integers(1, max_depth), label="depth"),
        running=running,
        condition=10.0 ** draw(st.integers(0, max_log_condition), label="log10 condition"),
        kind=draw(st.sampled_from(kinds), label="kind"),
    )
