"""Embedding players: a dense layer on one-hot inputs that are never formed."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.keras_access import table_of
from bellman_tf.layers.capture import Capture, Columns, weigh
from bellman_tf.layers.coverage import OUTPUT, Coverage
from bellman_tf.layers.matrix_layout import Extent
from bellman_tf.layers.tensors import to_work


class Lookup(Capture):
    """Rows of a table, picked by token.

    Attributes:
        tokens: `[B, L]`, int32.
        cotangents: m tensors `[B, L, e]`.
        vocabulary: number of rows.
    """

    def __init__(self, tokens: tf.Tensor, cotangents: Sequence[tf.Tensor], vocabulary: int) -> None:
        super().__init__([to_work(c) for c in cotangents])
        self.tokens = tokens
        self.vocabulary = vocabulary
        self.positions = tokens.shape[1]

    def tensors(self) -> Tensors:
        """Tokens and cotangents."""
        return [self.tokens, *self.cotangents]

    def made_of(self, tensors: Tensors) -> "Lookup":
        """The same table read by other samples."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.tokens, other.cotangents = tensors[0], Columns(tensors[1:])
        return other

    def gradient(self, weights: tf.Tensor) -> Tensors:
        """`sum_ij w_ij q_ij`, one `[V, e]` table."""
        c = weigh(self.cotangents, weights)
        return [self._add_rows(tf.reshape(c, [-1, c.shape[-1]]))]

    def _add_rows(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.math.unsorted_segment_sum(rows, tf.reshape(self.tokens, [-1]), self.vocabulary)

    def inner(self, direction: Tensors) -> tf.Tensor:
        """`<q_ij, K>`, `[B, m]`."""
        rows = tf.gather(to_work(direction[0]), self.tokens)
        return tf.stack([tf.reduce_sum(rows * c, axis=[1, 2]) for c in self.cotangents], axis=1)

    @property
    def extent(self) -> Extent:
        """Static sizes."""
        width = self.cotangents[0].shape[-1]
        return Extent(self.vocabulary * width, self.columns, self.positions, width=width, vocabulary=self.vocabulary)

    def mean_squares(self) -> Tensors:
        """`(1/B) sum_i q_i^2` entry by entry, a token repeated inside a sample counted as if in another sample."""
        c = self.cotangents[0]
        return [self._add_rows(tf.reshape(c * c, [-1, c.shape[-1]])) / tf.cast(self.batch_size, c.dtype)]

    def per_sample(self) -> Tensors:
        """`q_ij`, `[B, m, V, e]`: only for small tables."""
        size = self.batch_size
        offset = tf.range(size)[:, None] * self.vocabulary
        rows = tf.reshape(tf.cast(self.tokens, tf.int32) + offset, [-1])
        parts = [
            tf.math.unsorted_segment_sum(tf.reshape(c, [-1, c.shape[-1]]), rows, size * self.vocabulary)
            for c in self.cotangents
        ]
        width = self.cotangents[0].shape[-1]
        return [tf.stack([tf.reshape(p, [size, self.vocabulary, width]) for p in parts], axis=1)]


def capture_embedding(layer: keras.Layer, inputs: tf.Tensor, cotangents: Sequence[tf.Tensor]) -> Lookup:
    """Captures a `keras.layers.Embedding`.

    Args:
        layer: the layer.
        inputs: tokens, `[B, ...]`.
        cotangents: m tensors `[B, ..., e]`, cotangents of the layer's output.

    Returns:
        The capture of its one table.
    """
    size = tf.shape(inputs)[0]
    middle = tf.TensorShape(inputs.shape[1:])
    count = middle.num_elements() if middle.is_fully_defined() else -1
    tokens = tf.reshape(tf.cast(inputs, tf.int32), [size, count])
    width = layer.output_dim
    return Lookup(tokens, [tf.reshape(c, [size, count, width]) for c in cotangents], layer.input_dim)


def cover_embedding(layer: keras.Layer, bias: bool) -> Coverage | str:
    """Coverage of `keras.layers.Embedding`, which has no bias."""
    table = table_of(layer)
    if [id(v) for v in layer.trainable_variables] != [id(table)]:
        return "its trainable variable is not just the table"
    return Coverage("embedding", OUTPUT, capture_embedding, (table,), table=True)
