"""A batch before the last stage: its coupled value."""

import numpy as np
import tensorflow as tf

from bellman_tf import bellman
from verification.claim import at_most, measured, same
from verification.problems.games import Game
from verification.references import batch, dense


def last_stage(problem: Game):
    """Our stacked value before the last stage, per-sample expansions, and the truth by inserting the policy."""
    ((f_x, f_u, M, l_u),) = problem.dense_stages()
    F_X, F_u = bellman.augment_batch(tf.constant(f_x), tf.constant(f_u))
    end = bellman.augment_value(tf.constant(problem.gradient), tf.constant(problem.hessian))
    Q = bellman.expand(end, F_X, F_u, cost_u=tf.constant(l_u), cost_uu=tf.constant(M))
    value = bellman.value_update(Q, bellman.gains(Q))
    behind = bellman.Value(tf.constant(problem.gradient), tf.constant(problem.hessian))
    P = bellman.expand(behind, tf.constant(f_x), tf.constant(f_u), cost_u=tf.constant(l_u), cost_uu=tf.constant(M))
    ((_, _, v, W, _),) = dense.backward_batch(problem.gradient, problem.hessian, problem.dense_stages())
    return value, [part.numpy() for part in P], v, W, np.linalg.cond(Q.Q_uu), Q


def coupled_gradient(problem: Game):
    """The formula with our per-sample expansions, and our stacked value, against the policy inserted in Q."""
    value, (Q_x, Q_u, _, Q_ux, Q_uu), v, _, condition, Q = last_stage(problem)
    solved = np.linalg.solve(Q_uu.mean(axis=0), Q_u.mean(axis=0))
    formula = (Q_x - np.einsum("bmn,m->bn", Q_ux, solved)) / len(Q_x)
    scale = np.linalg.norm(Q.Q_x)
    yield same(formula.ravel(), v, condition=condition, scale=scale, label="formula")
    yield same(value.V_x, v, condition=condition, scale=scale, label="V_X")


def block_formula(Q_xx, Q_ux, Q_uu, factor):
    """The matrix with blocks (1/B) (d_ij Q_xx^(i) - factor Q_ux^(i)' Q_uu^{-1} Q_ux^(j))."""
    B, n = len(Q_xx), Q_xx.shape[1]
    solved = np.linalg.solve(Q_uu, np.hstack(list(Q_ux)))
    V_XX = -factor * np.concatenate([q.T @ solved for q in Q_ux])
    for i in range(B):
        V_XX[batch.block(i, n), batch.block(i, n)] += Q_xx[i]
    return V_XX / B


def coupled_hessian(problem: Game):
    """The corrected blocks, and our stacked value, against the policy inserted in the quadratic."""
    value, (_, _, Q_xx, Q_ux, Q_uu), _, W, condition, Q = last_stage(problem)
    B, scale = len(Q_xx), np.linalg.norm(Q.Q_xx)
    formula = block_formula(Q_xx, Q_ux, Q_uu.mean(axis=0), 1 / B)
    yield same(formula, W, condition=condition, scale=scale, label="formula")
    yield same(value.V_xx, W, condition=condition, scale=scale, label="V_XX")
    yield at_most(-np.linalg.eigvalsh(value.V_xx)[0], 0, scale=scale or 1.0, condition=condition, label="semi-definite")
    norm = np.linalg.norm(W)
    if B > 1 and norm > 1e-6 * scale:
        printed = block_formula(Q_xx, Q_ux, Q_uu.mean(axis=0), 1.0)
        yield measured(np.linalg.norm(printed - W) / norm, "error of the printed form")
    if np.sum(np.linalg.norm(Q_ux, axis=(1, 2)) > 0) > 1 and norm > 1e-6 * scale:
        own = [np.linalg.norm(W[batch.block(i, len(W) // B), batch.block(i, len(W) // B)]) for i in range(B)]
        yield measured(np.sqrt(max(0.0, 1 - np.sum(np.square(own)) / norm**2)), "share off the diagonal blocks")
