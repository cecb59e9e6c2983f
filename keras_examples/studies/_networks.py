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


def autoencoder() -> keras.Model:
    """Martens and Grosse's deep autoencoder, 784-1000-500-250-30-250-500-1000-784 with tanh; logits of pixels.

    Returns:
        The model.

    Source: Martens and Grosse 2015, Sec. 13 (after Hinton and Salakhutdinov 2006).
    """
    inputs = keras.Input((784,))
    x = inputs
    for width in (1000, 500, 250):
        x = keras.layers.Dense(width, activation="tanh")(x)
    x = keras.layers.Dense(30)(x)
    for width in (250, 500, 1000):
        x = keras.layers.Dense(width, activation="tanh")(x)
    return btf.Model(inputs, keras.layers.Dense(784)(x))


def residual_stages(shape: tuple[int, ...], widths: tuple[int, ...], normalize: bool) -> keras.Model:
    """A 3x3 convolution, then one residual block per further width, each but the first of stride 2.

    Args:
        shape: of one image.
        widths: channels of the first convolution and of each block.
        normalize: whether a BatchNormalization follows every convolution.

    Returns:
        The model; shortcuts that change the width are 1x1 convolutions.
    """

    def convolution(x: object, width: int, size: int = 3, step: int = 1) -> object:
        x = keras.layers.Conv2D(
            width, size, strides=step, padding="same", use_bias=not normalize, kernel_initializer="he_normal"
        )(x)
        return keras.layers.BatchNormalization(momentum=0.9)(x) if normalize else x

    def relu(x: object) -> object:
        return keras.layers.Activation("relu")(x)

    inputs = keras.Input(shape)
    x = relu(convolution(inputs, widths[0]))
    for before, width in zip(widths, widths[1:], strict=False):
        step = 1 if width == before else 2
        y = convolution(relu(convolution(x, width, step=step)), width)
        shortcut = x if step == 1 else convolution(x, width, 1, step)
        x = relu(keras.layers.Add()([shortcut, y]))
    return btf.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))


def _block(x: object, width: int, causal: bool) -> object:
    """Attention of four heads, then a dense layer twice as wide, both behind a normalisation and beside a shortcut."""
    h = keras.layers.LayerNormalization()(x)
    h = keras.layers.MultiHeadAttention(4, width // 4)(h, h, use_causal_mask=causal)
    x = keras.layers.Add()([x, h])
    h = keras.layers.Dense(2 * width, activation="gelu")(keras.layers.LayerNormalization()(x))
    return keras.layers.Add()([x, keras.layers.Dense(width)(h)])


def vision_transformer(shape: tuple[int, ...], patch: int, width: int, blocks: int) -> keras.Model:
    """Square patches, attention blocks, the mean over all patches, dense.

    Args:
        shape: of one image.
        patch: pixels along one side of a patch.
        width: of a token.
        blocks: how many.

    Returns:
        The model; positions have a learned embedding.
    """
    inputs = keras.Input(shape)
    x = keras.layers.Conv2D(width, patch, strides=patch)(inputs)
    x = keras.layers.Reshape((-1, width))(x)
    x = PositionEmbedding()(x)
    for _ in range(blocks):
        x = _block(x, width, causal=False)
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(x))
    return btf.Model(inputs, keras.layers.Dense(10)(x))


def character_transformer(length: int, characters: int, width: int, blocks: int) -> keras.Model:
    """Predicts every next character of a text.

    Args:
        length: characters of one sample.
        characters: in the alphabet.
        width: of a token.
        blocks: of causal attention.

    Returns:
        The model; logits `[B, length, characters]`.
    """
    inputs = keras.Input((length,), dtype="int32")
    x = PositionEmbedding()(keras.layers.Embedding(characters, width)(inputs))
    for _ in range(blocks):
        x = _block(x, width, causal=True)
    return btf.Model(inputs, keras.layers.Dense(characters)(keras.layers.LayerNormalization()(x)))


class PositionEmbedding(keras.layers.Layer):
    """Adds a learned vector to every position."""

    def build(self, shape: tuple) -> None:
        """One vector per position of `[B, L, d]`."""
        self.table = self.add_weight(shape=shape[1:], initializer=keras.initializers.RandomNormal(stddev=0.02))

    def call(self, x: object) -> object:
        """Adds the table."""
        return x + self.table
