"""Losses that give no value per sample, that keep state, or that a model computes itself."""

import keras
import numpy as np
from keras import layers, ops

from tests.zoo.case import Case
from tests.zoo.functional import SPARSE, VECTORS, functional, labels

random = np.random.default_rng(4)
SHARES = random.random((6, 3)).astype("float32")


def scores(x):
    return layers.Dense(3, activation="sigmoid")(layers.Dense(6, activation="tanh")(x))


def mean_loss(true, predicted):
    return ops.mean(ops.abs(true - predicted) ** 1.5)


class Moving(keras.losses.Loss):
    """A loss that keeps a moving average of its own values."""

    def __init__(self):
        super().__init__(name="moving")
        self.average = keras.Variable(1.0, trainable=False, name="average")

    def call(self, true, predicted):
        values = ops.mean(ops.square(true - predicted), axis=-1)
        self.average.assign(0.9 * self.average + 0.1 * ops.mean(values))
        return values / ops.stop_gradient(self.average)


def own_compute_loss(base):
    class Own(base):
        def __init__(self):
            super().__init__()
            self.inside, self.head = layers.Dense(6, activation="tanh"), layers.Dense(3)

        def call(self, x):
            return self.head(self.inside(x))

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return ops.mean(ops.logsumexp(y_pred, axis=-1) - y_pred[:, 0]) + 0.1 * ops.mean(ops.square(y_pred))

    return Own()


LOSSES = {
    "dice": Case(functional((5,), scores), VECTORS, SHARES, keras.losses.Dice(), 1.0),
    "tversky": Case(functional((5,), scores), VECTORS, SHARES, keras.losses.Tversky(), 1.0),
    "mean_loss": Case(functional((5,), scores), VECTORS, SHARES, mean_loss, 1.0),
    "moving_loss": Case(functional((5,), scores), VECTORS, SHARES, Moving, 1.0),
    "cosine": Case(functional((5,), scores), VECTORS, SHARES, keras.losses.CosineSimilarity(), 1.0),
    "own_compute_loss": Case(own_compute_loss, VECTORS, labels(), SPARSE, 1.0),
}
