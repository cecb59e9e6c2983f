"""What the paper runs: regularisation and curvature approximations (Sec. 4.2, Eq. 15), ranks in the last layer."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import bellman, linalg
from verification.claim import Verdict, at_most, same
from verification.claims.ddp.batch import ours
from verification.papers import DDP1
from verification.problems.control import (
    Behind,
    as_value,
    behinds,
    seeds,
)
from verification.references import dense, kronecker


def rank(A):
    """Number of singular values that are not rounding."""
    s = np.linalg.svd(A, compute_uv=False)
    return int(np.sum(s > 1e-10 * s[0])) if s[0] > 0 else 0


def curvature(problem: Behind):
    """F_u' V' F_u and F_x' V' F_x of our stacked expansion: no running cost, linearised dynamics."""
    F_X, F_u = bellman.augment_batch(
        *[tf.constant(np.array([s[name] for s in problem.derivatives()])) for name in ("f_x", "f_u")]
    )
    Q = bellman.expand(as_value(0 * problem.v, problem.W), F_X, F_u)
    return Q.Q_uu.numpy(), Q.Q_xx.numpy()


@DDP1.exact(
    "S4.2a",
    "Sec. 4.2",
    "without regularisation Q_uu is singular, because f_u' V'_xx f_u has low rank",
    assumes="l_uu = 0, linearised dynamics, B <= n: the rank is at most min(rank V', B n') while m = n' (n + 1)",
    remark="With B > n samples the batch Q_uu can have full rank; one sample's never has.",
    over=behinds(max_batch=3),
)
def singular_control_curvature(problem: Behind):
    """Rank of our stacked Q_uu, its least eigenvalue when the bound is below m, and what l_uu = lambda I does."""
    Q_uu, _ = curvature(problem)
    B, out, m = len(problem.chain.inputs), problem.layer.rows, problem.layer.size
    bound = min(rank(problem.W), B * out)
    yield same(m, out * (problem.layer.cols + 1), label="m")
    yield at_most(rank(Q_uu), bound, label="rank")
    size, eigenvalues = np.linalg.norm(Q_uu) or 1.0, np.linalg.eigvalsh(Q_uu)
    if bound < m:
        yield same(eigenvalues[0], 0.0, scale=size, label="least eigenvalue")
    damped = np.linalg.eigvalsh(Q_uu + 0.1 * size * np.eye(m))
    yield at_most(0.1 * size, damped[0], scale=size, label="with Tikhonov")


@DDP1.exact(
    "S4.2b",
    "Sec. 4.2",
    "f_x' V'_xx f_x is singular when the dimension of the activation decreases",
    assumes="n' < n: the rank is at most n' per sample",
    over=behinds(max_batch=3),
)
def singular_state_curvature(problem: Behind):
    """Rank and least eigenvalue of our stacked Q_XX without costs."""
    _, Q_XX = curvature(problem)
    B, out, n = len(problem.chain.inputs), problem.layer.rows, problem.layer.cols
    yield at_most(rank(Q_XX), min(rank(problem.W), B * min(out, n)), label="rank")
    if out < n:
        yield same(np.linalg.eigvalsh(Q_XX)[0], 0.0, scale=np.linalg.norm(Q_XX), label="least eigenvalue")


class Statistics(NamedTuple):
    """What a curvature approximation has collected of a layer, and what it is applied to."""

    x: np.ndarray  # [K, n]
    V_h: np.ndarray  # [K, n']
    Q_u: np.ndarray  # [n' n]
    Q_ux: np.ndarray  # [n' n, n]
    damping: float


@st.composite
def statistics(draw):
    """Random statistics; with fewer samples than inputs the moments are singular and only the damping holds them."""
    rng = np.random.default_rng(draw(seeds, label="seed"))
    K, n, out = (draw(st.integers(1, 5), label=label) for label in ("K", "n", "n'"))
    x, V_h = rng.standard_normal((K, n)), rng.standard_normal((K, out))
    damping = 10.0 ** draw(st.integers(-6, 0), label="log10 damping")
    return Statistics(x, V_h, rng.standard_normal(out * n), rng.standard_normal((out * n, n)), damping)


@DDP1.exact(
    "E15",
    "Eq. 15",
    "Q_uu^{-1} Q_u ~ CurvApprox(Q_u; {x, V_h}), and Q_uu^{-1} Q_ux by applying it column-wise",
    assumes="the statistics are fixed while the columns are solved; K-FAC's and EKFAC's operators",
    remark="That the operator resembles Q_uu^{-1} is an approximation (GTDDP-E41 and following); that it is one and "
    "the same linear operator for Q_u and every column of Q_ux is exact.",
    over=statistics(),
)
def columnwise(problem: Statistics):
    """Our K-FAC and EKFAC solves of all columns at once against one dense matrix."""
    (K, n), out = problem.x.shape, problem.V_h.shape[1]
    A, B = problem.x.T @ problem.x / K, problem.V_h.T @ problem.V_h / K
    columns = np.column_stack([problem.Q_u, problem.Q_ux])
    X = tf.constant(np.stack([kronecker.unvec(c, out, n) for c in columns.T]))
    damping_A, damping_B = kronecker.split_damping(A, B, problem.damping)
    M = kronecker.kron(A + damping_A * np.eye(n), B + damping_B * np.eye(out))
    solved = linalg.kfac_solve(tf.constant(A), tf.constant(B), problem.damping, X)
    truth = np.linalg.solve(M, columns)
    yield same(np.transpose(linalg.vec(solved)), truth, condition=np.linalg.cond(M), label="K-FAC")
    U_A, U_B = np.linalg.eigh(A)[1], np.linalg.eigh(B)[1]
    U = np.kron(U_A, U_B)
    q = np.stack([np.kron(x, v) for x, v in zip(problem.x, problem.V_h, strict=True)])
    s = np.mean((q @ U) ** 2, axis=0)
    M = U @ np.diag(s + problem.damping) @ U.T
    scalings = tf.constant(kronecker.unvec(s, out, n))
    solved = linalg.ekfac_solve(tf.constant(U_A), tf.constant(U_B), scalings, problem.damping, X)
    truth = np.linalg.solve(M, columns)
    yield same(np.transpose(linalg.vec(solved)), truth, condition=np.linalg.cond(M), label="EKFAC")


def softmax_rank(problem: Behind):
    """Ranks of softmax Hessians and of our stacked Q_uX before the last layer."""
    chain = problem.chain
    ends = [chain.terminal_derivatives(chain.states(i)[-1], i) for i in range(len(chain.inputs))]
    k, B = chain.layers[-1].rows, len(ends)
    for _, H in ends:
        yield same(rank(H), k - 1, label="rank of the Hessian")
    last = problem._replace(
        stage=len(chain.layers) - 1,
        v=np.zeros(B * k),
        W=dense.block_diag(*[H for _, H in ends]) / B,
    )
    inputs = np.array([[*chain.states(i)[-2], 1.0] for i in range(B)])
    yield at_most(rank(ours(last).Q_ux.numpy()), min(B, rank(inputs)) * (k - 1), label="rank of Q_uX")


DDP1.claim(
    "S5.1",
    "Sec. 5.1",
    "the number of nontrivial eigenvalues of Q_uu^{-1} Q_uX in the last layer is the number of classes k",
    verdict=Verdict.EMPIRICAL,
    assumes="training error near zero, inputs in k clusters",
    remark=(
        "Checked here is the structure behind it: a softmax Hessian has rank k - 1, and the last layer's linearised "
        'Q_uX rank at most min(B, rank of the inputs with the constant feature) (k - 1). "Eigenvalues" must be '
        "singular values: the matrix is m x B n. Holds in kind for trained nets, see DDP1-FIG3."
    ),
    tested_by="python -m keras_examples.studies.feedback_maps",
    over=behinds(max_batch=5, terminals=("cross_entropy",), running=("none",)),
)(softmax_rank)
