"""The networks of the studies, all with logits for ten classes. Plain Keras but for `btf.Model` at the end."""

import keras

import bellman_tf as btf


def tanh_mlp(shape: tuple[int, ...]) -> keras.Model:
    """The papers' network for DIGITS: 64-20-20-20-20-10 with tanh.

    Args:
        shape: of one image.

    Returns:
        The model.
    """
    inputs = keras.Input(shape)
    x = keras.layers.Flatten()(inputs)
    for _ in range(4):
        x = keras.layers.Dense(20, activation="tanh")(x)
    return btf.Model(inputs, keras.layers.Dense(10)(x))


def residual_cnn(shape: tuple[int, ...], width: int, strides: int, normalize: bool) -> keras.Model:
    """A 3x3 convolution, two residual blocks of two 3x3 convolutions, global pooling, dense.

    Args:
        shape: of one image.
        width: channels.
        strides: of the first convolution.
        normalize: whether a BatchNormalization follows every convolution.

    Returns:
        The model.
    """

    def convolution(x: object, step: int = 1) -> object:
        x = keras.layers.Conv2D(
            width, 3, strides=step, padding="same", use_bias=not normalize, kernel_initializer="he_normal"
        )(x)
        # Runs are short: Keras's momentum of 0.99 would still remember the first weights at the end.
        return keras.layers.BatchNormalization(momentum=0.9)(x) if normalize else x

    def relu(x: object) -> object:
        return keras.layers.Activation("relu")(x)

    inputs = keras.Input(shape)
    x = relu(convolution(inputs, strides))
    for _ in range(2):
        y = convolution(relu(convolution(x)))
        x = relu(keras.layers.Add()([x, y]))
    return btf.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))
