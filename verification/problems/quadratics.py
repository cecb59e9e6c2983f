"""Quadratic models in (x, u), jointly positive semidefinite, with a condition number we chose for their u block."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf.bellman import Expansion
from verification.problems.games import random_spd


class Quadratic(NamedTuple):
    """gradient' z + z' hessian z / 2, z = [x; u]."""

    gradient: np.ndarray  # [n + m]
    hessian: np.ndarray  # [n + m, n + m]
    n: int

    @property
    def condition(self):
        """Of the Hessian in u."""
        return np.linalg.cond(self.hessian[self.n :, self.n :])

    def expansion(self):
        """The same as the core library takes it."""
        g, H, n = self.gradient, self.hessian, self.n
        parts = (g[:n], g[n:], H[:n, :n], H[n:, :n], H[n:, n:])
        return Expansion(*[tf.constant(part) for part in parts])


@st.composite
def quadratics(draw, *, max_size=4, max_log_condition=8):
    """Random quadratics: full, of rank one plus a small multiple of the identity, or without coupling."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    n, m = draw(st.integers(1, max_size), label="n"), draw(st.integers(1, max_size), label="m")
    kind = draw(st.sampled_from(["full"] * 4 + ["rank one", "uncoupled", "zero gradient"]), label="kind")
    condition = 10.0 ** draw(st.integers(0, max_log_condition), label="log10 condition")
    hessian, gradient = random_spd(rng, n + m, condition), rng.standard_normal(n + m)
    if kind == "rank one":
        z = rng.standard_normal(n + m)
        hessian = np.outer(z, z) + np.eye(n + m) / condition
    if kind == "uncoupled":
        hessian[n:, :n] = hessian[:n, n:] = 0
    if kind == "zero gradient":
        gradient[n:] = 0
    return Quadratic(gradient, hessian, n)
