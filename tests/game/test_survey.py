"""What a run on made-up samples says of a model: which rows are samples, what has no effect, what is written."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import bellman_tf as btf
from bellman_tf.game import replayable, survey, synthetic_samples
from bellman_tf.game.players import BACKWARD, COTANGENTS
from tests.zoo import ZOO


def game_of(outputs, inputs):
    return btf.Model(inputs, outputs).game


def by_name(game):
    return {player.name: player for player in game.players}


@pytest.mark.parametrize(
    ("name", "covered", "reason"),
    [
        ("time_major", 1, "rows on a made-up batch of 4 samples"),
        ("time_major_four", 1, "its rows are not the samples of the loss"),  # T = B, also in the survey
        ("reversed", 1, "its rows are not the samples of the loss"),
        ("contrast", 1, "its rows are not the samples of the loss"),
        ("folded_then_flat", 1, "rows on a made-up batch of 4 samples"),
        ("one_batch_of_two", 1, "rows on a made-up batch of 4 samples"),
        ("folded_outputs", 2, None),
        ("tied_embedding", 1, "its variables are used elsewhere"),
    ],
)
def test_rows_are_known_and_not_guessed(name, covered, reason):
    game = ZOO[name].compiled(btf.Model, btf.GTDDP()).game
    assert sum(player.covered for player in game.players) == covered
    for player in game.open_loop_players:
        assert reason in player.coverage


@pytest.mark.parametrize("share", [0.1, 0.001])
def test_a_second_use_of_a_kernel_is_seen_however_small(share):
    class Penalised(btf.Model):
        def __init__(self):
            super().__init__()
            self.hidden = layers.Dense(6, activation="tanh", name="hidden")
            self.head = layers.Dense(3, name="head")

        def call(self, x):
            return self.head(self.hidden(x)) + share * keras.ops.sum(keras.ops.abs(self.hidden.kernel))

    model = Penalised()
    model(np.ones((8, 6)))
    game = by_name(model.game)
    assert {name: player.covered for name, player in game.items()} == {"hidden": False, "head": True}
    assert "its variables are used elsewhere" in game["hidden"].coverage


def test_a_network_that_starts_at_zero_is_seen_all_the_same():
    inputs = keras.Input((4,))
    x = layers.Dense(3, activation="tanh")(inputs)
    game = game_of(layers.Dense(2, kernel_initializer="zeros")(x), inputs)
    assert game.coverage == 1


def test_it_leaves_no_trace():
    case = ZOO["counting"]
    model = case.compiled(btf.Model, btf.GTDDP())
    before = [v.numpy() for v in model.variables]
    signature = model._input_signature
    game = model.game
    assert model.game is game
    assert model._input_signature is signature
    assert all(np.array_equal(v.numpy(), old) for v, old in zip(model.variables, before, strict=True))
    assert [v.name for v in game.written] == ["calls"]


def test_frozen_variables_are_not_written():
    inputs = keras.Input((6, 6, 2))
    base = keras.Sequential([layers.Conv2D(3, 3), layers.BatchNormalization(), layers.Dropout(0.5)])
    base.trainable = False
    head = layers.Dense(2)(layers.BatchNormalization()(layers.Flatten()(base(inputs))))
    game = game_of(head, inputs)
    written = {v.path.split("/")[-1] for v in game.written}
    assert written == {"moving_mean", "moving_variance", "seed_generator_state"}
    assert len(game.written) == 3, "of the trained normalisation and the dropout, not of the frozen normalisation"


def test_in_front_of_a_normalisation_the_gradient_takes_a_backward_pass_and_a_bias_has_no_effect():
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(3, 3, activation="relu", name="first")(inputs)
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, name="second")(x))
    game = game_of(layers.Dense(2, name="head")(layers.Flatten()(layers.ReLU()(x))), inputs)
    players = by_name(game)
    assert [players[name].weighing for name in ("first", "second", "norm", "head")] == [
        BACKWARD, BACKWARD, COTANGENTS, COTANGENTS,
    ]  # fmt: skip
    assert players["second/bias"].null
    assert not players["second/bias"].covered
    assert "first/bias" not in players, "a relu behind it: it has an effect"
    assert game.coverage == 1
    assert not game.open_loop_players


def test_the_bias_of_keys_has_no_effect():
    inputs = keras.Input((5, 6))
    game = game_of(layers.MultiHeadAttention(2, 3, name="attention")(inputs, inputs), inputs)
    assert [p.name for p in game.players if p.null] == ["attention/key/bias"]


def test_a_frozen_normalisation_mixes_nothing():
    inputs = keras.Input((4,))
    norm = layers.BatchNormalization()
    norm.trainable = False
    game = game_of(layers.Dense(2)(norm(layers.Dense(3, name="before")(inputs))), inputs)
    assert by_name(game)["before"].weighing == COTANGENTS
    assert not any(player.null for player in game.players)


def test_a_normalisation_at_rest_is_open_loop_and_mixes_nothing():
    game = ZOO["inference_inside"].compiled(btf.Model, btf.GTDDP()).game
    assert [p.layers[0].__class__.__name__ for p in game.open_loop_players] == ["BatchNormalization"]
    assert "training=False" in game.open_loop_players[0].coverage
    assert {p.weighing for p in game.players if p.covered} == {COTANGENTS}


def test_a_model_that_refuses_made_up_samples_says_so_and_trains():
    class Picky(btf.Model):
        def __init__(self):
            super().__init__()
            self.head = layers.Dense(2)

        def call(self, x):
            if tf.executing_eagerly():
                tf.debugging.assert_greater(x, 100.0, message="these are not my data")
            return self.head(x - 101.0)

    model = Picky()
    model.compile(btf.GTDDP(0.1, curvature="identity"), "mse")
    x, y = np.full((4, 3), 102.0, "float32"), np.zeros((4, 2), "float32")
    with pytest.warns(UserWarning, match="open-loop"):
        losses = [model.train_on_batch(x, y) for _ in range(5)]
    assert "these are not my data" in model.game.reason
    assert losses[-1] < losses[0]


def test_unknown_lengths_are_made_up():
    inputs = keras.Input((None, 4))
    game = game_of(layers.Dense(2)(layers.GlobalAveragePooling1D()(layers.Conv1D(3, 5)(inputs))), inputs)
    assert game.coverage == 1


def test_variables_of_tensorflow_are_put_back():
    class Raw(btf.Model):
        def __init__(self):
            super().__init__()
            self.head, self.steps = layers.Dense(2), tf.Variable(0.0, trainable=False)

        def call(self, x):
            self.steps.assign_add(1.0)
            return self.head(x) + ops.zeros((2,))

    model = Raw()
    model(np.ones((2, 3), "float32"))
    assert model.game.coverage == 1
    assert float(model.steps) == 1.0


class Table(layers.Layer):
    """Looks rows up by itself, and fails where there is none."""

    def build(self, shape):
        self.rows = self.add_weight(shape=(12, 5))

    def call(self, x):
        return tf.gather(self.rows, tf.cast(x, tf.int32))


@pytest.mark.filterwarnings("ignore:.*open-loop")
@pytest.mark.parametrize("looked_at", [False, True], ids=["fitted at once", "looked at first"])
@pytest.mark.parametrize(
    ("lookup", "covered"), [(lambda: layers.Embedding(12, 5), 2), (Table, 1)], ids=["embedding", "own table"]
)
def test_tokens_of_an_input_declared_as_floating_are_indices(lookup, covered, looked_at, monkeypatch):
    surveys, run = [], survey._survey
    monkeypatch.setattr(survey, "_survey", lambda *args: surveys.append(1) or run(*args))
    model = btf.Sequential([keras.Input((7,)), lookup(), layers.Dense(12)])
    model.compile(btf.GTDDP(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    if looked_at:  # before any data are seen
        assert sum(player.covered for player in model.game.players) == covered
        surveys.clear()
    tokens = np.random.default_rng(0).integers(12, size=[11, 7])
    for size in (6, 5):  # two traces of one game
        model.fit(tokens[:size], tokens[:size], batch_size=size, verbose=0)
        assert sum(player.covered for player in model.game.players) == covered
        assert sum(player.covered for player in model.optimizer.players) == covered
    assert len(surveys) == 1


def test_numbers_that_are_no_index_of_a_table_and_the_way_back_from_one():
    inputs = keras.Input((4,), dtype="int32")
    table = layers.ReversibleEmbedding(6, 3, tie_weights=False)
    one_row, behind = layers.Embedding(1, 3), layers.Embedding(5, 3)
    hidden = layers.Dense(3)(table(inputs) + one_row(inputs) + behind(inputs - 2))
    game = game_of(table(hidden, reverse=True), inputs)
    covered = {id(player.layers[0]) for player in game.players if player.covered}
    assert {id(one_row), id(behind)} <= covered
    assert "dense" in {player.kind for player in game.players if player.covered}


def attention(tokens, look_up):
    x = look_up(tokens)
    return layers.Dense(3)(layers.GlobalAveragePooling1D()(layers.MultiHeadAttention(2, 2, name="mha")(x, x) + x))


@pytest.mark.parametrize("dtype", ["int32", "float32"])
@pytest.mark.parametrize("mask_zero", [False, True])
def test_attention_straight_on_tokens_sees_different_ones(dtype, mask_zero):
    """Of equal ones it has no gradient in queries and keys."""
    tokens, table = keras.Input((6,), dtype=dtype), layers.Embedding(9, 4, mask_zero=mask_zero)
    found = by_name(game_of(attention(tokens, table), tokens))
    assert [found[f"mha/{name}"].covered for name in ("query", "key")] == [True, True]
    assert found[table.name].covered
    assert found["mha/key/bias"].null


@pytest.mark.parametrize("entries", [1, 2])
def test_entries_that_a_table_lacks_or_masks_are_not_looked_up(entries, monkeypatch):
    table, seen = layers.Embedding(entries, 4, mask_zero=entries == 2), []
    monkeypatch.setattr(table, "call", lambda x, own=table.call: (seen.append(x), own(x))[1])
    tokens = keras.Input((6,), dtype="int32")
    game_of(attention(tokens, table), tokens)
    looked_up = [x.numpy() for x in seen if hasattr(x, "numpy")]
    assert looked_up
    assert all((x == entries - 1).all() for x in looked_up)


def test_a_gradient_that_is_rounding_is_called_zero():
    """Made-up tokens that no table looks up are equal, and so are keys."""
    tokens = keras.Input((6,), dtype="int32")
    model = btf.Model(tokens, attention(tokens, lambda t: layers.Dense(4)(ops.one_hot(t, 9))))
    found = by_name(model.game)
    for name in ("query", "key"):
        assert found[f"mha/{name}"].coverage.endswith("its gradient is zero or not finite on made-up samples")


@pytest.mark.parametrize("rollout", ["linear", "nonlinear"])
def test_made_up_samples_spare_a_kernel_that_corrupts_memory(rollout):
    """With an odd number of them the process may die, see `ROWS` in `synthetic_samples`."""

    class Scaled(layers.Layer):  # a user's layer: the model is looked at by a run
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

        def call(self, x):
            return x * self.scale

    inputs = keras.Input((16, 16, 8))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(16, 1, strides=2)(Scaled()(inputs)))
    model = btf.Model(inputs, layers.Dense(3)(x))
    model.compile(btf.GTDDP(0.01, rollout=rollout), "mse")
    model.optimizer.build(model.trainable_variables)
    assert all(rows % 2 == 0 for rows in (synthetic_samples.ROWS, *replayable.ROWS))


class WithEmptyTable(layers.Layer):
    def build(self, shape):
        self.rows = self.add_weight(shape=(0, shape[-1]))

    def call(self, x):
        return x + keras.ops.sum(self.rows)


def test_a_weight_without_entries_takes_nobody_out_of_the_game():
    inputs = keras.Input((5,))
    hidden = WithEmptyTable()(layers.Dense(5, "tanh")(inputs))
    model = btf.Model(inputs, layers.Dense(3)(hidden))
    assert model.game.coverage == 1.0
    assert [player.covered for player in model.game.players if "dense" in player.name] == [True, True]
    model.compile(btf.GTDDP(0.1), "mse")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = model.fit(np.ones([4, 5]), np.zeros([4, 3]), epochs=5, verbose=0).history["loss"]
    assert history[-1] < history[0]
