"""Linear-quadratic horizons, residual blocks and games with two or more players in one stage, in matrix form."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st
from scipy.linalg import block_diag

from bellman_tf.bellman import Expansion, JointExpansion, JointValue, StageDerivatives, Value
from verification.problems.games import random_spd

seeds = st.integers(0, 2**32 - 1)


def constants(arrays):
    """Arrays as tensors."""
    return [tf.constant(array) for array in arrays]


class Horizon(NamedTuple):
    """Linear dynamics x' = f_x x + f_u u with costs l' z + z' L z / 2, z = [x; u], and v' x + x' W x / 2 at the end.

    Attributes:
        stages: dicts as `verification.references.dense.whole_horizon` takes them.
        v, W: at the end.
        kind: "full", "invariant" (the same stage T times, no linear and no cross terms), "control" (cost in u only).
    """

    stages: list[dict[str, np.ndarray]]
    v: np.ndarray
    W: np.ndarray
    kind: str

    @property
    def condition(self):
        """Of the Hessian of J in all controls together."""
        return condensed_condition(self.stages, self.W)

    @property
    def size(self):
        """Of the value's Hessian if nobody acted: what cancels to make it."""
        F, total = np.eye(self.stages[0]["f_x"].shape[1]), 0.0
        for s in self.stages:
            total += np.linalg.norm(F, 2) ** 2 * np.linalg.norm(s["l_xx"])
            F = s["f_x"] @ F
        return total + np.linalg.norm(F, 2) ** 2 * np.linalg.norm(self.W)

    def terminal(self):
        """For the core library."""
        return Value(*constants((self.v, self.W)))

    def core_stages(self):
        """For the core library."""
        names = {"f_x": "jacobian_state", "f_u": "jacobian_control"}
        names |= {f"l_{name}": f"cost_{name}" for name in ("x", "u", "xx", "ux", "uu")}
        return [StageDerivatives(**{names[k]: tf.constant(M) for k, M in stage.items()}) for stage in self.stages]

    def follow(self, x, policy):
        """J of Eq. 1 along u_t = policy(t, x_t), the controls, and the size of the terms that J is the sum of."""
        total, size, controls = 0.0, 0.0, []
        for t, s in enumerate(self.stages):
            u = policy(t, x)
            total += s["l_x"] @ x + s["l_u"] @ u + x @ s["l_xx"] @ x / 2 + u @ s["l_ux"] @ x + u @ s["l_uu"] @ u / 2
            L = sum(np.linalg.norm(s[name]) for name in ("l_xx", "l_ux", "l_uu"))
            l = np.linalg.norm(s["l_x"]) + np.linalg.norm(s["l_u"])
            size += l * (np.linalg.norm(x) + np.linalg.norm(u)) + L * (x @ x + u @ u)
            controls.append(u)
            x = s["f_x"] @ x + s["f_u"] @ u
        size += np.linalg.norm(self.v) * np.linalg.norm(x) + np.linalg.norm(self.W) * (x @ x)
        return total + self.v @ x + x @ self.W @ x / 2, controls, size


def condensed_condition(stages, W):
    """Of the Hessian of sum_t z' L_t z + x_T' W x_T in all controls together, z = [x; u], from a fixed first state."""
    state, hessian = np.zeros((stages[0]["f_x"].shape[1], 0)), np.zeros((0, 0))
    for s in stages:
        n, m = s["f_u"].shape[1], len(state)
        l_ux = s.get("l_ux", np.zeros((n, m)))
        L = np.block([[s.get("l_xx", np.zeros((m, m))), l_ux.T], [l_ux, s["l_uu"]]])
        z = block_diag(state, np.eye(n))
        hessian = block_diag(hessian, np.zeros((n, n))) + z.T @ L @ z
        state = np.hstack([s["f_x"] @ state, s["f_u"]])
    return np.linalg.cond(hessian + state.T @ W @ state)


def random_horizon(rng, depth, kind, condition, size=3):
    """One `Horizon`; spectral norms of the dynamics stay near one."""
    sizes = rng.integers(1, size + 1, depth + 1) if kind != "invariant" else [int(rng.integers(1, size + 1))] * 99
    m = int(rng.integers(1, size + 1))
    stages = []
    for t in range(depth):
        if kind == "invariant" and stages:
            stages.append(stages[0])
            continue
        n, after = int(sizes[t]), int(sizes[t + 1])
        m = m if kind == "invariant" else int(rng.integers(1, size + 1))
        L, l = random_spd(rng, n + m, condition), rng.standard_normal(n + m)
        if kind != "full":
            L[n:, :n] = L[:n, n:] = 0
        if kind == "invariant":
            l = 0 * l
        if kind == "control":
            L[:n, :n], l[:n] = 0, 0
        f = rng.standard_normal((after, n + m)) / np.sqrt(n + m)
        parts = {"l_x": l[:n], "l_u": l[n:], "l_xx": L[:n, :n], "l_ux": L[n:, :n], "l_uu": L[n:, n:]}
        stages.append({"f_x": f[:, :n], "f_u": f[:, n:]} | parts)
    last = stages[-1]["f_x"].shape[0]
    return Horizon(stages, rng.standard_normal(last) * (kind != "invariant"), random_spd(rng, last, condition), kind)


@st.composite
def horizons(draw, *, max_depth=4, max_log_condition=6, kinds=("full", "invariant", "control")):
    """Random horizons."""
    rng = np.random.default_rng(draw(seeds, label="seed"))
    depth, kind = draw(st.integers(1, max_depth), label="depth"), draw(st.sampled_from(kinds), label="kind")
    return random_horizon(rng, depth, kind, 10.0 ** draw(st.integers(0, max_log_condition), label="log10 condition"))


class Block(NamedTuple):
    """Stages t_s ... t_f under an identity shortcut, and the value behind the addition.

    Attributes:
        stages: tuples (f_x, f_u, l_u, l_uu), as `verification.references.residual` takes them.
        v, W: gradient and Hessian of the value at t_f + 1.
    """

    stages: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]
    v: np.ndarray
    W: np.ndarray

    @property
    def horizon(self):
        """The same on the stacked state (x, x_r), from (x_{t_s}, x_{t_s}) on: dicts for `whole_horizon`."""
        r, last, stages = len(self.v), len(self.stages) - 1, []
        for t, (f_x, f_u, l_u, l_uu) in enumerate(self.stages):
            if t == last:
                F_x, F_u = np.hstack([f_x, np.eye(r)]), f_u
            else:
                F_x, F_u = block_diag(f_x, np.eye(r)), np.vstack([f_u, np.zeros((r, f_u.shape[1]))])
            F_x = F_x if t else F_x @ np.vstack([np.eye(r)] * 2)
            stages.append({"f_x": F_x, "f_u": F_u, "l_u": l_u, "l_uu": l_uu})
        return stages

    @property
    def condition(self):
        """Of the Hessian in all controls of the block together; it bounds that of every Q_uu."""
        return condensed_condition(self.horizon, self.W)

    @property
    def size(self):
        """Of the value's Hessian, part by part, if nobody acted: stages and shortcut, which cancel."""
        through = np.linalg.multi_dot([f_x for f_x, *_ in reversed(self.stages)] + [np.eye(len(self.v))])
        return (np.linalg.norm(through, 2) + 1) ** 2 * np.linalg.norm(self.W)

    def core(self, t):
        """Jacobians and costs of stage t for the core library: positional and keyword arguments."""
        f_x, f_u, l_u, l_uu = constants(self.stages[t])
        return (f_x, f_u), {"cost_u": l_u, "cost_uu": l_uu}

    def value(self):
        """For the core library."""
        return Value(*constants((self.v, self.W)))


@st.composite
def residual_blocks(draw, *, max_depth=3, max_size=3, max_log_condition=4):
    """Random blocks of one to `max_depth` stages; the value's Hessian full, of rank one, or zero."""
    rng = np.random.default_rng(draw(seeds, label="seed"))
    depth = draw(st.integers(1, max_depth), label="depth")
    kind = draw(st.sampled_from([*["full"] * 4, "rank one", "no curvature", "no gradient"]), label="kind")
    condition = 10.0 ** draw(st.integers(0, max_log_condition), label="log10 condition")
    sizes = rng.integers(1, max_size + 1, depth + 1)
    sizes[-1] = sizes[0]
    stages = []
    for n, after in zip(sizes[:-1], sizes[1:], strict=True):
        m = int(rng.integers(1, max_size + 1))
        f = rng.standard_normal((after, n + m)) / np.sqrt(n + m)
        l_u = rng.standard_normal(m) * (kind != "no gradient")
        stages.append((f[:, :n], f[:, n:], l_u, random_spd(rng, m, condition)))
    v, W = rng.standard_normal(sizes[0]), random_spd(rng, sizes[0], condition)
    if kind == "rank one":
        W = np.outer(v, v)
    if kind == "no curvature":
        W = 0 * W
    return Block(stages, v * (kind != "no gradient"), W)


class JointStage(NamedTuple):
    """One stage under an open shortcut with any value of the joint state (x, x_r) behind it."""

    v: np.ndarray  # [n' + r]
    W: np.ndarray  # [n' + r, n' + r]
    f_x: np.ndarray
    f_u: np.ndarray
    l_u: np.ndarray
    l_uu: np.ndarray

    @property
    def r(self):
        """Size of the skip state."""
        return len(self.v) - len(self.f_x)

    @property
    def F_x(self):
        """Joint Jacobian, Eq. 26b."""
        return block_diag(self.f_x, np.eye(self.r))

    @property
    def F_u(self):
        """Joint Jacobian, Eq. 26b."""
        return np.vstack([self.f_u, np.zeros((self.r, self.f_u.shape[1]))])

    @property
    def condition(self):
        """Of Q_uu."""
        return np.linalg.cond(self.l_uu + self.F_u.T @ self.W @ self.F_u)

    @property
    def size(self):
        """Of the Hessian before the minimisation."""
        return np.linalg.norm(np.hstack([self.F_x, self.F_u]), 2) ** 2 * np.linalg.norm(self.W)

    def joint_value(self):
        """For the core library."""
        n, v, W = len(self.f_x), self.v, self.W
        return JointValue(*constants((v[:n], W[:n, :n], v[n:], W[:n, n:], W[n:, n:])))


@st.composite
def joint_stages(draw, *, max_size=3, max_log_condition=6, split=False):
    """Random stages under an open shortcut; with `split` the first of the block, where x and x_r are one state."""
    rng = np.random.default_rng(draw(seeds, label="seed"))
    n, after, r, m = (draw(st.integers(1, max_size), label=label) for label in ("n", "n'", "r", "m"))
    r = n if split else r
    condition = 10.0 ** draw(st.integers(0, max_log_condition), label="log10 condition")
    kind = draw(st.sampled_from([*["full"] * 3, "rank one", "no coupling"]), label="kind")
    v, W = rng.standard_normal(after + r), random_spd(rng, after + r, condition)
    if kind == "rank one":
        W = np.outer(v, v)
    if kind == "no coupling":
        W[after:, :after] = W[:after, after:] = 0
    f = rng.standard_normal((after, n + m)) / np.sqrt(n + m)
    return JointStage(v, W, f[:, :n], f[:, n:], rng.standard_normal(m), random_spd(rng, m, condition))


class Cooperation(NamedTuple):
    """Quadratic model gradient' z + z' hessian z / 2 in z = (x, x_r, u_1, ..., u_N).

    Attributes:
        gradient, hessian: jointly positive definite.
        n, r: sizes of x and x_r.
        controls: sizes of the players' controls.
    """

    gradient: np.ndarray
    hessian: np.ndarray
    n: int
    r: int
    controls: list[int]

    @property
    def cuts(self):
        """Slices of x, x_r, u_1, ..., u_N."""
        ends = np.cumsum([0, self.n, self.r, *self.controls])
        return [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]

    @property
    def state(self):
        """Size of (x, x_r)."""
        return self.n + self.r

    @property
    def condition(self):
        """Of the players' joint matrix."""
        return np.linalg.cond(self.hessian[self.state :, self.state :])

    def expansion(self):
        """For the core library, state (x, x_r)."""
        g, H, s = self.gradient, self.hessian, slice(0, self.state)
        players = self.cuts[2:]
        Q_uu = [constants([H[p, q] for q in players]) for p in players]
        return JointExpansion(
            tf.constant(g[s]), constants([g[p] for p in players]), tf.constant(H[s, s]),
            constants([H[p, s] for p in players]), Q_uu,
        )  # fmt: skip

    def joint_expansion(self):
        """All players as one control."""
        g, H, s = self.gradient, self.hessian, self.state
        return Expansion(*constants((g[:s], g[s:], H[:s, :s], H[s:, :s], H[s:, s:])))


@st.composite
def cooperations(draw, *, players=(2, 2), max_size=3, max_log_condition=6, kinds=None):
    """Random games: full, uncoupled players, identical players, of rank one plus damping, without gradient."""
    kinds = [*["full"] * 4, "uncoupled", "identical", "rank one", "no gradient"] if kinds is None else kinds
    rng = np.random.default_rng(draw(seeds, label="seed"))
    N = draw(st.integers(*players), label="N")
    n, r = draw(st.integers(1, max_size), label="n"), draw(st.integers(1, max_size), label="r")
    kind = draw(st.sampled_from(kinds), label="kind")
    condition = 10.0 ** draw(st.integers(0, max_log_condition), label="log10 condition")
    controls = [int(rng.integers(1, max_size + 1))] * N
    if kind != "identical":
        controls = [int(rng.integers(1, max_size + 1)) for _ in range(N)]
    s, total = n + r, n + r + sum(controls)
    H, g = random_spd(rng, total, condition), rng.standard_normal(total)
    if kind == "uncoupled":
        H[s:, s:] = block_diag(*[random_spd(rng, m, condition) for m in controls])
    if kind == "identical":
        m = controls[0]
        select = np.vstack([np.eye(s + m)[:s], *[np.eye(s + m)[s:]] * N])
        H = select @ random_spd(rng, s + m, 10.0) @ select.T + np.eye(total) / condition
        g = select @ g[: s + m]
    if kind == "rank one":
        z = rng.standard_normal(total)
        H = np.outer(z, z) + np.eye(total) / condition
    if kind == "no gradient":
        g[s:] = 0
    return Cooperation(g, H, n, r, controls)
