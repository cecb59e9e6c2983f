"""The kernelized Wasserstein natural gradient as linear algebra: kernel matrices, metric, solve. Knows no networks.

The outputs X_n = h_theta(Z_n), n = 1..N, are samples of a distribution rho_theta on R^d. Moving theta by u moves them,
and the Wasserstein metric is the least kinetic energy that does it. In its dual form

    1/2 u' G u = sup_f [ d/dt E f(h_{theta + t u}(Z)) - 1/2 E |grad f(X)|^2 ]

f is taken from the span of f_m(x) = d/dy_{i_m} k(Y_m, x), M pairs of a basis point Y_m and a coordinate i_m, with
penalty lambda/2 |f|^2 in the kernel's space. With f = sum_m a_m f_m the supremum is over a in R^M:

    E |grad f|^2 = a' C C' a / N,      C_{m,(n,j)} = d/dy_{i_m} d/dx_j k(Y_m, X_n)
    |f|^2        = a' K a,             K_{m,l}     = d/dy_{i_m} d/dy'_{i_l} k(Y_m, Y_l)
    d/dt E f     = a' T u,             T           = C J / N,   J_{(n,j),:} = dX_nj / dtheta

    G = T' A^+ T,       A = C C'/N + lambda K

The natural gradient is (G + epsilon D)^{-1} grad J, D diagonal; Woodbury's identity leaves a system in M unknowns.
With lambda = 0, G = J' P J / N, P the orthogonal projector on the rows of C: a sketch of the outputs' Gauss-Newton
matrix J'J/N from below, and that matrix itself where C has Nd independent rows.

Source: Arbel, Gretton, Li, Montufar 2020, "Kernelized Wasserstein natural gradient", Props. 2-3, Eq. 13; derived again
in `verification/references/wasserstein.py`.
"""

from typing import NamedTuple

import tensorflow as tf

from bellman_tf.linalg import eigh
from bellman_tf.linalg.products import matmul, matvec

SMALLEST = 1e-8  # added to the entries of D


class Basis(NamedTuple):
    """M pairs of a point and a coordinate.

    Attributes:
        points: Y, `[M, d]`.
        coordinates: i, `[M]`, integers below d.
    """

    points: tf.Tensor
    coordinates: tf.Tensor


def mean_square_distance(points: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """Mean of |Y_m - X_n|^2; 1 where all points are one.

    Args:
        points: Y, `[M, d]`.
        outputs: X, `[N, d]`.

    Returns:
        Scalar.
    """
    mean = tf.reduce_mean(tf.reduce_sum(tf.square(points[:, None] - outputs[None]), axis=-1))
    return tf.where(mean > 0, mean, tf.ones_like(mean))


def mixed_derivatives(basis: Basis, outputs: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
    """`d/dy_{i_m} d/dx_j k(Y_m, X_n)` of the Gaussian kernel `k(y, x) = exp(-|y - x|^2 / (2 variance))`.

    Args:
        basis: the pairs.
        outputs: X, `[N, d]`.
        variance: scalar.

    Returns:
        C, `[M, N, d]`.
    """
    apart = (basis.points[:, None] - outputs[None]) / variance  # [M, N, d]
    kernel = tf.exp(-variance / 2 * tf.reduce_sum(tf.square(apart), axis=-1))  # [M, N]
    chosen = tf.one_hot(basis.coordinates, outputs.shape[-1], dtype=outputs.dtype)  # [M, d]
    along = tf.einsum("mnj,mj->mn", apart, chosen)
    return kernel[..., None] * (chosen[:, None] / variance - along[..., None] * apart)


def energy(C: tf.Tensor, basis: Basis, variance: tf.Tensor, ridge: float) -> tf.Tensor:
    """`A = C C'/N + ridge K`.

    Args:
        C: `[M, N, d]`.
        basis: the pairs.
        variance: of the kernel, scalar.
        ridge: lambda.

    Returns:
        `[M, M]`.
    """
    count = tf.cast(tf.shape(C)[1], C.dtype)
    A = tf.einsum("mnj,lnj->ml", C, C) / count
    if ridge:
        own = mixed_derivatives(basis, basis.points, variance)  # [M, M, d]
        chosen = tf.one_hot(basis.coordinates, own.shape[-1], dtype=own.dtype)
        A += ridge * tf.einsum("mlj,lj->ml", own, chosen)
    return A


def whitened(A: tf.Tensor, T: tf.Tensor) -> tf.Tensor:
    """`A^{+1/2} T`, so that `G` is its Gram matrix; eigenvalues of A below `M eps` of the largest count as 0.

    Args:
        A: `[M, M]`, symmetric positive semidefinite.
        T: `[M, q]`.

    Returns:
        `[M, q]`.
    """
    values, vectors = eigh(A)
    floor = A.shape[0] * tf.experimental.numpy.finfo(A.dtype.as_numpy_dtype).eps * tf.reduce_max(values)
    kept = values > tf.maximum(floor, 0)
    roots = tf.where(kept, tf.math.rsqrt(tf.where(kept, values, 1)), 0)
    return matmul(tf.cast(roots[:, None] * tf.transpose(vectors), T.dtype), T)


def diagonal_of(root: tf.Tensor) -> tf.Tensor:
    """The diagonal matrix that `epsilon` multiplies: `D_jj = sqrt(G_jj)`, the units of the parameters.

    Args:
        root: `A^{+1/2} T`, `[M, q]`.

    Returns:
        `[q]`, positive.
    """
    return tf.sqrt(tf.reduce_sum(tf.square(root), axis=0)) + SMALLEST


def damped_solve(root: tf.Tensor, diagonal: tf.Tensor, epsilon: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """`(root' root + epsilon D)^{-1} gradient`, by a system in M unknowns in float64.

    Args:
        root: `[M, q]`.
        diagonal: D, `[q]`, positive.
        epsilon: positive scalar.
        gradient: `[q]`.

    Returns:
        `[q]`.
    """
    scaled = gradient / diagonal
    wide, epsilon = tf.cast(matmul(root / diagonal, root, transpose_b=True), tf.float64), tf.cast(epsilon, tf.float64)
    system = wide + epsilon * tf.eye(tf.shape(root)[0], dtype=tf.float64)
    inside = tf.linalg.cholesky_solve(tf.linalg.cholesky(system), tf.cast(matvec(root, scaled), tf.float64)[:, None])
    outside = gradient - matvec(root, tf.cast(inside[:, 0], root.dtype), transpose_a=True)
    return outside / (diagonal * tf.cast(epsilon, root.dtype))
