"""Closed-form Hessians of the terminal cost, `f` multiplied in.

A head answers, for one output `z` of shape `[B, ..., C]` with D = prod(...) x C entries per sample:

    gradient()          dphi/dz, shaped like `z`
    hessian_times(v)    H v, shaped like `z`
    quadratic(v)        v' H v, `[B]`
    factor()            `[B, D, r]` with factor factor' = H
    top_factor(rank)    `[B, D, rank]`, the columns sqrt(lambda) v of the largest eigenpairs, largest first
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import tensorflow as tf

from bellman_tf._checks import error
from bellman_tf.linalg.symmetric import eigh


def at_least_float32(x):
    """Casts half precision (and integers) to float32, leaves float32 and float64 alone.

    Args:
        x: tensor.

    Returns:
        The tensor in float32 or float64.
    """
    x = tf.convert_to_tensor(x)
    return x if x.dtype in {tf.float32, tf.float64} else tf.cast(x, tf.float32)


def entries_per_sample(z):
    """Number D of entries that one sample of `z` has.

    Args:
        z: `[B, ...]`, static but for B.

    Returns:
        D, a Python int.

    Raises:
        ValueError: if an axis other than the first has no static size.
    """
    if z.shape.rank is None or None in z.shape[1:].as_list():
        raise error("z.shape", "be static except for the batch axis", z.shape, "Fix the model's output shape.")
    return math.prod(z.shape[1:].as_list())


def dot_per_sample(x, y):
    """Sum of x y over all axes but the first.

    Args:
        x: `[B, ...]`.
        y: same shape.

    Returns:
        `[B]`.
    """
    product = x * y
    axes = list(range(1, product.shape.rank))
    return tf.reduce_sum(product, axis=axes) if axes else product


def softmax_hessian_times(p, v):
    """(diag(p) - p p') v.

    Args:
        p: `[..., C]`, probabilities.
        v: `[..., C]`.

    Returns:
        `[..., C]`.

    Numerics: constants are in the null space, so `v` is shifted to be 0 at the most likely class; without the shift
    v - p.v cancels there, with relative error eps / (1 - max p).
    Checked against: `verification/references/losses.py`.
    """
    top = tf.one_hot(tf.argmax(p, axis=-1), p.shape[-1] or tf.shape(p)[-1], dtype=p.dtype)
    v = v - tf.reduce_sum(top * v, axis=-1, keepdims=True)
    return p * (v - tf.reduce_sum(p * v, axis=-1, keepdims=True))


def softmax_factor(p):
    """Lower trapezoidal Z with Z Z' = diag(p) - p p', by stick breaking.

    With tails s_j = p_j + ... + p_C and t_j = sqrt(p_j s_{j+1} / s_j):

        Z_jj = t_j,     Z_ij = -(p_i / s_{j+1}) t_j  for i > j,     j = 1 .. C-1.

    Args:
        p: `[..., C]`, probabilities.

    Returns:
        `[..., C, C-1]`.

    Numerics: only sums, products and quotients of nonnegative numbers, so each entry is right to C eps relative. A
    tail below the smallest normal number is taken as 0, which drops classes of that total probability.
    Checked against: `verification/references/losses.py`.

    Example:
        >>> softmax_factor(tf.constant([0.5, 0.5])).numpy().round(6).tolist()
        [[0.5], [-0.5]]
    """
    classes = p.shape[-1]
    tails = tf.cumsum(p, axis=-1, reverse=True)  # [..., C]
    t = tf.sqrt(p[..., :-1]) * tf.sqrt(_ratio(tails[..., 1:], tails[..., :-1]))  # [..., C-1]
    share = _ratio(p[..., :, None], tails[..., None, 1:])  # [..., C, C-1], p_i / s_{j+1}
    i, j = tf.range(classes)[:, None], tf.range(classes - 1)[None, :]
    return (tf.cast(i == j, p.dtype) - tf.cast(i > j, p.dtype) * share) * t[..., None, :]


def smallest_normal(dtype):
    """Smallest positive number with full precision.

    Args:
        dtype: `tf.float32` or `tf.float64`.

    Returns:
        A Python float.
    """
    return float(np.finfo(dtype.as_numpy_dtype).tiny)


def _ratio(numerator, denominator):
    """Returns numerator / denominator, 0 where the denominator is no normal number."""
    normal = denominator >= smallest_normal(denominator.dtype)
    return tf.where(normal, numerator / tf.where(normal, denominator, tf.ones_like(denominator)), 0.0)


def top_factor(H, rank):
    """Columns sqrt(lambda) v of the largest eigenpairs of H, largest first.

    Args:
        H: `[..., D, D]`, symmetric.
        rank: number of columns, at most D.

    Returns:
        `[..., D, rank]`; columns of negative eigenvalues are 0.

    Raises:
        ValueError: if `rank` is larger than D.
    """
    check_rank(rank, H.shape[-1])
    eigenvalues, eigenvectors = eigh(H)
    columns = eigenvectors * tf.sqrt(tf.maximum(eigenvalues, 0.0))[..., None, :]
    return tf.reverse(columns[..., H.shape[-1] - rank :], axis=[-1])


def check_rank(rank, largest):
    """Checks the number of columns asked for.

    Args:
        rank: what was asked for.
        largest: D.

    Raises:
        ValueError: if `rank` is not an integer from 1 to D.
    """
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= largest:
        raise error("rank", f"be an integer from 1 to {largest}, the number of entries of one sample's output", rank)


def select_largest(columns, eigenvalues, rank):
    """Keeps the columns with the largest eigenvalues, largest first.

    Args:
        columns: `[B, D, r]`.
        eigenvalues: `[B, r]`.
        rank: how many to keep.

    Returns:
        `[B, D, rank]`.
    """
    chosen = tf.math.top_k(eigenvalues, rank).indices  # [B, rank]
    return tf.gather(columns, chosen, axis=2, batch_dims=1)


@dataclass(frozen=True, eq=False)
class SoftmaxHead:
    """phi = sum_t f_t (logsumexp(z_t) - target_t . z_t): softmax and cross-entropy as one function of the logits.

    The Hessian is f (diag(p) - p p') in each position t and 0 between positions.

    Attributes:
        z: `[B, ..., C]`, logits.
        target: `[B, ..., C]`, class probabilities, smoothing included.
        f: `[B, ...]`, B dJ/d(loss value).
        probability: `[B, ..., C]`, softmax(z).
    """

    z: tf.Tensor
    target: tf.Tensor
    f: tf.Tensor
    probability: tf.Tensor

    kind: ClassVar[str] = "softmax"

    def gradient(self):
        """dphi/dz = f (p - target), which is what TensorFlow returns, even for targets that do not sum to 1.

        Returns:
            Shaped like `z`.
        """
        return self.f[..., None] * (self.probability - self.target)

    def hessian_times(self, v):
        """H v.

        Args:
            v: shaped like `z`.

        Returns:
            Shaped like `z`.
        """
        return self.f[..., None] * softmax_hessian_times(self.probability, v)

    def quadratic(self, v):
        """V' H v = f sum_c p_c (v_c - p.v)^2, a sum of nonnegative terms.

        Args:
            v: shaped like `z`.

        Returns:
            `[B]`.
        """
        p = self.probability
        spread = tf.square(v - tf.reduce_sum(p * v, axis=-1, keepdims=True))
        variance = tf.reduce_sum(p * spread, axis=-1)
        return dot_per_sample(self.f, variance)

    def factor(self):
        """Exact factor with C - 1 columns per position; a negative `f` counts as 0.

        Returns:
            `[B, D, D - D/C]`, block diagonal over positions.
        """
        Z = softmax_factor(self._by_position(self.probability))  # [B, P, C, C-1]
        Z = tf.sqrt(self._scale())[..., None, None] * Z
        positions, classes = Z.shape[1], Z.shape[2]
        blocks = tf.einsum("bpcr,pq->bpcqr", Z, tf.eye(positions, dtype=Z.dtype))
        return tf.reshape(blocks, [-1, positions * classes, positions * (classes - 1)])

    def top_factor(self, rank):
        """Largest eigenpairs over all positions.

        Args:
            rank: number of columns.

        Returns:
            `[B, D, rank]`.
        """
        check_rank(rank, entries_per_sample(self.z))
        p = self._by_position(self.probability)
        positions, classes = p.shape[1], p.shape[2]
        H = self._scale()[..., None, None] * (tf.linalg.diag(p) - p[..., :, None] * p[..., None, :])
        each = min(rank, classes)
        columns = top_factor(H, each)  # [B, P, C, each]
        eigenvalues = tf.reshape(tf.reduce_sum(columns**2, axis=2), [-1, positions * each])
        blocks = tf.einsum("bpcr,pq->bpcqr", columns, tf.eye(positions, dtype=p.dtype))
        blocks = tf.reshape(blocks, [-1, positions * classes, positions * each])
        return select_largest(blocks, eigenvalues, rank)

    def _by_position(self, x):
        classes = x.shape[-1]
        return tf.reshape(x, [-1, entries_per_sample(self.z) // classes, classes])

    def _scale(self):
        return tf.maximum(tf.reshape(self.f, [-1, entries_per_sample(self.z) // self.z.shape[-1]]), 0.0)


@dataclass(frozen=True, eq=False)
class DiagonalHead:
    """A terminal cost that is a sum over the entries of `z`: squares, Huber, sigmoid with binary cross-entropy.

    Attributes:
        kind: name of the closed form.
        slope: dphi/dz, shaped like `z`.
        curvature: d2phi/dz2, shaped like `z`.
    """

    kind: str
    slope: tf.Tensor
    curvature: tf.Tensor

    def gradient(self):
        """dphi/dz.

        Returns:
            Shaped like `z`.
        """
        return self.slope

    def hessian_times(self, v):
        """H v.

        Args:
            v: shaped like `z`.

        Returns:
            Shaped like `z`.
        """
        return self.curvature * v

    def quadratic(self, v):
        """V' H v.

        Args:
            v: shaped like `z`.

        Returns:
            `[B]`.
        """
        return dot_per_sample(self.curvature, tf.square(v))

    def factor(self):
        """Diagonal factor; negative curvature (a negative weight) counts as 0.

        Returns:
            `[B, D, D]`.
        """
        return tf.linalg.diag(tf.sqrt(self._flat()))

    def top_factor(self, rank):
        """Largest eigenpairs, which are entries of the diagonal.

        Args:
            rank: number of columns.

        Returns:
            `[B, D, rank]`.
        """
        size = entries_per_sample(self.curvature)
        check_rank(rank, size)
        eigenvalues, chosen = tf.math.top_k(self._flat(), rank)
        return tf.sqrt(eigenvalues)[:, None, :] * tf.one_hot(chosen, size, axis=1, dtype=eigenvalues.dtype)

    def _flat(self):
        return tf.maximum(tf.reshape(self.curvature, [-1, entries_per_sample(self.curvature)]), 0.0)
