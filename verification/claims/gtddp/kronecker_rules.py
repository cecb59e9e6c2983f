"""Rules of Kronecker products (Eqs. 45-47)."""

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import linalg
from verification.claim import same
from verification.papers import GTDDP
from verification.problems.blocks import seeds
from verification.problems.matrices import rotation
from verification.references import kronecker


@st.composite
def factors(draw, *, max_log_condition=8):
    """Two square factors, invertible, singular or positive definite, and a matrix for them to act on."""
    rng = np.random.default_rng(draw(seeds))
    n, m = draw(st.integers(1, 4), label="n"), draw(st.integers(1, 4), label="m")
    pair = []
    for size in (n, m):
        s = 10.0 ** -np.sort(rng.uniform(0, draw(st.integers(0, max_log_condition)), size))
        pair.append((rotation(rng, size) * s) @ rotation(rng, size).T)
    return *pair, rng.normal(size=(m, n))


@GTDDP.exact("E45", "Eq. 45", "(A (x) B) vec(X) = vec(B X A')", over=factors())
def kronecker_times_vector(problem):
    """Ours, the written-out product, and vec, unvec."""
    A, B, X = problem
    ours = linalg.kron_multiply(*map(tf.constant, problem))
    size = np.linalg.norm(A) * np.linalg.norm(B) * np.linalg.norm(X)
    yield same(linalg.vec(ours), kronecker.kron(A, B) @ kronecker.vec(X), scale=size, label="kron_multiply")
    dense = linalg.kron(tf.constant(A), tf.constant(B)).numpy()
    yield same(dense @ linalg.vec(tf.constant(X)).numpy(), kronecker.vec(B @ X @ A.T), scale=size, label="kron, vec")
    yield same(linalg.unvec(linalg.vec(tf.constant(X)), *X.shape), X, label="unvec")


@GTDDP.exact(
    "E46",
    "Eq. 46",
    "(A (x) B)^{-1} = A^{-1} (x) B^{-1}",
    assumes="A and B invertible",
    remark="It holds for pseudo-inverses, too.",
    over=factors(),
)
def kronecker_inverse(problem):
    """Our solve for positive definite factors; the printed form, also with pseudo-inverses of rank-one factors."""
    A, B, X = problem
    condition = np.linalg.cond(A) * np.linalg.cond(B)
    inverse = np.kron(np.linalg.inv(A), np.linalg.inv(B))
    rest = {"condition": condition}
    yield same(inverse @ np.kron(A, B), np.eye(X.size), scale=np.linalg.norm(np.eye(X.size)), label="inverse", **rest)
    A_spd, B_spd = A @ A.T + np.eye(len(A)), B @ B.T + np.eye(len(B))
    ours = linalg.kron_solve(*map(tf.constant, (A_spd, B_spd, X)))
    truth = np.linalg.solve(np.kron(A_spd, B_spd), kronecker.vec(X))
    yield same(linalg.vec(ours), truth, condition=np.linalg.cond(A_spd) * np.linalg.cond(B_spd), label="kron_solve")
    a, b = np.outer(A[:, 0], A[0]), np.outer(B[:, 0], B[0])
    if np.linalg.norm(a) * np.linalg.norm(b) > 1e-6:
        truth = np.linalg.pinv(np.kron(a, b), rcond=1e-6)
        ours = np.kron(np.linalg.pinv(a, rcond=1e-6), np.linalg.pinv(b, rcond=1e-6))
        yield same(ours, truth, label="pseudo-inverse")


@GTDDP.exact("E47", "Eq. 47", "(A (x) B)' = A' (x) B'", over=factors())
def kronecker_transpose(problem):
    """Ours transposed against ours of the transposes, and as the adjoint of the product."""
    A, B, X = problem
    A_t, B_t, X_t = map(tf.constant, problem)
    yield same(tf.transpose(linalg.kron(A_t, B_t)), np.kron(A.T, B.T), label="kron")
    Y = np.cos(np.arange(X.size)).reshape(X.shape)
    left = np.sum(Y * linalg.kron_multiply(A_t, B_t, X_t).numpy())
    right = np.sum(X * linalg.kron_multiply(tf.transpose(A_t), tf.transpose(B_t), tf.constant(Y)).numpy())
    size = np.linalg.norm(A) * np.linalg.norm(B) * np.linalg.norm(X) * np.linalg.norm(Y)
    yield same(left, right, scale=size, label="adjoint")
