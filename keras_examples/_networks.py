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


def small_cnn(shape: tuple[int, ...]) -> keras.Model:
    """Three 3x3 convolutions of stride 2 with 8, 16 and 16 channels, dense; activations are layers of their own.

    Args:
        shape: of one image.

    Returns:
        The model.
    """
    inputs = keras.Input(shape)
    x = inputs
    for width in (8, 16, 16):
        x = keras.layers.Conv2D(width, 3, strides=2, padding="same", kernel_initializer="he_normal")(x)
        x = keras.layers.Activation("relu")(x)
    return btf.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(x)))


def shortcut_cnn(shape: tuple[int, ...], width: int, strides: int, blocks: int) -> keras.Model:
    """A 5x5 convolution, residual blocks of two 3x3 convolutions beside a trainable 1x1 one, dense.

    Args:
        shape: of one image.
        width: channels.
        strides: of the first convolution.
        blocks: how many.

    Returns:
        The model; every shortcut may act beside the first or the second convolution of its block.
    """

    def convolution(x: object, size: int, step: int = 1) -> object:
        layer = keras.layers.Conv2D(width, size, strides=step, padding="same", kernel_initializer="he_normal")
        return layer(x)

    def relu(x: object) -> object:
        return keras.layers.Activation("relu")(x)

    inputs = keras.Input(shape)
    x = relu(convolution(inputs, 5, strides))
    for _ in range(blocks):
        y = convolution(relu(convolution(x, 3)), 3)
        x = relu(keras.layers.Add()([convolution(x, 1), y]))
    return btf.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(x)))


def cooperative_blocks(shape: tuple[int, ...], width: int, convolutions: int = 3) -> keras.Model:
    """The cooperative-block network: pairs of layers with a common input whose outputs are added, then tanh.

    Args:
        shape: of one image.
        width: channels of the convolutions, and a quarter of the units of the dense pair.
        convolutions: blocks of 3x3 convolutions of stride 2.

    Returns:
        The model: convolution blocks, one dense block, a dense layer.

    Source: GT-DDP Fig. 7a, DGNOpt Fig. 3a.
    """

    def block(x: object, *layers: keras.layers.Layer) -> object:
        return keras.layers.Activation("tanh")(keras.layers.Add()([layer(x) for layer in layers]))

    inputs = keras.Input(shape)
    x = inputs
    for _ in range(convolutions):
        x = block(x, *[keras.layers.Conv2D(width, 3, strides=2, padding="same") for _ in range(2)])
    x = block(keras.layers.Flatten()(x), *[keras.layers.Dense(4 * width) for _ in range(2)])
    return btf.Model(inputs, keras.layers.Dense(10)(x))
