"""What a model remembers of its inputs: several lengths, sparse, ragged, rows that are not samples."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import bellman_tf as btf
from tests.helpers import assert_close, thinned
from tests.models.nets import net
from tests.strategies.networks import cross_entropy, labels, normal


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
        assert np.abs(expected).max() > 0.1
        rounding = 4 * np.finfo("float32").eps / rate  # two steps of weights below 1
        assert_close(opened, expected, atol=rounding)
        assert_close(game, expected, rtol=10 * rate, atol=rounding)  # the game's weights: 1 - rate times a leverage
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


class Plain(btf.Model):
    def __init__(self, hidden):
        super().__init__()
        self.hidden, self.head = hidden, layers.Dense(3)

    def call(self, x):
        return self.head(self.hidden(x))


def attend():
    inputs = keras.Input((6, 4))
    attended = layers.MultiHeadAttention(2, 2)(inputs, inputs)
    return keras.Model(inputs, layers.GlobalAveragePooling1D()(attended))


WITHOUT_SIZES = {
    "dense": ((5,), lambda: layers.Dense(4, activation="tanh")),
    "images": ((6, 6, 2), lambda: keras.Sequential([layers.Conv2D(3, 3), layers.Flatten()])),
    "sequences": ((6, 4), lambda: keras.Sequential([layers.Conv1D(3, 2), layers.GlobalAveragePooling1D()])),
    "attention": ((6, 4), attend),
}


def batches(x, y, known):
    if known:
        return tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    spec = tf.TensorSpec([None] * x.ndim, x.dtype), tf.TensorSpec([None], y.dtype)
    parts = [(x[:8], y[:8]), (x[8:], y[8:])]
    made = tf.data.Dataset.from_generator(lambda: iter(parts), output_signature=spec)
    return made.apply(tf.data.experimental.assert_cardinality(2))


@pytest.mark.parametrize(
    ("name", "curvature", "functional"), thinned(WITHOUT_SIZES, ["identity", "kfac"], [True, False])
)
def test_batches_that_know_no_sizes_train_as_others_do(name, curvature, functional):
    shape, hidden = WITHOUT_SIZES[name]
    x, y, weights = normal(16, *shape), labels(16), []
    for known in (True, False):
        keras.utils.set_random_seed(0)
        if functional:
            inputs = keras.Input(shape)
            model = btf.Model(inputs, layers.Dense(3)(hidden()(inputs)))
        else:
            model = Plain(hidden())
            model(x)
        model.compile(btf.GTDDP(0.05, curvature=curvature), **cross_entropy())
        model.fit(batches(x, y, known), verbose=0, shuffle=False)
        assert model.game.coverage == 1
        weights.append(model.get_weights())
    for ours, expected in zip(weights[1], weights[0], strict=True):
        assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_another_width_after_the_first_batch_is_told_of_the_model():
    inputs = keras.Input((5,))
    model = btf.Model(inputs, layers.Dense(3)(layers.Dense(4)(inputs)), name="of_five")
    model.compile(btf.GTDDP(), **cross_entropy())
    model.train_on_batch(normal(8, 5), labels(8))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"of_five/(.|\n)*\[8,3\] is not compatible .*\[8,5\]"):
        model.train_on_batch(normal(8, 3), labels(8))


def test_another_length_needs_no_second_model():
    """A subclassed model has no `Input` that would hold its first length to every batch."""
    keras.utils.set_random_seed(0)
    model = Plain(keras.Sequential([layers.Conv1D(3, 2), layers.GlobalAveragePooling1D()]))
    model(normal(8, 6, 4))
    model.compile(btf.GTDDP(), **cross_entropy())
    model.fit(batches(normal(16, 9, 4), labels(16), known=False), verbose=0, shuffle=False)
    assert int(model.optimizer.iterations) == 2
    assert int(model.optimizer.rejected_batches) == 0
