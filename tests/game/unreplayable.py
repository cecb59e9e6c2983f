"""Models whose trace is not the model: one for each kind of thing that a replay cannot see.

Each entry of `KINDS` makes a model, its inputs, and says what the refusal must name.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

import bellman_tf as btf
from tests.strategies.networks import normal


@dataclasses.dataclass(frozen=True)
class Kind:
    """A model that must not be replayed.

    Attributes:
        make: returns the model, not compiled.
        names: pattern that the refusal must match.
        inputs: returns x for a batch size.
        loss: of `compile`, made anew.
        repeatable: whether the model gives the same outputs after the same seed, however often it was called before.
    """

    make: Callable[[], keras.Model]
    names: str
    inputs: Callable[[int], object] = lambda batch: normal(batch, 6)
    loss: Callable[[], object] = lambda: "mse"
    repeatable: bool = True


class TwoLayers(btf.Model):
    """A Dense and a head; subclasses say what is between them."""

    def __init__(self) -> None:
        super().__init__(name="two_layers")
        self.first = layers.Dense(6, activation="tanh", name="first")
        self.head = layers.Dense(3, name="head")
        self.prepare()

    def prepare(self) -> None:
        """Makes what `between` needs."""

    def between(self, h: tf.Tensor) -> tf.Tensor:
        return h

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.head(self.between(self.first(x)))


class Tied(btf.Model):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.hidden = layers.Embedding(12, 6, name="table"), layers.Dense(6, activation="tanh")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return ops.matmul(self.hidden(self.table(x)), ops.transpose(self.table.embeddings))


class TiedByEinsum(Tied):
    def call(self, x: tf.Tensor) -> tf.Tensor:
        return ops.einsum("btd,vd->btv", self.hidden(self.table(x)), self.table.embeddings)


def tied_by_lambda() -> keras.Model:
    inputs, table = layers.Input((5,), dtype="int32"), layers.Embedding(12, 6, name="table")
    head = layers.Lambda(lambda h: ops.matmul(h, ops.transpose(table.embeddings)), output_shape=(5, 12))
    return btf.Model(inputs, head(layers.Dense(6)(table(inputs))))


class Positions(btf.Model):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = layers.Embedding(12, 6), layers.Embedding(5, 6, name="places")
        self.head = layers.Dense(3)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.head(ops.mean(ops.tanh(self.tokens(x) + self.places(ops.arange(5))), axis=1))


class Mixture(TwoLayers):
    def prepare(self) -> None:
        self.alpha = self.add_weight(shape=(6,), initializer="random_normal", name="alpha")

    def between(self, h: tf.Tensor) -> tf.Tensor:
        return h * ops.softmax(self.alpha)


class FrozenTable(TwoLayers):
    def prepare(self) -> None:
        self.mix = self.add_weight(shape=(6, 6), initializer="random_normal", trainable=False, name="mix")

    def between(self, h: tf.Tensor) -> tf.Tensor:
        return ops.matmul(h, ops.transpose(self.mix))


class Temperature(TwoLayers):
    def prepare(self) -> None:
        self.temperature = tf.Variable(1.0, trainable=False, dtype=keras.config.floatx(), name="temperature")

    def between(self, h: tf.Tensor) -> tf.Tensor:
        return h * (2.0 - self.temperature)


class FrozenNormalisation(TwoLayers):
    def prepare(self) -> None:
        self.norm = layers.BatchNormalization(name="norm")

    def between(self, h: tf.Tensor) -> tf.Tensor:
        return self.norm(h, training=False)


class BaseInInference(TwoLayers):
    def prepare(self) -> None:
        inputs = layers.Input((6,))
        hidden = layers.Dropout(0.5, seed=1)(layers.Dense(6, activation="tanh")(inputs))
        self.base = keras.Model(inputs, hidden, name="base")

    def between(self, h: tf.Tensor) -> tf.Tensor:
        return self.base(h, training=False)


class Counter(TwoLayers):
    def prepare(self) -> None:
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def between(self, h: tf.Tensor) -> tf.Tensor:
        self.calls.assign_add(1.0)
        return h / self.calls


class RawCounter(TwoLayers):
    def prepare(self) -> None:
        self.calls = tf.Variable(0.0, trainable=False, dtype=keras.config.floatx(), name="raw_calls")

    def between(self, h: tf.Tensor) -> tf.Tensor:
        self.calls.assign_add(1.0)
        return h / self.calls


class RawCounterLayer(layers.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.calls = tf.Variable(0.0, trainable=False, dtype=keras.config.floatx(), name="inner_calls")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        self.calls.assign_add(1.0)
        return x / tf.cast(self.calls, x.dtype)


class AddsLoss(TwoLayers):
    def between(self, h: tf.Tensor) -> tf.Tensor:
        self.add_loss(ops.mean(ops.square(h)))
        return h


class BranchesOnValues(TwoLayers):
    def between(self, h: tf.Tensor) -> tf.Tensor:
        return h if ops.sum(h) > 0 else -h


class RawTensorFlow(TwoLayers):
    def between(self, h: tf.Tensor) -> tf.Tensor:
        return tf.sin(h)


class Noise(layers.Layer):
    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x + tf.random.normal(tf.shape(x), dtype=x.dtype)


class GlobalNoise(layers.Layer):
    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x + keras.random.normal(ops.shape(x))


class Centred(layers.Layer):
    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x - ops.mean(x, axis=0, keepdims=True)


def chain(*middle: keras.Layer) -> keras.Model:
    """`middle` between two Dense layers."""
    first, head = layers.Dense(6, activation="tanh", name="first"), layers.Dense(3, name="head")
    return btf.Sequential([layers.Input((6,)), first, *middle, head])


def spectral() -> keras.Model:
    return chain(layers.SpectralNormalization(layers.Dense(6), name="spectral"))


def stateful() -> keras.Model:
    recurrent = layers.LSTM(5, stateful=True, name="memory")
    return btf.Sequential([layers.Input(batch_shape=(8, 5, 4)), recurrent, layers.Dense(3)])


def folded() -> keras.Model:
    inputs = layers.Input((4, 6))
    h = layers.Dense(5, activation="tanh", name="folded")(ops.reshape(inputs, (-1, 6)))
    return btf.Model(inputs, layers.Dense(3)(ops.reshape(h, (-1, 20))))


def siamese() -> keras.Model:
    left, right = layers.Input((4,)), layers.Input((4,))
    both = layers.Concatenate(axis=0)([left, right])
    first, second = ops.split(layers.Dense(6, activation="tanh", name="tower")(both), 2, axis=0)
    return btf.Model([left, right], layers.Dense(3)(first * second))


def time_major() -> keras.Model:
    inputs = layers.Input((8, 4))  # as many steps as samples
    h = layers.Dense(6, activation="tanh", name="major")(ops.transpose(inputs, (1, 0, 2)))
    return btf.Model(inputs, layers.Dense(3)(ops.transpose(h, (1, 0, 2))))


def rolled() -> keras.Model:
    inputs = layers.Input((6,))
    return btf.Model(inputs, layers.Dense(3)(ops.roll(layers.Dense(6, name="rolled")(inputs), 1, axis=0)))


class Annealed(keras.losses.Loss):
    """A mean squared error whose weight grows with every call."""

    def __init__(self) -> None:
        super().__init__(name="annealed")
        self.calls = keras.Variable(0.0, trainable=False)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        self.calls.assign_add(1.0)
        return ops.cast(self.calls, y_pred.dtype) * ops.mean(ops.square(y_pred - y_true), axis=-1)


def _tokens(batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 12, (batch, 5))


KINDS = {
    "tied head": Kind(Tied, "table/embeddings.*constant", _tokens),
    "tied head by einsum": Kind(TiedByEinsum, "table/embeddings' is also used outside", _tokens),
    "tied head by lambda": Kind(tied_by_lambda, "table/embeddings' is also used outside", _tokens),
    "position table": Kind(Positions, "places/embeddings.*constant", _tokens),
    "own variable as a constant": Kind(Mixture, "two_layers/alpha.*constant"),
    "frozen variable as a constant": Kind(FrozenTable, "two_layers/mix.*constant"),
    "TensorFlow variable as a constant": Kind(Temperature, "'multiply' reads a constant"),
    "training=False": Kind(FrozenNormalisation, "'norm' is given training=False"),
    "base in inference": Kind(BaseInInference, "'base' is given training=False"),
    "counter": Kind(Counter, "writes 'two_layers/calls' outside its layers"),
    "TensorFlow counter": Kind(RawCounter, "writes 'raw_calls"),
    "TensorFlow counter in a layer": Kind(lambda: chain(RawCounterLayer()), "writes 'inner_calls"),
    "loss added in call": Kind(AddsLoss, "add_loss"),
    "branch on values": Kind(BranchesOnValues, "two_layers.*symbolic"),
    "raw TensorFlow": Kind(RawTensorFlow, "two_layers.*symbolic"),
    "spectral normalisation": Kind(spectral, "writes '.*spectral/.*kernel'"),
    "stateful recurrence": Kind(stateful, "'memory' is stateful", lambda batch: normal(batch, 5, 4)),
    "stateful loss": Kind(chain, "'annealed' holds variables", loss=Annealed),
    "time folded into the batch": Kind(folded, "'folded' has 40 rows", lambda batch: normal(batch, 4, 6)),
    "two towers in one batch": Kind(
        siamese, "'tower' has 12 rows", lambda batch: [normal(batch, 4), normal(batch, 4, seed=1)]
    ),
    "time first": Kind(time_major, "'major' has 8 rows", lambda batch: normal(batch, 8, 4)),
    "rolled batch": Kind(rolled, "rows of the output of 'rolled'"),
    "samples that mix": Kind(lambda: chain(Centred()), "'first'.*samples mix"),
    "noise of TensorFlow": Kind(lambda: chain(Noise()), "other outputs when it runs again", repeatable=False),
    "noise of no generator": Kind(lambda: chain(GlobalNoise()), "seed_generator_state", repeatable=False),
}
