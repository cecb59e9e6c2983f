"""From observed losses to the terminal data of the recursion, over all outputs of a network."""

from dataclasses import dataclass
from typing import ClassVar

import tensorflow as tf

from bellman_tf.losses.automatic import AutomaticHead, activation_function
from bellman_tf.losses.heads import (
    DiagonalHead,
    SoftmaxHead,
    at_least_float32,
    check_rank,
    dot_per_sample,
    entries_per_sample,
    select_largest,
    smallest_normal,
    top_factor,
)


def terminal_head(form, observation, z, f, activation=None):
    """Terminal cost of one output.

    Args:
        form: what `recognise` said about `observation.loss`.
        observation: the observed loss.
        z: `[B, ..., C]`: input of the last activation if `form.before_activation`, else the output.
        f: B x `tape.gradient(J, observation.values)`; holds reduction, weights, masks and loss weights.
        activation: name of the last activation, used if `form` is automatic and cut before it.

    Returns:
        A head (see `heads.py`), exact for this loss. Half precision is computed in float32.

    Numerics: with mixed precision, or `ignore_class` after a softmax layer, Keras computes the cross-entropy from
    probabilities clipped to [1e-7, 1 - 1e-7]; the closed form has no clipping.
    """
    z = at_least_float32(z)
    f = tf.cast(f, z.dtype)
    head = None
    if form.kind == "softmax":
        head = _softmax_head(form, observation.y_true, z, f)
    elif form.kind != "automatic":
        head = _diagonal_head(form, observation.y_true, z, f)
    if head is not None:
        return head
    function = activation_function(activation) if form.before_activation else None
    return AutomaticHead(z, observation.loss, observation.y_true, f, function)


def _softmax_head(form, y_true, z, f):
    classes = z.shape[-1]
    if form.sparse:
        if y_true.shape.rank == z.shape.rank:
            y_true = tf.squeeze(y_true, axis=-1)
        if form.ignore_class is not None:
            f = tf.where(y_true == tf.cast(form.ignore_class, y_true.dtype), tf.zeros_like(f), f)
        target = tf.one_hot(tf.cast(y_true, tf.int32), classes, dtype=z.dtype)
    else:
        target = tf.cast(y_true, z.dtype) * (1.0 - form.label_smoothing) + form.label_smoothing / classes
    return SoftmaxHead(z, target, f, tf.nn.softmax(z, axis=-1))


def _diagonal_head(form, y_true, z, f):
    target, aligned = _align(tf.cast(y_true, z.dtype), z)
    if target is None:
        return None
    mean = f[..., None] / tf.cast(tf.shape(aligned)[-1], z.dtype)  # every loss here averages over the last axis
    if form.kind == "sigmoid":
        target = target * (1.0 - form.label_smoothing) + 0.5 * form.label_smoothing
        slope, curvature = tf.sigmoid(aligned) - target, tf.sigmoid(aligned) * tf.sigmoid(-aligned)
    elif form.kind == "square":
        slope, curvature = 2.0 * (aligned - target), 2.0 * tf.ones_like(aligned)
    else:
        gap = aligned - target
        slope = tf.clip_by_value(gap, -form.delta, form.delta)
        curvature = tf.cast(tf.abs(gap) <= form.delta, z.dtype)
    return DiagonalHead(form.kind, tf.reshape(mean * slope, tf.shape(z)), tf.reshape(mean * curvature, tf.shape(z)))


def _align(y_true, z):
    """Returns labels and output at one rank, as Keras makes them; (None, None) if labels would stretch the output."""
    true_rank, rank = y_true.shape.rank, z.shape.rank
    if true_rank == rank + 1 and y_true.shape[-1] == 1:
        z, y_true = (z[:, None], y_true) if rank == 1 else (z, tf.squeeze(y_true, axis=-1))
    elif rank == true_rank + 1 and z.shape[-1] == 1:
        z, y_true = (z, y_true[:, None]) if true_rank == 1 else (tf.squeeze(z, axis=-1), y_true)
    fits = y_true.shape.rank == z.shape.rank and all(
        a in {1, None} or b is None or a == b for a, b in zip(y_true.shape, z.shape, strict=True)
    )
    return (y_true, z) if fits else (None, None)


@dataclass(frozen=True, eq=False)
class SumOfHeads:
    """Several losses on one output, cut at the same place; methods as in `heads.py`.

    Attributes:
        heads: the summands.
    """

    heads: tuple

    kind: ClassVar[str] = "sum"

    def gradient(self):
        """dphi/dz.

        Returns:
            Shaped like `z`.
        """
        return tf.add_n([head.gradient() for head in self.heads])

    def hessian_times(self, v):
        """H v.

        Args:
            v: shaped like `z`.

        Returns:
            Shaped like `z`.
        """
        return tf.add_n([head.hessian_times(v) for head in self.heads])

    def quadratic(self, v):
        """V' H v.

        Args:
            v: shaped like `z`.

        Returns:
            `[B]`.
        """
        return tf.add_n([head.quadratic(v) for head in self.heads])

    def factor(self):
        """Columns of all summands.

        Returns:
            `[B, D, r]`.
        """
        return tf.concat([head.factor() for head in self.heads], axis=2)

    def top_factor(self, rank):
        """Largest eigenpairs of the sum.

        Args:
            rank: number of columns.

        Returns:
            `[B, D, rank]`.
        """
        Z = self.factor()
        return top_factor(tf.matmul(Z, Z, transpose_b=True), rank)


def hessian_times(heads, vectors):
    """H v over all outputs: the terminal Hessian has no blocks between outputs.

    Args:
        heads: one head per output.
        vectors: one tensor per output, shaped like its `z`.

    Returns:
        List of tensors, one per output.
    """
    return [head.hessian_times(v) for head, v in zip(heads, vectors, strict=True)]


def hessian_factor(heads, rank=None):
    """Columns of the joint factor Z Z' = H over all outputs.

    Args:
        heads: one head per output.
        rank: number of columns, the largest eigenpairs over all outputs; None for the exact factor.

    Returns:
        List of `[B, D_k, r]`, one per output, with the same r columns: column j of the list is one vector over all
        outputs, zero outside the output whose Hessian it comes from.
    """
    if rank is not None:
        check_rank(rank, sum(_size(head) for head in heads))
    factors = [head.factor() if rank is None else head.top_factor(min(rank, _size(head))) for head in heads]
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


def _size(head):
    if isinstance(head, SumOfHeads):
        return _size(head.heads[0])
    return entries_per_sample(head.curvature if isinstance(head, DiagonalHead) else head.z)


def curvature_along_gradient(g, Hg):
    """Coefficient beta^2 of the rank-one Hessian beta^2 g g' that has the true curvature along g.

        beta^2 = g' H g / |g|^4,     sums over all outputs of a sample.

    Args:
        g: list of `[B, ...]`, gradient of phi_i in each output.
        Hg: list of tensors shaped like `g`, the Hessian of phi_i times `g`.

    Returns:
        `[B]`, nonnegative, in the dtype of `g` (half precision: float32).

    Numerics: finite for finite input whose sum g' H g is. Negative curvature (a loss that is not convex) gives 0, the
    projection onto positive semidefinite matrices of rank one along g. A gradient with |g|^2 outside
    [sqrt(tiny), 1 / sqrt(tiny)], tiny the smallest normal number (|g| < 3.3e-10 or > 3.0e9 in float32), gives 0:
    inside, the two divisions cannot overflow; below, the direction of g is rounding.
    Source: algorithm.md, Section 4, `matched`.
    Checked against: `verification/references/losses.py`.

    Example:
        >>> g = tf.constant([[2.0, 0.0]])
        >>> curvature_along_gradient([g], [3.0 * g]).numpy().tolist()
        [0.75]
    """
    g, Hg = ([at_least_float32(x) for x in parts] for parts in (g, Hg))
    return _coefficient(g, [dot_per_sample(a, b) for a, b in zip(g, Hg, strict=True)])


def matched_coefficient(heads, g):
    """`curvature_along_gradient` for known Hessians, by their quadratic forms.

    Args:
        heads: one head per output.
        g: list of `[B, ...]`, gradient of phi_i in each output.

    Returns:
        `[B]`, as `curvature_along_gradient`.
    """
    g = [at_least_float32(x) for x in g]
    return _coefficient(g, [head.quadratic(x) for head, x in zip(heads, g, strict=True)])


def _coefficient(g, along):
    squares = [dot_per_sample(x, x) for x in g]
    size, curvature = (parts[0] if len(parts) == 1 else tf.add_n(parts) for parts in (squares, along))
    least = smallest_normal(size.dtype) ** 0.5
    seen = (size >= least) & (size <= 1.0 / least)
    size = tf.where(seen, size, 1.0)
    beta_squared = tf.minimum(tf.maximum(curvature, 0.0) / size / size, size.dtype.max)
    return tf.where(seen, beta_squared, 0.0)
