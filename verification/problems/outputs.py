"""Outputs of a model on a batch with their Jacobians, and kernel pairs, for the Wasserstein natural gradient."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from bellman_tf.baselines import wasserstein


class Outputs(NamedTuple):
    """Samples of a distribution that depends on q parameters, and M kernel pairs.

    Attributes:
        X: outputs, `[N, d]`.
        J: their derivatives, `[N, d, q]`.
        gradient: of a loss, `[q]`.
        points: Y, `[M, d]`.
        coordinates: i, `[M]`.
        variance: of the kernel.
        ridge: lambda.
        epsilon: damping.
    """

    X: np.ndarray
    J: np.ndarray
    gradient: np.ndarray
    points: np.ndarray
    coordinates: np.ndarray
    variance: float
    ridge: float
    epsilon: float

    def ours(self):
        """C, A and A^{+1/2} T of our estimator, with the exact T."""
        basis = wasserstein.Basis(tf.constant(self.points), tf.constant(self.coordinates))
        variance = tf.constant(self.variance, tf.float64)
        C = wasserstein.mixed_derivatives(basis, tf.constant(self.X), variance)
        A = wasserstein.energy(C, basis, variance, self.ridge)
        T = tf.einsum("mnj,njq->mq", C, tf.constant(self.J)) / len(self.X)
        return C, A, wasserstein.whitened(A, T)


@st.composite
def outputs(draw, *, ridges=(0.0, 0.1), everything=False):
    """Random outputs: all different, two of them one point, one sample, Jacobian of rank one, no gradient.

    With `everything` the pairs are all coordinates of all samples, which are then different.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    kinds = ["full"] * 3 + ["rank one", "zero gradient"] + ([] if everything else ["repeated", "one sample"])
    kind = draw(st.sampled_from(kinds), label="kind")
    N = 1 if kind == "one sample" else draw(st.integers(2, 4), label="N")
    d, q = draw(st.integers(1, 3), label="d"), draw(st.integers(1, 5), label="q")
    X = rng.standard_normal((N, d))
    if everything:  # apart, so that the kernel matrix is regular
        X += 2.0 * np.arange(N)[:, None]
    if kind == "repeated":
        X[1] = X[0]
    J = rng.standard_normal((N, d, q))
    if kind == "rank one":
        J = rng.standard_normal((N, d, 1)) * rng.standard_normal(q)
    gradient = np.zeros(q) if kind == "zero gradient" else rng.standard_normal(q)
    if everything:
        points, coordinates = np.repeat(X, d, axis=0), np.tile(np.arange(d), N)
    else:
        M = draw(st.integers(1, 4), label="M")
        points, coordinates = X[rng.integers(0, N, M)], rng.integers(0, d, M)
    ridge = draw(st.sampled_from(ridges), label="lambda")
    variance = draw(st.sampled_from([0.5, 2.0]), label="variance")
    epsilon = draw(st.sampled_from([1e-3, 1.0]), label="epsilon")
    return Outputs(X, J, gradient, points, coordinates, variance, ridge, epsilon)
