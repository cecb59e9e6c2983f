"""The linear roll-out (`docs/how-ddp.md`): one solve, the deviation, the order of layers, the forward pass."""

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf.bellman import rollout, sample_space
from verification.claim import at_most, same
from verification.derivations.rollout import reach, terminal_of
from verification.papers import OURS
from verification.problems.games import Game, games
from verification.problems.linear import Branches, branches, linear_networks
from verification.references import dense
from verification.references import rollout as reference

STRUCTURES = [(True, True), (True, False), (False, True)]


def terms(game: Game, *, joint=True):
    """Gram matrices and linear terms of every stage, and of every player unless joint, as tensors in one group."""
    if joint:
        return [tf.constant(np.array(x)[:, None]) for x in game.grams()]
    count = max(len(stage.players) for stage in game.stages)
    pairs = zip(*[game.grams(p) for p in range(count)], strict=True)
    return [tf.constant(np.array(x).swapaxes(0, 1)[:, :, None]) for x in pairs]


def condition_of(game: Game):
    """Of the metrics and of I + S Gamma, added."""
    metrics = max(np.linalg.cond(p.metric) for stage in game.stages for p in stage.players)
    S = terminal_of(game).L.numpy()[0]
    return metrics + 1 + np.linalg.norm(S @ S.T, 2) * np.linalg.norm(sum(game.grams()[0]), 2)


def moves_of(game: Game, weights):
    """Moves du of every player at every stage: weights [T, n], or [T, N, n]."""
    return [
        [
            -np.linalg.solve(p.metric, p.l_u + game.parameter_columns(t, p) @ (w if w.ndim == 1 else w[i]))
            for i, p in enumerate(stage.players)
        ]
        for t, (stage, w) in enumerate(zip(game.stages, weights, strict=True))
    ]


@OURS.exact(
    "2e",
    "the linear roll-out, telescoping",
    "executed on the linearised dynamics, the cooperative policy has the same weights at every stage, w = (I + S_T"
    " Gamma)^{-1} (a_T - S_T lambda), Gamma and lambda the sums of Qc' M^{-1} Qc and Qc' M^{-1} l_u over all players",
    assumes="running cost independent of the state, linear dynamics",
    remark="OURS-2c with own costs, several players a stage, any metric and a terminal Hessian of any rank.",
    over=games(max_log_condition=4),
)
def telescoping(game: Game):
    """Our one solve against ours stage by stage, a NumPy solve, and the moves of the dense step."""
    terminal, (G, l) = terminal_of(game), terms(game)
    one = rollout.cooperative_weights(terminal, tf.reduce_sum(G, 0), tf.reduce_sum(l, 0))[0].numpy()
    S, condition = terminal.L.numpy()[0] @ terminal.L.numpy()[0].T, condition_of(game)
    right = terminal.a.numpy()[0] - S @ l.numpy().sum((0, 1))
    scale = 1 + np.linalg.norm(terminal.a.numpy()) + np.linalg.norm(S) * np.linalg.norm(l)
    truth = np.linalg.solve(np.eye(len(S)) + S @ G.numpy().sum((0, 1)), right)
    yield same(one, truth, condition=condition, scale=scale, label="(I + S Gamma) w = a - S lambda")
    rolled = rollout.roll_out(terminal, G, l, joint=True, feedback=True, diagonal=game.root is None).numpy()
    values = sample_space.backward_all(terminal, G, l)
    d = None
    for t in range(len(G)):
        w = sample_space.weights(sample_space.SampleValue(values.a[t], values.L[t]), d)
        d = rollout.advance(d, G[t], w, l[t])
        yield same(w[0], one, condition=condition, scale=scale, label="w_t = w, stage by stage")
        yield same(rolled[t, 0], one, condition=condition, scale=scale, label="w_t = w, rolled out")
    step = reference.execute(game.gradient, game.hessian, game.stacked_stages(), joint=True, feedback=True)
    for ours, theirs in zip(moves_of(game, [one] * len(G)), step.moves, strict=True):
        for du, exact in zip(ours, theirs, strict=True):
            yield same(du, exact, condition=condition * scale, scale=reach(game), label="du")


@OURS.exact(
    "2f",
    "the linear roll-out, the deviation",
    "d_{t+1} = d_t - sum_p (l_p + G_p w_p), d_0 = 0, is C_{t+1}' dX_{t+1} of the pass dX_{t+1} = F_X dX_t + F_u du_t,"
    " so cooperative, open-loop cooperative and feedback Nash steps follow from Gram matrices alone",
    assumes="running cost independent of the state, linear dynamics",
    over=st.tuples(games(max_log_condition=4, max_log_stiffness=2), st.sampled_from(STRUCTURES)),
)
def deviation(problem):
    """Our deviation, weights and prediction against the dense recursion with its linearised pass."""
    game, (joint, feedback) = problem
    terminal, (G, l), cuts = terminal_of(game), terms(game, joint=joint), game.all_columns()
    w = rollout.roll_out(terminal, G, l, joint=joint, feedback=feedback, diagonal=game.root is None)
    step = reference.execute(game.gradient, game.hessian, game.stacked_stages(), joint=joint, feedback=feedback)
    unit = max(np.linalg.norm(x) for x in step.deviations)
    # with feedback a rounding error of a stage is fed back by the next ones
    condition, size, d = condition_of(game) * len(cuts), reach(game), None
    scale = 1 + np.linalg.norm(l) + np.linalg.norm(w)
    if game.own_cost() == 0:
        plain = rollout.roll_out(terminal, G, joint=joint, feedback=feedback)
        yield same(plain, w, condition=condition, label="weights without own costs")
    weights = w.numpy()[:, 0] if joint else w.numpy()[:, :, 0]
    for t in range(len(game.stages)):
        d = rollout.advance(d, G[t], w[t], l[t], joint=joint)
        C = dense.block_diag(*cuts[t + 1])
        lengths = np.linalg.norm(C) * (unit + size)
        yield same(d[0], C.T @ step.deviations[t + 1], condition=condition * scale, scale=lengths, label="d = C' dX")
        for du, exact in zip(moves_of(game, weights)[t], step.moves[t], strict=True):
            yield same(du, exact, condition=condition * scale, scale=size, label="du")


@OURS.exact(
    "2g",
    "the linear roll-out, no order of layers",
    "the cooperative weights depend on the sum of the Gram matrices alone: however a network's layers are put in order,"
    " the weights and the step are the same",
    assumes="running cost independent of the state, linear dynamics",
    remark="Values and gains of the stages do depend on the order, and with them the step without feedback.",
    over=branches(),
)
def order_of_layers(problem: Branches):
    """Two branches of layers in two orders: our weights, and the dense step of either order."""
    games_ = [problem.game(order) for order in problem.orders]
    condition = max(map(condition_of, games_))
    weights, steps = [], []
    for game, order in zip(games_, problem.orders, strict=True):
        terminal, (G, l) = terminal_of(game), terms(game)
        weights.append(rollout.roll_out(terminal, G, l, joint=True, feedback=True).numpy()[0, 0])
        step = reference.execute(game.gradient, game.hessian, game.stacked_stages(), joint=True, feedback=True)
        steps.append({layer: moves[0] for layer, moves in zip(problem.layers(order), step.moves, strict=True)})
    scale = 1 + np.linalg.norm(l)
    yield same(weights[0], weights[1], condition=condition, scale=scale, label="weights in either order")
    reverse = rollout.roll_out(terminal, G[::-1], l[::-1], joint=True, feedback=True).numpy()[-1, 0]
    yield same(reverse, weights[1], condition=condition, scale=scale, label="weights backwards")
    ours = moves_of(games_[0], [weights[1]] * len(G))
    for layer, du in zip(problem.layers(problem.orders[0]), ours, strict=True):
        for step in steps:
            yield same(du[0], step[layer], condition=condition * scale, scale=reach(games_[0]), label="du of a layer")


@OURS.exact(
    "2h",
    "the linear roll-out, the forward pass",
    "on a network that is affine in states and trained parameters together, the nonlinear roll-out has the same weights"
    " and moves as the linear one; where both factors of a kernel's product W x move, each stage adds C' (dW dx), the"
    " bilinear term of OURS-7, and nothing else",
    assumes="layers W x + b, running cost independent of the state",
    remark="A network of Dense layers without activations is bilinear: only biases, and kernels that read the input"
    " itself, are affine.",
    over=st.tuples(linear_networks(), st.sampled_from(STRUCTURES)),
)
def forward_pass(problem):
    """The network itself runs under the moves; its deviations feed our policy, and our recursion says them before."""
    network, (joint, feedback) = problem
    game, states = network.game()
    terminal, (G, l), cuts = terminal_of(game), terms(game, joint=joint), game.all_columns()
    values = sample_space.backward_all(terminal, G, l)
    linear = rollout.roll_out(terminal, G, l, joint=joint, feedback=feedback).numpy()
    condition = condition_of(game) * (1 + np.linalg.norm(l)) * len(cuts)
    moved, d, size = states[0], tf.zeros([1, l.shape[-1]], tf.float64), reach(game)
    for t in range(len(game.stages)):
        seen = np.einsum("bnm,bn->bm", cuts[t], moved - states[t]).ravel()
        lengths = np.linalg.norm(cuts[t]) * (size + np.linalg.norm(moved - states[t])) + np.linalg.norm(d)
        yield same(d[0], seen, condition=condition, scale=lengths, label="deviation")
        value = sample_space.SampleValue(values.a[t], values.L[t])
        w = sample_space.weights(value, tf.constant(seen)[None] if feedback else None)
        if network.affine:
            scale = 1 + np.linalg.norm(w) + np.linalg.norm(values.L[t]) ** 2 * lengths
            yield same(linear[t], w, condition=condition, scale=scale, label="weights")
        used = [w.numpy()[0] if joint else w.numpy()[i, 0] for i in range(len(game.stages[t].players))]
        du = [
            -np.linalg.solve(p.metric, p.l_u + game.parameter_columns(t, p) @ w_p)
            for p, w_p in zip(game.stages[t].players, used, strict=True)
        ]
        bilinear = network.bilinear(t, du, moved - states[t])
        moved = network.stage(t, moved, du)
        d = rollout.advance(d, G[t], w, l[t], joint=joint)
        d += np.einsum("bnm,bn->bm", cuts[t + 1], bilinear).ravel()
        if network.affine:
            yield at_most(np.abs(bilinear).max(), 0.0, label="nothing bilinear")


@OURS.exact(
    "14a",
    "the decrease of any step",
    "moves -M^{-1} (l_u + Qc w) with any weights w lower the quadratic model by a' p + (c - sum w' G w - |L' p|^2) /"
    " 2, p = sum (l + G w) over all players and stages, c = sum l_u' M^{-1} l_u; cooperative weights give OURS-14",
    assumes="one group of samples",
    over=st.tuples(games(max_log_condition=4), st.sampled_from([*STRUCTURES, None]), st.integers(0, 2**32 - 1)),
)
def decrease_of_any_step(problem):
    """Ours for weights of every structure and random ones against the model at those moves; the largest is ours."""
    game, structure, seed = problem
    joint, feedback = structure or (False, False)
    terminal, (G, l), (Gamma, lam) = terminal_of(game), terms(game, joint=joint), terms(game)
    if structure is None:
        w = tf.constant(np.random.default_rng(seed).standard_normal(l.shape) / game.batch_size)
    else:
        w = rollout.roll_out(terminal, G, l, joint=joint, feedback=feedback)
    own, weights = tf.constant(game.own_cost(), tf.float64), w.numpy()[:, 0] if joint else w.numpy()[:, :, 0]
    stages, moves = game.stacked_stages(), moves_of(game, weights)
    truth = reference.decrease(game.gradient, game.hessian, stages, moves, game.batch_size)
    ours = rollout.predicted_reduction(terminal, G, w, l, own, joint=joint)[0]
    p, Gw = np.zeros(l.shape[-1]), np.einsum("...ij,...j->...i", G, w)
    p += (Gw + l).numpy().reshape(-1, len(p)).sum(axis=0)
    pieces = (
        own.numpy() + abs(terminal.a.numpy()[0]) @ abs(p) + np.sum(w * Gw) + np.sum((terminal.L.numpy()[0].T @ p) ** 2)
    )
    yield same(ours, truth, condition=condition_of(game), scale=pieces, label="decrease")
    best = sample_space.backward(terminal, tf.reduce_sum(Gamma, 0), tf.reduce_sum(lam, 0))
    most = sample_space.predicted_reduction(terminal, best, Gamma, lam, own)[0]
    pieces += most.numpy()
    yield at_most(ours, most, scale=pieces, condition=condition_of(game), label="the cooperative step promises most")
    if structure == (True, True):
        yield same(ours, most, condition=condition_of(game), scale=pieces, label="as OURS-14")
    if own == 0:
        plain = rollout.predicted_reduction(terminal, G, w, joint=joint)[0]
        yield same(plain, truth, condition=condition_of(game), scale=pieces, label="without own costs")
