"""`call` stays the user's own: any signature, any structure of inputs, restored after every step."""

import collections
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import bellman_tf as btf
from bellman_tf.training.execution import recorded
from tests.helpers import assert_close
from tests.strategies.networks import cross_entropy, labels, normal

Pair = collections.namedtuple("Pair", ["left", "right"])


def net(base, kind):
    """A subclass of `base` whose `call` has a signature of one kind, and its inputs."""

    class Net(base):
        def __init__(self):
            super().__init__()
            self.a = layers.Dense(5, activation="tanh")
            self.b = layers.Dense(3)

        if kind == "own name":

            def call(self, t):
                return self.b(self.a(t))

        elif kind == "extra arguments":

            def call(self, t, mask=None, training=None):
                return self.b(self.a(t))

        elif kind == "keyword only":

            def call(self, t, *, scale=2.0, training=None):
                return self.b(self.a(t)) * scale

        elif kind == "tuple":

            def call(self, both):
                left, right = both
                return self.b(self.a(left)) + self.b(self.a(right))

        elif kind == "named tuple":

            def call(self, both):
                return self.b(self.a(both.left)) + both.right[:, :3]

        elif kind == "dictionary":

            def call(self, batch, training=False):
                return self.b(self.a(batch["left"])) + batch["deep"]["right"][:, :3]

    return Net()


def inputs_of(kind):
    x, z = normal(8, 4), normal(8, 4, seed=3)
    return {"tuple": (x, z), "named tuple": Pair(x, z), "dictionary": {"left": x, "deep": {"right": z}}}.get(kind, x)


def batches(kind):
    return tf.data.Dataset.from_tensors((inputs_of(kind), labels(8)))


KINDS = ("own name", "extra arguments", "keyword only", "tuple", "named tuple", "dictionary")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", [lambda: keras.optimizers.SGD(0.1), btf.GTDDP], ids=["SGD", "GTDDP"])
@pytest.mark.filterwarnings("ignore:.*trains these layers open-loop.*")
def test_any_signature_trains_and_exports_as_in_keras(kind, optimizer, tmp_path, capsys):
    plain, mine = net(keras.Model, kind), net(btf.Model, kind)
    plain.compile(optimizer=keras.optimizers.SGD(0.1), **cross_entropy())
    mine.compile(optimizer=optimizer(), **cross_entropy())
    plain.fit(batches(kind), verbose=0, shuffle=False)
    mine.fit(batches(kind), verbose=0, shuffle=False)
    assert mine._build_shapes_dict == plain._build_shapes_dict
    assert type(mine).call.__code__ is type(net(btf.Model, kind)).call.__code__, "the class holds the user's function"
    x = keras.tree.map_structure(tf.convert_to_tensor, inputs_of(kind))
    expected = mine(x)
    if kind == "named tuple":
        return  # Keras's export takes it apart
    mine.export(tmp_path / "export", verbose=False)
    reloaded = tf.saved_model.load(str(tmp_path / "export"))
    served = reloaded.serve(x)
    assert_close(served, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_open_loop_equals_sgd(kind):
    weights = []
    for base, optimizer in (
        (keras.Model, keras.optimizers.SGD(0.1)),
        (btf.Model, btf.GTDDP(0.1, information="open", curvature="identity")),
    ):
        keras.utils.set_random_seed(0)
        model = net(base, kind)
        model.compile(optimizer=optimizer, **cross_entropy())
        model.fit(batches(kind), epochs=3, verbose=0, shuffle=False)
        weights.append(model.get_weights())
    for expected, actual in zip(*weights, strict=True):
        assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_model_called_by_keyword_is_known_too():
    model = net(btf.Model, "own name")
    model(t=normal(8, 4))
    assert [player.kind for player in model.game.players] == ["dense", "dense"]


def test_call_is_restored_when_it_raises():
    class Failing(btf.Model):
        def __init__(self):
            super().__init__()
            self.head = layers.Dense(3)
            self.broken = False

        def call(self, t):
            if self.broken:
                raise RuntimeError("broken on purpose")
            return self.head(t)

    model = Failing()
    x, y = normal(8, 4), labels(8)
    model.compile(optimizer=btf.GTDDP(), **cross_entropy())
    model.train_on_batch(x, y)
    attributes, before = set(model.__dict__), model(x)
    model.broken = True
    model.compile(optimizer=btf.GTDDP(), **cross_entropy())
    with pytest.raises(RuntimeError, match="broken on purpose"), recorded(model, lambda inputs: model.head(1 / 0)):
        type(model).call(model, x)
    with pytest.raises(ZeroDivisionError), recorded(model, lambda inputs: 1 / 0):
        model(x)
    assert "call" not in model.__dict__
    assert attributes <= set(model.__dict__)
    model.broken = False
    assert np.array_equal(model(x), before)
    model.compile(optimizer="adam", **cross_entropy())
    assert np.isfinite(model.train_on_batch(x, y))


def test_other_threads_run_the_models_own_call():
    model, x = net(btf.Model, "own name"), normal(8, 4)
    expected, seen = model(x), []
    with recorded(model, lambda inputs: inputs * 0):
        thread = threading.Thread(target=lambda: seen.append(model(x)))
        thread.start()
        thread.join()
        assert np.array_equal(model(x), x * 0)
    assert np.array_equal(seen[0], expected)


# ---- the game is read anew


@pytest.mark.parametrize("same", [False, True], ids=["another optimizer", "the same optimizer"])
def test_an_attribute_changed_before_compile_is_seen(same):
    class Gain(btf.Model):
        def __init__(self):
            super().__init__()
            self.head = layers.Dense(3)
            self.gain = 1.0

        def call(self, t):
            return self.head(t) * self.gain

    x, y = normal(8, 4), labels(8)
    model = Gain()
    model.compile(optimizer=btf.GTDDP(1e-6, curvature="identity"), **cross_entropy())
    model.train_on_batch(x, y)
    model.gain = 10.0
    again = model.optimizer if same else btf.GTDDP(1e-6, curvature="identity")
    model.compile(optimizer=again, **cross_entropy())
    expected = model.evaluate(x, y, verbose=0)
    assert_close(model.train_on_batch(x, y), expected, rtol=1e-6)


class Order(btf.Model):
    """Two layers of one shape in either order."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = layers.Dense(4, name="a"), layers.Dense(4, name="b"), layers.Dense(3)
        self.turned = False

    def call(self, t):
        return self.head(self.a(self.b(t)) if self.turned else self.b(self.a(t)))


def test_a_built_optimizer_does_not_go_on_with_other_players():
    x, y = normal(8, 4), labels(8)
    model = Order()
    model.compile(optimizer=btf.GTDDP(), **cross_entropy())
    model.train_on_batch(x, y)
    model.turned = True
    model.compile(optimizer=model.optimizer, **cross_entropy())
    names = [player.name for player in model.game.players[:2]]
    if names == ["a", "b"]:  # the state belongs to the right layers
        model.train_on_batch(x, y)
    else:
        with pytest.raises(ValueError, match="`optimizer` must be new, or have been built for these players"):
            model.train_on_batch(x, y)
    model.compile(optimizer=btf.GTDDP(), **cross_entropy())
    assert np.isfinite(model.train_on_batch(x, y))


@pytest.mark.parametrize("kind", ["sequential", "subclassed"])
def test_freezing_and_unfreezing_is_seen_and_frozen_layers_are_never_called_open_loop(kind):
    if kind == "subclassed":
        model = Order()
        model(normal(8, 4))
        first = model.a
    else:
        first = layers.LSTM(4)  # has no Gram form
        model = btf.Sequential([layers.Input((2, 4)), first, layers.Dense(3)])
    whole = [player.name for player in model.game.players]
    assert first.name in whole
    first.trainable = False
    assert [player.name for player in model.game.players] == [name for name in whole if name != first.name]
    assert not model.game.open_loop_players
    lines = []
    model.game_summary(print_fn=lines.append)
    assert "open-loop" not in lines[0]
    assert first.name not in lines[0].split()
    x = normal(8, 4) if kind == "subclassed" else normal(8, 2, 4)
    model.compile(optimizer=btf.GTDDP(), **cross_entropy())
    model.fit(x, labels(8), verbose=0)  # warnings are errors here
    first.trainable = True
    assert [player.name for player in model.game.players] == whole


# ---- inputs


class Text(btf.Model):
    def __init__(self):
        super().__init__()
        self.table, self.pool, self.head = layers.Embedding(9, 4), layers.GlobalAveragePooling1D(), layers.Dense(3)

    def call(self, tokens):
        return self.head(self.pool(self.table(tokens)))


def test_a_second_length_makes_the_axis_unknown():
    model = Text()
    model.compile(optimizer=btf.GTDDP(), **cross_entropy())
    for length in (5, 7, 5, 6):
        tokens = np.random.default_rng(length).integers(0, 9, (8, length))
        assert np.isfinite(model.train_on_batch(tokens, labels(8)))
    assert int(model.optimizer.iterations) == 4
    assert tuple(model._input_signature.shape) == (None, None)
    assert model._input_signature.dtype == "int64"
    assert [player.kind for player in model.game.players] == ["embedding", "dense"]


def test_inputs_of_another_rank_or_number_change_nothing():
    model = net(btf.Model, "tuple")
    model((normal(8, 4), normal(8, 4)))
    kept = keras.tree.map_structure(lambda leaf: leaf.shape, model._input_signature)
    model._remember(normal(8, 4))
    model._remember((normal(8, 4), normal(8, 2, 4)))
    model._remember("no tensor")
    assert keras.tree.map_structure(lambda leaf: leaf.shape, model._input_signature) == kept


def sparse_batches():
    x = tf.sparse.from_dense(np.where(normal(16, 6) > 0.5, normal(16, 6, seed=1), 0))
    return tf.data.Dataset.from_tensor_slices((x, labels(16))).batch(8)


def sparse_functional(model_class):
    inputs = layers.Input((6,), sparse=True)
    return model_class(inputs, layers.Dense(3)(layers.Dense(5, activation="tanh")(inputs)))


SPARSE = {
    "functional": lambda mine: sparse_functional(btf.Model if mine else keras.Model),
    "subclassed": lambda mine: net(btf.Model if mine else keras.Model, "own name"),
}


@pytest.mark.parametrize("make", SPARSE.values(), ids=SPARSE)
def test_sparse_inputs_train_as_sgd_does(make):
    rate, weights = 1e-4, []
    optimizers = [
        keras.optimizers.SGD(rate),
        btf.GTDDP(rate, information="open", curvature="identity"),
        btf.GTDDP(rate, curvature="identity"),
    ]
    for optimizer in optimizers:
        keras.utils.set_random_seed(0)
        model = make(not isinstance(optimizer, keras.optimizers.SGD))
        model.compile(optimizer=optimizer, **cross_entropy())
        model(next(iter(sparse_batches()))[0])
        before = model.get_weights()
        model.fit(sparse_batches(), verbose=0, shuffle=False)
        weights.append([(new - old) / rate for new, old in zip(model.get_weights(), before, strict=True)])
    for expected, opened, game in zip(*weights, strict=True):
        assert np.abs(expected).max() > 1e-2
        assert_close(opened, expected, atol=1e-2)
        assert_close(game, expected, atol=1e-2)
    assert [player.covered for player in model.game.players] == [True, True]
    if not isinstance(model, keras.Function):
        assert model._input_signature.sparse


@pytest.mark.parametrize("make", SPARSE.values(), ids=SPARSE)
def test_sparse_inputs_train_with_the_defaults(make):
    model = make(True)
    model.compile(optimizer=btf.GTDDP(), **cross_entropy())
    losses = model.fit(sparse_batches(), epochs=4, verbose=0, shuffle=False).history["loss"]
    assert losses[-1] < losses[0]


def test_ragged_inputs_are_refused_in_words():
    model = Text()
    model.compile(optimizer=btf.GTDDP(), **cross_entropy())
    ragged = tf.ragged.constant([[1, 2, 3], [4], [5, 6], [7, 8]], dtype="int64")
    with pytest.raises(ValueError, match=r"`x` must be dense or sparse.*ragged\.to_tensor"):
        model.train_on_batch(ragged, labels(4))
    model.compile(optimizer=btf.GTDDP(), **cross_entropy())  # a function whose first trace failed makes no variables
    assert np.isfinite(model.train_on_batch(ragged.to_tensor(), labels(4)))


def test_inputs_of_different_leading_sizes_train_open_loop_as_sgd_does():
    """A batch of graphs: rows of nodes and of edges are not samples."""

    def make(base):
        class Graphs(base):
            def __init__(self):
                super().__init__()
                self.node, self.edge, self.head = layers.Dense(5, activation="tanh"), layers.Dense(5), layers.Dense(3)

            def call(self, graphs):
                pooled = keras.ops.segment_sum(self.node(graphs["nodes"]), graphs["owner"], num_segments=4)
                return self.head(pooled + keras.ops.mean(self.edge(graphs["edges"]), axis=0))

        return Graphs()

    owner = np.sort(np.random.default_rng(0).integers(0, 4, 11)).astype("int32")
    graphs = {"nodes": normal(11, 2), "edges": normal(23, 2), "owner": owner}
    data = tf.data.Dataset.from_tensors((graphs, labels(4)))
    weights = []
    for base, optimizer in (
        (keras.Model, keras.optimizers.SGD(0.1)),
        (btf.Model, btf.GTDDP(0.1, information="open", curvature="identity")),
    ):
        keras.utils.set_random_seed(0)
        model = make(base)
        model.compile(optimizer=optimizer, **cross_entropy())
        model.fit(data, epochs=2, verbose=0, shuffle=False)
        weights.append(model.get_weights())
    for expected, actual in zip(*weights, strict=True):
        assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    shapes = keras.tree.map_structure(lambda leaf: tuple(leaf.shape), model._input_signature)
    assert shapes == {"nodes": (None, 2), "edges": (None, 2), "owner": (None,)}
