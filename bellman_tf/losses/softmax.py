"""Softmax and categorical cross-entropy as one function of the logits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from bellman_tf._typing import LossFunction
from bellman_tf.losses.closed_form import CrossEntropyForm, LossForm, Prediction
from bellman_tf.losses.head import Head
from bellman_tf.losses.samples import (
    check_rank,
    dot_per_sample,
    entries_per_sample,
    select_largest,
    smallest_normal,
    top_factor,
)
from bellman_tf.losses.signs import Signs


def softmax_hessian_times(p: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
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


def softmax_factor(p: tf.Tensor) -> tf.Tensor:
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


def softmax_half_times(p: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
    """Z v with Z Z' = diag(p) - p p', for Z = (I - p 1') diag(sqrt(p)).

    Args:
        p: `[..., C]`, probabilities.
        v: `[..., C]`.

    Returns:
        `[..., C]`, with sum 0.

    Numerics: the entry of the most likely class is minus the sum of the others: computed as such, since its own terms
    cancel where that class is nearly certain.
    Checked against: `verification/references/losses.py`.
    """
    scaled = tf.sqrt(p) * v
    top = tf.one_hot(tf.argmax(p, axis=-1), p.shape[-1] or tf.shape(p)[-1], dtype=p.dtype)
    rest = (1 - top) * (scaled - p * tf.reduce_sum(scaled, axis=-1, keepdims=True))
    return rest - top * tf.reduce_sum(rest, axis=-1, keepdims=True)


def _ratio(numerator: tf.Tensor, denominator: tf.Tensor) -> tf.Tensor:
    """Returns numerator / denominator, 0 where the denominator is no normal number."""
    normal = denominator >= smallest_normal(denominator.dtype)
    return tf.where(normal, numerator / tf.where(normal, denominator, tf.ones_like(denominator)), 0.0)


@dataclass(frozen=True, eq=False)
class SoftmaxHead(Head):
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

    kind: str = field(default="softmax", init=False)

    @property
    def size(self) -> int:
        """Entries of `z` per sample."""
        return entries_per_sample(self.z)

    def gradient(self) -> tf.Tensor:
        """dphi/dz = f (p - target), as TensorFlow returns it, even for targets that do not sum to 1."""
        return self.f[..., None] * (self.probability - self.target)

    def hessian_times(self, v: tf.Tensor) -> tf.Tensor:
        """H v, shaped like `z`."""
        return self.f[..., None] * softmax_hessian_times(self.probability, v)

    def quadratic(self, v: tf.Tensor) -> tf.Tensor:
        """The quadratic form v' H v = f sum_c p_c (v_c - p.v)^2, a sum of nonnegative terms, `[B]`."""
        p = self.probability
        spread = tf.square(v - tf.reduce_sum(p * v, axis=-1, keepdims=True))
        variance = tf.reduce_sum(p * spread, axis=-1)
        return dot_per_sample(self.f, variance)

    def factor(self) -> tf.Tensor:
        """Exact factor with C - 1 columns per position, `[B, D, D - D/C]`; a negative `f` counts as 0."""
        Z = softmax_factor(self._by_position(self.probability))  # [B, P, C, C-1]
        Z = tf.sqrt(self._scale())[..., None, None] * Z
        positions, classes = Z.shape[1], Z.shape[2]
        blocks = tf.einsum("bpcr,pq->bpcqr", Z, tf.eye(positions, dtype=Z.dtype))
        return tf.reshape(blocks, [-1, positions * classes, positions * (classes - 1)])

    def draw(self, signs: Signs) -> tf.Tensor:
        """A factor of C columns per position times signs, shaped like `z`; a negative `f` counts as 0."""
        scale = tf.sqrt(tf.maximum(self.f, 0.0))[..., None]
        return scale * softmax_half_times(self.probability, signs(self.z))

    def top_factor(self, rank: int) -> tf.Tensor:
        """Largest eigenpairs over all positions, `[B, D, rank]`."""
        check_rank(rank, self.size)
        p = self._by_position(self.probability)
        positions, classes = p.shape[1], p.shape[2]
        H = self._scale()[..., None, None] * (tf.linalg.diag(p) - p[..., :, None] * p[..., None, :])
        each = min(rank, classes)
        columns = top_factor(H, each)  # [B, P, C, each]
        eigenvalues = tf.reshape(tf.reduce_sum(columns**2, axis=2), [-1, positions * each])
        blocks = tf.einsum("bpcr,pq->bpcqr", columns, tf.eye(positions, dtype=p.dtype))
        blocks = tf.reshape(blocks, [-1, positions * classes, positions * each])
        return select_largest(blocks, eigenvalues, rank)

    def _by_position(self, x: tf.Tensor) -> tf.Tensor:
        classes = x.shape[-1]
        return tf.reshape(x, [-1, self.size // classes, classes])

    def _scale(self) -> tf.Tensor:
        return tf.maximum(tf.reshape(self.f, [-1, self.size // self.z.shape[-1]]), 0.0)


class SoftmaxForm(CrossEntropyForm):
    """(Sparse) categorical cross-entropy over the last axis.

    Numerics: with mixed precision, or `ignore_class` after a softmax layer, Keras computes the cross-entropy from
    probabilities clipped to [1e-7, 1 - 1e-7]; the closed form has no clipping.
    """

    kind = "softmax"
    functions = (keras.losses.categorical_crossentropy, keras.losses.sparse_categorical_crossentropy)
    operation = "Softmax"

    def recognise(self, function: LossFunction, options: Mapping[str, Any], prediction: Prediction) -> LossForm | None:
        """Recognises the class axis, the place of the logits, and the kind of labels.

        Args:
            function: one of the two.
            options: keyword arguments it is called with.
            prediction: the output.

        Returns:
            The form, or None.
        """
        axis, ignored = options.get("axis", -1), options.get("ignore_class")
        last = axis == -1 or (prediction.rank is not None and axis == prediction.rank - 1)
        before = self.cut(options, prediction, sees_output=ignored is None) if last else None
        if before is None:
            return None
        sparse = function is keras.losses.sparse_categorical_crossentropy
        smoothing = float(options.get("label_smoothing", 0.0))
        return LossForm(
            self.kind, before, {"sparse": sparse, "label_smoothing": smoothing, "ignore_class": ignored}
        )  # fmt: skip

    def fits(self, form: LossForm, y_true: tf.Tensor, z: tf.Tensor) -> bool:
        """Says whether every position of the output has one label.

        Args:
            form: what `recognise` returned.
            y_true: labels as they reach `Loss.call`.
            z: the output or its logits.

        Returns:
            False where Keras would squeeze or stretch one of them.
        """
        labels, rank = y_true.shape.rank, z.shape.rank
        if labels is None or rank is None:
            return False
        if form.options["sparse"]:
            return (labels == rank and y_true.shape[-1] == 1) or (labels == rank - 1 and z.shape[-1] != 1)
        return y_true.shape.is_compatible_with(z.shape)

    def head(self, form: LossForm, y_true: tf.Tensor, z: tf.Tensor, f: tf.Tensor) -> SoftmaxHead:
        """Makes the Hessian in the logits.

        Args:
            form: what `recognise` returned.
            y_true: class indices `[B, ...]` or `[B, ..., 1]`, or probabilities `[B, ..., C]`.
            z: `[B, ..., C]`, logits.
            f: `[B, ...]`.

        Returns:
            The head.
        """
        classes = z.shape[-1]
        if form.options["sparse"]:
            if y_true.shape.rank == z.shape.rank:
                y_true = tf.squeeze(y_true, axis=-1)
            ignored = form.options["ignore_class"]
            if ignored is not None:
                f = tf.where(y_true == tf.cast(ignored, y_true.dtype), tf.zeros_like(f), f)
            target = tf.one_hot(tf.cast(y_true, tf.int32), classes, dtype=z.dtype)
        else:
            smoothing = form.options["label_smoothing"]
            target = tf.cast(y_true, z.dtype) * (1.0 - smoothing) + smoothing / classes
        return SoftmaxHead(z, target, f, tf.nn.softmax(z, axis=-1))
