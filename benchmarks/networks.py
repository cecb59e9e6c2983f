"""The networks of the step benchmarks, each with one batch of random numbers of its own."""

import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_examples.studies import _networks

CLASSES = functools.partial(keras.losses.SparseCategoricalCrossentropy, from_logits=True)
PIXELS = functools.partial(keras.losses.BinaryCrossentropy, from_logits=True)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A network and how it is timed.

    Attributes:
        network: makes the network.
        shape: of one sample.
        batch: samples B.
        steps: in one block of steps that is timed.
        loss: makes the loss.
        characters: of the alphabet, where samples are texts and every next character is a label; else 0.
    """

    network: Callable[[], keras.Model]
    shape: tuple[int, ...]
    batch: int
    steps: int
    loss: Callable[[], keras.losses.Loss] = CLASSES
    characters: int = 0

    def data(self, batch: int | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Inputs and labels, the same at every call.

        Args:
            batch: samples; the problem's own by default.

        Returns:
            Random ones of the kind that the loss takes.
        """
        batch, rng = batch or self.batch, np.random.default_rng(0)
        if self.characters:
            x, y = rng.integers(0, self.characters, size=(2, batch, *self.shape))
            return tf.constant(x, tf.int32), tf.constant(y)
        x = tf.constant(rng.normal(size=(batch, *self.shape)), tf.float32)
        return x, (tf.nn.sigmoid(x) if self.loss is PIXELS else tf.constant(rng.integers(0, 10, size=batch)))


def mlp() -> keras.Model:
    """64-32-32-32-10: op dispatch, not arithmetic."""
    layers = [keras.layers.Dense(32, activation="tanh") for _ in range(3)]
    return keras.Sequential([keras.Input((64,)), *layers, keras.layers.Dense(10)])


def cnn() -> keras.Model:
    """Residual CNN on 28 x 28 x 16."""
    inputs = keras.Input((28, 28, 1))
    x = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(inputs)
    for _ in range(2):
        y = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(x)
        y = keras.layers.Conv2D(16, 3, padding="same")(y)
        x = keras.layers.ReLU()(keras.layers.Add()([x, y]))
    outputs = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs)


def resnet18() -> keras.Model:
    """ResNet-18 for 32 x 32 images."""
    inputs = keras.Input((32, 32, 3))

    def unit(x: object, filters: int, size: int, stride: int) -> object:
        x = keras.layers.Conv2D(filters, size, stride, padding="same", use_bias=False)(x)
        return keras.layers.BatchNormalization()(x)

    x = keras.layers.ReLU()(unit(inputs, 64, 3, 1))
    for filters, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        y = keras.layers.ReLU()(unit(x, filters, 3, stride))
        y = unit(y, filters, 3, 1)
        shortcut = x if stride == 1 and x.shape[-1] == filters else unit(x, filters, 1, stride)
        x = keras.layers.ReLU()(keras.layers.Add()([shortcut, y]))
    outputs = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs)


def attention_block(x: object) -> object:
    """Attention of four heads, then a dense layer of twice the width 64, each behind a normalisation and a shortcut."""
    h = keras.layers.LayerNormalization()(x)
    x = keras.layers.Add()([x, keras.layers.MultiHeadAttention(4, 16)(h, h)])
    h = keras.layers.LayerNormalization()(x)
    return keras.layers.Add()([x, keras.layers.Dense(64)(keras.layers.Dense(128, activation="gelu")(h))])


def vit() -> keras.Model:
    """Vision transformer of 64 tokens, width 64, 3 blocks."""
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Reshape((64, 64))(keras.layers.Conv2D(64, 4, strides=4)(inputs))
    for _ in range(3):
        x = attention_block(x)
    outputs = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, outputs)


def frozen() -> keras.Model:
    """A frozen MobileNetV2 for 96 x 96 images with a head."""
    base = keras.applications.MobileNetV2(weights=None, input_shape=(96, 96, 3), include_top=False, pooling="avg")
    base.trainable = False
    inputs = keras.Input((96, 96, 3))
    return keras.Model(inputs, keras.layers.Dense(10)(base(inputs, training=False)))


def branches() -> keras.Model:
    """Residual MLP with trainable shortcuts beside two layers: two players a stage, movable shortcuts."""
    inputs = keras.Input((64,))
    x = keras.layers.Dense(64, activation="tanh")(inputs)
    for _ in range(2):
        y = keras.layers.Dense(64, activation="tanh")(x)
        x = keras.layers.Add()([keras.layers.Dense(64)(y), keras.layers.Dense(64)(x)])
    return keras.Model(inputs, keras.layers.Dense(10)(x))


cifar = functools.partial(_networks.residual_stages, (32, 32, 3), (16, 16, 32, 64), False)
text = functools.partial(_networks.character_transformer, 64, 96, 64, 3)

PROBLEMS = {
    "mlp": Problem(mlp, (64,), 8, 200),
    "cnn": Problem(cnn, (28, 28, 1), 128, 4),
    "resnet18": Problem(resnet18, (32, 32, 3), 32, 1),
    "cifar": Problem(cifar, (32, 32, 3), 128, 2),
    "vit": Problem(vit, (32, 32, 3), 64, 2),
    "text": Problem(text, (64,), 64, 2, characters=96),
    "autoencoder": Problem(_networks.autoencoder, (784,), 250, 3, PIXELS),
    "frozen": Problem(frozen, (96, 96, 3), 16, 2),
    "branches": Problem(branches, (64,), 64, 50),
}
