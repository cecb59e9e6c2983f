"""The game of a model as it runs: players at any depth, named by their paths, in the stages of the data flow."""

import keras
import numpy as np
import pytest
from keras import layers

import bellman_tf as btf
from bellman_tf.game.stages import TracedGame
from tests.strategies.networks import NETWORKS
from tests.zoo.subclassed import Block


def built(name):
    network = NETWORKS[name]
    model = network.make()
    if not model.built:
        model(network.data(2)[0])
    return model


def names(game):
    return [[player.name for player in stage] for stage in game.stages]


@pytest.mark.parametrize("name", ["mlp", "residual cnn", "two by two", "subclassed"])
def test_stages_are_those_of_the_traced_graph(name):
    model = built(name)
    native = [sorted(name for name in stage if not name.endswith("/bias")) for stage in names(model.game)]
    assert native == [sorted(stage) for stage in names(TracedGame(model))]


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "delayed mlp"])
def test_every_trainable_variable_has_one_player(name):
    model = built(name)
    owned = [id(v) for player in model.game.players for v in player.variables]
    assert sorted(owned) == sorted(id(v) for v in model.trainable_variables)
    assert [player.index for player in model.game.players] == list(range(len(model.game.players)))


def test_layers_inside_a_users_layer_are_players_with_paths():
    inputs = keras.Input((6, 4))
    block = Block(4)
    block.name = "block"
    model = btf.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(block(inputs))))
    game = model.game
    assert game.coverage == 1
    last = [[name.split("/")[-1] for name in stage if "bias" not in name] for stage in names(game)]
    assert sorted(last[0]) == ["key", "query", "value"]
    assert last[1] == ["attention_output"]
    assert last[-1] == ["head"]
    assert all(p.name.startswith("block/") for p in game.players if p.name != "head")


def test_weights_of_a_blocks_own_are_named():
    class Scaled(layers.Layer):
        def __init__(self):
            super().__init__()
            self.inside = layers.Dense(4)

        def build(self, shape):
            self.scale = self.add_weight(shape=(4,), initializer="ones", name="scale")
            super().build(shape)

        def call(self, x):
            return self.inside(x) * self.scale

    inputs = keras.Input((4,))
    game = btf.Model(inputs, layers.Dense(2)(Scaled()(inputs))).game
    [player] = game.open_loop_players
    assert player.coverage == "weights of its own (scale) have no Gram form"
    assert [p.kind for p in game.players if p.covered] == ["dense", "dense"]


def text_transformer():
    """Token and position tables, user blocks, as in Keras's text classification example."""

    class Embed(layers.Layer):
        def __init__(self):
            super().__init__()
            self.token, self.position = layers.Embedding(2000, 32), layers.Embedding(40, 32)

        def call(self, x):
            return self.token(x) + self.position(keras.ops.arange(40))

    inputs = keras.Input((40,), dtype="int32")
    x = Block(32)(Block(32)(Embed()(inputs)))
    return btf.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))


def vision_transformer():
    inputs = keras.Input((16, 16, 3))
    x = layers.Reshape((16, 24))(layers.Conv2D(24, 4, strides=4)(inputs))
    for _ in range(2):
        h = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(2, 12)(h, h)])
        h = layers.Dense(24)(layers.Dense(48, activation="gelu")(layers.LayerNormalization()(x)))
        x = layers.Add()([x, h])
    return btf.Model(inputs, layers.Dense(10)(layers.Flatten()(x)))


def mixer():
    inputs = keras.Input((16, 24))
    x = inputs
    for _ in range(2):
        h = layers.Permute((2, 1))(layers.LayerNormalization()(x))
        h = layers.Dense(16)(layers.Dense(32, activation="gelu")(h))
        x = layers.Add()([x, layers.Permute((2, 1))(h)])
        h = layers.Dense(24)(layers.Dense(48, activation="gelu")(layers.LayerNormalization()(x)))
        x = layers.Add()([x, h])
    return btf.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))


def u_net():
    inputs = keras.Input((16, 16, 3))
    x, skips = inputs, []
    for filters in (8, 16):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    for filters, skip in zip((16, 8), reversed(skips), strict=True):
        x = layers.Conv2DTranspose(filters, 3, strides=2, padding="same", activation="relu")(x)
        x = layers.BatchNormalization()(layers.Conv2D(filters, 3, padding="same")(layers.Concatenate()([x, skip])))
    return btf.Model(inputs, layers.Conv2D(2, 1)(layers.ReLU()(x)))


def siamese():
    encoder = keras.Sequential([layers.Conv2D(8, 3, activation="relu"), layers.GlobalMaxPooling2D(), layers.Dense(6)])
    left, right = keras.Input((12, 12, 1)), keras.Input((12, 12, 1))
    gap = keras.ops.abs(encoder(left) - encoder(right))
    return btf.Model([left, right], layers.Dense(1, activation="sigmoid")(gap))


@pytest.mark.parametrize("make", [text_transformer, vision_transformer, mixer, u_net, siamese])
def test_of_common_architectures_nearly_everything_is_covered(make):
    model = make()
    if not model.built:
        model(np.zeros((2, 40), int))
    assert model.game.coverage >= 0.95


# Inception's and Xception's want 71 pixels or more.
APPLICATIONS = [name for name in dir(keras.applications) if name[0].isupper() and "ception" not in name]


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_of_every_application_nearly_everything_is_covered(name):
    make = getattr(keras.applications, name)
    model = btf.as_game(make(weights=None, input_shape=(64, 64, 3), classes=10))
    assert model.game.coverage >= 0.95
