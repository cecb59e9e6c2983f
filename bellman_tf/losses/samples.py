"""Sums, sizes and eigenpairs sample by sample; the first axis of every tensor is the sample."""

import math
from typing import Any

import numpy as np
import tensorflow as tf

from bellman_tf._checks import error
from bellman_tf.linalg.constants import constant
from bellman_tf.linalg.symmetric import eigh


def at_least_float32(x: Any) -> tf.Tensor:
    """Casts half precision (and integers) to float32, leaves float32 and float64 alone.

    Args:
        x: tensor.

    Returns:
        The tensor in float32 or float64.
    """
    x = tf.convert_to_tensor(x)
    return x if x.dtype in {tf.float32, tf.float64} else tf.cast(x, tf.float32)


def entries_per_sample(z: tf.Tensor) -> int:
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


def dot_per_sample(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Sum of x y over all axes but the first.

    Args:
        x: `[B, ...]`.
        y: same shape.

    Returns:
        `[B]`.
    """
    product = x * y
    axes = list(range(1, product.shape.rank))
    return tf.reduce_sum(product, constant(axes)) if axes else product


def finite_samples(x: tf.Tensor) -> tf.Tensor:
    """Replaces every sample that holds a NaN or an infinity by zeros.

    Args:
        x: `[B, ...]`.

    Returns:
        The same shape.
    """
    good = tf.reduce_all(tf.math.is_finite(x), axis=list(range(1, x.shape.rank)), keepdims=True)
    return tf.where(good, x, tf.zeros_like(x))


def smallest_normal(dtype: tf.DType) -> float:
    """Smallest positive number with full precision.

    Args:
        dtype: `tf.float32` or `tf.float64`.

    Returns:
        A Python float.
    """
    return float(np.finfo(dtype.as_numpy_dtype).tiny)


def top_factor(H: tf.Tensor, rank: int) -> tf.Tensor:
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


def check_rank(rank: int, largest: int) -> None:
    """Checks the number of columns asked for.

    Args:
        rank: what was asked for.
        largest: D.

    Raises:
        ValueError: if `rank` is not an integer from 1 to D.
    """
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= largest:
        raise error("rank", f"be an integer from 1 to {largest}, the number of entries of one sample's output", rank)


def select_largest(columns: tf.Tensor, eigenvalues: tf.Tensor, rank: int) -> tf.Tensor:
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
