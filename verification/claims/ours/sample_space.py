"""The exact batch recursion in the space of the samples' losses (OURS-2) and its rank-r form (OURS-4)."""

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import bellman
from bellman_tf.bellman import sample_space
from verification.claim import at_most, same
from verification.papers import OURS
from verification.problems.batches import Batch, batches
from verification.problems.games import Game, games
from verification.references import dense


def core_values(batch: Batch, *, at_once=True):
    """Our values (a, L) before every stage and at the end: a is a/B and L L' is R/B of the claim."""
    value = sample_space.init(batch.size, beta_squared=tf.ones(batch.size, tf.float64))
    grams, linears = (tf.constant(np.array(x)[:, None]) for x in (batch.grams(), batch.linear_terms()))
    if at_once:
        values = sample_space.backward_all(value, grams, linears, diagonal=True)
        a, L = (np.concatenate([x.numpy()[:, 0], y.numpy()]) for x, y in zip(values, value, strict=True))
        return a, L
    steps = [value]
    for G, l in zip(reversed(tf.unstack(grams)), reversed(tf.unstack(linears)), strict=True):
        steps.insert(0, sample_space.backward(steps[0], G, l))
    return np.array([v.a[0] for v in steps]), np.array([v.L[0] for v in steps])


def squared(L):
    """S = L L'."""
    return L @ L.transpose(0, 2, 1)


def terminal(batch: Batch):
    """V_X and V_XX at the end: gradients / B, and g g' / B on the diagonal."""
    D = batch.losses_by_state()[-1]
    return D.sum(axis=1) / batch.size, D @ D.T / batch.size


@OURS.exact(
    "2",
    "DDP1 Eqs. 29-37 in other coordinates",
    "V_X = (1/B) D a and V_XX = (1/B) D R D' with D = (d losses / d X)', U = (d losses / d u)': a <- a + R U' k, R <-"
    " R - (1/B) R U' M^{-1} U R, k = -M^{-1} (l_u + (1/B) U a), du = -M^{-1} (l_u + (1/B) U (a + R y)), y = D' dX",
    assumes="terminal Hessian g g', running cost independent of the state, linear dynamics; the layers may couple"
    " samples",
    remark="For any positive definite M in place of Q_uu (checked with our dense recursion), and with M + (1/B) U R"
    " U', the true Q_uu, where it is what training runs. It needs the Gram matrices U' M^{-1} U and B x B algebra.",
    over=batches(),
)
def coupled(batch: Batch):
    """Our sample space against the dense (B n)^2 recursion; the form for any M against our dense recursion."""
    v, W = terminal(batch)
    condition, D = batch.condition(), batch.losses_by_state()
    pairs = [(a, squared(L)) for a, L in (core_values(batch, at_once=at_once) for at_once in (True, False))]
    for t in reversed(range(len(batch.stages))):
        stage, U = batch.stages[t], batch.losses_by_control()[t]
        gradient, hessian = dense.expand(v, W, stage.F_X, stage.F_u, l_u=stage.l_u, l_uu=stage.M)
        k, K = dense.minimise(gradient, hessian, stage.F_X.shape[1])
        v, W = dense.follow(gradient, hessian, k, K)
        solved = np.linalg.solve(stage.M, np.column_stack([stage.l_u, U]))
        size = np.linalg.norm(D[t], 2)
        reach = condition * (1 + np.linalg.norm(solved[:, 0]) * (1 + np.linalg.norm(U)))
        dX = np.linspace(-1, 1, stage.F_X.shape[1])
        for a, S in pairs:
            yield same(D[t] @ a[t], v, condition=reach, scale=size, label="V_X = D a")
            yield same(D[t] @ S[t] @ D[t].T, W, condition=condition, scale=size**2 / batch.size, label="V_XX = D S D'")
            update = -solved[:, 0] - solved[:, 1:] @ (a[t] + S[t] @ D[t].T @ dX)
            scale = np.linalg.norm(solved) * (1 + size)
            yield same(update, k + K @ dX, condition=reach, scale=scale, label="du")
    yield from any_metric(batch)


def any_metric(batch: Batch):
    """Letter by letter with M in place of Q_uu; the truth is our dense recursion with `metric=M`."""
    B, D = batch.size, batch.losses_by_state()
    value, a, R = bellman.Value(*map(tf.constant, terminal(batch))), np.ones(B), np.eye(B)
    growth = max(np.linalg.cond(stage.M) for stage in batch.stages)
    for t in reversed(range(len(batch.stages))):
        stage, U = batch.stages[t], batch.losses_by_control()[t]
        Q = bellman.expand(value, *map(tf.constant, (stage.F_X, stage.F_u)), cost_u=stage.l_u)
        gains = bellman.gains(Q, tf.constant(stage.M))
        value = bellman.value_update(Q, gains)
        k = -np.linalg.solve(stage.M, stage.l_u + U @ a / B)
        growth *= 1 + np.linalg.norm(R, 2) * np.linalg.norm(U, 2) ** 2 * np.linalg.norm(np.linalg.inv(stage.M), 2) / B
        growth *= 1 + np.linalg.norm(stage.l_u) * np.linalg.norm(k)
        a, R = a + R @ U.T @ k, R - R @ U.T @ np.linalg.solve(stage.M, U @ R) / B
        size = np.linalg.norm(D[t])
        scale = np.linalg.norm(np.linalg.inv(stage.M), 2) * (np.linalg.norm(stage.l_u) + np.linalg.norm(U))
        yield same(gains.open_loop, k, condition=growth, scale=scale, label="any M: k")
        yield same(value.V_x, D[t] @ a / B, condition=growth, scale=size, label="any M: V_X")
        yield same(value.V_xx, D[t] @ R @ D[t].T / B, condition=growth, scale=size**2 / B, label="any M: V_XX")
        if not any(s.l_u.any() for s in batch.stages):
            yield same(a, R.sum(axis=1), condition=growth, scale=np.sqrt(B), label="any M, l_u = 0: a = R 1")


@OURS.exact(
    "2a",
    "OURS-2, corollary a",
    "l_u = 0 implies a_t = R_t 1 for any M: the update is -(1/B) M^{-1} U R (1 + y)",
    over=batches(decays=(False,)),
)
def row_sums(batch: Batch):
    """With any M in place of Q_uu, and ours with the true Q_uu."""
    yield from (m for m in any_metric(batch) if "R 1" in m.label)
    a, L = core_values(batch)
    S, condition = squared(L), batch.condition()
    yield same(a, S.sum(axis=2), condition=condition, scale=np.sqrt(len(a) / batch.size), label="ours: a = S 1")


@OURS.exact(
    "2b",
    "OURS-2, corollary b",
    "R_t = (I + (1/(B lambda)) sum_{s >= t} U_s' U_s)^{-1}: the kernel of the layers t ... T-1 in the space of losses",
    assumes="M = lambda I plus the model's curvature, l_u = 0",
    remark="Ours needs neither assumption: I + S_T sum_s U_s' M_s^{-1} U_s.",
    over=batches(decays=(False,), identity=True),
)
def kernel(batch: Batch):
    """Our one factorisation for all stages against the inverse."""
    S = squared(core_values(batch)[1])
    B, total = batch.size, np.zeros((batch.size,) * 2)
    for t in reversed(range(len(batch.stages))):
        U, damping = batch.losses_by_control()[t], batch.stages[t].M[0, 0]
        total = total + U.T @ U / (B * damping)
        truth = np.linalg.inv(np.eye(B) + total)
        yield same(B * S[t], truth, condition=1 + np.linalg.norm(total, 2), scale=np.sqrt(B), label="R_t")


@OURS.exact(
    "2c",
    "OURS-2, corollary c",
    "on the linearised dynamics every layer gets the same weights w = R_0 1, du_t = -(1/(B lambda)) U_t w, the"
    " Gauss-Newton minimiser of mean(y + y^2/2) + lambda/2 |du|^2",
    assumes="M = lambda I plus the model's curvature, l_u = 0",
    remark="With any metric in place of lambda I, too (checked).",
    over=batches(decays=(False,)),
)
def one_weight_for_all(batch: Batch):
    """Our weights along the roll-out against those of the first stage, and the update against normal equations."""
    B, U, D = batch.size, batch.losses_by_control(), batch.losses_by_state()
    a, L = core_values(batch)
    condition, updates, dX = batch.condition(), [], np.zeros(batch.stages[0].F_X.shape[1])
    for t, stage in enumerate(batch.stages):
        value = sample_space.SampleValue(tf.constant(a[t]), tf.constant(L[t]))
        w = sample_space.weights(value, tf.constant(D[t].T @ dX)).numpy()
        scale = 1 + np.linalg.norm(D[t]) * np.linalg.norm(dX) / B
        yield same(w, a[0], condition=condition, scale=scale, label="w_t = w_0")
        updates.append(-np.linalg.solve(stage.M, U[t] @ w))
        dX = stage.F_X @ dX + stage.F_u @ updates[-1]
    joint = np.vstack(U)
    M = dense.block_diag(*[stage.M for stage in batch.stages])
    truth = -np.linalg.solve(M + joint @ joint.T / B, joint.sum(axis=1) / B)
    scale = np.linalg.norm(np.linalg.inv(M), 2) * np.linalg.norm(joint)
    yield same(np.concatenate(updates), truth, condition=condition, scale=scale, label="Gauss-Newton step")


@OURS.exact(
    "2d",
    "OURS-2, corollary d",
    "R <= R' for every positive definite M, and 0 <= R if and only if M >= (1/B) U R' U'",
    remark="l_uu positive semidefinite and M at least the model's curvature suffice.",
    over=st.tuples(batches(), st.floats(-1, 1)),
)
def order(problem):
    """Signs of extreme eigenvalues, for an R' from our recursion and a metric on either side of the bound."""
    batch, log_scale = problem
    B, S = batch.size, squared(core_values(batch)[1])
    for t, stage in enumerate(batch.stages):
        behind, U = B * S[t + 1], batch.losses_by_control()[t]
        curvature = U @ behind @ U.T / B
        unit = np.linalg.norm(curvature, 2) or 1.0
        M = stage.M / np.linalg.norm(stage.M, 2) * unit * 10**log_scale
        R = behind - behind @ U.T @ np.linalg.solve(M, U @ behind) / B
        condition = np.linalg.cond(M) * (1 + unit / np.linalg.eigvalsh(M)[0])
        yield at_most(0.0, np.linalg.eigvalsh(behind - R)[0], condition=condition, label="R <= R'")
        bound, lowest = np.linalg.eigvalsh(M - curvature)[0] / unit, np.linalg.eigvalsh(R)[0]
        if abs(bound) > 1e-9 * condition and condition < 1e6:  # not on the border
            violated = max(-lowest, 0.0) if bound > 0 else float(lowest >= 0)
            yield at_most(violated, 0.0, condition=condition, label="0 <= R iff M >= U R' U' / B")


@OURS.exact(
    "4",
    "DGN Sec. 4.2",
    "terminal Hessian Z Z': v = g + Z^ a, W = Z^ R Z^' with Z^ the plainly back-propagated factor, a <- a + R U^' k, R"
    " <- R - c' R U^' M^{-1} U^ R, U^ = f_u' Z^, a_T = 0, R_T = I; coupled in R^{B r} it is exact batch DDP",
    assumes="running cost independent of the state, linear dynamics",
    remark="One stage, one sample: V' = X (I - c' U' M^{-1} U) X', a root of the bracket gives the new Z; it is"
    " positive semidefinite iff c' U' M^{-1} U <= I, as for c' = 1/B and M >= (1/B) sum U_i U_i'. Ours carries the"
    " columns [g | Z], so a is 1 at g.",
    over=games(terminals=("rank", "degenerate"), max_log_condition=3, max_log_stiffness=1),
)
def rank_r(game: Game):
    """Our recursion with [g | Z] against the dense one over the stacked samples, and the one-stage factor."""
    B, m = game.batch_size, game.columns.shape[2]
    start = sample_space.init(B, rank=m - 1, dtype=tf.float64)
    grams, linears = game.grams()
    values = sample_space.backward_all(start, *[tf.constant(np.array(x)[:, None]) for x in (grams, linears)])
    steps = dense.backward_batch(game.gradient, list(game.hessian), game.dense_stages())
    condition, cuts = max(np.linalg.cond(stage.metric) for stage in game.stages), game.all_columns()
    for t, (stage, (k, _, v, W, _)) in enumerate(zip(game.stages, steps, strict=True)):
        C = dense.block_diag(*cuts[t])
        a, L = values.a.numpy()[t, 0], values.L.numpy()[t, 0]
        amplification = condition * (1 + np.linalg.norm(sum(grams[t:]), 2) / B)
        size, l = np.linalg.norm(C), 1 + max(np.linalg.norm(x) for x in linears)
        yield same(C @ a, v, condition=amplification * l, scale=size, label="V_X = C a")
        yield same(C @ L @ L.T @ C.T, W, condition=amplification, scale=size**2 / B, label="V_XX = C S C'")
        q = np.concatenate([game.parameter_columns(t, p) for p in stage.players])
        ours = -np.linalg.solve(stage.metric, stage.l_u + q @ a)
        scale = np.linalg.norm(np.linalg.inv(stage.metric), 2) * (np.linalg.norm(stage.l_u) + np.linalg.norm(q))
        yield same(ours, k, condition=amplification * l, scale=scale, label="k")
    yield from one_stage_factor(game)


def one_stage_factor(game: Game):
    """The last stage alone: Schur update with M >= (1/B) sum U U' in place of Q_uu, and the new factor."""
    stage, B = game.stages[-1], game.batch_size
    U = np.einsum("bij,bik->bjk", stage.f_u, game.root)
    M = stage.metric + np.einsum("bjk,blk->jl", U, U) / B
    for X_i, U_i, f_x, f_u in zip(game.root, U, stage.f_x, stage.f_u, strict=True):
        _, hessian = dense.expand(0 * X_i[:, 0], X_i @ X_i.T, f_x, f_u)
        n = f_x.shape[1]
        K = -np.linalg.solve(M, hessian[n:, :n]) / B  # c' = 1/B
        truth = hessian[:n, :n] + hessian[:n, n:] @ K
        bracket = np.eye(U_i.shape[1]) - U_i.T @ np.linalg.solve(M, U_i) / B
        lowest = np.linalg.eigvalsh(bracket)[0]
        yield at_most(0.0, lowest, condition=np.linalg.cond(M), label="bracket >= 0")
        values, vectors = np.linalg.eigh(bracket)
        factor = f_x.T @ X_i @ (vectors * np.sqrt(values.clip(0)))
        scale = np.linalg.norm(f_x.T @ X_i) ** 2
        yield same(factor @ factor.T, truth, condition=np.linalg.cond(M), scale=scale, label="new factor")
