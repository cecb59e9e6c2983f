"""Every model of `strategies/networks.py` trains, open-loop as Keras's SGD, and with the defaults."""

import contextlib
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import bellman_tf as btf
from tests.helpers import assert_close, thinned
from tests.strategies.networks import NETWORKS, Subclassed, classify, cross_entropy, labels, mlp, normal

BATCH = 8


def trained(network, optimizer, steps=3):
    """The network after a few steps on one batch, its losses, and the warnings on the way."""
    keras.utils.set_random_seed(0)
    model = network.make()
    x, y = network.data(BATCH)
    model.compile(optimizer=optimizer, **network.compile())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", UserWarning)
        history = model.fit(x, y, batch_size=BATCH, epochs=steps, shuffle=False, verbose=0)
    return model, history.history, [str(w.message) for w in seen if "open-loop" in str(w.message)]


@pytest.mark.parametrize("name", thinned(NETWORKS))
def test_open_loop_is_keras_sgd(name):
    network = NETWORKS[name]
    expected, their_history, _ = trained(network, keras.optimizers.SGD(0.1))
    optimizer = btf.GTDDP(0.1, information="open", curvature="identity")
    actual, history, said = trained(network, optimizer)
    assert history.keys() == their_history.keys()
    for key, values in their_history.items():
        assert_close(history[key], values, rtol=1e-5, label=key)
    for variable, value in zip(expected.variables, actual.variables, strict=True):
        assert_close(value, variable, atol=1e-5, label=variable.path)
    assert not said


@pytest.mark.parametrize("name", thinned(NETWORKS))
def test_it_trains_with_the_defaults(name):
    network = NETWORKS[name]
    model, history, said = trained(network, btf.GTDDP())
    assert np.isfinite(history["loss"]).all()
    assert history["loss"][-1] < history["loss"][0]
    assert int(model.optimizer.rejected_batches) == 0
    names = [player.name for player in model.game.open_loop_players]
    assert len(names) == len(network.open_loop)
    assert all(name.startswith(prefix) for name, prefix in zip(names, network.open_loop, strict=True))
    # An untraceable model has no game at all: its players are open-loop without a word of ours to add.
    assert len(said) == (1 if names else 0)
    assert all(name in said[0] for name in names)


FOLLOWED = ["residual cnn", "two by two", "attention", "shared layer", "other layers", "nested", "embedding and gru",
            "covered zoo", "own variable"]  # fmt: skip


@pytest.mark.parametrize("name", thinned(FOLLOWED))
def test_at_a_vanishing_learning_rate_the_game_follows_the_gradient(name):
    """All weights tend to 1/B: the game's own gradients, replayed layers included, are Keras's."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        network, moved = NETWORKS[name], []
        for information in ("open", "cooperative"):
            keras.utils.set_random_seed(0)
            model = network.make()
            x, y = network.data(4)
            optimizer = btf.GTDDP(1e-9, information=information, curvature="identity")
            model.compile(optimizer=optimizer, **network.compile())
            if not model.built:
                model(x)
            before = [v.numpy() for v in model.trainable_variables]
            with contextlib.suppress(UserWarning), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.train_on_batch(x, y)
            moved.append([(v.numpy() - old) / 1e-9 for v, old in zip(model.trainable_variables, before, strict=True)])
        for variable, expected, actual in zip(model.trainable_variables, *moved, strict=True):
            assert_close(actual, expected, rtol=1e-4, atol=1e-6, label=variable.path)
    finally:
        keras.config.set_floatx("float32")


def test_as_game_shares_layers_and_weights():
    inputs = layers.Input((6,))
    plain = keras.Model(inputs, layers.Dense(3)(layers.Dropout(0.5, seed=0)(inputs)))
    game = btf.as_game(plain)
    assert isinstance(game, keras.Model)
    assert game.layers == plain.layers
    assert btf.as_game(game) is game
    x, y = classify(6)(BATCH)
    game.compile(optimizer=btf.GTDDP(), **cross_entropy())
    game.fit(x, y, verbose=0)
    assert np.array_equal(plain(x), game(x))
    sequential = btf.as_game(keras.Sequential([layers.Input((6,)), layers.Dense(3)]))
    assert [player.kind for player in sequential.game.players] == ["dense"]


def test_with_a_keras_optimizer_it_trains_as_keras_does():
    x, y = classify(6)(BATCH)
    weights = []
    for wrap in (lambda model: model, lambda model: keras.Model(model.inputs, model.outputs[0])):
        keras.utils.set_random_seed(0)
        model = wrap(mlp())
        model.compile(optimizer="adam", **cross_entropy())
        model.fit(x, y, verbose=0, epochs=3, shuffle=False)
        weights.append(model.get_weights())
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))


def test_inputs_and_outputs_may_be_given_in_a_subclass():
    class Handed(btf.Model):
        def __init__(self):
            inputs = layers.Input((6,))
            super().__init__(inputs, layers.Dense(3)(inputs))

    x, y = classify(6)(BATCH)
    for model in (Handed(), Subclassed()):  # the second shows that `Model` is still free to be subclassed
        model.compile(optimizer=btf.GTDDP(), **cross_entropy())
        model.fit(x, y, verbose=0)
        assert not model.game.open_loop_players


def test_a_subclassed_model_called_before_compile_is_still_traced():
    x, y = classify(6)(BATCH)
    model = Subclassed()
    model(x)
    model.compile(optimizer=btf.GTDDP(), **cross_entropy())
    model.fit(x, y, verbose=0)
    assert len(model.game.stages) == 3


@pytest.mark.parametrize("kind", ["functional", "sequential", "subclassed"])
def test_weights_travel_to_and_from_plain_keras(kind, tmp_path):
    def make(mine):
        if kind == "subclassed":
            return Subclassed()
        if kind == "sequential":
            cls = btf.Sequential if mine else keras.Sequential
            return cls([layers.Input((6,)), layers.Dropout(0.5, seed=0), layers.Dense(3)])
        inputs = layers.Input((6,))
        outputs = layers.Dense(3)(layers.Dropout(0.5, seed=0)(inputs))
        return (btf.Model if mine else keras.Model)(inputs, outputs)

    path = tmp_path / "model.weights.h5"
    first, second = make(True), make(False)
    x = normal(2, 6)
    first(x), second(x)
    first.save_weights(path)
    second.load_weights(path)
    assert np.array_equal(first(x), second(x))
    second.save_weights(path)
    first.load_weights(path)


def test_the_warning_comes_once_per_fit_and_once_for_single_batches():
    x, y = classify(6)(BATCH)
    x, y = NETWORKS["embedding and gru"].data(BATCH)
    model = NETWORKS["embedding and gru"].make()
    model.compile(optimizer=btf.GTDDP(), **cross_entropy())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model.train_on_batch(x, y)
        model.train_on_batch(x, y)
        assert len(seen) == 1
        model.fit(x, y, epochs=3, verbose=0)
        model.fit(x, y, verbose=0)
    assert len(seen) == 3
    assert "gru" in str(seen[0].message)


def test_an_unbuilt_model_has_no_game_yet():
    model = Subclassed()
    with pytest.raises(ValueError, match="`model` must be built before its `game` is read"):
        _ = model.game
    with pytest.raises(ValueError, match="`model` must be built"):
        btf.as_game(keras.Sequential([layers.Dense(3)]))
    with pytest.raises(ValueError, match="`model` must be a keras.Model"):
        btf.as_game("resnet")


def test_a_metric_of_the_users_own_step_still_works():
    class Reporting(btf.Model):
        def __init__(self):
            super().__init__()
            self.head = layers.Dense(3)

        def call(self, x):
            return self.head(x)

        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            logs = super().compute_metrics(x, y, y_pred, sample_weight)
            return {**logs, "extra": keras.ops.mean(y_pred)}

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean(keras.ops.square(y_pred - keras.ops.one_hot(y, 3)))

    model = Reporting()
    model.compile(optimizer=btf.GTDDP(), metrics=["accuracy"])
    history = model.fit(*classify(6)(BATCH), epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert "extra" in history


APPLICATIONS = ("ResNet50", "MobileNetV2", "DenseNet121")


def application(name):
    keras.utils.set_random_seed(0)
    return btf.as_game(getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3), classes=3))


@pytest.mark.parametrize("name", APPLICATIONS)
def test_applications_are_games_with_every_player_covered(name):
    model = application(name)
    assert not model.game.open_loop_players
    assert len(model.game.players) > 90
    players = sum(player.parameters for player in model.game.players)
    assert players == sum(v.numpy().size for v in model.trainable_variables)


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_applications_train(name):
    # Four samples are too few: MobileNetV2 ends in 1 x 1 maps, where BatchNormalization over so few values turns one
    # rounding error of the first step (1e-7) into 3e-2 by the third, in Keras's own SGD as well.
    x, y = normal(16, 32, 32, 3), labels(16)
    weights = []
    sgd, mine = keras.optimizers.SGD(1e-3), btf.GTDDP(1e-3, information="open", curvature="identity")
    for optimizer in (sgd, mine, btf.GTDDP(1e-3)):
        model = application(name)
        model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy")
        losses = model.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0).history["loss"]
        assert np.isfinite(losses).all()
        weights.append(model.get_weights())
    for expected, actual in zip(*weights[:2], strict=True):
        assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_batches_and_images_of_unknown_size():
    inputs = keras.Input((None, None, 2))
    hidden = layers.Conv2D(3, 3, strides=2, padding="same", activation="relu")(layers.Conv2D(3, 3)(inputs))
    model = btf.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(hidden)))
    model.compile(btf.GTDDP(0.03), **cross_entropy())
    signature = (tf.TensorSpec([None, None, None, 2], tf.float32), tf.TensorSpec([None], tf.int32))
    batches = [(normal(size, width, 9, 2), labels(size)) for size, width in ((5, 8), (3, 11))]
    data = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=signature).repeat()
    assert np.isfinite(model.fit(data, steps_per_epoch=2, epochs=2, verbose=0, shuffle=False).history["loss"]).all()
    assert int(model.optimizer.rejected_batches) == 0


@pytest.mark.parametrize("rollout", ["linear", "nonlinear"])
def test_the_game_of_a_model_is_a_game_whatever_the_roll_out(rollout):
    model = btf.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="first"), keras.layers.Dense(2, name="last")])
    model.compile(btf.GTDDP(0.1, rollout=rollout), "mse")
    assert isinstance(model.game, btf.Game)
    assert [[player.name for player in stage] for stage in model.game.stages] == [["first"], ["last"]]
    assert model.game.alignments.count == 1
    assert model.game.coverage == 1
