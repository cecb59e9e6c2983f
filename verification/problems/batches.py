"""Stages on the stacked states of a batch, with layers that couple its samples if wanted."""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from scipy.linalg import block_diag

from verification.problems.games import random_spd


class Stage(NamedTuple):
    F_X: np.ndarray  # [B n', B n]
    F_u: np.ndarray  # [B n', m]
    M: np.ndarray  # [m, m]
    l_u: np.ndarray  # [m]


class Batch(NamedTuple):
    stages: list[Stage]
    gradients: np.ndarray  # [B, n_T], of every sample's loss at the end

    @property
    def size(self):
        return len(self.gradients)

    def losses_by_state(self):
        """D_t = (d losses / d X_t)', T + 1 matrices [B n_t, B]."""
        D = [block_diag(*self.gradients[:, :, None])]
        for stage in reversed(self.stages):
            D.insert(0, stage.F_X.T @ D[0])
        return D

    def losses_by_control(self):
        """U_t = (d losses / d u_t)', T matrices [m, B]: columns are the samples' gradients."""
        return [stage.F_u.T @ D for stage, D in zip(self.stages, self.losses_by_state()[1:], strict=True)]

    def linear_terms(self):
        """U' M^{-1} l_u per stage."""
        return [U.T @ np.linalg.solve(s.M, s.l_u) for s, U in zip(self.stages, self.losses_by_control(), strict=True)]

    def grams(self):
        """U' M^{-1} U per stage."""
        return [U.T @ np.linalg.solve(s.M, U) for s, U in zip(self.stages, self.losses_by_control(), strict=True)]

    def condition(self):
        """Of the metrics, times the largest eigenvalue of I + sum U' M^{-1} U / B."""
        worst = max(np.linalg.cond(stage.M) for stage in self.stages)
        return worst * (1 + np.linalg.norm(sum(self.grams()), 2) / self.size)


@st.composite
def batches(draw, *, decays=(False, True), identity=False, max_log_condition=4, max_log_stiffness=2):
    """Random batches; "mean" layers subtract the mean of the batch, as batch normalisation does."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    B, depth = draw(st.integers(1, 5), label="batch_size"), draw(st.integers(1, 3), label="depth")
    couple, decay = draw(st.booleans(), label="coupled"), draw(st.sampled_from(decays), label="decay")
    condition = 1.0 if identity else 10.0 ** draw(st.integers(0, max_log_condition), label="log10 condition")
    scale = 10.0 ** -draw(st.integers(-1, max_log_stiffness), label="-log10 smallest eigenvalue of the metrics")
    sizes, stages = rng.integers(1, 4, depth + 1), []
    for n, new in zip(sizes[:-1], sizes[1:], strict=True):
        m = int(rng.integers(1, 5))
        F_X = block_diag(*rng.standard_normal((B, new, n))) / np.sqrt(n)
        F_u = rng.standard_normal((B * new, m))
        if couple and B > 1:
            centre = np.kron(np.eye(B) - np.full((B, B), 1 / B), np.eye(new))
            F_X, F_u = centre @ F_X, centre @ F_u
        stages.append(Stage(F_X, F_u, scale * random_spd(rng, m, condition), rng.standard_normal(m) * decay))
    gradients = rng.standard_normal((B, sizes[-1]))
    if draw(st.booleans(), label="zero gradient"):
        gradients[0] = 0
    return Batch(stages, gradients)
