"""The two recursions of the paper on a whole game, run by our core, and the forward pass. Gains carry their minus."""

import numpy as np
import tensorflow as tf

from bellman_tf import bellman
from verification.claim import measured
from verification.problems.dynamic_games import LinearGame
from verification.references import players


def spread(seed, size, label, count=10):
    """Sizes of `count` random cases; `size` maps a NumPy generator to a number, or to None for no case."""
    for i in range(count):
        value = size(np.random.default_rng([seed, i]))
        if value is not None:
            yield measured(value, label)


def value_of(v, W) -> bellman.Value:
    """A pair of arrays as our core takes it."""
    return bellman.Value(tf.constant(np.asarray(v, float)), tf.constant(np.asarray(W, float)))


def expansion_of(gradient, hessian, n) -> bellman.Expansion:
    """A quadratic in z = (x, u), x the first n entries, as our core takes it."""
    parts = (gradient[:n], gradient[n:], hessian[:n, :n], hessian[n:, :n], hessian[n:, n:])
    return bellman.Expansion(*[tf.constant(np.asarray(part, float)) for part in parts])


def group_expansion(value, stage) -> bellman.JointExpansion:
    """P_t in the state and in the controls of all players."""
    f_us, l_us, l_uus = ([tf.constant(x) for x in xs] for xs in (stage.f_us, stage.l_us, stage.l_uus))
    return bellman.expand_players(value, tf.constant(stage.f_x), f_us, cost_u=l_us, cost_uu=l_uus)


def cooperate(game: LinearGame, count: float = 1.0):
    """Group rationality (Eqs. 7, 11, 24) from W_T = count phi.

    Returns:
        Per stage the players' `Gains`, and T + 1 values.
    """
    values, policies = [value_of(count * game.v, count * game.W)], []
    for stage in reversed(game.stages):
        P = group_expansion(values[0], stage)
        policies.insert(0, bellman.cooperative_gains(P))
        values.insert(0, bellman.cooperative_update(P, policies[0]))
    return policies, values


def separate(game: LinearGame):
    """The feedback Nash recursion as printed (Eqs. 6, 9, 10), V_{T,n} = phi for every player.

    Returns:
        Per stage the players' `Gains`, and T + 1 lists of the players' values.
    """
    values, policies = [[value_of(game.v, game.W)] * game.players], []
    for stage in reversed(game.stages):
        gains, before = bellman.feedback_nash(
            values[0],
            tf.constant(stage.f_x),
            list(map(tf.constant, stage.f_us)),
            cost_u=stage.l_us,
            cost_uu=stage.l_uus,
        )
        policies.insert(0, gains)
        values.insert(0, before)
    return policies, values


def separate_gains(game: LinearGame):
    """The same in dense NumPy: k and K of the first stage, the players below each other."""
    values = [(game.v, game.W)] * game.players
    for stage in reversed(game.stages):
        parts = zip(values, stage.f_us, stage.l_us, stage.l_uus, strict=True)
        alone = [players.alone(*value, stage.f_x, *part) for value, *part in parts]
        values = [before for _, before in alone]
    return np.concatenate([k for (k, _), _ in alone]), np.vstack([K for (_, K), _ in alone])


def stacked(gains):
    """The players' gains below each other, k [m] and K [m, n]."""
    return np.concatenate([g.open_loop for g in gains]), np.concatenate([g.feedback for g in gains])


def roll_out(game: LinearGame, policies, deviation, feedback=True):
    """Lines 8-12 of Algorithm 1 on the linear dynamics: per stage the controls' changes, and the T + 1 deviations."""
    changes, deviations = [], [deviation]
    for stage, gains in zip(game.stages, policies, strict=True):
        k, K = stacked(gains)
        changes.append(k + K @ deviations[-1] if feedback else k)
        deviations.append(stage.f_x @ deviations[-1] + np.hstack(stage.f_us) @ changes[-1])
    return changes, deviations


def group_cost(game: LinearGame, changes, deviation, count=1.0):
    """Sum over the players of their costs, up to a constant, terminal cost counted `count` times."""
    total = 0.0
    for stage, change in zip(game.stages, changes, strict=True):
        joint = stage.joint()
        total += joint["l_u"] @ change + change @ joint["l_uu"] @ change / 2
        deviation = stage.f_x @ deviation + joint["f_u"] @ change
    return total + count * (game.v @ deviation + deviation @ game.W @ deviation / 2)
