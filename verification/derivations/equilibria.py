"""True feedback Nash equilibria of a whole game, and the recursion of single players."""

import numpy as np

from verification.claim import same
from verification.derivations.recursions import cooperate, separate, stacked
from verification.problems.dynamic_games import LinearGame
from verification.references import nash
from verification.references.players import alone


def best_responses(game: LinearGame):
    """True feedback Nash of the quadratic game, stage by stage.

    Returns:
        Per stage: the values behind it, the joint k and K, the values before it, and the condition.
    """
    values, stages = [(game.v, game.W)] * game.players, []
    for stage in reversed(game.stages):
        k, K, before, system = nash.stage(values, stage.f_x, stage.f_us, stage.l_us, stage.l_uus)
        stages.insert(0, (stage, values, k, K, before, np.linalg.cond(system)))
        values = before
    return stages


def decoupled(game: LinearGame):
    """Player by player against dense recursions; the equilibrium where the values agree."""
    apart, values = separate(game)
    for p in range(game.players):
        for t, stage in enumerate(game.stages):
            pair = (values[t + 1][p].V_x.numpy(), values[t + 1][p].V_xx.numpy())
            (k, K), (v, W) = alone(*pair, stage.f_x, stage.f_us[p], stage.l_us[p], stage.l_uus[p])
            condition = np.linalg.cond(stage.l_uus[p] + stage.f_us[p].T @ pair[1] @ stage.f_us[p])
            yield same(apart[t][p].open_loop, k, condition=condition, label="single player's k")
            yield same(apart[t][p].feedback, K, condition=condition, label="single player's K")
            scale = np.linalg.norm(stage.f_x) ** 2 * np.linalg.norm(pair[1])
            yield same(values[t][p].V_xx, W, condition=condition, scale=scale, label="single player's V_xx")
    shared = all(not l.any() for stage in game.stages for l in stage.l_uus)
    equilibrium, together = best_responses(game), cooperate(game)[0]
    condition = game.condition()
    for t in range(len(game.stages)) if shared else [len(game.stages) - 1]:
        _, _, k, K, _, _ = equilibrium[t]
        ours = stacked(together[t])
        yield same(ours[0], k, condition=condition, label="Nash = GR with phi once: k")
        yield same(ours[1], K, condition=condition, label="Nash = GR with phi once: K")
