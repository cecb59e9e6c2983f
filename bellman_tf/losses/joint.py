"""The terminal Hessian over all outputs of a network: factors, curvature along the gradient."""

from collections.abc import Sequence

import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.losses.head import Head
from bellman_tf.losses.samples import (
    at_least_float32,
    check_rank,
    dot_per_sample,
    select_largest,
    smallest_normal,
)


def hessian_factor(heads: Sequence[Head], rank: int | None = None) -> Tensors:
    """Columns of the joint factor Z Z' = H over all outputs.

    Args:
        heads: one head per output.
        rank: number of columns, the largest eigenpairs over all outputs; None for the exact factor.

    Returns:
        List of `[B, D_k, r]`, one per output, with the same r columns: column j of the list is one vector over all
        outputs, zero outside the output whose Hessian it comes from.
    """
    if rank is not None:
        check_rank(rank, sum(head.size for head in heads))
    factors = [head.factor() if rank is None else head.top_factor(min(rank, head.size)) for head in heads]
    if len(factors) == 1:
        return factors
    widths = [Z.shape[-1] for Z in factors]
    before = [sum(widths[:k]) for k in range(len(widths))]
    joint = [
        tf.pad(Z, [[0, 0], [0, 0], [left, sum(widths) - left - Z.shape[-1]]])
        for Z, left in zip(factors, before, strict=True)
    ]
    if rank is None:
        return joint
    eigenvalues = tf.concat([tf.reduce_sum(Z**2, axis=1) for Z in factors], axis=1)  # [B, sum of widths]
    return [select_largest(Z, eigenvalues, rank) for Z in joint]


def matched_coefficient(heads: Sequence[Head], g: Sequence[tf.Tensor]) -> tf.Tensor:
    """Coefficient beta^2 of the rank-one Hessian beta^2 g g' that has the true curvature along g.

        beta^2 = g' H g / |g|^4,     sums over all outputs of a sample.

    Args:
        heads: one head per output, the Hessian of phi_i.
        g: list of `[B, ...]`, gradient of phi_i in each output.

    Returns:
        `[B]`, nonnegative, in the dtype of `g` (half precision: float32).

    Numerics: finite for finite input whose sum g' H g is. Negative curvature (a loss that is not convex) gives 0, the
    projection onto positive semidefinite matrices of rank one along g. A gradient with |g|^2 outside
    [sqrt(tiny), 1 / sqrt(tiny)], tiny the smallest normal number (|g| < 3.3e-10 or > 3.0e9 in float32), gives 0:
    inside, the two divisions cannot overflow; below, the direction of g is rounding.
    Source: `terminal_hessian="matched"`, `docs/options.md`.
    Checked against: `verification/references/losses.py`.

    Example:
        >>> from bellman_tf.losses import DiagonalHead
        >>> g = tf.constant([[2.0, 0.0]])
        >>> head = DiagonalHead("square", slope=g, curvature=3.0 * tf.ones_like(g))
        >>> matched_coefficient([head], [g]).numpy().tolist()
        [0.75]
    """
    g = [at_least_float32(x) for x in g]
    along = [head.quadratic(x) for head, x in zip(heads, g, strict=True)]
    squares = [dot_per_sample(x, x) for x in g]
    size, curvature = (tf.add_n(parts) for parts in (squares, along))
    least = smallest_normal(size.dtype) ** 0.5
    seen = (size >= least) & (size <= 1.0 / least)
    size = tf.where(seen, size, 1.0)
    beta_squared = tf.minimum(tf.maximum(curvature, 0.0) / size / size, size.dtype.max)
    return tf.where(seen, beta_squared, 0.0)
