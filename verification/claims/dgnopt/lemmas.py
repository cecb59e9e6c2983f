"""What is left of the group without P_uv: Lemma 9, Eqs. 32, 33."""

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import bellman
from verification.claim import Counterexample, relative_error, same
from verification.derivations.recursions import group_expansion, spread, value_of
from verification.papers import DGN
from verification.problems.dynamic_games import LinearGame, linear_games, random_linear_game
from verification.references import nash, players


def uncoupled(P: bellman.JointExpansion) -> bellman.JointExpansion:
    """P_uv := 0."""
    blocks = [
        [block if n == m else tf.zeros_like(block) for m, block in enumerate(row)] for n, row in enumerate(P.Q_uu)
    ]
    return P._replace(Q_uu=blocks)


def cooperate_uncoupled(game: LinearGame, count: float):
    """Group rationality with P_uv := 0 at all stages: gains per stage and T + 1 values."""
    values, policies = [value_of(count * game.v, count * game.W)], []
    for stage in reversed(game.stages):
        P = uncoupled(group_expansion(values[0], stage))
        policies.insert(0, bellman.cooperative_gains(P))
        values.insert(0, bellman.cooperative_update(P, policies[0]))
    return policies, values


def first_gains(game: LinearGame):
    """Dense recursion of the group with P_uv := 0: the gains and the value of the first stage."""
    value = (game.players * game.v, game.players * game.W)
    for stage in reversed(game.stages):
        k, K, value = nash.without_cross(*value, *stage)
    return k, K, value


def own_expansions(game: LinearGame, stage):
    """Q_{T-1,n} of every player, from V_{T,n} = phi."""
    value = value_of(game.v, game.W)
    parts = zip(stage.f_us, stage.l_us, stage.l_uus, strict=True)
    return [bellman.expand(value, stage.f_x, f_u, cost_u=l_u, cost_uu=l_uu) for f_u, l_u, l_uu in parts]


def counted(game: LinearGame):
    """P_u - l_u = N (Q_u - l_u) and the same for P_uu, P_ux, at the last stage."""
    stage, N = game.stages[-1], game.players
    P = group_expansion(value_of(N * game.v, N * game.W), stage)
    for n, Q in enumerate(own_expansions(game, stage)):
        l_u, l_uu = stage.l_us[n], stage.l_uus[n]
        size = N * np.linalg.norm(stage.f_us[n])
        first, second = size * np.linalg.norm(game.v), size * np.linalg.norm(stage.f_us[n]) * np.linalg.norm(game.W)
        yield same(P.Q_u[n] - l_u, N * (Q.Q_u - l_u), scale=first + np.linalg.norm(l_u), label="P_u - l_u")
        truth = stage.f_us[n].T @ game.v
        yield same(Q.Q_u - l_u, truth, scale=first + np.linalg.norm(l_u), label="Q_u - l_u = f_u' phi_x")
        yield same(P.Q_uu[n][n] - l_uu, N * (Q.Q_uu - l_uu), scale=second + np.linalg.norm(l_uu), label="P_uu - l_uu")
        scale = size * np.linalg.norm(stage.f_x) * np.linalg.norm(game.W)
        yield same(P.Q_ux[n], N * Q.Q_ux, scale=scale, label="P_ux")


def two_scalars(own: float):
    """X' = u + v = 1, phi = x'^2 / 2, l = own theta^2 / 2: Q_u, Q_uu of a player, P_u and P_uu of the group."""
    return 1.0, 1.0 + own, 2.0, 2.0 + own


COUNTING = {
    "assumes": "phi_n = phi, last stage",
    "printed": "with P_uv := 0: Q_theta^1 = P_u, Q_theta,theta^1 = P_uu, Q_theta,x^1 = P_ux at all stages",
    "corrected": "P_u - l_u = N (Q_u - l_u), P_uu - l_uu = N (Q_uu - l_uu), P_ux = N Q_ux at t = T-1; nothing before",
    "derivation": (
        "P_{T-1} = sum_n l_n + N phi o F while Q_{T-1,1} = l_1 + phi o F, so every derivative of the phi part is N"
        " times as large. The proof writes P = sum_n Q_n, which is right, and then min P = sum_n min Q_n, which is"
        " not: every Q_n depends on both players' controls, through the shared dynamics, whatever P_uv is set to."
    ),
    "origin": "paper",
    "counterexample": lambda: Counterexample(
        "two scalar players, x' = u + v = 1, phi = x'^2 / 2, l = 0: P_u",
        printed=two_scalars(0.0)[0],
        corrected=2 * two_scalars(0.0)[0],
        truth=two_scalars(0.0)[2],
    ),
}


@DGN.misprint(
    "L9",
    "Lemma 9",
    "with P_uv := 0 the derivatives of P are those of the players' Q, and W = sum_n V_n",
    remark="The second half: E33.",
    over=linear_games(),
    **COUNTING,
)
def lemma(game: LinearGame):
    """Our two expansions at the last stage."""
    yield from counted(game)


@DGN.misprint(
    "E32",
    "Eq. 32",
    "Q_theta^1 = P_u and so on",
    over=linear_games(),
    **COUNTING,
)
def lemma_derivatives(game: LinearGame):
    """Our two expansions at the last stage."""
    yield from counted(game)


def value_without_cross(own: float) -> Counterexample:
    """W and sum V_n for two scalars."""
    Q_u, Q_uu, P_u, P_uu = two_scalars(own)
    return Counterexample(
        f"two scalar players, x' = u + v = 1, phi = x'^2 / 2, l = {own:g} theta^2 / 2, P_uv := 0: W - P at T-1",
        printed=2 * (-(Q_u**2) / Q_uu / 2),
        corrected=-2 * (2 * Q_u) ** 2 / (2 * (Q_uu - own) + own) / 2,
        truth=-2 * P_u**2 / P_uu / 2,
    )


@DGN.misprint(
    "E33",
    "Eq. 33",
    "W_t = sum_n V_{t,n} with P_uv := 0",
    assumes="the value of (23) with P_uv := 0, t = T-1",
    remark="Catalogue: relative error of sum_n V_n,xx against W_xx 0.48 without and 0.44 with running cost, one stage"
    " before the end; here, two players and P_uv := 0 as in the lemma, about 1.2 and 1.5 ('without', 'with').",
    printed="W_t = sum_n V_{t,n}",
    corrected="W = P - 1/2 sum_n P_n' P_nn^{-1} P_n with P_n = l_n' + N (Q_n - l_n'), P_nn = l_n'' + N (Q_nn - l_n'')",
    derivation=(
        "(23) with P_uv := 0 subtracts 1/2 P_n' P_nn^{-1} P_n per player. By L9 these are N times larger than Q's (for"
        " l = 0): W = sum_n Q_n - (N/2) sum_n Q_n' Q_nn^{-1} Q_n, while sum_n V_n has 1/2 in place of N/2."
    ),
    origin="paper",
    over=st.tuples(linear_games(), st.integers(0, 2**32 - 1)),
    counterexample=lambda: value_without_cross(1.0),
    ranges={"without": (0.4, 2.5), "with": (0.4, 3.0)},
)
def lemma_value(drawn):
    """Our uncoupled group value at T-1 from the players' expansions; and the error of the printed sum."""
    game, seed = drawn
    stage, N = game.stages[-1], game.players
    _, values = cooperate_uncoupled(game._replace(stages=[stage]), N)
    W_x, W_xx = stage.f_x.T @ (N * game.v), stage.f_x.T @ (N * game.W) @ stage.f_x
    scales, condition = [np.linalg.norm(W_x), np.linalg.norm(W_xx)], 1.0
    for Q, l_u, l_uu in zip(own_expansions(game, stage), stage.l_us, stage.l_uus, strict=True):
        P_u, P_uu = N * (Q.Q_u.numpy() - l_u) + l_u, N * (Q.Q_uu.numpy() - l_uu) + l_uu
        P_ux = N * Q.Q_ux.numpy()
        W_x, W_xx = W_x - P_ux.T @ np.linalg.solve(P_uu, P_u), W_xx - P_ux.T @ np.linalg.solve(P_uu, P_ux)
        condition = max(condition, np.linalg.cond(P_uu))
        scales[0] += np.linalg.norm(P_ux.T @ np.linalg.solve(P_uu, P_u))
        scales[1] += np.linalg.norm(P_ux.T @ np.linalg.solve(P_uu, P_ux))
    yield same(values[0].V_x, W_x, condition=condition, scale=scales[0], label="W_x")
    yield same(values[0].V_xx, W_xx, condition=condition, scale=scales[1], label="W_xx")
    for label, running in (("without", "none"), ("with", "full")):
        yield from spread(seed, lambda rng, running=running: sum_of_values(rng, running), label)


def sum_of_values(rng, running):
    """Relative error of sum_n V_n,xx against W_xx with P_uv := 0, one stage before the end."""
    game = random_linear_game(rng, 2, 1, running=running, size=4)
    stage, V = game.stages[0], 0.0
    for part in zip(stage.f_us, stage.l_us, stage.l_uus, strict=True):
        V = V + players.alone(game.v, game.W, stage.f_x, *part)[1][1]
    return relative_error(V, first_gains(game)[2][1])
