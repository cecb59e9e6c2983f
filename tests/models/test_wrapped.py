"""`as_game` of a subclassed Keras model: a game that calls it, and what it would have to leave out is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import bellman_tf as btf
from tests.helpers import assert_close
from tests.strategies.networks import cross_entropy, labels, normal, tokens

pytestmark = pytest.mark.filterwarnings("ignore:.*trains these layers open-loop.*")
FIT = {"batch_size": 4, "shuffle": False, "verbose": 0}


@keras.saving.register_keras_serializable("bellman_tf_tests")
class Plain(keras.Model):
    """Dropout, BatchNormalization, a regularizer, a loss and a metric of its own, an argument with its own name."""

    def __init__(self, width=5, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.hidden = layers.Dense(width, activation="tanh", kernel_regularizer="l2")
        self.norm, self.drop, self.head = layers.BatchNormalization(), layers.Dropout(0.5, seed=1), layers.Dense(3)

    def call(self, t, training=None):
        x = self.drop(self.norm(self.hidden(t), training=training), training=training)
        self.add_loss(0.01 * keras.ops.mean(keras.ops.square(x)))
        return self.head(x)

    def get_config(self):
        return super().get_config() | {"width": self.width}


def data():
    return normal(8, 6), labels(8)


class NoTraining(Plain):
    """Keras trains it without dropout and with moving statistics."""

    def call(self, t):
        return self.head(self.drop(self.norm(self.hidden(t))))


def sgd():
    return keras.optimizers.SGD(0.1)


def open_loop():
    return btf.GTDDP(0.1, information="open", curvature="identity")


@pytest.mark.parametrize("make", [Plain, NoTraining])
@pytest.mark.parametrize("optimizer", [sgd, open_loop])
def test_it_trains_as_the_model_itself_does_under_sgd(make, optimizer):
    results = []
    for wrap, its_optimizer in ((lambda model: model, sgd), (btf.as_game, optimizer)):
        keras.utils.set_random_seed(0)
        model = wrap(make())
        model.compile(optimizer=its_optimizer(), **cross_entropy())
        history = model.fit(*data(), epochs=3, **FIT).history
        results.append((history["loss"], model.get_weights(), model.evaluate(*data(), verbose=0)))
    assert_close(results[1][0], results[0][0], rtol=1e-5)
    assert_close(results[1][2], results[0][2], rtol=1e-5)
    for expected, actual in zip(results[0][1], results[1][1], strict=True):
        assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_layers_weights_and_name_are_shared():
    plain = Plain(name="mine")
    game = btf.as_game(plain)
    assert isinstance(game, keras.Model)
    assert game.name == "mine"
    game.compile(optimizer=btf.GTDDP(), **cross_entropy())
    game.fit(*data(), **FIT)
    assert np.array_equal(plain(data()[0]), game(data()[0]))
    assert [id(v) for v in plain.trainable_variables] == [id(v) for v in game.trainable_variables]
    assert btf.as_game(game) is game
    parameters = sum(player.parameters for player in game.game.players)
    assert parameters == sum(v.numpy().size for v in plain.trainable_variables)
    plain.compile(optimizer="adam", **cross_entropy())
    plain.fit(*data(), **FIT)
    assert np.array_equal(plain(data()[0]), game(data()[0]))


def test_it_trains_with_the_defaults():
    game = btf.as_game(NoTraining())
    game.compile(optimizer=btf.GTDDP(), **cross_entropy())
    losses = game.fit(*data(), epochs=6, batch_size=8, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_masks_reach_the_wrapped_model():
    class Masked(keras.Model):
        def __init__(self):
            super().__init__()
            self.table, self.pool = layers.Embedding(9, 4, mask_zero=True), layers.GlobalAveragePooling1D()

        def call(self, t):
            return self.pool(self.table(t))

    plain, x = Masked(), tokens(8)
    assert_close(btf.as_game(plain)(x), plain(x), rtol=1e-6)


def test_it_saves_loads_clones_and_continues_identically(tmp_path):
    game = btf.as_game(Plain(width=4))
    game.compile(optimizer=btf.GTDDP(), **cross_entropy())
    game.fit(*data(), **FIT)
    game.save(tmp_path / "game.keras")
    loaded = keras.saving.load_model(tmp_path / "game.keras")
    assert type(loaded) is type(game)
    assert type(loaded.model) is Plain
    assert loaded.model.width == 4
    for model in (game, loaded):
        model.fit(*data(), epochs=2, **FIT)
    for a, b in zip(game.optimizer.variables, loaded.optimizer.variables, strict=True):
        assert np.array_equal(a, b)
    assert all(np.array_equal(a, b) for a, b in zip(game.get_weights(), loaded.get_weights(), strict=True))
    assert keras.models.clone_model(game).model.width == 4
    game.export(tmp_path / "export", verbose=False)


@pytest.mark.parametrize("name", ["train_step", "test_step", "predict_step", "compute_loss", "compute_metrics"])
def test_training_code_of_its_own_is_refused_by_name(name):
    own = type("Own", (Plain,), {name: lambda self, *args, **kwargs: None})
    with pytest.raises(ValueError, match=f"`model` must leave training to Keras.* own {name}.*Received.*Own.*Derive"):
        btf.as_game(own())


def test_metrics_of_its_own_are_refused():
    class Own(Plain):
        @property
        def metrics(self):
            return []

    with pytest.raises(ValueError, match="its own metrics"):
        btf.as_game(Own())


def functional(kind):
    inputs = keras.Input((6,))
    return kind(inputs, layers.Dense(3)(inputs))


def sequential(kind):
    return kind([layers.Input((6,)), layers.Dense(3)])


@pytest.mark.parametrize(("make", "base"), [(functional, keras.Model), (sequential, keras.Sequential)])
def test_a_graph_does_not_stand_for_a_class_that_trains_itself(make, base):
    own = type("Own", (base,), {"compute_loss": lambda self, *args, **kwargs: None})
    with pytest.raises(ValueError, match=r"its own compute_loss.*Own"):
        btf.as_game(make(own))


@pytest.mark.parametrize(("make", "base"), [(functional, keras.Model), (sequential, keras.Sequential)])
def test_a_graph_does_not_stand_for_a_call_of_ones_own(make, base):
    class Scaled(base):
        def call(self, inputs, training=None, mask=None):
            return 10 * super().call(inputs, training=training)

    rate, moves = 1e-4, []
    x, y = data()
    for ours in (True, False):
        keras.utils.set_random_seed(0)
        plain = make(Scaled)
        model = btf.as_game(plain) if ours else plain
        model.compile(btf.GTDDP(rate, curvature="identity") if ours else keras.optimizers.SGD(rate), **cross_entropy())
        assert_close(model(x), 10 * plain.layers[-1](x), rtol=1e-6)
        before = plain.get_weights()
        model.train_on_batch(x, y)
        moves.append([(new - old) / rate for new, old in zip(plain.get_weights(), before, strict=True)])
    rounding = np.finfo("float32").eps / rate  # of weights below 1
    for ours, expected in zip(*moves, strict=True):
        assert np.abs(expected).max() > 100 * rounding
        assert_close(ours, expected, rtol=1000 * rate, atol=rounding)  # leverages are of the order of 10^2


def counted(model):
    """A list that grows by one with every trace of the model's training step."""
    traces, step = [], model.train_step
    object.__setattr__(model, "train_step", lambda data: (traces.append(1), step(data))[1])
    return traces


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("curvature", ["adam", "kfac"])
def test_its_step_is_traced_once(built, curvature):
    plain, (x, y) = Plain(), data()
    if built:
        plain(x)
    model = btf.as_game(plain)
    model.compile(optimizer=btf.GTDDP(0.1, curvature=curvature), **cross_entropy())
    traces = counted(model)
    model.fit(x, y, **FIT)
    assert len(traces) == 1


def test_its_step_on_a_batch_is_traced_once():
    model = btf.as_game(Plain())
    model.compile(optimizer=btf.GTDDP(0.1), **cross_entropy())
    traces = counted(model)
    model.train_on_batch(*data())
    model.train_on_batch(*data())
    assert len(traces) == 1


def test_it_is_built_in_its_first_step_where_sizes_are_not_known():
    x, y = data()
    model = btf.as_game(Plain())
    model.compile(optimizer=btf.GTDDP(0.1), **cross_entropy())
    for unknown in (
        tf.TensorSpec(None, "float32"),
        tf.TensorSpec((None, None), "float32"),
        tf.ragged.constant([[1.0]]),
    ):
        model.sees((unknown, y))
        assert not model.built
    model.sees((tf.TensorSpec((None, 6), "float32"), y))
    assert model.built
    model.fit(x, y, **FIT)


# ---- training code of the user's own


class OwnStep(btf.Model):
    def __init__(self):
        super().__init__()
        self.head = layers.Dense(3)

    def call(self, t):
        return self.head(t)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return {"loss": loss}


def test_a_train_step_of_ones_own_is_advised_to_use_the_loss():
    model = OwnStep()
    model.compile(optimizer="sgd", **cross_entropy())
    model.fit(*data(), **FIT)  # with an optimizer of Keras it is the user's business
    before = model.get_weights()
    model.compile(optimizer=btf.GTDDP(), **cross_entropy())
    with pytest.raises(ValueError, match=r"takes the whole training step.*'own_step.*compute_loss.*train_on_batch"):
        model.fit(*data(), **FIT)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_the_advice_works():
    class Advised(btf.Model):
        def __init__(self):
            super().__init__()
            self.head = layers.Dense(3)

        def call(self, t):
            return self.head(t)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean(keras.ops.square(y_pred - keras.ops.one_hot(y, 3)))

    model = Advised()
    model.compile(optimizer=btf.GTDDP())
    losses = model.fit(*data(), epochs=5, **FIT).history["loss"]
    assert losses[-1] < losses[0]


def test_a_loop_around_a_plain_model_is_told_both_ways():
    model = keras.Sequential([layers.Input((6,)), layers.Dense(3)])
    optimizer = btf.GTDDP()
    for call in (lambda: optimizer.apply([], []), lambda: optimizer.scale_loss(1.0)):
        with pytest.raises(ValueError, match=r"as_game.*bellman_tf\.Model.*train_on_batch.*compute_loss"):
            call()
    model.compile(optimizer=optimizer, **cross_entropy())
    with pytest.raises(ValueError, match="as_game"):
        model.fit(*data(), **FIT)
