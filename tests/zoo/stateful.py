"""Models that write while they run, or that set `training` themselves."""

import keras
import numpy as np
from keras import layers, ops

from tests.zoo.case import Case
from tests.zoo.functional import SEQUENCES, SPARSE, VECTORS, images, labels

random = np.random.default_rng(3)


def counting(base):
    class Counting(base):
        """A counter written in `call` that changes what the next call computes."""

        def __init__(self):
            super().__init__()
            self.inside, self.head = layers.Dense(6, activation="tanh"), layers.Dense(3)
            self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

        def call(self, x):
            self.calls.assign_add(1.0)
            return self.head(self.inside(x)) / ops.sqrt(self.calls + 1.0)

    return Counting()


def inference_inside(base):
    class Inference(base):
        """A trainable base with normalisation and dropout, run with `training=False`."""

        def __init__(self):
            super().__init__()
            self.base = keras.Sequential(
                [layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Dropout(0.5), layers.GlobalMaxPooling2D()]
            )
            self.head = layers.Dense(3)

        def call(self, x):
            return self.head(self.base(x, training=False))

    return Inference()


def stateful_rnn(base):
    inputs = keras.Input(batch_shape=(6, 6, 4))
    return base(inputs, layers.Dense(3)(layers.LSTM(5, stateful=True)(inputs)))


def mixed(base):
    """mixed_bfloat16."""
    x = keras.Input((5,))
    h = layers.Dense(6, activation="tanh", dtype="mixed_bfloat16")(x)
    return base(x, layers.Dense(3, dtype="float32")(h))


def added_loss(base):
    class Noise(layers.Layer):
        """The sampling layer of a variational autoencoder."""

        def __init__(self):
            super().__init__()
            self.seed = keras.random.SeedGenerator(1)

        def call(self, inputs):
            mean, log_variance = inputs
            kl = 1 + log_variance - ops.square(mean) - ops.exp(log_variance)
            self.add_loss(-0.05 * ops.mean(ops.sum(kl, axis=1)))
            return mean + ops.exp(0.5 * log_variance) * keras.random.normal(ops.shape(mean), seed=self.seed)

    x = keras.Input((5,))
    h = layers.Dense(6, activation="tanh")(x)
    z = Noise()([layers.Dense(2)(h), layers.Dense(2)(h)])
    return base(x, layers.Dense(5)(z))


STATEFUL = {
    "counting": Case(counting, VECTORS, labels(), SPARSE, 1.0),
    "inference_inside": Case(inference_inside, images(), labels(), SPARSE, 127 / 135),  # not the normalisation
    "stateful_rnn": Case(stateful_rnn, SEQUENCES, labels(), SPARSE),
    "mixed_bfloat16": Case(mixed, VECTORS, labels(), SPARSE, 1.0),
    "variational": Case(added_loss, VECTORS, VECTORS, "mse", 1.0),
}
