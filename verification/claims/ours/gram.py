"""Gram matrices of the samples' gradients without forming the gradients (OURS-9)."""

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf import linalg
from verification.claim import same
from verification.papers import OURS
from verification.problems.games import random_spd
from verification.references import kronecker


@st.composite
def layers(draw):
    """Inputs [S, P, K] and output gradients [S, C, P] of P positions, and two factors."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    S, P, K, C = (draw(st.integers(1, n), label=name) for n, name in ((5, "samples"), (4, "P"), (4, "K"), (3, "C")))
    log_condition = draw(st.integers(0, 6), label="log10 condition")
    factors = [random_spd(rng, n, 10.0**log_condition) for n in (K, C)]
    x, g = rng.standard_normal((S, P, K)), rng.standard_normal((S, P, C))
    if draw(st.booleans(), label="identical samples"):
        x, g = np.tile(x[:1], (S, 1, 1)), np.tile(g[:1], (S, 1, 1))
    return x, g, *factors


def multiplications(P, K, C):
    """Per sample, gradient form and Gram form."""
    return P * K * C + C * C * K + C * K * K, P * K * K + P * C * C + P * P * (K + C + 1)


@OURS.exact(
    "9",
    "cost of OURS-2",
    "dense layer, M = A (x) B: U' M^{-1} U = (X A^{-1} X') o (G B^{-1} G'). Convolution, P positions: q' (A^{-1} (x)"
    " B^{-1}) q = sum_pp' (x_p' A^{-1} x_p') (g_p' B^{-1} g_p') = tr(G' B^{-1} G A^{-1}), G = sum_p g_p x_p'",
    remark="Multiplications per sample: gradient form P K C + C^2 K + C K^2, Gram form P K^2 + P C^2 + P^2 (K + C +"
    " 1); 32 x 32 positions, 3 x 3 x 3 -> 16: 4.6e5 / 4.7e7; 16 x 16, 3 x 3 x 32 -> 32: 5.3e6 / 4.3e7; 4 x 4, 3 x 3 x"
    " 256 -> 256: 1.5e9 / 8.7e7. The Gram form pays when P is much smaller than K, C.",
    over=layers(),
)
def gram_forms(problem):
    """Our Kronecker products and solves against the dense metric; the counts of the examples."""
    x, g, A, B = problem
    S, P, K = x.shape
    condition = np.linalg.cond(A) + np.linalg.cond(B)
    inverse = np.linalg.norm(np.linalg.inv(A), 2) * np.linalg.norm(np.linalg.inv(B), 2)
    factors = [linalg.factor_spd(tf.constant(M)) for M in (A, B)]
    X, G = x[:, 0], g[:, 0]  # a dense layer is one position
    U = linalg.khatri_rao(tf.constant(X.T), tf.constant(G.T)).numpy()  # columns x_i (x) g_i
    inverses = kronecker.kron(np.linalg.inv(A), np.linalg.inv(B))
    truth = U.T @ inverses @ U
    ours = [Y @ linalg.solve_spd(factor, tf.constant(Y.T)).numpy() for factor, Y in zip(factors, (X, G), strict=True)]
    scale = inverse * np.linalg.norm(U) ** 2
    yield same(ours[0] * ours[1], truth, condition=condition, scale=scale, label="dense layer")
    sums = np.einsum("spc,spk->sck", g, x)
    vectors = np.array([kronecker.vec(G_i) for G_i in sums]).T
    truth = vectors.T @ inverses @ vectors
    solved = linalg.kron_solve(*map(tf.constant, (A, B, sums))).numpy()
    trace = np.einsum("ick,jck->ij", sums, solved)
    rows = [y.reshape(S * P, -1) for y in (x, g)]
    pairs = np.prod(
        [Y @ linalg.solve_spd(f, tf.constant(Y.T)).numpy() for f, Y in zip(factors, rows, strict=True)], axis=0
    )
    positions = pairs.reshape(S, P, S, P).sum(axis=(1, 3))
    scale = inverse * np.linalg.norm(np.einsum("spc,spk->spck", np.abs(g), np.abs(x)).sum(axis=1)) ** 2
    yield same(trace, truth, condition=condition, scale=scale, label="convolution: gradient form")
    yield same(positions, truth, condition=condition, scale=scale, label="convolution: Gram form")
    examples = ((1024, 27, 16, 4.6e5, 4.7e7), (256, 288, 32, 5.3e6, 4.3e7), (16, 2304, 256, 1.5e9, 8.7e7))
    for P_e, K_e, C_e, *printed in examples:
        counts = [float(f"{count:.1e}") for count in multiplications(P_e, K_e, C_e)]
        yield same(counts, printed, label="multiplications, two digits")
