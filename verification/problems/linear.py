"""Networks for the linear roll-out: branches whose layers have no order, and layers W x + b that run for real."""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from verification.problems.games import Game, Player, StageData, random_spd


class Branches(NamedTuple):
    """Two branches from one input, added at the end of the network; a layer is a branch and a place in it."""

    jacobians: tuple[list[np.ndarray], list[np.ndarray]]  # per branch and layer, [B, n', n]
    players: tuple[list[Player], list[Player]]  # f_u [B, n', m]
    gradient: np.ndarray  # [B, n]
    root: np.ndarray  # [B, n, r]
    orders: tuple[list[int], list[int]]  # the branch of every stage, for two orders

    @staticmethod
    def layers(order):
        """The layer of every stage."""
        return [(branch, order[:t].count(branch)) for t, branch in enumerate(order)]

    def game(self, order):
        """Stages in an order, with the state (x of the first branch, x of the second)."""
        B, n = self.gradient.shape
        sizes, stages = [branch[0].shape[2] for branch in self.jacobians], []
        for branch, place in self.layers(order):
            J, player = self.jacobians[branch][place], self.players[branch][place]
            new = list(sizes)
            new[branch] = J.shape[1]
            rows, cols = (slice(0, x[0]) if branch == 0 else slice(x[0], None) for x in (new, sizes))
            f_x, f_u = np.zeros((B, sum(new), sum(sizes))), np.zeros((B, sum(new), player.f_u.shape[2]))
            kept = np.eye(sizes[1 - branch])
            other = (slice(new[0], None), slice(sizes[0], None)) if branch == 0 else (slice(0, new[0]),) * 2
            f_x[:, rows, cols], f_u[:, rows], f_x[:, other[0], other[1]] = J, player.f_u, kept
            stages.append(StageData(f_x, (player._replace(f_u=f_u),)))
            sizes = new
        return Game(stages, np.tile(self.gradient, (1, 2)), root=np.tile(self.root, (1, 2, 1)))


@st.composite
def branches(draw, *, max_depth=3, max_batch=4, max_log_condition=4):
    """Random branches of one to `max_depth` layers."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    B, n = draw(st.integers(1, max_batch), label="batch_size"), draw(st.integers(1, 3), label="n")
    depths = [draw(st.integers(1, max_depth), label="depth") for _ in range(2)]
    condition = 10.0 ** draw(st.integers(0, max_log_condition), label="log10 condition")
    jacobians, players = ([], []), ([], [])
    for branch, depth in enumerate(depths):
        sizes = [2, *rng.integers(1, 4, depth - 1), n]
        for old, new in zip(sizes[:-1], sizes[1:], strict=True):
            m = int(rng.integers(1, 4))
            jacobians[branch].append(rng.standard_normal((B, new, old)))
            f_u, metric = rng.standard_normal((B, new, m)), random_spd(rng, m, condition)
            players[branch].append(Player(f_u, metric, rng.standard_normal(m)))
    order = [0] * depths[0] + [1] * depths[1]
    mixed = [order[i] for i in rng.permutation(len(order))]
    gradient, root = rng.standard_normal((B, n)), rng.standard_normal((B, n, int(rng.integers(1, 3))))
    return Branches(jacobians, players, gradient, root, (order, mixed))


class LinearNetwork(NamedTuple):
    """Stages x' = sum_p (W_p x + b_p) + x if the sizes are equal; a player trains b_p, or W_p row by row and b_p.

    `affine`: kernels train at the first stage only, which reads the input.
    """

    inputs: np.ndarray  # [B, n]
    kernels: list[list[np.ndarray]]  # per stage and player, [n', n]
    biases: list[list[np.ndarray]]
    metrics: list[list[np.ndarray]]
    costs: list[list[np.ndarray]]
    targets: np.ndarray  # [B, n_T], half the squared distance is the loss
    affine: bool

    def trains_kernel(self, t):
        """Whether the players of a stage train their kernels."""
        return t == 0 or not self.affine

    def split(self, t, player, du):
        """Changes of W and b."""
        W = self.kernels[t][player]
        return (du[: W.size].reshape(W.shape), du[W.size :]) if self.trains_kernel(t) else (np.zeros(W.shape), du)

    def stage(self, t, x, moves=None):
        """Next state [B, n'], with the players moved."""
        out = 0
        for p, (W, b) in enumerate(zip(self.kernels[t], self.biases[t], strict=True)):
            dW, db = (0, 0) if moves is None else self.split(t, p, moves[p])
            out = out + x @ (W + dW).T + b + db
        return out + x if out.shape == x.shape else out

    def bilinear(self, t, moves, dx):
        """sum_p dW_p dx, [B, n']."""
        return sum(dx @ self.split(t, p, du)[0].T for p, du in enumerate(moves))

    def game(self):
        """The game at the inputs, and the states of every cut."""
        states, stages, B = [self.inputs], [], len(self.inputs)
        for t, kernels in enumerate(self.kernels):
            x, (new, old) = states[-1], kernels[0].shape
            eye = np.tile(np.eye(new), (B, 1, 1))
            by_W = np.einsum("ac,bd->bacd", np.eye(new), x).reshape(B, new, new * old)
            f_u = np.concatenate([by_W, eye], axis=2) if self.trains_kernel(t) else eye
            f_x = np.tile(sum(kernels) + (np.eye(new) if new == old else 0), (B, 1, 1))
            players = zip(self.metrics[t], self.costs[t], strict=True)
            stages.append(StageData(f_x, tuple(Player(f_u, M, l) for M, l in players)))
            states.append(self.stage(t, x))
        gap = states[-1] - self.targets
        return Game(stages, gap, root=np.tile(np.eye(gap.shape[1]), (B, 1, 1))), states


@st.composite
def linear_networks(draw, *, max_depth=4, max_batch=3, max_log_condition=3):
    """Random networks of one to three players a stage."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    B, depth = draw(st.integers(1, max_batch), label="batch_size"), draw(st.integers(1, max_depth), label="depth")
    affine, decay = draw(st.booleans(), label="affine"), draw(st.booleans(), label="decay")
    condition = 10.0 ** draw(st.integers(0, max_log_condition), label="log10 condition")
    sizes = rng.integers(1, 4, depth + 1)
    kernels, biases, metrics, costs = [], [], [], []
    for t, (old, new) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        count = int(rng.integers(1, 4))
        m = int(new * (old + 1) if t == 0 or not affine else new)
        kernels.append(list(rng.standard_normal((count, new, old)) / np.sqrt(old * count)))
        biases.append(list(rng.standard_normal((count, new))))
        metrics.append([random_spd(rng, m, condition) for _ in range(count)])
        costs.append(list(rng.standard_normal((count, m)) * decay))
    inputs, targets = rng.standard_normal((B, sizes[0])), rng.standard_normal((B, sizes[-1]))
    return LinearNetwork(inputs, kernels, biases, metrics, costs, targets, affine)
