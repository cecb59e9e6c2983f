"""Kronecker factorisation of one layer and of a stage: Eqs. 25-27."""

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import linalg
from verification.claim import relative_error, same
from verification.claims.dgnopt.kronecker import constants
from verification.derivations.recursions import spread
from verification.papers import DGN
from verification.problems.matrices import spd_matrices
from verification.problems.pairs import random_pair
from verification.references import kronecker


@DGN.approximation(
    "E25",
    "Eq. 25",
    "E[H_theta H_theta'] ~ E[z z'] (x) E[p p']",
    remark="H_theta = z (x) p is exact. Equality for one sample (checked) and for independent z and p. 'factored' is"
    " the relative error for 24 samples, z and p correlated by a tanh of the same signal; catalogue 0.30.",
    over=st.integers(0, 2**32 - 1),
    ranges={"factored": (0.25, 0.85)},
)
def factored_fisher(seed: int):
    """One sample exactly; the error of a dependent pair."""
    rng = np.random.default_rng(seed)
    z, p = rng.standard_normal((3, 4)), rng.standard_normal((3, 3))
    q = np.array([linalg.vec(tf.constant(np.outer(p_i, z_i))) for z_i, p_i in zip(z, p, strict=True)])
    yield same(q, [np.kron(z_i, p_i) for z_i, p_i in zip(z, p, strict=True)], label="H_theta = z (x) p")
    single = linalg.kron(*[tf.constant(np.outer(x, x)) for x in (z[0], p[0])])
    yield same(single, np.outer(q[0], q[0]), label="one sample")
    yield from spread(seed, fisher_error, "factored")


def fisher_error(rng):
    """Of the factored second moments for 24 samples, four inputs and three outputs."""
    z, W = rng.standard_normal((24, 4)), rng.standard_normal((3, 4))
    p = np.tanh(z @ W.T) - rng.standard_normal((24, 3))
    q = np.einsum("si,sj->sij", z, p).reshape(24, -1)
    return relative_error(kronecker.kron(z.T @ z / 24, p.T @ p / 24), q.T @ q / 24)


@DGN.exact(
    "E26",
    "Eq. 26",
    "(A (x) B)^+ vec(W) = (A^+ (x) B^+) vec(W) = vec(B^+ W A^{+T})",
    assumes="symmetric factors for our solve; the pseudo-inverse for any",
    remark="The last member is printed with A^{-T}: read A^{+T} when A is singular.",
    over=st.tuples(
        *[spd_matrices(sizes=st.integers(1, 4), max_condition=1e6, dtype=st.just(np.float64))] * 2,
        st.integers(0, 2**32 - 1),
    ),
)
def kronecker_inverse(problem):
    """Our solve against the dense matrix, and the identity for singular factors."""
    A, B, seed = problem
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((len(B), len(A)))
    condition = np.linalg.cond(A) * np.linalg.cond(B)
    ours = linalg.kron_solve(*map(tf.constant, (A, B, W)))
    yield same(ours, kronecker.kron_solve(A, B, W), condition=condition, label="(A (x) B)^{-1} vec(W)")
    A, B = (rng.standard_normal((n, 2)) @ rng.standard_normal((2, n)) for n in (3, 4))
    W = rng.standard_normal((4, 3))
    (A_inv, a), (B_inv, b) = ((np.linalg.pinv(M, rcond=1e-9), np.linalg.svd(M, compute_uv=False)[:2]) for M in (A, B))
    condition = np.max(a) / np.min(a) * np.max(b) / np.min(b)
    if condition < 1e6:
        dense = np.linalg.pinv(kronecker.kron(A, B), rcond=1e-9) @ kronecker.vec(W)
        yield same(kronecker.vec(B_inv @ W @ A_inv.T), dense, condition=condition, label="pseudo-inverse")


@DGN.approximation(
    "E27",
    "Eq. 27",
    "E[P_theta P_theta'] ~ E[x x'] (x) E[W_x W_x'] for all players of a stage together",
    remark="The right side is larger than the left: it has rows for cross weights. The comparison is with its part"
    " A_nm (x) B_nm, which is exact for one sample (checked) and for independent inputs and gradients. 'factored' is"
    " the relative error for 24 samples.",
    over=st.integers(0, 2**32 - 1),
    ranges={"factored": (0.25, 0.85)},
)
def factored_joint_fisher(seed: int):
    """Our joint matrix against the second moments of the joint gradient."""
    H, truth = joint_moments(np.random.default_rng(seed), 1)
    yield same(H, truth, label="one sample")
    yield from spread(seed, lambda rng: relative_error(*joint_moments(rng, 24)), "factored", count=3)


def joint_moments(rng, samples):
    """Our matrix of blocks A_nm (x) B_nm, and the second moments of the players' stacked gradients."""
    problem = random_pair(rng, samples, damping=0.0)
    weights = [
        rng.standard_normal((g.shape[1], z.shape[1])) for z, g in zip(problem.inputs, problem.outputs, strict=True)
    ]
    parts = zip(problem.outputs, problem.inputs, weights, strict=True)
    problem = problem._replace(outputs=[g - np.tanh(z @ W.T) for g, z, W in parts])
    q = np.hstack(problem.parameter_gradients())
    return linalg.block_khatri_rao(*map(constants, problem.blocks())).numpy(), q.T @ q / samples
