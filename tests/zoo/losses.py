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


class Pair:
    """What the models below share."""

    def __init__(self, penalty=None):
        super().__init__()
        self.inside = layers.Dense(6, activation="tanh", kernel_regularizer=penalty)
        self.head = layers.Dense(3)

    def call(self, x):
        return self.head(self.inside(x))


def added_penalty(base):
    """A penalty on weights that `call` adds to the loss."""

    class Penalised(Pair, base):
        def call(self, x):
            h = self.inside(x)
            self.add_loss(0.5 * ops.sum(ops.square(self.inside.kernel)))
            return self.head(h)

    return Penalised()


def own_penalty(base):
    """A penalty on weights that `compute_loss` adds."""

    class Penalised(Pair, base):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            loss = super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)
            return loss + 0.5 * ops.sum(ops.square(self.inside.kernel))

    return Penalised()


def without_regularizers(base):
    """A `compute_loss` that leaves the layers' regularizers out."""

    class Own(Pair, base):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return ops.mean(ops.logsumexp(y_pred, axis=-1) - y_pred[:, 0])

    return Own(keras.regularizers.L2(0.5))


def second_call(base):
    """A loss that runs the model once more."""

    class Consistent(Pair, base):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            loss = super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)
            return loss + 3 * ops.mean(ops.square(self(x + 0.3) - y_pred))

    return Consistent()


def shifts_in_a_loss(x):
    """What normalisation takes away, a loss in front of it has seen."""
    h = layers.Dense(6, activity_regularizer=keras.regularizers.L2(0.5))(x)
    return layers.Dense(3)(layers.BatchNormalization()(h))


LOSSES = {
    "added_penalty": Case(added_penalty, VECTORS, labels(), SPARSE, 1.0),
    "own_penalty": Case(own_penalty, VECTORS, labels(), SPARSE, 1.0),
    "without_regularizers": Case(without_regularizers, VECTORS, labels(), SPARSE, 1.0),
    "second_call": Case(second_call, VECTORS, labels(), SPARSE, 1.0),
    "shifts_in_a_loss": Case(functional((5,), shifts_in_a_loss), VECTORS, labels(), SPARSE, 1.0),
    "dice": Case(functional((5,), scores), VECTORS, SHARES, keras.losses.Dice(), 1.0),
    "tversky": Case(functional((5,), scores), VECTORS, SHARES, keras.losses.Tversky(), 1.0),
    "mean_loss": Case(functional((5,), scores), VECTORS, SHARES, mean_loss, 1.0),
    "moving_loss": Case(functional((5,), scores), VECTORS, SHARES, Moving, 1.0),
    "cosine": Case(functional((5,), scores), VECTORS, SHARES, keras.losses.CosineSimilarity(), 1.0),
    "own_compute_loss": Case(own_compute_loss, VECTORS, labels(), SPARSE, 1.0),
}
