"""Gram matrices between the samples of one replica and those of all.

A replica forms the rows of its own samples, `<q_i, M^{-1} q_j>` with i of its own and j of any, from what every replica
sends of its samples: the side of the inner products on which the metric has acted. So the metric acts once on each
sample, and the products of the whole matrix are shared by the replicas. What is sent per sample and column:

    factored, rank_one at one position    inputs and cotangents        d + e numbers
    sketch, features                      what these forms keep of the gradient
    hashed                                the sums in the buckets
    positions, per_sample                 the gradient

A player whose samples would send too much (`sent_numbers`, `sendable`) keeps its Gram matrix block-diagonal over
replicas, and so does a table whose form is "lookup".
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.curvature.gram.blocks import bias_pairs
from bellman_tf.curvature.gram.hashed import hashed_pair
from bellman_tf.curvature.gram.plan import GramForm, GramLimits, kept_channels, kept_features, plan
from bellman_tf.curvature.gram.products import stacked
from bellman_tf.curvature.metric import GradientPair, Metric, MetricKind, TwoSided
from bellman_tf.layers.capture import Capture, MatrixCapture
from bellman_tf.layers.embedding import Lookup
from bellman_tf.layers.matrix_layout import Extent
from bellman_tf.layers.tap_capture import TapCapture
from bellman_tf.linalg.constants import number, reshape
from bellman_tf.linalg.products import row_products

# Samples of a global batch whose sides must fit into `GramLimits.memory`: at 256 MiB 2^15 numbers a sample and player.
GLOBAL_BATCH = 2**11


class Joint(Protocol):
    """What `joint_sides` needs of a joint metric, `coupling.joint.JointMetric`."""

    def solve(self, parts: list[Tensors]) -> list[Tensors]:
        """The inverse on one list of tensors per player."""
        ...


class Sides(NamedTuple):
    """Two sides of a player's inner products.

    Attributes:
        sent: tensors `[b, ...]` that every replica sends of its samples.
        rows: a function of the same of all samples, `[B, ...]`, giving `[b m, B m]`.
    """

    sent: Tensors
    rows: Callable[[Tensors], tf.Tensor]


def sent_numbers(extent: Extent, kind: MetricKind, form: GramForm, limits: GramLimits, itemsize: int) -> int | None:
    """Numbers that a sample sends of a player, for one column.

    Args:
        extent: static sizes of the player.
        kind: of its metric.
        form: the `gram` option.
        limits: sizes from which on a form is approximated.
        itemsize: bytes of one number of the captures.

    Returns:
        How many, at most; `None` for a form that has no sides.
    """
    chosen = plan(extent, kind, form, None, limits, itemsize).form
    if chosen == "lookup":
        return None
    if _is_product(chosen, extent):
        return extent.rows + extent.width
    kept = {
        "sketch": kept_channels(extent, kind, limits) + 1,
        "features": kept_features(extent.rows, limits) + 1,
        "hashed": limits.buckets,
    }
    return kept[chosen] * extent.width if chosen in kept else extent.parameters


def sendable(numbers: int | None, limits: GramLimits, itemsize: int) -> bool:
    """Whether the sides of a player are few enough to be sent.

    Args:
        numbers: per sample and column, of `sent_numbers`.
        limits: how much memory what a Gram matrix is formed of may take, here of `GLOBAL_BATCH` samples.
        itemsize: bytes of one number.

    Returns:
        Whether they are.
    """
    return numbers is not None and numbers * itemsize * GLOBAL_BATCH <= limits.memory


def sides(capture: Capture, metric: Metric, form: GramForm, limits: GramLimits) -> Sides | None:
    """The two sides of a player's inner products, in the form that `gram` has for the whole batch.

    Args:
        capture: the player's capture, m columns.
        metric: its metric, learning rate included.
        form: the `gram` option.
        limits: sizes from which on a form is approximated, and memory.

    Returns:
        The sides, `None` where they are too large.
    """
    extent, itemsize = capture.extent, capture.cotangents[0].dtype.size
    numbers = sent_numbers(dataclasses.replace(extent, columns=1), metric.kind, form, limits, itemsize)
    if not sendable(numbers, limits, itemsize):
        return None
    chosen = plan(extent, metric.kind, form, None, limits, itemsize).form
    two_sided = metric.rank_one() if chosen == "rank_one" else metric
    if _is_product(chosen, extent) and isinstance(capture, MatrixCapture) and isinstance(two_sided, TwoSided):
        return _product(capture, two_sided)
    return of_pairs(_pairs(chosen, capture, metric, limits))


def joint_sides(captures: Sequence[MatrixCapture], metric: Joint, limits: GramLimits) -> Sides | None:
    """The two sides of players with one metric, of their gradients.

    Args:
        captures: of the players, m columns.
        metric: of all of them, `solve` as that of `JointMetric`.
        limits: memory.

    Returns:
        The sides, `None` where they are too large.
    """
    numbers = sum(capture.extent.parameters for capture in captures)
    if not sendable(numbers, limits, captures[0].cotangents[0].dtype.size):
        return None
    parts = [capture.per_sample() for capture in captures]
    return of_pairs([GradientPair(*pair) for pair in zip(parts, metric.solve(parts), strict=True)])


def of_pairs(pairs: list[GradientPair]) -> Sides:
    """Sides whose inner products are added.

    Args:
        pairs: tensors `[b, m, ...]`.

    Returns:
        The sides; `second` is sent.
    """

    def rows(everyone: Tensors) -> tf.Tensor:
        others = iter(everyone)
        return tf.add_n([
            pair.scale * tf.add_n([_between(first, next(others)) for first in pair.first]) for pair in pairs
        ])  # fmt: skip

    return Sides([tensor for pair in pairs for tensor in pair.second], rows)


def _is_product(chosen: str, extent: Extent) -> bool:
    """Whether the inner products are those of inputs times those of cotangents."""
    return chosen in {"factored", "rank_one"} and extent.positions == 1


def _product(capture: MatrixCapture, metric: TwoSided) -> Sides:
    """`(x A^{-1} x') * (c B^{-1} c')`."""
    x, solved, bias = metric.input_pair(capture)
    c, m = stacked(capture.cotangents), capture.columns

    def rows(everyone: Tensors) -> tf.Tensor:
        inputs = tf.matmul(x, everyone[0], transpose_b=True)
        inputs = inputs if bias is None else inputs + number(bias, inputs.dtype)
        if m > 1:
            inputs = tf.repeat(tf.repeat(inputs, m, axis=0), m, axis=1)
        return inputs * _between(c, everyone[1])

    return Sides([solved, metric.scale * metric.cotangent_solve(c)], rows)


def _pairs(chosen: str, capture: Capture, metric: Metric, limits: GramLimits) -> list[GradientPair]:
    """The pairs that a form's inner products are made of."""
    extent, dtype = capture.extent, capture.cotangents[0].dtype
    if chosen == "sketch" and isinstance(capture, TapCapture):
        kept = kept_channels(extent, metric.kind, limits)
        seen = capture if kept == extent.channels else capture.thinned(kept)
        tap = metric.tap_pair(seen, seen.centre)
        kernel = tap._replace(scale=tap.scale * number(extent.taps * extent.channels / kept, dtype))
        return [kernel, *bias_pairs(capture, metric)]
    if chosen == "features" and isinstance(capture, MatrixCapture):
        kernel = metric.feature_pair(capture, kept_features(capture.layout.rows, limits))
        return [kernel, *bias_pairs(capture, metric)]
    if chosen == "hashed" and isinstance(capture, Lookup):
        return [hashed_pair(capture, metric, limits)]
    if chosen == "rank_one" and isinstance(capture, MatrixCapture):
        near, q = metric.rank_one(), capture.matrix_per_sample()
        rotated = tf.linalg.matrix_transpose(near.input_solve(tf.linalg.matrix_transpose(q)))
        return [GradientPair([q], [near.scale * near.cotangent_solve(rotated)])]
    return [metric.sample_pair(capture)]


def _between(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """`[b, m, ...]` and `[B, m, ...]` to `[b m, B m]`."""
    width = first.shape[2:].num_elements()
    return row_products(reshape(first, [-1, width]), reshape(second, [-1, width]))
