"""Models whose tensors have rows that are not the samples of the loss, or not in their order."""

import keras
import numpy as np
from keras import layers, ops

from tests.zoo.case import Case
from tests.zoo.functional import SEQUENCES, SPARSE, VECTORS, functional, labels

random = np.random.default_rng(2)
PER_STEP = random.integers(0, 3, (6, 6))


def folded(x):
    """Time folded into the batch."""
    h = layers.Dense(3)(layers.Dense(6, activation="tanh")(ops.reshape(x, (-1, 4))))
    return ops.reshape(h, (-1, 6, 3))


def folded_then_flat(x):
    h = layers.Dense(5, activation="tanh")(ops.reshape(x, (-1, 4)))
    return layers.Dense(3)(ops.reshape(h, (-1, 30)))


def time_major(x):
    h = layers.Dense(6, activation="tanh")(ops.transpose(x, (1, 0, 2)))
    return layers.Dense(3)(ops.transpose(h, (1, 0, 2)))


def reversed_rows(x):
    return layers.Dense(3)(ops.flip(layers.Dense(6, activation="tanh")(x), axis=0))


def contrast(x):
    """Every sample sees the mean of all."""
    h = layers.Dense(6, activation="tanh")(x)
    return layers.Dense(3)(h - ops.mean(h, axis=0, keepdims=True))


def one_batch_of_two(base):
    left, right = keras.Input((5,)), keras.Input((5,))
    h = layers.Dense(6, activation="tanh")(layers.Concatenate(axis=0)([left, right]))
    a, b = ops.split(h, 2, axis=0)
    return base([left, right], layers.Dense(3)(a * b))


def folded_outputs(x):
    """The loss itself is over samples times steps."""
    return layers.Dense(3)(layers.Dense(6, activation="tanh")(ops.reshape(x, (-1, 4))))


def graphs(base):
    class Graphs(base):
        """Nodes of several graphs in one batch, pooled by the number of their graph."""

        def __init__(self):
            super().__init__()
            self.node, self.head = layers.Dense(6, activation="tanh"), layers.Dense(3)

        def call(self, x):
            pooled = ops.segment_sum(self.node(x["nodes"]), ops.reshape(x["graph"], [-1]), num_segments=6)
            return self.head(pooled)

    return Graphs()


NODES = {
    "graph": np.repeat(np.arange(6), 3).astype("int32"),
    "nodes": random.normal(size=(18, 5)).astype("float32"),
}

ROWS = {
    "folded": Case(functional((6, 4), folded), SEQUENCES, PER_STEP, SPARSE, 0.0),
    "folded_then_flat": Case(functional((6, 4), folded_then_flat), SEQUENCES, labels(), SPARSE),
    "time_major": Case(functional((5, 4), time_major), SEQUENCES[:, :5], PER_STEP[:, :5], SPARSE),
    "time_major_square": Case(functional((6, 4), time_major), SEQUENCES, PER_STEP, SPARSE),
    "time_major_four": Case(functional((4, 4), time_major), SEQUENCES[:4, :4], PER_STEP[:4, :4], SPARSE),
    "reversed": Case(functional((5,), reversed_rows), VECTORS, labels(), SPARSE),
    "contrast": Case(functional((5,), contrast), VECTORS, labels(), SPARSE),
    "one_batch_of_two": Case(one_batch_of_two, [VECTORS, VECTORS + 1], labels(), SPARSE),
    "folded_outputs": Case(functional((6, 4), folded_outputs), SEQUENCES, labels(batch=36), SPARSE, 1.0),
}
GRAPHS = Case(graphs, NODES, labels(), SPARSE)
