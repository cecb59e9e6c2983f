"""Gram matrices under a Kronecker metric from mixtures of whitened input features (OURS-25)."""

import itertools
from unittest import mock

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf.curvature import whitening
from bellman_tf.curvature.gram import gram
from bellman_tf.curvature.kfac import KroneckerMetric
from bellman_tf.curvature.kronecker_rows import KroneckerRows
from bellman_tf.layers.dense import LinearMap
from verification.claim import at_most, same
from verification.papers import OURS
from verification.problems.matrices import with_spectrum
from verification.references import gram as reference

MOST = 5  # features with the bias's: 32 patterns of signs


@st.composite
def layers(draw):
    """A layer at several positions, its two factors, and how many mixtures there are."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    bias = draw(st.booleans(), label="bias")
    d, e = draw(st.integers(1, MOST - bias), label="features"), draw(st.integers(1, 3), label="outputs")
    B, L = draw(st.integers(1, 4), label="samples"), draw(st.integers(2, 4), label="positions")
    rank = draw(st.integers(1, d), label="rank of the inputs")
    x = rng.standard_normal((B, L, rank)) @ rng.standard_normal((rank, d))
    c = rng.standard_normal((B, L, e)) * draw(st.sampled_from([0.0, 1.0]), label="size of the cotangents")
    decades = draw(st.sampled_from([0.0, 2.0, 5.0]), label="decades of the spectra")
    factors = [with_spectrum(rng, 10.0 ** -rng.uniform(0, decades, size=n)) for n in (d + bias, e)]
    return x, c, factors, bias, draw(st.integers(1, d + bias + 1), label="mixtures")


@OURS.exact(
    "25",
    "in place of the exact inner products of per-sample gradients under K-FAC's metric, GTDDP Tab. 1",
    "with A^{-1} = W' W and S a matrix of one random sign in every row, R = W' S, the mean over all signs of the Gram"
    " matrix of the gradients R' q under (I (x) B)^{-1} is that of the gradients q under (A (x) B)^{-1}; each of them"
    " is positive semi-definite, and exact where every feature has a mixture of its own",
    remark='A quarter as many mixtures as features is what `gram="auto"` takes of large layers with positions. The'
    " first whitened features would do worse: unlike plain features they say nothing of each other.",
    over=layers(),
)
def mixtures_of_features(problem):
    """Our Gram matrices under every pattern of signs against the dense metric."""
    x, c, (A, B), bias, count = problem
    capture = LinearMap(tf.constant(x), [tf.constant(c)], (x.shape[-1], c.shape[-1]), (c.shape[-1],) if bias else None)
    rows = KroneckerRows(capture.layout, 1, bias_apart=False)
    inverses = [tf.constant(np.linalg.inv(factor)) for factor in (A, B)]
    W = tf.constant(np.linalg.inv(np.linalg.cholesky(A)))
    ones = np.concatenate([x, np.ones((*x.shape[:2], 1))], -1) if bias else x
    exact = reference.gram(np.einsum("bld,ble->bde", ones, c).reshape(len(x), 1, -1), np.kron(A, B))
    condition = np.linalg.cond(A) * np.linalg.cond(B) * x.size
    scale = np.abs(exact).max()
    total = np.zeros_like(exact)
    for drawn in itertools.product([-1, 1], repeat=len(A)):
        with mock.patch.object(whitening, "signs", lambda _, drawn=drawn: np.array(drawn, np.int8)):
            R = whitening.mixtures(W, count)
        metric = KroneckerMetric(rows, *inverses, tf.constant(1.0, tf.float64), mixing=R)
        found = gram(capture, metric, None, "features").numpy()
        total += found
        negative = -np.linalg.eigvalsh(found[0])[0]
        yield at_most(negative, 0.0, scale=scale, condition=condition, label="eigenvalues below zero")
        if count >= len(A):
            yield same(found, exact, condition=condition, scale=scale, label="each feature apart")
    yield same(total / 2 ** len(A), exact, condition=condition, scale=scale, label="mean")
