"""Outer-product terminal Hessian: Proposition 5 (Eqs. 19-21)."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import bellman
from verification.claim import Counterexample, measured, same
from verification.claims.gtddp.control import one_iteration_solves_lq
from verification.papers import GTDDP
from verification.problems.blocks import constants, horizons, seeds
from verification.problems.games import random_spd
from verification.references import dense

REGIME = "V_xx = z z' at the end; running costs in the controls only; linearised dynamics"


class RankOneChain(NamedTuple):
    """Stages (f_x, f_u, l_u, M) and the end: gradient v, Hessian z z'.

    `metric`: M stands for Q_uu; otherwise Q_uu = M + q_u q_u'.
    """

    stages: list
    v: np.ndarray
    z: np.ndarray
    metric: bool

    def core(self):
        """Stages for the core library."""
        stages = []
        for f_x, f_u, l_u, M in self.stages:
            own = {"metric" if self.metric else "cost_uu": tf.constant(M)}
            stages.append(bellman.StageDerivatives(*constants((f_x, f_u)), cost_u=tf.constant(l_u), **own))
        return stages

    def backward(self):
        """In NumPy: (q_u, q_x, Q_uu, gradient Q_u, V_x, factor) per stage; V_xx = factor z z', z back-propagated."""
        v, z, factor, steps = self.v, self.z, 1.0, []
        for f_x, f_u, l_u, M in reversed(self.stages):
            q_u, q_x, Q_u = f_u.T @ z, f_x.T @ z, l_u + f_u.T @ v
            Q_uu = M if self.metric else M + factor * np.outer(q_u, q_u)
            solved = np.linalg.solve(Q_uu, q_u)
            v = f_x.T @ v - factor * q_x * (solved @ Q_u)
            steps.insert(0, (q_u, q_x, Q_uu, Q_u, v, factor))
            z, factor = q_x, factor * (1 - factor * q_u @ solved)
        return steps, factor

    @property
    def condition(self):
        """The largest of the metrics'; the factors multiply well-conditioned numbers."""
        return max(np.linalg.cond(M) for *_, M in self.stages)


@st.composite
def rank_one_chains(draw):
    """Random chains; a metric in place of Q_uu large enough for a real root or, now and then, too small for one."""
    rng = np.random.default_rng(draw(seeds, label="seed"))
    depth = draw(st.integers(1, 3), label="depth")
    condition = 10.0 ** draw(st.integers(0, 5), label="log10 condition")
    metric, scale = draw(st.booleans(), label="metric"), draw(st.sampled_from([0.1, 1.0, 10.0]), label="scale")
    gauss_newton = draw(st.booleans(), label="z = v, no cost gradient")
    sizes, stages = rng.integers(1, 4, depth + 1), []
    for n, after in zip(sizes[:-1], sizes[1:], strict=True):
        m = int(rng.integers(1, 4))
        f = rng.standard_normal((after, n + m)) / np.sqrt(n + m)
        stages.append(
            (f[:, :n], f[:, n:], rng.standard_normal(m) * (not gauss_newton), scale * random_spd(rng, m, condition))
        )
    v, z = rng.standard_normal((2, sizes[-1]))
    if gauss_newton:
        return RankOneChain(stages, v, v, metric)
    return RankOneChain(stages, v, z * draw(st.sampled_from([1.0, 1.0, 1.0, 1.0, 0.0])), metric)


GTDDP.definition(
    "E19",
    "Eq. 19",
    "min phi(x_T) + sum_t l_t(u_t) subject to x_{t+1} = f_t(x_t, u_t)",
    remark="The case of Eq. 1 without running cost in the state.",
    over=horizons(kinds=("control",)),
)(one_iteration_solves_lq)


def structure(chain: RankOneChain):
    """Our expansions and values are outer products of the vectors that the recursion propagates."""
    steps, first = chain.backward()
    policies, values = bellman.backward_dense(
        bellman.Value(tf.constant(chain.v), tf.constant(np.outer(chain.z, chain.z))), chain.core()
    )
    factors = [step[-1] for step in steps]  # behind each stage
    for t, (q_u, q_x, Q_uu, Q_u, v, factor) in enumerate(steps):
        f_x, f_u, l_u, M = chain.stages[t]
        Q = bellman.expand(values[t + 1], *constants((f_x, f_u)), cost_u=tf.constant(l_u), cost_uu=tf.constant(M))
        size = np.linalg.norm(f_x) * np.linalg.norm(chain.z) ** 2 * (1 + np.linalg.norm(f_u))
        size = max(size, np.linalg.norm(values[t + 1].V_xx) * np.linalg.norm(np.hstack([f_x, f_u])) ** 2)
        rest = {"condition": chain.condition, "scale": size}
        yield same(Q.Q_ux, factor * np.outer(q_u, q_x), label="Q_ux = q_u q_x'", **rest)
        yield same(Q.Q_xx, factor * np.outer(q_x, q_x), label="Q_xx = q_x q_x'", **rest)
        before = factors[t - 1] if t else first
        yield same(values[t].V_xx, before * np.outer(q_x, q_x), label="V_xx = z z'", **rest)
        yield same(
            values[t].V_x,
            v,
            condition=chain.condition,
            scale=np.linalg.norm(v) + size + np.linalg.norm(Q_u),
            label="V_x",
        )
        k = -np.linalg.solve(Q_uu, Q_u)
        yield same(policies[t].open_loop, k, condition=chain.condition, label="k")


def factor_recursion(chain: RankOneChain):
    """The factor 1 - q_u' Q_uu^{-1} q_u: our two numbers per sample against NumPy's dense recursion."""
    steps, _ = chain.backward()
    v, W = chain.v, np.outer(chain.z, chain.z)
    value = bellman.outer_product.init(1, 1.0, dtype=tf.float64)
    for t in reversed(range(len(steps))):
        (f_x, f_u, l_u, _), (q_u, q_x, Q_uu, Q_u, _, factor) = chain.stages[t], steps[t]
        k = -np.linalg.solve(Q_uu, Q_u)
        quad, inner = q_u @ np.linalg.solve(Q_uu, q_u), q_u @ k
        gradient, hessian = dense.expand(v, W, f_x, f_u, l_u=l_u)
        n, size = f_x.shape[1], np.linalg.norm(hessian) + np.linalg.norm(gradient)
        K = -np.linalg.solve(Q_uu, hessian[n:, :n])
        v, W = dense.schur_value(gradient, hessian, k, K)
        value, clamped = bellman.outer_product.backward(value, tf.constant([inner]), tf.constant([quad]))
        radicand = 1 - factor * quad
        rest = {"condition": chain.condition, "scale": size}
        if radicand >= 0 or not np.any(q_u):
            z = np.sqrt(max(radicand, 0.0) * factor) * q_x
            yield same(W, np.outer(z, z), label="V_xx = z z', z = sqrt(1 - q_u' Q_uu^{-1} q_u) q_x", **rest)
            ours = value.beta_squared.numpy()[0] * np.outer(q_x, q_x)
            yield same(ours, W, label="beta^2, ours", **rest)
        else:
            yield same(W, radicand * factor * np.outer(q_x, q_x), label="no real root", **rest)
            yield same([int(clamped), float(value.beta_squared[0])], [1, 0], label="our clamp")
            return
        if chain.v is chain.z:
            yield same(v, value.alpha.numpy()[0] * q_x, label="alpha, ours", **rest)
        if np.any(chain.z):
            yield measured(2 * factor * quad / max(radicand, 1e-12), "error of V_xx with the printed sign")


def rank_one_value():
    """q_u = 1, Q_uu = 2, q_x = 1."""
    q, Q_uu = 1.0, 2.0
    roots = [np.sqrt(1 + sign * q / Q_uu * q) for sign in (1, -1)]
    truth = 1.0 - q / Q_uu * q  # min over u of (x^2 + 2 x u + 2 u^2) / 2 is (1 - 1/2) x^2 / 2
    setting = "f_x = f_u = 1, z' = 1, l_uu = 1, so q_u = q_x = 1 and Q_uu = 2: V_xx = z_x^2"
    return Counterexample(setting, np.array([roots[0] ** 2]), np.array([roots[1] ** 2]), np.array([truth]))


SIGN = {
    "printed": "z_x = sqrt(1 + q_u' Q_uu^{-1} q_u) q_x",
    "corrected": "z_x = sqrt(1 - q_u' Q_uu^{-1} q_u) q_x",
    "derivation": "V_xx = Q_xx - Q_xu Q_uu^{-1} Q_ux with Q_xx = q_x q_x' and Q_ux = q_u q_x' is q_x q_x' - q_x (q_u' "
    "Q_uu^{-1} q_u) q_x' = (1 - q_u' Q_uu^{-1} q_u) q_x q_x'. Minimisation can only lower the value. The root is real "
    "if q_u' Q_uu^{-1} q_u <= 1, in particular if Q_uu - q_u q_u' is positive semi-definite. The same formula has the "
    "minus in DDPN Eq. 13.",
    "origin": "paper",
    "counterexample": rank_one_value,
}
GTDDP.exact(
    "E20",
    "Eq. 20",
    "Q_ux = q_u (x) q_x, Q_xx = q_x (x) q_x, V_xx = z_x (x) z_x at every stage",
    assumes=REGIME,
    remark="The structure is right; z_x is that of the corrected Eq. 21.",
    over=rank_one_chains(),
)(structure)
GTDDP.misprint(
    "E21",
    "Eq. 21",
    "q_u = f_u' z', q_x = f_x' z', and the factor between q_x and z_x",
    over=rank_one_chains(),
    assumes=REGIME + "; q_u' Q_uu^{-1} q_u <= 1",
    remark="Where the factor is negative (a metric smaller than the curvature) ours clamps and counts: OURS-3.",
    ranges={"error of V_xx with the printed sign": (0.001, 50.0)},
    **SIGN,
)(factor_recursion)


@GTDDP.misprint(
    "P5",
    "Proposition 5",
    "with an outer-product terminal Hessian all second derivatives in the state stay outer products of vectors",
    over=rank_one_chains(),
    assumes=REGIME,
    remark="Structure exact; the factor has the wrong sign.",
    **SIGN,
)
def proposition_5(chain: RankOneChain):
    """Structure and factor."""
    yield from structure(chain)
    yield from factor_recursion(chain)
