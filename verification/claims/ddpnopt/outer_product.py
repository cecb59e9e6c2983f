"""Outer-product factorisation and the algorithm: Proposition 4, Eqs. 12 and 13, Algorithm 3."""

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import bellman
from verification.claim import Counterexample, measured, same
from verification.derivations.batch_end import coupled_gradient, coupled_hessian
from verification.papers import DDPN
from verification.problems.control import as_stage, classifiers
from verification.problems.games import Game, games
from verification.problems.networks import Chain
from verification.references import dense


def factorised(problem: Game):
    """Dense per-sample expansions and values beside the vectors q_u, q_x, z and our (alpha, beta), last stage first.

    The metric stands in place of Q_uu; where a sample's q_u' M^{-1} q_u would be above 1 it is scaled up.
    """
    g, z = problem.gradient, np.sqrt(problem.beta_squared)[:, None] * problem.gradient
    value = bellman.outer_product.init(len(g), tf.constant(problem.beta_squared))
    V = bellman.Value(tf.constant(g), tf.constant(problem.hessian))
    for f_x, f_u, M, l_u in reversed(problem.dense_stages()):
        q_u, q_x = np.einsum("bij,bi->bj", f_u, z), np.einsum("bij,bi->bj", f_x, z)
        M = M * max(1.0, 1.01 * np.max(np.einsum("bi,ij,bj->b", q_u, np.linalg.inv(M), q_u)))
        quad = np.sum(q_u * np.linalg.solve(M, q_u.T).T, axis=1)
        Q = bellman.expand(V, tf.constant(f_x), tf.constant(f_u), cost_u=tf.constant(l_u))
        gains = bellman.gains(Q, tf.constant(np.array([M] * len(g))))
        behind = V.V_xx.numpy()
        V = bellman.value_update(Q, gains)
        plain = np.einsum("bij,bi->bj", f_u, g)
        plain_quad = np.sum(plain * np.linalg.solve(M, plain.T).T, axis=1)
        value, _ = bellman.outer_product.backward(value, tf.zeros_like(value.alpha), tf.constant(plain_quad))
        z, g = np.sqrt(1 - quad)[:, None] * q_x, np.einsum("bij,bi->bj", f_x, g)
        yield Q, V, q_u, q_x, z, g, value.beta_squared.numpy(), np.linalg.cond(M), (f_x, f_u, behind)


def outer(a, b):
    """Outer products of samples."""
    return np.einsum("bi,bj->bij", a, b)


def size_of(*matrices):
    """Product of the norms, sample by sample: what the entries of a product of the matrices are made of."""
    return np.linalg.norm(np.prod([np.linalg.norm(A, axis=(1, 2)) for A in matrices], axis=0))


def factorisation(problem: Game):
    """The vectors against the dense matrices, and our scalar beta^2 against both."""
    total = 1.0
    for Q, V, q_u, q_x, z, g, beta_squared, condition, (f_x, f_u, behind) in factorised(problem):
        yield same(Q.Q_ux, outer(q_u, q_x), condition=total, scale=size_of(f_u, behind, f_x), label="Q_ux")
        size = size_of(f_x, behind, f_x)
        yield same(Q.Q_xx, outer(q_x, q_x), condition=total, scale=size, label="Q_xx")
        total += 100 * condition  # the relative error of beta^2 adds up over the stages; 1 - quad is at least 0.01
        yield same(V.V_xx, outer(z, z), condition=total, scale=size, label="V_xx")
        ours = beta_squared[:, None, None] * outer(g, g)
        yield same(ours, outer(z, z), condition=total, scale=size, label="our beta^2 g g'")


COLLINEAR = games(terminals=("collinear",), max_log_condition=4)
ASSUMES = (
    "linearised dynamics, l = l(u), no Tikhonov on V_xx, the same positive definite M in place of Q_uu in gains and "
    "values, and q_u' M^{-1} q_u <= 1 for every sample"
)
REAL = (
    "For B = 1 and M = l_uu + q_u q_u' the root is always real; for a batch mean M the per-sample radicand is "
    "negative for most samples, 1 - (1/B) q_u' M^{-1} q_u never: OURS-3."
)
DDPN.exact(
    "P4",
    "Proposition 4",
    "phi_xx = z z' gives Q_ux = q_u q_x', Q_xx = q_x q_x', V_xx = z z' at every stage",
    assumes=ASSUMES,
    remark=REAL,
    over=COLLINEAR,
)(factorisation)
DDPN.exact(
    "E12", "Eq. 12", "Q_ux = q_u q_x', Q_xx = q_x q_x', V_xx = z z'", assumes=ASSUMES, remark=REAL, over=COLLINEAR
)(factorisation)


def root_counterexample() -> Counterexample:
    """Scalars, the root over everything."""
    q_u, Q_uu, q_x = 1.0, 2.0, 0.25
    gradient, hessian = np.zeros(2), np.array([[q_x * q_x, q_x * q_u], [q_u * q_x, Q_uu]])
    W = dense.schur_value(gradient, hessian, *dense.minimise(gradient, hessian, 1))[1]
    return Counterexample(
        "scalars q_u = 1, Q_uu = 2, q_x = 1/4: V_xx = q_x^2 (1 - 1/2) = 1/32",
        printed=[[1 - q_u * q_u * q_x / Q_uu]],
        corrected=[[(1 - q_u * q_u / Q_uu) * q_x**2]],
        truth=W,
    )


DDPN.misprint(
    "E13",
    "Eq. 13",
    "the outer-product vector of the value Hessian",
    assumes=ASSUMES,
    printed="q_u = f_u z', q_x = f_x z', z = sqrt(1 - q_u' Q_uu^{-1} q_u q_x)",
    corrected="q_u = f_u' z', q_x = f_x' z', z = sqrt(1 - q_u' Q_uu^{-1} q_u) q_x",
    derivation=(
        "V_xx = Q_xx - Q_ux' Q_uu^{-1} Q_ux with Q_xx = q_x q_x' and Q_ux = q_u q_x' is (1 - q_u' Q_uu^{-1} q_u) q_x "
        "q_x', the bracket a scalar. This is z z' for the corrected z; the printed root is not even of a scalar "
        "unless n = 1."
    ),
    origin="likely OCR",
    remark="Catalogue: exact, with the root's reach noted as a reading error; the proof in the paper has it right, "
    "and minus under the root (GTDDP Eqs. 21-23 print a plus). " + REAL,
    over=COLLINEAR,
    counterexample=root_counterexample,
)(factorisation)


def per_sample_policy(g, H, stages, damping, *, own, factor):
    """Algorithm 3 with Q_uu = E[Q_uu] + damping I: per stage the policy du(dx [B, n]).

    `own`: each sample's own Q_u in V_x, else the batch mean. `factor` multiplies the subtraction in V_xx.
    """
    v, W, policies = g, H, []
    for f_x, f_u in reversed(stages):
        Q_x, Q_u = np.einsum("bij,bi->bj", f_x, v), np.einsum("bij,bi->bj", f_u, v)
        Q_xx, Q_ux = f_x.transpose(0, 2, 1) @ W @ f_x, f_u.transpose(0, 2, 1) @ W @ f_x
        Q_uu = np.mean(f_u.transpose(0, 2, 1) @ W @ f_u, axis=0) + damping * np.eye(f_u.shape[2])
        inverse = np.linalg.inv(Q_uu)

        def policy(dx, inverse=inverse, Q_u=Q_u, Q_ux=Q_ux):
            return -inverse @ np.mean(Q_u + np.einsum("bmn,bn->bm", Q_ux, dx), axis=0)

        policies.insert(0, policy)
        used = Q_u if own else np.tile(Q_u.mean(axis=0), (len(g), 1))
        v = Q_x - np.einsum("bmn,bm->bn", Q_ux, used @ inverse)
        W = Q_xx - factor * Q_ux.transpose(0, 2, 1) @ inverse @ Q_ux
    return policies


def affine(k, K):
    """The policy of the stacked deviation."""
    return lambda dx: k + K @ dx.ravel()


def roll_out(stages, policies):
    """The executed step on the linearised dynamics, all controls side by side."""
    dx, step = np.zeros((stages[0][0].shape[0], stages[0][0].shape[2])), []
    for (f_x, f_u), policy in zip(stages, policies, strict=True):
        step.append(policy(dx))
        dx = np.einsum("bij,bj->bi", f_x, dx) + f_u @ step[-1]
    return np.concatenate(step)


def collinear_policies(g, stages, damping):
    """With the mean Q_u and the factor 1/B, by our (alpha, beta): per stage the policy and the condition of Q_uu."""
    B, policies = len(g), []
    value = bellman.outer_product.init(B, dtype=tf.float64)
    for f_x, f_u in reversed(stages):
        q, deviate = np.einsum("bij,bi->bj", f_u, g), np.einsum("bij,bi->bj", f_x, g)
        beta_squared = value.beta_squared.numpy()
        M = (beta_squared[:, None] * q).T @ q / B + damping * np.eye(q.shape[1])

        def policy(dx, value=value, q=q, M=M, deviate=deviate):
            w = bellman.outer_product.weights(value, tf.constant(np.sum(deviate * dx, axis=1))).numpy()
            return -np.linalg.solve(M, np.mean(w[:, None] * q, axis=0))

        policies.insert(0, (policy, np.linalg.cond(M)))
        k, quad = policy(0 * deviate), np.sum(q * np.linalg.solve(M, q.T).T, axis=1)
        value, clamped = bellman.outer_product.backward(
            value, tf.constant(q @ k), tf.constant(quad), batch_factor=1 / B
        )
        assert clamped == 0  # M is not below (1/B) sum beta^2 q q'
        g = deviate
    return policies


VARIANTS = {"own Q_u": (True, False), "mean Q_u": (False, False), "mean Q_u and 1/B": (False, True)}


def executed_steps(chain: Chain):
    """How far the executed steps of the per-sample recursions are from our exact batch recursion's."""
    B, trajectories = len(chain.inputs), [chain.states(i) for i in range(len(chain.inputs))]
    g = np.array([chain.terminal_derivatives(x[-1], i)[0] for i, x in enumerate(trajectories)])
    stages = []
    for t in range(len(chain.layers)):
        samples = [chain.stage(t, x[t], second_order=False) for x in trajectories]
        stages.append(tuple(np.array([s[name] for s in samples]) for name in ("f_x", "f_u")))
    end = bellman.augment_value(tf.constant(g), tf.constant(outer(g, g)))
    for damping in (1.0, 0.1, 0.01):
        stacked = []
        for f_x, f_u in stages:
            F_X, F_u = dense.stack(f_x, f_u)
            stacked.append(as_stage({"f_x": F_X, "f_u": F_u, "l_uu": damping * np.eye(f_u.shape[2])}))
        exact, _ = bellman.backward_dense(end, stacked)
        truth = roll_out(stages, [affine(k.numpy(), K.numpy()) for k, K, _ in exact])
        for name, (own, mean) in VARIANTS.items():
            policies = per_sample_policy(g, outer(g, g), stages, damping, own=own, factor=1 / B if mean else 1.0)
            error = np.linalg.norm(roll_out(stages, policies) - truth) / np.linalg.norm(truth)
            yield measured(error, f"{name}, lambda = {damping:g}")
        dense_policies, dx = policies, np.random.default_rng(0)  # of the last variant
        for theirs, (policy, condition), (f_x, _) in zip(
            dense_policies, collinear_policies(g, stages, damping), stages, strict=True
        ):
            at = dx.standard_normal((B, f_x.shape[2]))
            scale = np.linalg.norm(theirs(0 * at)) + np.linalg.norm(theirs(at))
            yield same(policy(at), theirs(at), condition=condition, scale=scale, label="our (alpha, beta) with c = 1/B")


def corrected_and_executed(problem):
    """The corrected derivatives next to the end of the network, and the measured errors of the variants."""
    game, chain = problem
    for found in (*coupled_gradient(game), *coupled_hessian(game)):
        if np.isfinite(found.tolerance):
            yield found
    yield from executed_steps(chain)


def per_sample_counterexample() -> Counterexample:
    """Two scalar samples of which one is fitted."""
    g, B = np.array([1.0, 0.0]), 2
    gradient, hessian = dense.expand(g / B, np.eye(B) / B, np.eye(B), np.ones((B, 1)))
    v, W = dense.follow(gradient, hessian, *dense.minimise(gradient, hessian, B))
    Q_uu, Q_u = 1.0, g
    return Counterexample(
        "B = 2, scalars, l = 0, f_x = f_u = 1, phi_x = (1, 0), phi_xx = 1: (V_x^(1), V_x^(2), V_xx^(1), V_xx^(2)) at "
        "T - 1",
        printed=np.concatenate([g - Q_u / Q_uu, [1 - 1 / Q_uu] * 2]),
        corrected=np.concatenate([g - np.mean(Q_u) / Q_uu, [1 - 1 / (B * Q_uu)] * 2]),
        truth=np.concatenate([B * v, B * np.diag(W)]),
    )


DDPN.misprint(
    "A3",
    "Algorithm 3",
    "the per-sample values that belong to one shared policy, E[Q_uu] in place of Q_uu",
    assumes="read literally: Eq. 4 with each sample's own Q_u and Q_ux; optional Tikhonov off",
    printed="V_x^(i) = Q_x^(i) - Q_ux^(i)' E[Q_uu]^{-1} Q_u^(i), V_xx^(i) = Q_xx^(i) - Q_ux^(i)' E[Q_uu]^{-1} Q_ux^(i)",
    corrected="V_x^(i) = Q_x^(i) - Q_ux^(i)' E[Q_uu]^{-1} E[Q_u], V_xx^(i) = Q_xx^(i) - (1/B) Q_ux^(i)' E[Q_uu]^{-1} "
    "Q_ux^(i) and, off the diagonal, -(1/B) Q_ux^(i)' E[Q_uu]^{-1} Q_ux^(j)",
    derivation=(
        "The value is that of the mean cost under one du for all samples (DDP1-E36, DDP1-E37 corrected): the samples "
        "share k = -E[Q_uu]^{-1} E[Q_u], and [Q_uX]_i = (1/B) Q_ux^(i) enters V_XX twice. B times block i of V_X and "
        "block (i, i) of V_XX are the corrected forms; they are exact one stage before the end, further down the "
        "off-diagonal blocks are needed too."
    ),
    origin="paper (approximation)",
    remark=(
        "The policy du = (1/B) sum_i (k^(i) + K^(i) dx^(i)) is exact for given values. Errors of the executed step "
        "against the exact batch recursion, three tanh layers, B = 16, Q_uu = E[f_u' V_xx f_u] + lambda I. "
        "Catalogue: for lambda = 1, 0.1, 0.01: own 5.1, 6.9, 2.4; mean without 1/B 3.7, 2.1, 1.5; mean with 1/B "
        "0.03, 0.22, 0.98. Adding eps_V I to V_xx destroys the rank one (OURS-1)."
    ),
    over=st.tuples(games(max_depth=1, max_batch=6), classifiers((6, 6, 6, 4), 16)),
    counterexample=per_sample_counterexample,
    examples=12,
    ranges={
        "own Q_u, lambda = 1": (0.5, 20.0),
        "own Q_u, lambda = 0.1": (2.0, 40.0),
        "own Q_u, lambda = 0.01": (1.0, 30.0),
        "mean Q_u, lambda = 1": (0.1, 10.0),
        "mean Q_u, lambda = 0.1": (0.7, 20.0),
        "mean Q_u, lambda = 0.01": (0.7, 10.0),
        "mean Q_u and 1/B, lambda = 1": (0.01, 0.15),
        "mean Q_u and 1/B, lambda = 0.1": (0.08, 0.5),
        "mean Q_u and 1/B, lambda = 0.01": (0.3, 1.5),
    },
)(corrected_and_executed)
