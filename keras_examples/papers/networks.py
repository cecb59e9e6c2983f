"""The papers' networks that no other example has, each a function of the shape of one sample. All give logits."""

import keras

import bellman_tf as btf


def fully_connected(
    shape: tuple[int, ...],
    hidden: tuple[int, ...],
    activation: str,
    classes: int = 10,
    sigmoid: bool = False,
    decay: float = 0.0,
) -> keras.Model:
    """Dense layers with one activation, then a dense layer.

    Args:
        shape: of one sample.
        hidden: units of each layer but the last.
        activation: of these.
        classes: outputs.
        sigmoid: put sigmoids on the outputs. Written out: Keras's own leaves the values before it on the tensor, and
            a loss with `from_logits=True` then takes those.
        decay: weight of the sum of squares of all kernels in the loss.

    Returns:
        The model.

    Source: DDP1 App. D.1, DDPNOpt App. A.3.1.
    """
    regularizer = keras.regularizers.L2(decay) if decay else None
    inputs = keras.Input(shape)
    x = inputs if len(shape) == 1 else keras.layers.Flatten()(inputs)
    for width in hidden:
        x = keras.layers.Dense(width, activation=activation, kernel_regularizer=regularizer)(x)
    x = keras.layers.Dense(classes, kernel_regularizer=regularizer)(x)
    return btf.Model(inputs, 0.5 + 0.5 * keras.ops.tanh(0.5 * x) if sigmoid else x)


def residual_blocks(
    shape: tuple[int, ...], width: int, blocks: int, activation: str, strides: int = 1, pool: int = 2
) -> keras.Model:
    """A 3x3 convolution, blocks of three 3x3 convolutions beside an identity, average pooling, a dense layer.

    Args:
        shape: of one image.
        width: channels.
        blocks: how many.
        activation: behind every convolution and every sum.
        strides: of the first convolution.
        pool: side of the squares that are averaged before the dense layer.

    Returns:
        The model; it has no normalisation.

    Source: GT-DDP Sec. 5, DGNOpt Fig. 2 and App. E.1; strides and pooling, which no paper states, are ours.
    """

    def convolution(x: object, strides: int = 1, active: bool = True) -> object:
        x = keras.layers.Conv2D(width, 3, strides=strides, padding="same", kernel_initializer=initializer)(x)
        return keras.layers.Activation(activation)(x) if active else x

    initializer = "he_normal" if activation == "relu" else "glorot_uniform"
    inputs = keras.Input(shape)
    x = convolution(inputs, strides)
    for _ in range(blocks):
        h = convolution(convolution(convolution(x)), active=False)
        x = keras.layers.Activation(activation)(keras.layers.Add()([x, h]))
    x = keras.layers.Flatten()(keras.layers.AveragePooling2D(pool)(x))
    return btf.Model(inputs, keras.layers.Dense(10)(x))


def convolutions(
    shape: tuple[int, ...], widths: tuple[int, ...], dense: tuple[int, ...] = (), every: int = 1
) -> keras.Model:
    """3x3 convolutions with ReLU and pooling between them, then dense layers with ReLU, then a dense layer.

    Args:
        shape: of one image.
        widths: channels of each convolution.
        dense: units of each hidden dense layer.
        every: convolutions before a pooling of 2x2.

    Returns:
        The model.

    Source: DDPNOpt App. A.3.1 (3x3), DGNOpt App. E.1 (four convolutions of 32 channels and two dense layers).
    """
    inputs = keras.Input(shape)
    x = inputs
    for number, width in enumerate(widths, 1):
        x = keras.layers.Conv2D(width, 3, padding="same", activation="relu", kernel_initializer="he_normal")(x)
        if number % every == 0 and min(x.shape[1:3]) > 1:
            x = keras.layers.MaxPooling2D(2)(x)
    x = keras.layers.Flatten()(x)
    for width in dense:
        x = keras.layers.Dense(width, activation="relu", kernel_initializer="he_normal")(x)
    return btf.Model(inputs, keras.layers.Dense(10)(x))


def dense_shortcut(shape: tuple[int, ...], width: int) -> keras.Model:
    """Two dense layers with ReLU beside a third, which may act beside either, then a dense layer.

    Args:
        shape: of one image.
        width: units.

    Returns:
        The model, the smallest in which an alignment is a choice.
    """
    inputs = keras.Input(shape)
    x = keras.layers.Flatten()(inputs)
    h = keras.layers.Dense(width)(keras.layers.Dense(width, activation="relu")(x))
    x = keras.layers.Activation("relu")(keras.layers.Add()([keras.layers.Dense(width)(x), h]))
    return btf.Model(inputs, keras.layers.Dense(10)(x))


def resnet18(
    shape: tuple[int, ...], width: int = 64, trainable_shortcuts: bool = False, classes: int = 10
) -> keras.Model:
    """ResNet-18 for small images: a 3x3 convolution, four stages of two blocks, pooling, a dense layer.

    Args:
        shape: of one image.
        width: channels of the first stage; each further stage doubles them and halves the image.
        trainable_shortcuts: every shortcut is a 1x1 convolution, not only those that change the shape.
        classes: outputs.

    Returns:
        The model, with BatchNormalization behind every convolution.

    Source: DGNOpt App. E.1 (He et al. 2016, for 32 x 32 pixels).
    """

    def convolution(x: object, width: int, size: int = 3, strides: int = 1) -> object:
        x = keras.layers.Conv2D(
            width, size, strides=strides, padding="same", use_bias=False, kernel_initializer="he_normal"
        )(x)
        return keras.layers.BatchNormalization(momentum=0.9)(x)

    def relu(x: object) -> object:
        return keras.layers.Activation("relu")(x)

    inputs = keras.Input(shape)
    x = relu(convolution(inputs, width))
    for stage in range(4):
        channels = width * 2**stage
        for block in range(2):
            strides = 2 if stage and not block else 1
            h = convolution(relu(convolution(x, channels, strides=strides)), channels)
            changed = strides > 1 or trainable_shortcuts
            x = relu(keras.layers.Add()([convolution(x, channels, 1, strides) if changed else x, h]))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return btf.Model(inputs, keras.layers.Dense(classes)(x))


def normalised(shape: tuple[int, ...], hidden: tuple[int, ...]) -> keras.Model:
    """Dense layers, BatchNormalization and tanh, then a dense layer.

    Args:
        shape: of one sample.
        hidden: units of each layer but the last.

    Returns:
        The model.

    Source: GT-DDP Fig. 4.
    """
    inputs = keras.Input(shape)
    x = keras.layers.Flatten()(inputs)
    for width in hidden:
        x = keras.layers.BatchNormalization(momentum=0.9)(keras.layers.Dense(width)(x))
        x = keras.layers.Activation("tanh")(x)
    return btf.Model(inputs, keras.layers.Dense(10)(x))
