"""Functional models: layer kinds alone and together."""

import keras
import numpy as np
from keras import layers, ops

from tests.zoo.case import Case

random = np.random.default_rng(0)
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def images(size=8, channels=3, batch=6):
    return random.normal(size=(batch, size, size, channels)).astype("float32")


def sequences(length=6, width=4, batch=6):
    return random.normal(size=(batch, length, width)).astype("float32")


def labels(classes=3, batch=6):
    return random.integers(0, classes, batch)


def functional(shape, body, dtype=None):
    """A builder: `body` maps the input to the output."""

    def build(base):
        inputs = keras.Input(shape, dtype=dtype)
        return base(inputs, body(inputs))

    return build


def pooled(x):
    return layers.Dense(3)(layers.GlobalAveragePooling2D()(x))


def averaged(x):
    return layers.Dense(3)(layers.GlobalAveragePooling1D()(x))


def residual(x):
    h = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    g = layers.Conv2D(4, 3, padding="same")(h)
    return pooled(layers.Add()([h, g]))


def normalised(x):
    h = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    h = layers.BatchNormalization()(layers.Conv2D(4, 3, strides=2, padding="same")(h))
    return pooled(layers.Activation("relu")(h))


def u_net(x):
    down = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    low = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu")(down)
    up = layers.Conv2DTranspose(4, 3, strides=2, padding="same", activation="relu")(low)
    return layers.Conv2D(3, 1)(layers.Concatenate()([down, up]))


def two_views():
    """One encoder on two inputs."""

    def build(base):
        encoder = keras.Sequential([layers.Dense(6, activation="tanh"), layers.Dense(4)])
        left, right = keras.Input((5,)), keras.Input((5,))
        return base([left, right], layers.Dense(1)(ops.abs(encoder(left) - encoder(right))))

    return build


def frozen_base(x):
    base = keras.Sequential([layers.Dense(8, activation="relu"), layers.BatchNormalization(), layers.Dense(8)])
    base.trainable = False
    return layers.Dense(3)(base(x, training=False))


def mixer(x):
    tokens = layers.Permute((2, 1))(layers.Dense(6, activation="gelu")(layers.Permute((2, 1))(x)))
    return averaged(layers.LayerNormalization()(x + tokens))


def masked(x):
    h = layers.Embedding(9, 5, mask_zero=True)(x)
    return layers.Dense(3)(layers.GlobalAveragePooling1D()(layers.Dense(5, activation="tanh")(h)))


def attention(layer):
    def body(x):
        return averaged(layers.LayerNormalization()(x + layer(x, x)))

    return body


def two_outputs(base):
    x = keras.Input((5,))
    h = layers.Dense(6, activation="tanh")(x)
    return base(x, {"a": layers.Dense(2, name="a")(h), "b": layers.Dense(3, activation="softmax", name="b")(h)})


def shared_convolution(x):
    """One convolution at two sizes, as in pyramids."""
    layer = layers.Conv2D(3, 3, padding="same", activation="relu")
    return layers.Dense(3)(
        layers.GlobalAveragePooling2D()(layer(x))
        + layers.GlobalAveragePooling2D()(layer(layers.AveragePooling2D(2)(x)))
    )


def regularized(x):
    h = layers.Dense(6, activation="tanh", kernel_regularizer="l2", activity_regularizer="l2")(x)
    return layers.Dense(3, bias_regularizer="l1")(h)


IMAGES, SEQUENCES, VECTORS = images(), sequences(), random.normal(size=(6, 5)).astype("float32")
MAPS = random.normal(size=(6, 8, 8, 3)).astype("float32")


def on_images(body, covered=1.0):
    return Case(functional((8, 8, 3), body), IMAGES, labels(), SPARSE, covered)


def on_sequences(body, covered=1.0):
    return Case(functional((6, 4), body), SEQUENCES, labels(), SPARSE, covered)


def on_vectors(body, covered=1.0):
    return Case(functional((5,), body), VECTORS, labels(), SPARSE, covered)


def convolution_of(layer):
    return on_images(lambda x: pooled(layer()(x)))


FUNCTIONAL = {
    "mlp": on_vectors(lambda x: layers.Dense(3)(layers.Dense(6, activation="tanh")(x))),
    "regularized": on_vectors(regularized),
    "dropout": on_vectors(lambda x: layers.Dense(3)(layers.Dropout(0.4)(layers.Dense(6, activation="relu")(x)))),
    "frozen_base": on_vectors(frozen_base),
    "residual": on_images(residual),
    "batch_normalization": on_images(normalised),
    "group_normalization": on_images(lambda x: pooled(layers.GroupNormalization(2)(layers.Conv2D(4, 3)(x)))),
    "depthwise": convolution_of(lambda: layers.DepthwiseConv2D(3, padding="same", activation="relu")),
    "separable": convolution_of(lambda: layers.SeparableConv2D(4, 3, activation="relu")),
    "grouped": on_images(lambda x: pooled(layers.Conv2D(6, 3, groups=2)(layers.Conv2D(4, 3)(x)))),
    "transposed": convolution_of(lambda: layers.Conv2DTranspose(4, 3, strides=2, padding="same", activation="relu")),
    "prelu": on_images(lambda x: pooled(layers.PReLU(shared_axes=[1, 2])(layers.Conv2D(4, 3)(x)))),
    "u_net": Case(functional((8, 8, 3), u_net), IMAGES, MAPS, "mse", 1.0),
    "shared_convolution": on_images(shared_convolution),
    "causal": on_sequences(lambda x: averaged(layers.Conv1D(4, 3, padding="causal", dilation_rate=2)(x))),
    "mixer": on_sequences(mixer),
    "rms_normalization": on_sequences(lambda x: averaged(layers.RMSNormalization()(layers.Dense(5)(x)))),
    "multi_head_attention": on_sequences(lambda x: attention(layers.MultiHeadAttention(2, 3))(x)),
    "grouped_query_attention": on_sequences(lambda x: attention(layers.GroupQueryAttention(3, 4, 2))(x)),
    "time_distributed": on_sequences(lambda x: averaged(layers.TimeDistributed(layers.Dense(5, activation="relu"))(x))),
    "lstm": on_sequences(lambda x: layers.Dense(3)(layers.LSTM(5)(x)), None),
    "bidirectional": on_sequences(lambda x: layers.Dense(3)(layers.Bidirectional(layers.GRU(4))(x)), None),
    "masked": Case(functional((6,), masked, "int32"), random.integers(0, 9, (6, 6)), labels(), SPARSE, 1.0),
    "two_views": Case(two_views(), [VECTORS, VECTORS[::-1].copy()], np.ones((6, 1), "float32"), "mse", 1.0),
    "two_outputs": Case(
        two_outputs,
        VECTORS,
        {"a": np.ones((6, 2), "float32"), "b": labels()},
        {"a": "mse", "b": "sparse_categorical_crossentropy"},
        1.0,
    ),
    "spectral_normalization": on_vectors(
        lambda x: layers.Dense(3)(layers.SpectralNormalization(layers.Dense(6, activation="tanh"))(x)), None
    ),
}
