"""Games in explicit Jacobian form, and small tanh networks whose forward pass and Jacobians are plain NumPy.

A game is cut into stages with the joint state of all open tensors, one to three players per stage. A strategy draws
sizes, options and a seed; NumPy makes the numbers, so a failing example is short to print.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from scipy.linalg import block_diag

KINDS = {False: ("plain", "open", "parallel"), True: ("inner", "close", "close_parametrised")}  # by: shortcut open?


class Player(NamedTuple):
    f_u: np.ndarray  # [B, n_next, m]
    metric: np.ndarray  # [m, m]
    l_u: np.ndarray  # [m]


class StageData(NamedTuple):
    f_x: np.ndarray  # [B, n_next, n]
    players: tuple[Player, ...]

    @property
    def f_u(self):
        return np.concatenate([player.f_u for player in self.players], axis=2)

    @property
    def metric(self):
        return block_diag(*[player.metric for player in self.players])

    @property
    def l_u(self):
        return np.concatenate([player.l_u for player in self.players])


@dataclasses.dataclass
class Game:
    """Stages and the end of the network: gradient g [B, n], and either beta^2 [B] (collinear) or Z [B, n, r]."""

    stages: list[StageData]
    gradient: np.ndarray
    beta_squared: np.ndarray | None = None
    root: np.ndarray | None = None

    @property
    def batch_size(self):
        return len(self.gradient)

    @property
    def columns(self):
        """Columns per sample at the end, [B, n, m]."""
        g = self.gradient[:, :, None]
        return g if self.root is None else np.concatenate([g, self.root], axis=2)

    @property
    def hessian(self):
        if self.root is None:
            return np.einsum("b,bi,bj->bij", self.beta_squared, self.gradient, self.gradient)
        return self.root @ self.root.transpose(0, 2, 1)

    def pick(self, samples):
        """The game of some of the samples, in the order given."""
        stages = [
            StageData(stage.f_x[samples], tuple(p._replace(f_u=p.f_u[samples]) for p in stage.players))
            for stage in self.stages
        ]
        ends = [None if x is None else x[samples] for x in (self.gradient, self.beta_squared, self.root)]
        return Game(stages, *ends)

    def dense_stages(self, samples=slice(None), player=None):
        """Stages as `verification.references.dense.backward_batch` takes them; of one player only, if asked."""
        stages = []
        for stage in self.stages:
            players = [p for i, p in enumerate(stage.players) if player in {None, i}]
            f_x = stage.f_x[samples]
            if players:
                acting = StageData(f_x, tuple(p._replace(f_u=p.f_u[samples]) for p in players))
                stages.append((f_x, acting.f_u, acting.metric, acting.l_u))
            else:
                stages.append((f_x, np.zeros((*f_x.shape[:2], 0)), np.zeros((0, 0)), np.zeros(0)))
        return stages

    def stacked_stages(self, samples=slice(None)):
        """Stages as `verification.references.rollout` takes them: F_X, and per player (F_u, M, l_u)."""
        return [
            (
                block_diag(*stage.f_x[samples]),
                [(np.concatenate(list(p.f_u[samples])), p.metric, p.l_u) for p in stage.players],
            )
            for stage in self.stages
        ]

    def own_cost(self):
        """c, the sum of l_u' M^{-1} l_u over all players."""
        return sum(p.l_u @ np.linalg.solve(p.metric, p.l_u) for stage in self.stages for p in stage.players)

    def all_columns(self):
        """The columns at every cut, T + 1 arrays [B, n_t, m], by vector-Jacobian products."""
        cuts = [self.columns]
        for stage in reversed(self.stages):
            cuts.insert(0, stage.f_x.transpose(0, 2, 1) @ cuts[0])
        return cuts

    def parameter_columns(self, t, player):
        """Qc of one player at stage t: [P, B m]."""
        Qc = player.f_u.transpose(0, 2, 1) @ self.all_columns()[t + 1]  # [B, P, m]
        return np.concatenate(list(Qc), axis=1)

    def grams(self, player=None):
        """Per stage G and l, summed over the players, or of one player (zero where it does not act)."""
        size = self.batch_size * self.columns.shape[2]
        pairs = []
        for t, stage in enumerate(self.stages):
            G, l = np.zeros((size, size)), np.zeros(size)
            for i, p in enumerate(stage.players):
                if player in {None, i}:
                    Qc = self.parameter_columns(t, p)
                    G += Qc.T @ np.linalg.solve(p.metric, Qc)
                    l += Qc.T @ np.linalg.solve(p.metric, p.l_u)
            pairs.append(((G + G.T) / 2, l))
        return [G for G, _ in pairs], [l for _, l in pairs]


def random_spd(rng, size, condition):
    """A full symmetric positive definite matrix with extreme eigenvalues 1 and `condition`."""
    Q = np.linalg.qr(rng.standard_normal((size, size)))[0]
    spectrum = condition ** rng.uniform(0, 1, size)
    spectrum[0], spectrum[-1] = condition, 1.0
    A = (Q * spectrum) @ Q.T
    return (A + A.T) / 2


def random_kinds(rng, depth, shortcuts):
    """A legal sequence of stages; every opened shortcut is closed."""
    kinds, is_open = [], False
    for t in range(depth):
        choices = KINDS[is_open]
        if t == depth - 1:
            choices = [k for k in choices if k not in {"open", "inner"}]
        if not shortcuts:
            choices = ["plain"]
        kinds.append(str(rng.choice(list(choices))))
        is_open = kinds[-1] in {"open", "inner"}
    return kinds


def random_game(
    rng, batch_size, kinds, *, condition=10.0, terminal="collinear", rank=1, decay=True, zero=False, scale=1.0, size=3
):
    """Random Jacobians per sample with the block structure of `kinds`; sizes up to `size` vary from stage to stage."""
    B = batch_size

    def draw(*shape):
        return rng.standard_normal(shape) / np.sqrt(shape[-1])

    n, skip, stages = int(rng.integers(1, size + 1)), 0, []
    for kind in kinds:
        new = skip if kind == "close" else int(rng.integers(1, size + 1))
        f = draw(B, new, n)  # of the main path
        controls = [draw(B, new, int(rng.integers(1, size + 1))) for _ in range(3 if kind == "parallel" else 1)]
        if kind == "open":
            skip = n
            f_x = np.concatenate([f, np.tile(np.eye(n), (B, 1, 1))], axis=1)
            controls = [np.concatenate([c, np.zeros((B, skip, c.shape[2]))], axis=1) for c in controls]
        elif kind == "inner":
            f_x = np.array([block_diag(f_i, np.eye(skip)) for f_i in f])
            controls = [np.concatenate([c, np.zeros((B, skip, c.shape[2]))], axis=1) for c in controls]
        elif kind == "close":
            f_x = np.concatenate([f, np.tile(np.eye(skip), (B, 1, 1))], axis=2)
        elif kind == "close_parametrised":
            f_x = np.concatenate([f, draw(B, new, skip)], axis=2)
            controls.append(draw(B, new, int(rng.integers(1, size + 1))))
        else:
            f_x = f
        metrics = [scale * random_spd(rng, c.shape[2], condition) for c in controls]
        costs = [rng.standard_normal(c.shape[2]) * decay for c in controls]
        stages.append(StageData(f_x, tuple(map(Player, controls, metrics, costs))))
        n = new
    g = rng.standard_normal((B, n))
    if zero:
        g[rng.integers(B)] = 0
    if terminal == "collinear":
        beta_squared = rng.exponential(2.0, B) * (rng.uniform(size=B) > 0.2)
        return Game(stages, g, beta_squared=beta_squared)
    Z = rng.standard_normal((B, n, rank))
    if terminal == "degenerate":  # dependent and vanishing columns
        Z[:, :, -1] = Z[:, :, 0]
        Z[0] = 0
    return Game(stages, g, root=Z)


@st.composite
def games(
    draw,
    *,
    terminals=("collinear", "rank", "degenerate"),
    max_batch=5,
    max_depth=4,
    max_log_condition=6,
    max_log_stiffness=3,
):
    """Random games in Jacobian form."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    depth = draw(st.integers(1, max_depth), label="depth")
    shortcuts = draw(st.booleans(), label="shortcuts")
    return random_game(
        rng,
        draw(st.integers(1, max_batch), label="batch_size"),
        random_kinds(rng, depth, shortcuts),
        condition=10.0 ** draw(st.integers(0, max_log_condition), label="log10 condition"),
        terminal=draw(st.sampled_from(terminals), label="terminal"),
        rank=draw(st.integers(1, 3), label="rank"),
        decay=draw(st.booleans(), label="decay"),
        zero=draw(st.booleans(), label="zero gradient"),
        scale=10.0 ** draw(st.integers(-max_log_stiffness, 0), label="log10 smallest eigenvalue of the metrics"),
    )


class Network:
    """tanh layers with shortcuts; the state is flat, [B, n], with the skip state behind the main one.

    plain: tanh(W x + b). open: (tanh(W x + b), x). inner: (tanh(W x + b), x_r). close: tanh(W x + b) + x_r.
    close_parametrised: tanh(W x + b) + tanh(W_r x_r + b_r). parallel: tanh of three layers, added.
    """

    def __init__(self, rng, kinds, size=3):
        self.kinds, self.layers, self.parameters = kinds, [], []
        self.n = n = int(rng.integers(1, size + 1))
        skip = 0
        for kind in kinds:
            new = skip if kind == "close" else int(rng.integers(1, size + 1))
            shapes = [(new, n)] * (3 if kind == "parallel" else 1) + [(new, skip)] * (kind == "close_parametrised")
            skip = n if kind == "open" else skip
            self.layers.append((n, shapes))
            self.parameters.append([rng.standard_normal(a * (c + 1)) / np.sqrt(c + 1) for a, c in shapes])
            n = new

    @staticmethod
    def layer(x, u, shape):
        """Output, derivative [B, new, n] in x and [B, new, P] in u = [W row by row; b]."""
        rows, cols = shape
        W, b = u[: rows * cols].reshape(shape), u[rows * cols :]
        y = np.tanh(x @ W.T + b)
        slope = 1 - y**2
        by_W = np.einsum("ba,ac,bd->bacd", slope, np.eye(rows), x).reshape(len(x), rows, rows * cols)
        return y, slope[:, :, None] * W, np.concatenate([by_W, slope[:, :, None] * np.eye(rows)], axis=2)

    def stage(self, t, state, parameters):
        """Next state, Jacobian in the state, Jacobian in each player's parameters."""
        kind, (n, shapes) = self.kinds[t], self.layers[t]
        x, x_r = state[:, :n], state[:, n:]
        B = len(x)
        inputs = [x_r if kind == "close_parametrised" and i == 1 else x for i in range(len(shapes))]
        ys, by_x, by_u = zip(*map(self.layer, inputs, parameters, shapes), strict=True)
        if kind in {"open", "inner"}:
            kept = x if kind == "open" else x_r
            eye = np.tile(np.eye(kept.shape[1]), (B, 1, 1))
            bottom = np.zeros((B, kept.shape[1], by_u[0].shape[2]))
            if kind == "open":
                f_x = np.concatenate([by_x[0], eye], axis=1)
            else:
                f_x = np.array([block_diag(J, np.eye(kept.shape[1])) for J in by_x[0]])
            return np.concatenate([ys[0], kept], axis=1), f_x, [np.concatenate([by_u[0], bottom], axis=1)]
        if kind == "close":
            eye = np.tile(np.eye(x_r.shape[1]), (B, 1, 1))
            return ys[0] + x_r, np.concatenate([by_x[0], eye], axis=2), list(by_u)
        if kind == "close_parametrised":
            return sum(ys), np.concatenate(by_x, axis=2), list(by_u)
        return sum(ys), sum(by_x), list(by_u)

    def forward(self, x, parameters=None):
        """All states, T + 1 arrays, and per stage (f_x, [f_u])."""
        parameters = self.parameters if parameters is None else parameters
        states, jacobians = [x], []
        for t in range(len(self.kinds)):
            y, f_x, f_us = self.stage(t, states[-1], parameters[t])
            states.append(y)
            jacobians.append((f_x, f_us))
        return states, jacobians


def network_game(rng, network, x, *, condition=10.0, decay=0.1):
    """The game of a network at inputs x with a softmax cross-entropy at its end, full Hessian."""
    states, jacobians = network.forward(x)
    logits = states[-1]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.eye(logits.shape[1])[rng.integers(logits.shape[1], size=len(x))]
    # diag(p) - p p' = Z Z' with Z = diag(sqrt p) - p sqrt(p)'
    Z = np.sqrt(p)[:, :, None] * np.eye(p.shape[1]) - p[:, :, None] * np.sqrt(p)[:, None, :]
    stages = []
    for (f_x, f_us), us in zip(jacobians, network.parameters, strict=True):
        metrics = [random_spd(rng, len(u), condition) for u in us]
        costs = [decay * u for u in us]
        stages.append(StageData(f_x, tuple(map(Player, f_us, metrics, costs))))
    return Game(stages, p - labels, root=Z), states
