"""The least damping that a precision can do with.

Every damping is raised to these floors, so that a positive one that rounds away, or zero, still gives finite factors.
"""

import functools

import tensorflow as tf

from bellman_tf.linalg.constants import constant, number
from bellman_tf.linalg.products import trace

# Roundings in an entry of a moment: a product over samples is summed in blocks, their sums one behind the other.
_FORMATION = 64


def factor_damping(matrices: tf.Tensor, damping: tf.Tensor) -> tf.Tensor:
    """A damping with which the Cholesky factorisation of moments does not fail.

    In exact arithmetic `A + d I` has no eigenvalue below d. Cholesky in precision eps factors a matrix that is off by
    at most `(n + 1) (eps / 2) tr(A + d I)` in norm (Higham, Accuracy and Stability of Numerical Algorithms, Thm. 10.3,
    with `|R'| |R| <= sqrt(a_ii a_jj)` entry by entry), and A itself, a mean of products, by at most `k eps tr(A)` with
    k the roundings of an entry. So for `n^2 eps < 0.9` no pivot fails with

        d >= (n + 64) eps tr(A)

    Args:
        matrices: `[..., n, n]`, positive semidefinite but for their rounding.
        damping: `[...]`, not negative.

    Returns:
        The damping, raised to the floor where it is below; positive where `A = 0` too.
    """
    size, (eps, least) = matrices.shape[-1], _precision(matrices.dtype)
    floor = number((size + _FORMATION) * eps, matrices.dtype) * trace(matrices)
    return tf.maximum(tf.maximum(tf.cast(damping, matrices.dtype), floor), number(least, matrices.dtype))


def diagonal_damping(moments: list[tf.Tensor], damping: float) -> tf.Tensor:
    """A damping with which a diagonal of second moments can be divided by.

    Second moments below `eps` times the largest are rounding of the gradients that they were measured from.

    Args:
        moments: second moments, not negative.
        damping: not negative.

    Returns:
        The damping, at least `eps max(moments)` and positive; scalar.
    """
    eps, least = _precision(moments[0].dtype)
    dtype = moments[0].dtype
    largest = functools.reduce(tf.maximum, [tf.reduce_max(part, constant(range(part.shape.rank))) for part in moments])
    return tf.maximum(number(eps, dtype) * largest, number(max(damping, least), dtype))


def _precision(dtype: tf.DType) -> tuple[float, float]:
    """Eps, and a number whose reciprocal and its square are far from overflow."""
    return (2.0**-52, 1e-60) if dtype == tf.float64 else (2.0**-23, 1e-12)
