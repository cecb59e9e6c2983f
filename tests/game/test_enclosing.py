"""Which layer's outputs lead to the gradient of a variable without a Gram form, and where none do."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import bellman_tf as btf
from bellman_tf.game.players import BACKWARD, COTANGENTS
from tests.helpers import assert_close, thinned

pytestmark = pytest.mark.filterwarnings("ignore:.*open-loop")
TOKENS = np.random.default_rng(0).integers(0, 7, (6, 5))
VECTORS = np.random.default_rng(1).normal(size=(6, 5)).astype("float32")
LABELS = np.arange(6) % 3
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Table(layers.Layer):
    """Adds a row of its own to every position."""

    def __init__(self, length=5, width=4, cost=None, **kwargs):
        super().__init__(**kwargs)
        self.table = self.add_weight(shape=(length, width), initializer="normal", regularizer=cost, name="table")

    def call(self, x):
        return x + ops.cast(self.table, x.dtype)


class TokensAndPositions(layers.Layer):
    """Two tables; the outputs of the second one have no batch axis."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.tokens, self.positions = layers.Embedding(7, 4), layers.Embedding(5, 4, name="places")

    def call(self, x):
        return self.tokens(x) + self.positions(ops.arange(5))


class Gate(layers.Layer):
    """One factor per feature, of the layer's own, in front of a layer inside."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x * ops.cast(self.scale, x.dtype))


class Costly(Gate):
    """Adds what it likes about its factors to the loss."""

    def call(self, x):
        self.add_loss(ops.sum(ops.square(self.scale)))
        return super().call(x)


class Inside(Gate):
    """Uses its factors in a loop of TensorFlow."""

    def call(self, x):
        return self.inner(tf.map_fn(lambda row: row * self.scale, x))


class Looped(layers.Layer):
    """Runs another layer in a loop of TensorFlow, row by row."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, x):
        return tf.map_fn(lambda row: self.inner(row[None])[0], x)


def chain(*parts, shape=(5,), dtype="float32"):
    inputs = x = keras.Input(shape, dtype=dtype)
    for part in parts:
        x = part(x)
    return btf.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)))


def text(*parts):
    return chain(layers.Embedding(7, 4), *parts, shape=(5,), dtype="int32")


def open_loop(model):
    return {p.name: (p.weighing, getattr(p.within, "name", None)) for p in model.game.open_loop_players}


FOUND = {
    "a table of the layer's own": (lambda: text(Table(name="t")), {"t": "t"}),
    "a table whose outputs have no batch axis": (
        lambda: chain(TokensAndPositions(name="both"), dtype="int32"),
        {"both/places": "both"},
    ),
    "in front of a layer inside": (lambda: chain(Gate(layers.Dense(4), name="gate")), {"gate": "gate"}),
    "in a layer inside one": (
        lambda: chain(Gate(Gate(layers.Dense(4), name="in"), name="out")),
        {"out": "out", "out/in": "in"},
    ),
    "used in a loop inside its layer": (lambda: chain(Inside(layers.Dense(4), name="gate")), {"gate": "gate"}),
    "a layer that runs in a loop of another one": (
        lambda: chain(Looped(Gate(layers.Dense(4), name="gate"), name="loop")),
        {"loop/gate": "loop", "loop/gate/dense": "loop"},
    ),
    "a recurrent layer": (lambda: text(layers.LSTM(3, name="lstm")), {"lstm": "lstm"}),
    "a normalisation in its own layer": (
        lambda: chain(Gate(keras.Sequential([layers.Dense(4), layers.BatchNormalization()]), name="gate")),
        None,  # the Dense layer inside needs a backward pass, which serves the factors as well
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_the_innermost_layer_that_serves(name):
    make, within = FOUND[name]
    keras.backend.clear_session()
    found = open_loop(make())
    assert found
    if within is None:
        assert set(found.values()) == {(BACKWARD, None)}
    else:
        assert found == {player: (COTANGENTS, layer) for player, layer in within.items()}


class Tied(btf.Model):
    """Uses a layer's table once more at the end."""

    def __init__(self):
        super().__init__()
        self.tokens, self.first = layers.Embedding(7, 4), Table()

    def call(self, x):
        x = ops.mean(self.first(self.tokens(x)), 1)
        return ops.matmul(x, ops.transpose(self.first.table))


class Own(btf.Model):
    """Has a variable of its own beside a layer's."""

    def __init__(self):
        super().__init__()
        self.gate, self.head = Gate(layers.Dense(4)), layers.Dense(3)
        self.shift = self.add_weight(shape=(4,), initializer="zeros", name="shift")

    def call(self, x):
        return self.head(ops.tanh(self.gate(x) + self.shift))


class Twice(btf.Model):
    """Calls a layer on what it has returned: its first outputs lead to the second."""

    def __init__(self):
        super().__init__()
        self.gate, self.head = Gate(layers.Dense(5)), layers.Dense(3)

    def call(self, x):
        return self.head(self.gate(self.gate(x)))


class Saturated(Twice):
    """The same where hardly anything of the first outputs' gradient gets through."""

    def call(self, x):
        return self.head(self.gate(ops.tanh(1e3 * self.gate(x))))


class Moved(btf.Model):
    """Moves samples behind the layer: row i of its outputs belongs to another sample."""

    def __init__(self, move):
        super().__init__()
        self.gate, self.head, self.move = Gate(layers.Dense(5)), layers.Dense(3), move
        self.seed = keras.random.SeedGenerator(0)

    def call(self, x):
        return self.head(self.move(self.gate(x), self.seed))


class Folded(btf.Model):
    """Puts positions into the batch before the layer and takes them out behind it."""

    def __init__(self):
        super().__init__()
        self.tokens, self.gate, self.head = layers.Embedding(7, 4), Gate(layers.Dense(4)), layers.Dense(3)

    def call(self, x):
        x = self.gate(ops.reshape(self.tokens(x), (-1, 4)))
        return self.head(ops.reshape(x, (-1, 20)))


LEFT = {
    "the variable is used elsewhere": (Tied, TOKENS),
    "the model has a variable of its own": (Own, VECTORS),
    "the layer runs on its own outputs": (Twice, VECTORS),
    "the layer runs on its own outputs, saturated": (Saturated, VECTORS),
    "rows are reversed": (lambda: Moved(lambda x, seed: x[::-1]), VECTORS),
    "rows are shuffled": (lambda: Moved(lambda x, seed: keras.random.shuffle(x, 0, seed)), VECTORS),
    "samples meet": (lambda: Moved(lambda x, seed: x - ops.mean(x, 0)), VECTORS),
    "positions are rows": (Folded, TOKENS),
    "the layer adds to the loss": (lambda: chain(Costly(layers.Dense(4))), VECTORS),
    "a normalisation behind it": (
        lambda: chain(Gate(layers.Activation("tanh")), layers.BatchNormalization()),
        VECTORS,
    ),
    "a layer in front of a normalisation": (
        lambda: chain(layers.Dense(5), layers.BatchNormalization(), Gate(layers.Dense(4))),
        VECTORS,
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_where_none_serves_one_backward_pass_does(name):
    make, x = LEFT[name]
    model = make()
    model(x)
    found = open_loop(model)
    assert found
    assert set(found.values()) == {(BACKWARD, None)}


def test_a_layer_around_serves_where_rows_are_positions():
    class Around(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.gate = Gate(layers.Dense(4), name="gate")

        def call(self, x):
            return ops.reshape(self.gate(ops.reshape(x, (-1, 4))), (-1, 20))

    found = open_loop(text(Around(name="around")))
    assert found["around/gate"] == (COTANGENTS, "around")


def test_the_summary_says_whose_outputs():
    lines = []
    chain(TokensAndPositions(name="both"), dtype="int32").game_summary(print_fn=lines.append)
    assert "cotangents of both" in "\n".join(lines)


STEPS = {
    "the default": (lambda: btf.GTDDP(0.1), False),
    "identity": (lambda: btf.GTDDP(0.1, curvature="identity"), False),
    "a terminal Hessian of higher rank": (
        lambda: btf.GTDDP(0.1, curvature="identity", terminal_hessian="full"),
        False,
    ),
    "weights of each player's own": (lambda: btf.GTDDP(0.1, information="feedback"), False),
    "groups": (lambda: btf.GTDDP(0.1, group_size=2), False),
    "another optimizer inside": (lambda: btf.GTDDP(inner_optimizer=keras.optimizers.SGD(0.1)), False),
    "XLA": (lambda: btf.GTDDP(0.1), True),
}


def take_a_backward_pass(game):
    """Leaves open-loop players to one more backward pass of the weighted loss."""
    game.players[:] = [
        player if player.covered else dataclasses.replace(player, weighing=BACKWARD, within=None)
        for player in game.players
    ]


@pytest.mark.parametrize("name", thinned(STEPS))
def test_both_ways_lead_to_the_same_gradient(name):
    """One more backward pass of everything behind the variable is the reference."""
    optimizer, jit = STEPS[name]

    def trained(way):
        keras.utils.set_random_seed(3)
        model = text(Table(cost="l2", name="t"), Gate(layers.Dense(4, activation="tanh"), name="gate"))
        model.compile(optimizer(), SPARSE, jit_compile=jit)
        assert set(open_loop(model).values()) == {(COTANGENTS, "t"), (COTANGENTS, "gate")}
        if way == BACKWARD:
            take_a_backward_pass(model.game)
        for _ in range(3):
            model.train_on_batch(TOKENS, LABELS, sample_weight=np.linspace(0.2, 2.0, 6))
        return [v.numpy() for v in model.trainable_variables]

    for new, old in zip(trained(COTANGENTS), trained(BACKWARD), strict=True):
        assert_close(new, old, rtol=2e-5, atol=2e-6)


def test_it_saves_the_backward_pass_behind_the_layer():
    def tanhs(way):
        model = text(Table(), *(layers.Dense(4, activation="tanh") for _ in range(4)))
        model.compile(btf.GTDDP(curvature="identity"), SPARSE, jit_compile=False)
        if way == BACKWARD:
            take_a_backward_pass(model.game)
        step = tf.function(lambda: model.train_step((tf.constant(TOKENS), tf.constant(LABELS))), autograph=False)
        return sum(op.type == "TanhGrad" for op in step.get_concrete_function().graph.get_operations())

    assert tanhs(COTANGENTS) == 4
    assert tanhs(BACKWARD) == 8
