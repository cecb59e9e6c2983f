"""Momentum in the policy: what momentum will move is a deviation, and the game answers it."""

import dataclasses

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf.bellman import rollout
from bellman_tf.training.momentum import Momentum
from verification.claim import at_most, same
from verification.claims.ours.rollout import STRUCTURES, condition_of, terms
from verification.derivations.rollout import reach, terminal_of
from verification.papers import OURS
from verification.problems.games import Game, games
from verification.references import momentum as whole
from verification.references import rollout as reference


def velocities_of(game: Game, rng: np.random.Generator):
    """A velocity of every player at every stage."""
    return [[rng.standard_normal(p.l_u.shape) for p in stage.players] for stage in game.stages]


def our_step(game: Game, velocities, momentum: Momentum, joint: bool, feedback: bool):
    """Moves and new velocities, as the linear roll-out makes them: `pull - <q, D>` and Gram matrices times `direct`."""
    terminal, (G, l) = terminal_of(game), terms(game, joint=joint)
    ahead = [[momentum.ahead([tf.constant(v)])[0].numpy() for v in stage] for stage in velocities]
    d = np.zeros(l.shape)
    for t, stage in enumerate(game.stages):
        for i, p in enumerate(stage.players):
            d[(t, 0) if joint else (t, i, 0)] += game.parameter_columns(t, p).T @ ahead[t][i]
    w = rollout.roll_out(
        terminal, momentum.direct * G, momentum.direct * l - d, joint=joint, feedback=feedback, diagonal=False
    ).numpy()
    moves, new = [], []
    for t, stage in enumerate(game.stages):
        moves.append([])
        new.append([])
        for i, p in enumerate(stage.players):
            weights = w[t, 0] if joint else w[t, i, 0]
            s = np.linalg.solve(p.metric, p.l_u + game.parameter_columns(t, p) @ weights)
            [velocity], [decrease] = momentum.applied([tf.constant(velocities[t][i])], [tf.constant(s)])
            moves[-1].append(-decrease.numpy())
            new[-1].append(velocity.numpy())
    return w, moves, new


def centred(game: Game, velocities, momentum: Momentum):
    """The game whose own costs are l_u' du + (du - D)' M' (du - D) / 2: M' = M / direct, l_u - M' D for l_u."""
    stages = []
    for stage, own in zip(game.stages, velocities, strict=True):
        players = []
        for p, v in zip(stage.players, own, strict=True):
            M = p.metric / momentum.direct
            D = (momentum.beta**2 if momentum.nesterov else momentum.beta) * v
            players.append(p._replace(metric=M, l_u=p.l_u - M @ D))
        stages.append(stage._replace(players=tuple(players)))
    return dataclasses.replace(game, stages=stages)


@OURS.exact(
    "20",
    "momentum in the policy",
    "with D what the velocity alone will move and d = sum Qc' D, the step with the linear terms lambda - d is that of"
    " the game whose own costs are l_u' du + (du - D)' M (du - D) / 2, in every information structure; with one value"
    " for all, w = (I + S Gamma)^{-1} (a - S lambda + S d) = a + S sum Qc' du, and du is the minimum of that quadratic"
    " model in all parameters at once",
    assumes="running cost independent of the state, linear dynamics",
    remark="Nesterov's momentum is the same with M / (1 + beta) and D = beta^2 v. Without d the weights are those of a"
    " step that starts at zero, and the model's value is larger. The quadratic model with a moved centre is SPRING's"
    " (arXiv 2401.10190).",
    over=st.tuples(
        games(max_log_condition=3, max_log_stiffness=2),
        st.sampled_from(STRUCTURES),
        st.floats(0.0625, 0.9375),
        st.booleans(),
        st.integers(0, 2**32 - 1),
    ),
)
def momentum_in_the_policy(problem):
    """Our weights and moves against the dense recursion of the moved game and one dense solve of all parameters."""
    game, (joint, feedback), beta, nesterov, seed = problem
    rng, momentum = np.random.default_rng(seed), Momentum(beta, nesterov)
    velocities = velocities_of(game, rng)
    w, moves, new = our_step(game, velocities, momentum, joint, feedback)
    moved = centred(game, velocities, momentum)
    step = reference.execute(moved.gradient, moved.hessian, moved.stacked_stages(), joint=joint, feedback=feedback)
    condition = condition_of(moved) * len(game.stages)
    size = reach(moved) + sum(np.linalg.norm(v) for stage in velocities for v in stage)
    scale = 1 + np.linalg.norm(w)
    for ours, theirs in zip(moves, step.moves, strict=True):
        for du, exact in zip(ours, theirs, strict=True):
            yield same(du, exact, condition=condition * scale, scale=size, label="du")
    if not (joint and feedback):
        return
    L = terminal_of(game).L.numpy()[0]
    S, a = L @ L.T, terminal_of(game).a.numpy()[0]
    columns = [game.parameter_columns(t, p) for t, stage in enumerate(game.stages) for p in stage.players]
    at_end = sum(Qc.T @ du for Qc, du in zip(columns, [du for stage in moves for du in stage], strict=True))
    lengths = scale + np.linalg.norm(S) * size * max(np.linalg.norm(Qc) for Qc in columns)
    yield same(w[0, 0], a + S @ at_end, condition=condition, scale=lengths, label="w = a + S <q, du>")
    value = objective(game, velocities, momentum, moves)
    _, plain, _ = our_step(game, velocities, dataclasses.replace(momentum, beta=0.0, nesterov=False), joint, feedback)
    beside = [
        [-momentum.applied([tf.constant(v)], [tf.constant(-du)])[1][0].numpy() for v, du in zip(*pair, strict=True)]
        for pair in zip(velocities, plain, strict=True)
    ]
    other = objective(game, velocities, momentum, beside)
    unit = (1 + np.linalg.norm(S) + condition_of(moved)) * (1 + size) ** 2
    yield at_most(value, other, scale=unit, condition=condition, label="the model is least with d")
    if game.root is None:
        own = np.concatenate([p.l_u for stage in game.stages for p in stage.players])
        M = whole_metric(game)
        v = np.concatenate([v for stage in velocities for v in stage])
        Q = np.concatenate(columns).T
        du, velocity = whole.step(Q, game.beta_squared, own, M, v, beta, nesterov)
        flat = np.concatenate([du for stage in moves for du in stage])
        yield same(flat, du, condition=condition * scale, scale=size, label="du, all parameters at once")
        flat = np.concatenate([v for stage in new for v in stage])
        yield same(flat, velocity, condition=condition * scale, scale=size, label="new velocity")


def whole_metric(game: Game):
    """All metrics as one block-diagonal matrix."""
    sizes = [len(p.l_u) for stage in game.stages for p in stage.players]
    M, ends = np.zeros((sum(sizes), sum(sizes))), np.cumsum([0, *sizes])
    for k, p in enumerate(p for stage in game.stages for p in stage.players):
        M[ends[k] : ends[k + 1], ends[k] : ends[k + 1]] = p.metric
    return M


def objective(game: Game, velocities, momentum: Momentum, moves):
    """The quadratic model around D at some moves."""
    terminal = terminal_of(game)
    a, L = terminal.a.numpy()[0], terminal.L.numpy()[0]
    moved, value, at_end = centred(game, velocities, momentum), 0.0, 0.0
    for t, stage in enumerate(moved.stages):
        for p, du in zip(stage.players, moves[t], strict=True):
            value += p.l_u @ du + du @ p.metric @ du / 2
            at_end = at_end + game.parameter_columns(t, p).T @ du
    return value + a @ at_end + np.sum((L.T @ at_end) ** 2) / 2
