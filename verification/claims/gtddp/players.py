"""A shortcut with parameters of its own: two players and their joint minimiser (Eqs. 13-15, 35-40)."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st
from scipy.linalg import block_diag

from bellman_tf import bellman, linalg
from verification.claim import same
from verification.papers import GTDDP
from verification.problems.blocks import Cooperation, constants, cooperations
from verification.problems.games import random_spd
from verification.references import dense

NONSINGULAR = "the players' joint matrix and its diagonal blocks are nonsingular (ours: positive definite)"


def printed_gains(problem):
    """Eq. 40 letter by letter for two players, from the quadratic's blocks."""
    g, H = problem.gradient, problem.hessian
    x, r, u, v = problem.cuts
    Q_uu, Q_vv, Q_uv, Q_vu = H[u, u], H[v, v], H[u, v], H[v, u]
    Q_uu_coop = Q_uu - Q_uv @ np.linalg.solve(Q_vv, Q_vu)
    Q_vv_coop = Q_vv - Q_vu @ np.linalg.solve(Q_uu, Q_uv)

    def first(own, other):
        return -np.linalg.solve(Q_uu_coop, own - Q_uv @ np.linalg.solve(Q_vv, other))

    def second(own, other):
        return -np.linalg.solve(Q_vv_coop, own - Q_vu @ np.linalg.solve(Q_uu, other))

    return {
        "k": first(g[u], g[v]), "K": first(H[u, x], H[v, x]), "G": first(H[u, r], H[v, r]),
        "I": second(g[v], g[u]), "H": second(H[v, x], H[u, x]), "L": second(H[v, r], H[u, r]),
    }  # fmt: skip


def our_gains(problem):
    """The same from our core."""
    first, second = bellman.cooperative_gains(problem.expansion())
    n = problem.n
    return {
        "k": first.open_loop, "K": first.feedback[:, :n], "G": first.feedback[:, n:],
        "I": second.open_loop, "H": second.feedback[:, :n], "L": second.feedback[:, n:],
    }  # fmt: skip


def joint_gains(problem):
    """The same from the stationary point of the whole quadratic, and the size of all gains."""
    k, K = dense.minimise(problem.gradient, problem.hessian, problem.state)
    n, m = problem.n, problem.controls[0]
    parts = {"k": k[:m], "K": K[:m, :n], "G": K[:m, n:], "I": k[m:], "H": K[m:, :n], "L": K[m:, n:]}
    return parts, np.linalg.norm(k) + np.linalg.norm(K)


def gain_check(names):
    """Compares some of the gains: ours, as printed, and the joint minimiser."""

    def gains(problem: Cooperation):
        """Ours and the printed Schur form against the joint minimiser."""
        truth, size = joint_gains(problem)
        ours, printed = our_gains(problem), printed_gains(problem)
        for name in names:
            yield same(ours[name], truth[name], condition=problem.condition, scale=size, label=f"{name}, ours")
            # Eliminating a block of a positive definite matrix costs a factor cond^(1/2) more (Demmel, Higham and
            # Schreiber 1995: the factors of the block elimination are that much larger than those of Cholesky's).
            condition = problem.condition**1.5
            yield same(printed[name], truth[name], condition=condition, scale=size, label=f"{name}, as printed")

    return gains


for key, place, names, statement in (
    (
        "E14",
        "Eq. 14",
        "kKG",
        "du = k~ + K~ dx + G~ dx_r = -Q~_uu^{-1} (Q_u + Q_uv I + (Q_ux - Q_uv Q_vv^{-1} Q_vx) dx + (Q_ux_r + Q_uv L) "
        "dx_r), I = -Q_vv^{-1} Q_v and L = -Q_vv^{-1} Q_vx_r the gains of v alone, Q~_uu = Q_uu - Q_uv Q_vv^{-1} Q_vu",
    ),
    (
        "E15",
        "Eq. 15",
        "IHL",
        "dv = I~ + H~ dx + L~ dx_r = -Q~_vv^{-1} (Q_v + Q_vu k + (Q_vx + Q_vu K) dx + (Q_vx_r - Q_vu Q_uu^{-1} "
        "Q_ux_r) dx_r), k and K the gains of u alone, Q~_vv = Q_vv - Q_vu Q_uu^{-1} Q_uv",
    ),
    ("E39", "Eq. 39", "kKGIHL", "the joint solution in its blocks: [du; dv] = [k~; I~] + [K~ G~; H~ L~] [dx; dx_r]"),
    ("E40a", "Eq. 40a", "k", "k~ = -Q~_uu^{-1} (Q_u - Q_uv Q_vv^{-1} Q_v)"),
    ("E40b", "Eq. 40b", "K", "K~ = -Q~_uu^{-1} (Q_ux - Q_uv Q_vv^{-1} Q_vx)"),
    ("E40c", "Eq. 40c", "G", "G~ = -Q~_uu^{-1} (Q_ux_r - Q_uv Q_vv^{-1} Q_vx_r)"),
    ("E40d", "Eq. 40d", "I", "I~ = -Q~_vv^{-1} (Q_v - Q_vu Q_uu^{-1} Q_u)"),
    ("E40e", "Eq. 40e", "H", "H~ = -Q~_vv^{-1} (Q_vx - Q_vu Q_uu^{-1} Q_ux)"),
    ("E40f", "Eq. 40f", "L", "L~ = -Q~_vv^{-1} (Q_vx_r - Q_vu Q_uu^{-1} Q_ux_r)"),
):
    GTDDP.exact(key, place, statement, assumes=NONSINGULAR, over=cooperations())(gain_check(names))


class Additive(NamedTuple):
    """A stage (x_r, x) -> (h(x_r, v), f(x, u)) with linear f, h and any joint value behind it."""

    v: np.ndarray
    W: np.ndarray
    f_x: np.ndarray
    f_u: np.ndarray
    h_r: np.ndarray
    h_v: np.ndarray
    costs: list[np.ndarray]
    metrics: list[np.ndarray]

    @property
    def jacobians(self):
        """In the joint state (x, x_r), and in each player's control."""
        (a, m), (b, p) = self.f_u.shape, self.h_v.shape
        return block_diag(self.f_x, self.h_r), [
            np.vstack([self.f_u, np.zeros((b, m))]),
            np.vstack([np.zeros((a, p)), self.h_v]),
        ]

    def expansion(self):
        """Ours."""
        F_x, F_us = self.jacobians
        value = bellman.Value(*constants((self.v, self.W)))
        costs = {"cost_u": constants(self.costs), "cost_uu": constants(self.metrics)}
        return bellman.expand_players(value, tf.constant(F_x), constants(F_us), **costs)

    def quadratic(self):
        """Gradient and Hessian in (x, x_r, u, v)."""
        F_x, F_us = self.jacobians
        l_u, l_uu = np.concatenate(self.costs), block_diag(*self.metrics)
        return dense.expand(self.v, self.W, F_x, np.hstack(F_us), l_u=l_u, l_uu=l_uu)

    @property
    def state(self):
        """Size of (x, x_r)."""
        return self.f_x.shape[1] + self.h_r.shape[1]

    @property
    def size(self):
        """Of the Hessian's terms."""
        F_x, F_us = self.jacobians
        return np.linalg.norm(np.hstack([F_x, *F_us]), 2) ** 2 * np.linalg.norm(self.W)

    def cost_to_go(self, z):
        """Q itself, evaluated as Eq. 13 says."""
        n, r, m = self.f_x.shape[1], self.h_r.shape[1], self.f_u.shape[1]
        x, x_r, u, v = np.split(z, np.cumsum([n, r, m]))
        y = np.concatenate([self.f_x @ x + self.f_u @ u, self.h_r @ x_r + self.h_v @ v])
        running = sum(l @ c + c @ M @ c / 2 for l, c, M in zip(self.costs, (u, v), self.metrics, strict=True))
        return running + self.v @ y + y @ self.W @ y / 2


@st.composite
def additives(draw, *, max_size=3, max_log_condition=6):
    """Random stages with a parametrised shortcut; coupled, uncoupled or rank-one values behind them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    n, a, m, r, b, p = (draw(st.integers(1, max_size)) for _ in range(6))
    kind = draw(st.sampled_from([*["full"] * 3, "rank one", "uncoupled"]), label="kind")
    condition = 10.0 ** draw(st.integers(0, max_log_condition), label="log10 condition")
    v, W = rng.standard_normal(a + b), random_spd(rng, a + b, condition)
    if kind == "rank one":
        W = np.outer(v, v)
    if kind == "uncoupled":
        W[:a, a:] = W[a:, :a] = 0
    shapes = ((a, n), (a, m), (b, r), (b, p))
    jacobians = [rng.standard_normal(shape) / np.sqrt(shape[1]) for shape in shapes]
    costs = [rng.standard_normal(m), rng.standard_normal(p)]
    return Additive(v, W, *jacobians, costs, [random_spd(rng, m, condition), random_spd(rng, p, condition)])


@GTDDP.definition(
    "E13",
    "Eq. 13",
    "V_t(x_r, x) = min over u and v of l(u) + l(v) + V_{t+1}(h(x_r, v), f(x, u))",
    over=additives(),
)
def cooperative_bellman_equation(stage: Additive):
    """Our value before the stage against Eq. 13 evaluated at the joint minimiser."""
    expansion = stage.expansion()
    gains = bellman.cooperative_gains(expansion)
    value = bellman.cooperative_update(expansion, gains)
    gradient, hessian = stage.quadratic()
    s = stage.state
    k, K = dense.minimise(gradient, hessian, s)
    x = np.linspace(-1, 1, s) + 0.5
    least = stage.cost_to_go(np.concatenate([x, k + K @ x]))
    at_rest = stage.cost_to_go(np.concatenate([0 * x, k]))
    promised = value.V_x.numpy() @ x + x @ value.V_xx.numpy() @ x / 2
    condition, size = np.linalg.cond(hessian[s:, s:]), abs(least) + abs(at_rest) + stage.size
    yield same(promised, least - at_rest, condition=condition, scale=size, label="V")
    v, W = dense.follow(gradient, hessian, k, K)
    yield same(value.V_xx, W, condition=condition, scale=np.linalg.norm(hessian), label="V_xx")
    yield same(value.V_x, v, condition=condition, scale=np.linalg.norm(gradient), label="V_x")


@GTDDP.exact(
    "E35",
    "Eq. 35",
    "second-order expansion of Q in (x, x_r, u, v)",
    assumes="linearised dynamics",
    over=additives(),
)
def expansion_of_the_game(stage: Additive):
    """Our expansion, assembled, against Q itself at a point, and against NumPy's."""
    Q = stage.expansion()
    gradient = np.concatenate([Q.Q_x, *Q.Q_u])
    Q_uu, Q_ux = np.block([[block.numpy() for block in row] for row in Q.Q_uu]), np.concatenate(Q.Q_ux)
    hessian = np.block([[Q.Q_xx.numpy(), Q_ux.T], [Q_ux, Q_uu]])
    z = np.linspace(-1, 1, len(gradient)) + 0.25
    size = stage.size + sum(map(np.linalg.norm, stage.metrics)) + np.linalg.norm(gradient)
    yield same(gradient @ z + z @ hessian @ z / 2, stage.cost_to_go(z), scale=size * (z @ z), label="Q")
    truth = stage.quadratic()
    yield same(gradient, truth[0], scale=np.linalg.norm(stage.v), label="gradient")
    yield same(hessian, truth[1], scale=stage.size, label="Hessian")


@GTDDP.exact(
    "E36",
    "Eq. 36",
    "with u^ = (u, v) and x^ = (x, x_r): Q_u^ = [Q_u; Q_v], Q_u^u^ = [Q_uu Q_uv; Q_vu Q_vv], "
    "Q_u^x^ = [Q_ux Q_ux_r; Q_vx Q_vx_r]",
    assumes="linearised dynamics",
    over=additives(),
)
def joint_control(stage: Additive):
    """Our N-player expansion against our expansion of the joint control."""
    Q = stage.expansion()
    F_x, F_us = stage.jacobians
    value = bellman.Value(*constants((stage.v, stage.W)))
    costs = {"cost_u": np.concatenate(stage.costs), "cost_uu": block_diag(*stage.metrics)}
    costs = {name: tf.constant(cost) for name, cost in costs.items()}
    one = bellman.expand(value, tf.constant(F_x), tf.constant(np.hstack(F_us)), **costs)
    yield same(np.concatenate(Q.Q_u), one.Q_u, scale=np.linalg.norm(stage.v), label="Q_u")
    yield same(np.concatenate(Q.Q_ux), one.Q_ux, scale=stage.size, label="Q_ux")
    blocks = np.block([[block.numpy() for block in row] for row in Q.Q_uu])
    yield same(blocks, one.Q_uu, scale=stage.size, label="Q_uu")
    m, n = stage.f_u.shape[1], stage.f_x.shape[1]
    W_cross = stage.W[: len(stage.f_x), len(stage.f_x) :]
    yield same(Q.Q_uu[0][1], stage.f_u.T @ W_cross @ stage.h_v, scale=stage.size, label="Q_uv = f_u' V'_xx_r h_v")
    yield same(one.Q_ux[:m, n:], stage.f_u.T @ W_cross @ stage.h_r, scale=stage.size, label="Q_ux_r")


@GTDDP.exact(
    "E37",
    "Eq. 37",
    "du^ = -(Q_u^u^)^{-1} (Q_u^ + Q_u^x^ dx^)",
    assumes=NONSINGULAR,
    remark="For any number of players the Schur complement in Eqs. 14, 15 is that of all the others.",
    over=cooperations(players=(1, 4)),
)
def joint_policy(problem: Cooperation):
    """Our block elimination for one to four players against the whole system, and as one control of ours."""
    ours = bellman.cooperative_gains(problem.expansion())
    k, K = dense.minimise(problem.gradient, problem.hessian, problem.state)
    size = np.linalg.norm(k) + np.linalg.norm(K)
    rest = {"condition": problem.condition, "scale": size}
    yield same(np.concatenate([gain.open_loop for gain in ours]), k, label="open loop", **rest)
    yield same(np.concatenate([gain.feedback for gain in ours]), K, label="feedback", **rest)
    one = bellman.gains(problem.joint_expansion())
    yield same(np.concatenate([gain.feedback for gain in ours]), one.feedback, label="as one control", **rest)


@GTDDP.exact(
    "E38",
    "Eq. 38",
    "[[A, B], [B', D]]^{-1} = [[S^{-1}, -S^{-1} B D^{-1}], [-S~^{-1} B' A^{-1}, S~^{-1}]], S = A - B D^{-1} B', "
    "S~ = D - B' A^{-1} B",
    assumes=NONSINGULAR,
    over=cooperations(),
)
def inverse_by_blocks(problem: Cooperation):
    """Our blocks of the inverse and our Schur complement against the whole inverse."""
    u, v = problem.cuts[2:]
    H, condition = problem.hessian, problem.condition
    A, B, D = H[u, u], H[u, v], H[v, v]
    joint = H[problem.state :, problem.state :]
    inverse, m = np.linalg.inv(joint), len(A)
    # as the blocks come from one another, a further square root of the condition; see `gain_check`
    rest = {"condition": condition**1.5, "scale": np.linalg.norm(inverse)}
    ours = linalg.block_inverse(*constants((A, B, D)))
    yield same(ours[0], inverse[:m, :m], label="(u, u)", **rest)
    yield same(ours[1], inverse[:m, m:], label="(u, v)", **rest)
    yield same(ours[2], inverse[m:, m:], label="(v, v)", **rest)
    S, S_v = A - B @ np.linalg.solve(D, B.T), D - B.T @ np.linalg.solve(A, B)
    ours = linalg.schur_complement(*constants((A, B, D)))
    yield same(ours, S, condition=np.linalg.cond(D), scale=np.linalg.norm(A), label="Schur complement")
    printed = -np.linalg.solve(S_v, B.T @ np.linalg.inv(A))
    yield same(printed, inverse[m:, :m], label="(v, u) as printed", **rest)
