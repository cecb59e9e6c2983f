"""Subclassed models and users' own layers: variables used elsewhere, blocks, raw TensorFlow, control flow."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.zoo.case import Case
from tests.zoo.functional import SEQUENCES, SPARSE, VECTORS, functional, labels

random = np.random.default_rng(1)
TOKENS = random.integers(0, 12, (6, 5))


def tied(base):
    class LanguageModel(base):
        def __init__(self):
            super().__init__()
            self.embed, self.hidden = layers.Embedding(12, 6), layers.Dense(6, activation="tanh")

        def call(self, x):
            return ops.matmul(self.hidden(self.embed(x)), ops.transpose(self.embed.embeddings))

    return LanguageModel()


def positions(base):
    class Classifier(base):
        def __init__(self):
            super().__init__()
            self.token, self.position, self.head = layers.Embedding(12, 6), layers.Embedding(5, 6), layers.Dense(3)

        def call(self, x):
            return self.head(ops.mean(ops.tanh(self.token(x) + self.position(ops.arange(5))), axis=1))

    return Classifier()


def own_weight(base):
    class Gated(base):
        def __init__(self):
            super().__init__()
            self.inside, self.head = layers.Dense(6, activation="tanh"), layers.Dense(3)
            self.gate = self.add_weight(shape=(6,), initializer="ones", name="gate")

        def call(self, x):
            return self.head(self.inside(x) * ops.softmax(self.gate))

    return Gated()


class Block(layers.Layer):
    """A transformer block as people write it."""

    def __init__(self, width, dropout=0.1):
        super().__init__()
        self.attention = layers.MultiHeadAttention(2, 3)
        self.first, self.second = layers.LayerNormalization(), layers.LayerNormalization()
        self.feed = keras.Sequential([layers.Dense(8, activation="relu"), layers.Dense(width)])
        self.dropout = layers.Dropout(dropout)

    def call(self, x, training=None):
        h = self.first(x + self.dropout(self.attention(x, x), training=training))
        return self.second(h + self.feed(h))


def blocks(x):
    return layers.Dense(3)(layers.GlobalAveragePooling1D()(Block(4)(Block(4)(x))))


class Residual(layers.Layer):
    """Convolutions behind each other inside a user's layer."""

    def __init__(self, filters):
        super().__init__()
        self.one, self.two = (layers.Conv2D(filters, 3, padding="same") for _ in range(2))
        self.norm = layers.BatchNormalization()

    def call(self, x, training=None):
        return ops.relu(x + self.two(ops.relu(self.norm(self.one(x), training=training))))


def raw(base):
    class Raw(base):
        def __init__(self):
            super().__init__()
            self.inside, self.head = layers.Dense(6), layers.Dense(3)

        def call(self, x):
            h = tf.nn.relu(self.inside(x))
            return self.head(tf.concat([h, tf.square(h)], axis=1))

    return Raw()


def branching(base):
    class Branching(base):
        """Python control flow on values: eager only."""

        def __init__(self):
            super().__init__()
            self.inside, self.head = layers.Dense(6, activation="tanh"), layers.Dense(3)

        def call(self, x):
            h = self.inside(x)
            return self.head(h if float(tf.reduce_sum(x)) > -1e9 else -h)

    return Branching()


def looping(base):
    class Looping(base):
        """A layer called inside a loop that becomes part of the graph."""

        def __init__(self):
            super().__init__()
            self.cell, self.head = layers.Dense(4, activation="tanh"), layers.Dense(3)
            self.cell.build((None, 4))

        def call(self, x):
            h = ops.fori_loop(0, 3, lambda k, h: self.cell(h), x[:, :4])
            return self.head(h)

    return Looping()


def renamed(base):
    class Renamed(base):
        """`call` with the author's own argument names."""

        def __init__(self):
            super().__init__()
            self.inside, self.head = layers.Dense(6, activation="tanh"), layers.Dense(3)

        def call(self, t, scale=1.0):
            return self.head(self.inside(t) * scale)

    return Renamed()


SUBCLASSED = {
    "tied_embedding": Case(tied, TOKENS, np.roll(TOKENS, -1, 1), SPARSE),
    "position_table": Case(positions, TOKENS, labels(), SPARSE),
    "own_weight": Case(own_weight, VECTORS, labels(), SPARSE),
    "user_blocks": Case(functional((6, 4), blocks), SEQUENCES, labels(), SPARSE, 1.0),
    "user_residual": Case(
        functional((6, 6, 2), lambda x: layers.Dense(3)(layers.Flatten()(Residual(2)(Residual(2)(x))))),
        random.normal(size=(6, 6, 6, 2)).astype("float32"),
        labels(),
        SPARSE,
        1.0,
    ),
    "raw_tensorflow": Case(raw, VECTORS, labels(), SPARSE, 1.0),
    "python_branches": Case(branching, VECTORS, labels(), SPARSE, 1.0, eager=True),
    "inside_a_loop": Case(looping, VECTORS, labels(), SPARSE),
    "own_argument_names": Case(renamed, VECTORS, labels(), SPARSE, 1.0),
}
