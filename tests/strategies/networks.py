"""Small networks of every shape that must train: each entry of `NETWORKS` makes a model and one batch for it.

Inputs are drawn so that losses and gradients are of order one. A network is made anew by every call; two calls after
the same seed give equal weights.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import bellman_tf as btf

CLASSES = 3


@dataclasses.dataclass(frozen=True)
class Network:
    """How a network is made and trained.

    Attributes:
        make: returns a model of this package, not compiled.
        data: returns (x, y) for a batch size.
        compile: arguments of `compile` besides the optimizer, made anew by every call.
        open_loop: names of the layers that are played open-loop.
    """

    make: Callable[[], keras.Model]
    data: Callable[[int], tuple]
    compile: Callable[[], dict]
    open_loop: tuple[str, ...] = ()


def cross_entropy() -> dict:
    """Sparse cross-entropy from logits."""
    return {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}


def labels(batch: int) -> np.ndarray:
    """Integer labels."""
    return np.random.default_rng(1).integers(0, CLASSES, batch)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal numbers in Keras's default dtype."""
    return np.random.default_rng(seed).normal(size=shape).astype(keras.config.floatx())


def tokens(batch: int, length: int = 5) -> np.ndarray:
    """Token numbers; the last entries of each row are 0, which `mask_zero` masks."""
    drawn = np.random.default_rng(2).integers(1, 9, (batch, length))
    drawn[:, -1] = 0
    drawn[: batch // 2, -2] = 0
    return drawn


def classify(*shape: int) -> Callable[[int], tuple]:
    """Normal inputs of a shape, integer labels."""
    return lambda batch: (normal(batch, *shape), labels(batch))


def mlp() -> keras.Model:
    return btf.Sequential(
        [
            layers.Input((6,)),
            layers.Dense(7, activation="tanh", name="one"),
            layers.Dense(5, activation="relu", name="two"),
            layers.Dense(CLASSES, name="three"),
        ]
    )


def delayed_mlp() -> keras.Model:
    return btf.Sequential(
        [layers.Dense(7, activation="tanh"), layers.Dropout(0.3, seed=3), layers.Dense(CLASSES, activation="softmax")]
    )


def residual_cnn() -> keras.Model:
    """An identity and a 1x1 shortcut, BatchNormalization and Dropout."""
    inputs = layers.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="stem_bn")(x))
    y = layers.Conv2D(4, 3, padding="same", activation="relu", name="inner")(x)
    x = layers.Add()([x, layers.Dropout(0.25, seed=1)(y)])
    y = layers.Conv2D(5, 3, strides=2, padding="same", name="wide")(x)
    y = layers.BatchNormalization(name="wide_bn")(y)
    shortcut = layers.Conv2D(5, 1, strides=2, name="shortcut")(x)
    x = layers.ReLU()(layers.Add()([y, shortcut]))
    x = layers.GlobalAveragePooling2D()(x)
    return btf.Model(inputs, layers.Dense(CLASSES, name="head")(x))


def two_by_two() -> keras.Model:
    """Two inputs and two outputs, both dictionaries."""
    left, right = layers.Input((4,), name="left"), layers.Input((3,), name="right")
    x = layers.Dense(5, activation="tanh", name="from_left")(left)
    y = layers.Dense(5, activation="tanh", name="from_right")(right)
    both = layers.Concatenate()([x, y])
    label = layers.Dense(CLASSES, activation="softmax", name="label_head")(both)
    number = layers.Dense(1, name="number_head")(layers.Add()([x, y]))
    return btf.Model({"left": left, "right": right}, {"label": label, "number": number})


def two_by_two_data(batch: int) -> tuple:
    return (
        {"left": normal(batch, 4), "right": normal(batch, 3, seed=5)},
        {"label": labels(batch), "number": normal(batch, 1, seed=6)},
    )


@keras.saving.register_keras_serializable("bellman_tf_tests")
class Subclassed(btf.Model):
    """A residual block written in `call`."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.first = layers.Dense(6, activation="tanh", name="first")
        self.second = layers.Dense(6, name="second")
        self.dropout = layers.Dropout(0.2, seed=4)
        self.head = layers.Dense(CLASSES, name="head")

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.first(inputs)
        x = x + keras.ops.tanh(self.dropout(self.second(x), training=training))
        return self.head(x)


class RawTensorFlow(btf.Model):
    """Its `call` uses raw TensorFlow, which cannot run on symbolic tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.first = layers.Dense(6, name="first")
        self.head = layers.Dense(CLASSES, name="head")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.head(tf.tanh(tf.matmul(self.first(inputs), tf.eye(6))))


class OwnVariable(btf.Model):
    """A variable of the model itself beside its layers'."""

    def __init__(self) -> None:
        super().__init__()
        self.first = layers.Dense(6, activation="tanh", name="first")
        self.head = layers.Dense(CLASSES, name="head")
        self.scale = self.add_weight(shape=(6,), initializer="ones", name="scale")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.head(self.first(inputs) * self.scale)


@keras.saving.register_keras_serializable("bellman_tf_tests")
class Scale(layers.Layer):
    """A user's layer, with an activity loss and a regularizer."""

    def build(self, shape: tuple) -> None:
        regularizer = keras.regularizers.L2(0.1)
        self.factor = self.add_weight(shape=(shape[-1],), initializer="ones", regularizer=regularizer, name="factor")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        self.add_loss(0.01 * keras.ops.mean(keras.ops.square(inputs * self.factor)))
        return inputs * self.factor


def shared() -> keras.Model:
    inputs = layers.Input((6,))
    twice = layers.Dense(6, activation="tanh", name="twice")
    x = twice(layers.Dense(6, activation="tanh", name="before")(inputs))
    return btf.Model(inputs, layers.Dense(CLASSES, name="head")(layers.Add()([x, twice(x)])))


def recurrent() -> keras.Model:
    inputs = layers.Input((5,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True, name="table")(inputs)
    return btf.Model(inputs, layers.Dense(CLASSES, name="head")(layers.GRU(5, name="gru")(x)))


def attention() -> keras.Model:
    inputs = layers.Input((4, 6))
    x = layers.Dense(6, name="embed")(inputs)
    y = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = layers.LayerNormalization(name="norm_1")(layers.Add()([x, y]))
    y = layers.Dense(6, name="out")(layers.Dense(8, activation="gelu", name="in")(x))
    x = layers.LayerNormalization(name="norm_2")(layers.Add()([x, y]))
    return btf.Model(inputs, layers.Dense(CLASSES, name="head")(layers.GlobalAveragePooling1D()(x)))


def others() -> keras.Model:
    """Trainable layers without a Gram form, and one that has slopes."""
    inputs = layers.Input((4, 5))
    x = layers.TimeDistributed(layers.Dense(6, activity_regularizer="l2"), name="each")(inputs)
    x = layers.PReLU(name="prelu")(x)
    x = Scale(name="user")(layers.LSTM(5, activity_regularizer="l2", dropout=0.2, name="lstm")(x))
    return btf.Model(inputs, layers.Dense(CLASSES, name="head")(x))


def nested() -> keras.Model:
    """A functional model inside, used twice while frozen, and a Sequential inside."""
    block_in = layers.Input((5,))
    block = keras.Model(block_in, layers.Dense(5, activation="tanh", name="inside")(block_in), name="block")
    frozen_in = layers.Input((5,))
    frozen = keras.Model(frozen_in, layers.Dense(5, activation="tanh", name="fixed")(frozen_in), name="frozen")
    frozen.trainable = False
    tail = keras.Sequential(
        [layers.Input((5,)), layers.Dense(4, activation="relu", name="tail_1"), layers.Dense(CLASSES, name="tail_2")]
    )
    inputs = layers.Input((5,))
    x = layers.Add()([frozen(inputs), block(inputs)])
    return btf.Model(inputs, tail(layers.Add()([x, frozen(x)])))


def frozen_layer() -> keras.Model:
    model = mlp()
    model.layers[1].trainable = False
    return model


def covered_zoo() -> keras.Model:
    """One of each remaining family with a Gram form."""
    inputs = layers.Input((6, 6, 2))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(inputs)
    x = layers.GroupNormalization(2, name="group")(x)
    x = layers.SeparableConv2D(6, 3, padding="same", activation="tanh", name="separable")(x)
    x = layers.Reshape((16, 6))(x)
    x = layers.Conv1D(4, 3, activation="tanh", name="conv1d")(x)
    x = layers.EinsumDense("abc,cd->abd", output_shape=(None, 4), bias_axes="d", name="einsum")(x)
    return btf.Model(inputs, layers.Dense(CLASSES, name="head")(layers.GlobalAveragePooling1D()(x)))


NETWORKS: dict[str, Network] = {
    "mlp": Network(mlp, classify(6), cross_entropy),
    "delayed mlp": Network(
        delayed_mlp, classify(6), lambda: {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}
    ),
    "residual cnn": Network(residual_cnn, classify(6, 6, 2), cross_entropy),
    "two by two": Network(
        two_by_two,
        two_by_two_data,
        lambda: {
            "loss": {"label": "sparse_categorical_crossentropy", "number": keras.losses.Huber(0.5)},
            "loss_weights": {"label": 1.0, "number": 0.3},
        },
    ),
    "subclassed": Network(Subclassed, classify(6), cross_entropy),
    "raw tensorflow": Network(RawTensorFlow, classify(6), cross_entropy),
    "own variable": Network(OwnVariable, classify(6), cross_entropy, ("own_variable",)),
    "shared layer": Network(shared, classify(6), cross_entropy),
    "embedding and gru": Network(recurrent, lambda batch: (tokens(batch), labels(batch)), cross_entropy, ("gru",)),
    "attention": Network(attention, classify(4, 6), cross_entropy),
    "other layers": Network(others, classify(4, 5), cross_entropy, ("lstm", "user")),
    "nested": Network(nested, classify(5), cross_entropy),
    "frozen layer": Network(frozen_layer, classify(6), cross_entropy),
    "covered zoo": Network(covered_zoo, classify(6, 6, 2), cross_entropy),
}
