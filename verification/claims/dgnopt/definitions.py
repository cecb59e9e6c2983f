"""Section 2 and the notation: Eqs. 1-4, Tables 5-7."""

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import bellman, linalg
from verification.claim import at_most, measured, same
from verification.derivations.recursions import cooperate, roll_out, separate, stacked, value_of
from verification.papers import DGN
from verification.problems.dynamic_games import LinearGame, linear_games, random_linear_game
from verification.problems.networks import Chain, chains
from verification.problems.objectives import STEP, Objective, objectives
from verification.references import dense


@DGN.definition(
    "E1",
    "Eq. 1",
    "z_{t+1} = f_t(z_t, theta_t); for a dense layer f_t = sigma(W_t z_t + b_t) with theta_t = vec([W_t, b_t])",
    remark="vec stacks columns, so theta_t = [vec(W_t); b_t].",
    over=chains(max_depth=2, terminals=("square",)),
)
def propagation(chain: Chain):
    """Our vec of [W, b] is the control, its unvec moves the state."""
    for t, (layer, u) in enumerate(zip(chain.layers, chain.controls, strict=True)):
        W, b = layer.split(u)
        yield same(linalg.vec(tf.constant(np.column_stack([W, b]))), u, label="theta = vec([W, b])")
        x = chain.states()[t]
        h = linalg.unvec(tf.constant(u), layer.rows, layer.cols + 1).numpy() @ np.append(x, 1.0)
        at = layer.preactivation(x, u)
        yield same(h, at, scale=np.linalg.norm(u) * np.linalg.norm(np.append(x, 1.0)), label="W z + b")


@DGN.definition(
    "E2",
    "Eq. 2",
    "training minimises L = phi(z_T) + sum_t l_t(theta_t) subject to Eq. 1",
    over=chains(running=("none", "control")),
)
def objective(chain: Chain):
    """The first-order terms of our recursion are the derivatives of L, by the complex step."""
    states, value = chain.states(), chain.terminal_derivatives(chain.states()[-1])
    value = value_of(value[0], 0 * value[1])
    for t in reversed(range(len(chain.layers))):
        stage = chain.stage(t, states[t], second_order=False)
        expansion = bellman.expand(value, stage["f_x"], stage["f_u"], cost_u=stage["l_u"])
        gradient = np.zeros(chain.layers[t].size)
        for i in range(len(gradient)):
            controls = [u.astype(complex) for u in chain.controls]
            controls[t][i] += 1j * STEP
            gradient[i] = chain.cost(controls).imag / STEP
        scale = np.linalg.norm(stage["f_u"]) * np.linalg.norm(value.V_x) + np.linalg.norm(stage["l_u"])
        yield same(expansion.Q_u, gradient, scale=scale, label="dL/dtheta")
        value = bellman.Value(expansion.Q_x, expansion.Q_xx)


@DGN.definition(
    "E3",
    "Eq. 3",
    "player n minimises L_n = phi_n(x_T) + sum_t l_{t,n} under the shared dynamics x_{t+1} = F_t(x_t, theta_{t,1..N})",
    remark="phi_n = phi and l_{t,n} = l(theta_{t,n}) for a network: only its own weight decay is private.",
    over=objectives(),
)
def players_cost(problem: Objective):
    """Every player's Q_u is the derivative of its own L_n, which has its own decay only."""
    states, jacobians = problem.network.forward(problem.inputs)
    gradients, co_state = problem.gradient(), problem.terminal_derivatives(states[-1])[0][0]
    for t in reversed(range(len(jacobians))):
        f_x, f_us = jacobians[t][0][0], [f_u[0] for f_u in jacobians[t][1]]
        own = [problem.decay * u for u in problem.parameters[t]]
        joint = bellman.expand_players(value_of(co_state, np.zeros((len(co_state),) * 2)), f_x, f_us, cost_u=own)
        for n, (Q_u, gradient) in enumerate(zip(joint.Q_u, gradients[t], strict=True)):
            scale = np.linalg.norm(f_us[n]) * np.linalg.norm(co_state) + np.linalg.norm(own[n])
            yield same(Q_u, gradient, scale=scale, label="dL_n / dtheta_n")
        co_state = joint.Q_x.numpy()


@DGN.definition(
    "E4",
    "Eq. 4",
    "group rationality minimises sum_n L_n",
    remark="With phi_n = phi the sum is N phi + sum l: the loss counts N times, or the weight decay 1/N (OURS-11).",
    over=linear_games(max_depth=1),
)
def group_objective(game: LinearGame):
    """Our joint gains against the minimiser of the players' quadratic models, added one by one."""
    (stage,), N = game.stages, game.players
    n, sizes = stage.f_x.shape[1], [f_u.shape[1] for f_u in stage.f_us]
    gradient, hessian = np.zeros(n + sum(sizes)), np.zeros((n + sum(sizes),) * 2)
    for p in range(N):
        own = np.concatenate([stage.l_us[q] * (q == p) for q in range(N)])
        mask = np.concatenate([np.full(m, q == p) for q, m in enumerate(sizes)])
        l_uu = stage.joint()["l_uu"] * np.outer(mask, mask)
        added = dense.expand(game.v, game.W, stage.f_x, np.hstack(stage.f_us), l_u=own, l_uu=l_uu)
        gradient, hessian = gradient + added[0], hessian + added[1]
    k, K = stacked(cooperate(game, count=N)[0][0])
    truth, condition = dense.minimise(gradient, hessian, n), np.linalg.cond(hessian[n:, n:])
    yield same(k, truth[0], condition=condition, label="k")
    yield same(K, truth[1], condition=condition, label="K")


def private_costs(game: LinearGame, policies):
    """What every player pays from the nominal state: its own running costs and the shared terminal cost."""
    changes, states = roll_out(game, policies, np.zeros(game.stages[0].f_x.shape[1]))
    costs = np.full(game.players, game.v @ states[-1] + states[-1] @ game.W @ states[-1] / 2)
    for stage, change in zip(game.stages, changes, strict=True):
        cuts = np.cumsum([len(l) for l in stage.l_us])[:-1]
        for n, u in enumerate(np.split(change, cuts)):
            costs[n] += stage.l_us[n] @ u + u @ stage.l_uus[n] @ u / 2
    return costs


def share_of_hurt_players(seed, count=10):
    """Share of random games of two players in which cooperation costs one of them more than playing alone."""
    hurt = 0
    for k in range(count):
        game = random_linear_game(np.random.default_rng([seed, k]), 2, 2)
        together, apart = cooperate(game, 2)[0], separate(game)[0]
        hurt += bool((private_costs(game, together) > private_costs(game, apart) + 1e-9).any())
    return hurt / count


@DGN.exact(
    "IR",
    "Eq. 4 (ii)",
    "individual rationality: what the group's optimum costs can be distributed so that no player pays more than in"
    " non-cooperative play",
    assumes="costs can be passed between players: each pays its non-cooperative cost less 1/N of what the group saves",
    remark="The group's optimum is the minimum of the sum, hence at most the sum at the non-cooperative policies, and"
    " what is saved can be shared. Without sharing it is false: where players have private costs, cooperation makes one"
    " of two pay more than alone in the share 'hurt' of random games. With one loss for all and no private costs all"
    " pay the same, and nothing has to be shared. No step depends on it: DGNOpt distributes no costs.",
    over=st.tuples(linear_games(players=(2, 3), max_depth=2, max_log_condition=2), st.integers(0, 2**32 - 1)),
    ranges={"hurt": (0.1, 0.9)},
    examples=8,
)
def individual_rationality(problem):
    """Costs of every player under our group-rational and our non-cooperative policies."""
    game, seed = problem
    N = game.players
    together, apart = (private_costs(game, make) for make in (cooperate(game, N)[0], separate(game)[0]))
    saved = np.sum(apart) - np.sum(together)
    scale, condition = np.sum(np.abs(apart)) + np.sum(np.abs(together)), game.condition(N)
    yield at_most(0.0, saved, scale=scale, condition=condition, label="the group saves")
    shares = apart - saved / N
    yield at_most(shares, apart, scale=scale, condition=condition, label="no player pays more")
    yield same(np.sum(shares), np.sum(together), scale=scale, label="the shares are what the group pays")
    yield measured(share_of_hurt_players(seed), "hurt")


@DGN.definition(
    "TAB5",
    "Table 5",
    "abbreviations: OLNE, FNE, GR, IR are the optimality principles of a multi-player dynamic game (MPDG)",
    remark="Feedback Nash and group rationality are one thing for one player.",
    over=linear_games(players=(1,)),
)
def principles(game: LinearGame):
    """For one player both recursions, FNE and GR, against the dense recursion."""
    recursions, condition = (separate(game), cooperate(game)), game.condition()
    v, W = game.v, game.W
    for t in reversed(range(len(game.stages))):
        gradient, hessian = dense.expand(v, W, **game.stages[t].joint())
        k, K = dense.minimise(gradient, hessian, game.stages[t].f_x.shape[1])
        v, W = dense.follow(gradient, hessian, k, K)
        scale = np.linalg.norm(hessian)
        for label, (policies, values) in zip(("FNE", "GR"), recursions, strict=True):
            value = values[t][0] if label == "FNE" else values[t]
            yield same(policies[t][0].open_loop, k, condition=condition, label=f"{label}: k")
            yield same(policies[t][0].feedback, K, condition=condition, label=f"{label}: K")
            yield same(value.V_xx, W, condition=condition, scale=scale, label=f"{label}: V_xx")


@DGN.definition(
    "TAB6",
    "Table 6",
    "the state x_t augments the activations of all layers aligned at t, and F_t propagates them jointly",
    remark="The text says pre-activations; any choice of cut gives a state.",
    over=objectives(shortcuts=(True,)),
)
def joint_state(problem: Objective):
    """The Jacobian of F_t in the joint state against the complex step through the joint propagation."""
    states, jacobians = problem.network.forward(problem.inputs)
    for t, (state, (f_x, _)) in enumerate(zip(states[:-1], jacobians, strict=True)):
        columns = []
        for j in range(state.shape[1]):
            moved = state.astype(complex)
            moved[:, j] += 1j * STEP
            columns.append(problem.network.stage(t, moved, problem.parameters[t])[0].imag[0] / STEP)
        V_x = np.linspace(1, 2, f_x.shape[1])
        Q_x = bellman.expand(value_of(V_x, np.eye(len(V_x))), f_x[0], f_x[0]).Q_x
        truth = np.stack(columns, axis=1).T @ V_x
        yield same(Q_x, truth, scale=np.linalg.norm(f_x) * np.linalg.norm(V_x), label="F_x' V_x on the joint state")


@DGN.definition(
    "TAB7",
    "Table 7",
    "H, Q, P and p, V, W are the objectives and what is propagated for OLNE, FNE and GR",
    remark="All three have the same gradient in theta_n if the propagated gradient is the same.",
    over=linear_games(),
)
def objects(game: LinearGame):
    """With V_x = W_x = p and l_n own costs: H_theta = Q_theta = P_theta, formed by our two expansions."""
    stage, p = game.stages[-1], game.v
    together = bellman.expand_players(value_of(p, game.W), stage.f_x, stage.f_us, cost_u=stage.l_us)
    for n, (f_u, l_u) in enumerate(zip(stage.f_us, stage.l_us, strict=True)):
        H_theta = l_u + f_u.T @ p
        scale = np.linalg.norm(l_u) + np.linalg.norm(f_u) * np.linalg.norm(p)
        alone = bellman.expand(value_of(p, game.W), stage.f_x, f_u, cost_u=l_u)
        yield same(alone.Q_u, H_theta, scale=scale, label="Q_theta")
        yield same(together.Q_u[n], H_theta, scale=scale, label="P_theta")
