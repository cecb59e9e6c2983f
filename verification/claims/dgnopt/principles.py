"""Information structures and dynamic programming: Defs. 3, 4, Table 1, Eqs. 6-8, 17."""

import itertools

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import bellman
from bellman_tf.bellman import sample_space
from verification.claim import at_most, same
from verification.derivations.equilibria import best_responses
from verification.derivations.recursions import cooperate, group_cost, roll_out, separate, value_of
from verification.papers import DGN
from verification.problems.dynamic_games import LinearGame, linear_games
from verification.problems.games import Game, games
from verification.references import dense


def game_weights(game: Game, player=None):
    """Weights of the samples' columns at every stage from our recursion, one group, no deviation; of one player."""
    grams, linears = (tf.constant(np.array(x)[:, None]) for x in game.grams(player))
    rank = 0 if game.root is None else game.root.shape[2]
    beta_squared = None if rank else tf.constant(game.beta_squared)
    start = sample_space.init(game.batch_size, beta_squared=beta_squared, rank=rank, dtype=tf.float64)
    values = sample_space.backward_all(start, grams, linears)
    return sample_space.weights(values).numpy()[:, 0], sample_space.weights(start).numpy()[0]


@DGN.definition(
    "TAB1",
    "Table 1",
    "OLNE minimises H and is what the baselines do; FNE minimises Q, GR minimises P: the optimizer of the paper",
    remark="Rows are realised by: no Gram matrix; a Gram matrix per player; the sum of the players' Gram matrices.",
    over=games(max_log_condition=3, max_log_stiffness=1),
)
def rows_of_the_table(game: Game):
    """The open-loop gains of the three rows against the dense recursion over the samples."""
    H = list(game.hessian)
    players = range(max(len(stage.players) for stage in game.stages))
    for own in (None, *players):  # None: all players together, GR
        weights, last = game_weights(game, own)
        steps = dense.backward_batch(game.gradient, H, game.dense_stages(player=own))
        for t, stage in enumerate(game.stages):
            acting = [p for p in range(len(stage.players)) if own in {None, p}]
            if not acting:
                continue
            solved = [
                -np.linalg.solve(
                    stage.players[p].metric,
                    stage.players[p].l_u + game.parameter_columns(t, stage.players[p]) @ weights[t],
                )
                for p in acting
            ]
            condition = max(np.linalg.cond(stage.players[p].metric) for p in acting) * amplification(game, t)
            yield same(np.concatenate(solved), steps[t][0], condition=condition, label="GR" if own is None else "FNE")
    for t, stage in enumerate(game.stages):  # OLNE: the gradient of the mean loss, preconditioned
        for player in stage.players:
            g = game.all_columns()[t + 1][:, :, 0]
            gradient = player.l_u + np.mean([f.T @ g_i for f, g_i in zip(player.f_u, g, strict=True)], axis=0)
            ours = player.l_u + game.parameter_columns(t, player) @ last
            yield same(ours, gradient, scale=np.linalg.norm(player.f_u) * np.linalg.norm(g), label="OLNE")


def amplification(game: Game, t):
    """1 + the largest eigenvalue of S G summed over the stages from t on: what the weights cancel."""
    m = game.columns.shape[2]
    G = sum(game.grams()[0][t:])
    beta = np.max(game.beta_squared) if game.root is None else 1.0
    return 1 + m * beta * np.linalg.norm(G, 2) / game.batch_size


def response(stage, values, p, k, K):
    """Our expansion for player p alone, the others' policies k, K put into the dynamics."""
    ends = np.cumsum([f_u.shape[1] for f_u in stage.f_us])
    own = slice(ends[p] - stage.f_us[p].shape[1], ends[p])
    others = np.delete(np.hstack(stage.f_us), own, axis=1)
    v, W = values[p]
    f_x = stage.f_x + others @ np.delete(K, own, axis=0)
    v = v + W @ others @ np.delete(k, own)  # the gradient where the others have moved to
    Q = bellman.expand(value_of(v, W), f_x, stage.f_us[p], cost_u=stage.l_us[p], cost_uu=stage.l_uus[p])
    return Q, own


@DGN.definition(
    "D3",
    "Definition 3",
    "feedback Nash equilibrium: every policy is the best response to the policies of the others, stage by stage",
    remark="The printed update (Eq. 9) does not solve this: E9.",
    over=linear_games(max_log_condition=2),
)
def feedback_nash(game: LinearGame):
    """Our single-player gains against the others' equilibrium policies give the equilibrium policy back."""
    for stage, values, k, K, _, condition in best_responses(game):
        for p in range(game.players):
            Q, own = response(stage, values, p, k, K)
            gains = bellman.gains(Q)
            condition_p = condition * np.linalg.cond(Q.Q_uu)
            yield same(gains.open_loop, k[own], condition=condition_p, scale=np.linalg.norm(k), label="k_n")
            yield same(gains.feedback, K[own], condition=condition_p, scale=np.linalg.norm(K), label="K_n")


@DGN.definition(
    "E6",
    "Eq. 6",
    "V_{t,n}(x) = min over pi_n of Q_{t,n}(x, pi_n, pi*_others), V_{T,n} = phi_n, Q_{t,n} = l_{t,n} + V_{t+1,n} o F_t",
    over=linear_games(max_log_condition=2),
)
def isaacs_bellman(game: LinearGame):
    """Our value update in the game against fixed opponents is the equilibrium value of the player."""
    for stage, values, k, K, before, condition in best_responses(game):
        for p in range(game.players):
            Q, _ = response(stage, values, p, k, K)
            V = bellman.value_update(Q, bellman.gains(Q))
            v, W = before[p]
            condition_p = condition * np.linalg.cond(Q.Q_uu)
            yield same(V.V_x, v, condition=condition_p, scale=np.linalg.norm(Q.Q_x), label="V_x")
            yield same(V.V_xx, W, condition=condition_p, scale=np.linalg.norm(Q.Q_xx), label="V_xx")


def whole_horizon(game: LinearGame, count):
    """Minimiser over all controls of all players at once."""
    return dense.whole_horizon(count * game.v, count * game.W, [stage.joint() for stage in game.stages])


@DGN.definition(
    "D4",
    "Definition 4",
    "cooperative feedback solution: the players' policies together minimise P_t at every stage",
    over=linear_games(max_depth=2),
)
def cooperative_feedback(game: LinearGame):
    """Our cooperative policies, rolled out, against the joint minimiser over the whole horizon."""
    N, n = game.players, game.stages[0].f_x.shape[1]
    U_0, U_x, _, _ = whole_horizon(game, N)
    policies, _ = cooperate(game, N)
    condition = game.condition(N)
    for deviation in (np.zeros(n), np.linspace(-1, 1, n)):
        U = np.concatenate(roll_out(game, policies, deviation)[0])
        yield same(U, U_0 + U_x @ deviation, condition=condition, label="controls of all stages")


@DGN.definition(
    "E7",
    "Eq. 7",
    "W_t(x) = min over all policies of P_t, P_t = sum_n l_{t,n} + W_{t+1} o F_t, W_T = sum_n phi_n",
    remark="Exact dynamic programming of the joint problem; W_T = N phi when phi_n = phi.",
    over=linear_games(max_depth=2),
)
def group_bellman(game: LinearGame):
    """Our W_0 against the minimum over the whole horizon."""
    N = game.players
    _, _, w, H = whole_horizon(game, N)
    W = cooperate(game, N)[1][0]
    growth = np.prod([max(1.0, np.linalg.norm(stage.f_x, 2)) for stage in game.stages])
    condition = game.condition(N)
    yield same(W.V_x, w, condition=condition, scale=N * np.linalg.norm(game.v) * growth, label="W_x")
    yield same(W.V_xx, H, condition=condition, scale=N * np.linalg.norm(game.W) * growth**2, label="W_xx")


@DGN.definition(
    "E8",
    "Eq. 8",
    "eta^O is contained in eta^C, that in eta^C-CG; and eta^O in eta^O-CG, that in eta^C-CG",
    remark="Not strictly at t = 0: with the nominal first state, open loop and feedback do the same on linear"
    " dynamics.",
    over=linear_games(max_log_condition=2),
)
def inclusions(game: LinearGame):
    """More information never costs the group more on its quadratic model; at t = 0 feedback is worth nothing."""
    N, n = game.players, game.stages[0].f_x.shape[1]
    together, apart = cooperate(game, N)[0], separate(game)[0]
    unit = N * (np.linalg.norm(game.v) + np.linalg.norm(game.W))
    for deviation in (np.zeros(n), np.linspace(-1, 1, n)):
        closed, states = roll_out(game, together, deviation)
        best = group_cost(game, closed, deviation, N)
        fixed = [gains for gains, _ in zip(roll_out(game, together, 0 * deviation)[0], game.stages, strict=True)]
        scale = unit * (1 + max(map(np.linalg.norm, states)) ** 2) + sum(u @ u for u in fixed)
        options = {
            "O-CG": fixed,
            "C": roll_out(game, apart, deviation)[0],
            "O": roll_out(game, apart, 0 * deviation)[0],
        }
        for label, changes in options.items():
            scale_of = scale + abs(group_cost(game, changes, deviation, N))
            yield at_most(
                best, group_cost(game, changes, deviation, N), scale=scale_of, condition=game.condition(N), label=label
            )
        if not deviation.any():
            yield same(np.concatenate(closed), np.concatenate(fixed), label="C-CG = O-CG at the nominal state")


class FiniteControl:
    """Three stages tanh(a z + theta) with theta from five values, and a cost per control."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.a, self.controls, self.costs = rng.standard_normal(3), rng.standard_normal(5), rng.uniform(size=(3, 5))

    def step(self, t, z, i):
        """Next state under control number i."""
        return np.tanh(self.a[t] * z + self.controls[i])

    def value(self, t, z):
        """Bellman's recursion."""
        if t == 3:
            return z**2
        return min(self.costs[t, i] + self.value(t + 1, self.step(t, z, i)) for i in range(5))

    def enumerate(self, z):
        """All sequences."""
        totals = []
        for choice in itertools.product(range(5), repeat=3):
            x, total = z, 0.0
            for t, i in enumerate(choice):
                total, x = total + self.costs[t, i], self.step(t, x, i)
            totals.append(total + x**2)
        return min(totals)


@DGN.exact(
    "E17",
    "Eq. 17 (Theorem 7, DP)",
    "V_t(z) = min over pi of Q_t(z, theta), Q_t = l_t + V_{t+1} o f_t: the minimisers are the optimal feedback policy",
    over=st.tuples(linear_games(players=(1,)), st.integers(0, 2**32 - 1)),
)
def dynamic_programming(problem):
    """Enumeration of a finite control set; and our recursion against the whole horizon on a quadratic problem."""
    game, seed = problem
    finite = FiniteControl(seed)
    yield same(finite.value(0, 0.3), finite.enumerate(0.3), label="finite control set")
    stages = [
        bellman.StageDerivatives(*map(tf.constant, (s.f_x, s.f_us[0])), cost_u=s.l_us[0], cost_uu=s.l_uus[0])
        for s in game.stages
    ]
    policies, values = bellman.backward_dense(value_of(game.v, game.W), stages)
    U_0, U_x, _, H = whole_horizon(game, 1)
    deviation = np.linspace(-1, 1, H.shape[0])
    U = np.concatenate(roll_out(game, [[gains] for gains in policies], deviation)[0])
    growth = np.prod([max(1.0, np.linalg.norm(stage.f_x, 2)) for stage in game.stages])
    yield same(U, U_0 + U_x @ deviation, condition=game.condition(), label="optimal policy")
    scale = np.linalg.norm(game.W) * growth**2
    yield same(values[0].V_xx, H, condition=game.condition(), scale=scale, label="V_xx")
