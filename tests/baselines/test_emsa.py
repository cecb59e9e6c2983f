"""E-MSA against `verification/references/emsa.py`, and the properties that hold on any model."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import bellman_tf as btf
from bellman_tf.baselines import emsa
from bellman_tf.baselines.hamiltonian import PlayerHamiltonian, segment_of
from tests.helpers import assert_close, round_of
from verification.problems.matrices import seeds
from verification.references import complex_step
from verification.references import emsa as reference

pytestmark = pytest.mark.usefixtures("_float64")
EMSA = btf.baselines.EMSA


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def chain(activations, sizes):
    keras.utils.set_random_seed(1)
    dense = [layers.Dense(n, activation=a) for n, a in zip(sizes[1:], activations, strict=True)]
    for layer in dense:
        layer.bias_initializer = keras.initializers.RandomNormal(stddev=0.3, seed=2)
    return btf.Sequential([layers.Input((sizes[0],)), *dense])


def network_of(model):
    return [(d.kernel.numpy(), d.bias.numpy(), d.activation is keras.activations.linear) for d in model.layers]


def hamiltonians(model, data, rho, *, watch=()):
    """(player, H_rho) of every player of a compiled model; J, and its gradient in `watch`."""
    batch = round_of(model, data)
    with tf.GradientTape() as tape:
        tape.watch([v.value for v in watch])
        forward, costates = emsa._passes(batch)
    gradients = tape.gradient(batch.loss, [v.value for v in watch]) if watch else []
    found = []
    for player in batch.game.players:
        segment = segment_of(batch.game, player, forward)
        parts = batch.game, player, segment, forward, costates[player.stage + 1], batch.frozen, batch.total, rho
        found.append((player, PlayerHamiltonian(*parts)))
    return found, batch.loss, gradients


def squared_error(y):
    return lambda outputs: 2 * (outputs - y) / y.shape[1]


# ---- chains, against NumPy


@settings(max_examples=10)
@given(seeds, st.sampled_from([1, 4]), st.sampled_from([0.0, 0.3, 5.0]), st.sampled_from(["tanh", None]))
def test_the_augmented_hamiltonian_of_a_chain(seed, batch, rho, activation):
    rng = np.random.default_rng(seed)
    model = chain((activation, "tanh", None), (3, 4, 2, 2))
    model.compile(EMSA(rho=rho), "mse", run_eagerly=True)
    x, y = rng.normal(size=(batch, 3)), rng.normal(size=(batch, 2))
    network = network_of(model)
    states, costates = reference.trajectory(x, network, squared_error(y))
    found, _, _ = hamiltonians(model, (x, y), rho)
    for t, (player, ours) in enumerate(found):
        assert player.stage == t
        W, b, linear = network[t]
        W, b = W + 0.5 * rng.normal(size=W.shape), b + 0.5 * rng.normal(size=b.shape)
        truth = reference.augmented(t, states, costates, W, b, linear, rho)
        scale = 1 + abs(truth) + sum(np.sum(p * p) for p in costates)
        assert_close(ours([tf.constant(W), tf.constant(b)]), truth, atol=1e-12 * scale)


def test_its_gradient_away_from_the_nominal_weights(rng):
    model = chain(("tanh", "tanh", None), (3, 4, 2, 2))
    model.compile(EMSA(rho=2.0), "mse", run_eagerly=True)
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
    network = network_of(model)
    states, costates = reference.trajectory(x, network, squared_error(y))
    found, _, _ = hamiltonians(model, (x, y), 2.0)
    for t, (_, ours) in enumerate(found):
        W, b, linear = network[t]
        W = W + rng.normal(size=W.shape)

        def augmented(w, t=t, W=W, b=b, linear=linear):
            return reference.augmented(t, states, costates, w.reshape(W.shape), b, linear, 2.0)

        truth = complex_step.jacobian(augmented, W.ravel())
        with tf.GradientTape() as tape:
            kernel = tf.constant(W)
            tape.watch(kernel)
            value = ours([kernel, tf.constant(b)])
        assert_close(np.ravel(tape.gradient(value, kernel)), truth, rtol=1e-11)


def test_a_step_ends_in_the_minimum_of_every_linear_layer(rng):
    model = chain((None, None), (3, 3, 2))
    model.compile(EMSA(rho=0.7, iterations=100, history=20), "mse")
    x, y = rng.normal(size=(16, 3)), rng.normal(size=(16, 2))
    network = network_of(model)
    states, costates = reference.trajectory(x, network, squared_error(y))
    model.train_on_batch(x, y)
    for t, (W, b, _) in enumerate(network_of(model)):
        kernel, bias = reference.linear_minimum(t, states, costates, 0.7)
        assert_close(W, kernel, rtol=1e-6, label=f"kernel {t}")
        assert_close(b, bias, rtol=1e-6, label=f"bias {t}")
        assert np.max(np.abs(W - network[t][0])) > 1e-2


def test_the_rate_is_the_share_of_the_way(rng):
    x, y = rng.normal(size=(16, 3)), rng.normal(size=(16, 2))
    moves = []
    for rate in (1.0, 0.25):
        model = chain(("tanh", None), (3, 3, 2))
        before = np.concatenate([w.ravel() for w in model.get_weights()])
        model.compile(EMSA(rate, rho=0.7), "mse")
        model.train_on_batch(x, y)
        moves.append(np.concatenate([w.ravel() for w in model.get_weights()]) - before)
    assert_close(moves[1], 0.25 * moves[0], rtol=1e-10)


# ---- any model that can be split


def residual():
    inputs = layers.Input((6,))
    h = layers.Dense(4, activation="tanh")(inputs)
    h = layers.Dropout(0.3, seed=3)(h)
    y = layers.Dense(5, activation="tanh", kernel_regularizer="l2", activity_regularizer="l2")(h)
    h = layers.Add()([layers.Dense(4)(y), layers.Dense(4, activation="tanh")(h)])
    return btf.Model(inputs, layers.Dense(3, activation="softmax")(layers.Add()([h, h])))


def convolutional():
    inputs = layers.Input((6, 6, 2))
    x = layers.Conv2D(3, 3, padding="same", activation="tanh")(inputs)
    y = layers.BatchNormalization()(layers.Conv2D(3, 3, padding="same", use_bias=False)(x))
    x = layers.MaxPooling2D()(layers.Add()([x, layers.Activation("tanh")(y)]))
    return btf.Model(inputs, layers.Activation("softmax")(layers.Dense(3)(layers.Flatten()(x))))


def tokens():
    inputs = layers.Input((5,), dtype="int32")
    x = layers.Embedding(7, 4, mask_zero=True)(inputs)
    return btf.Model(inputs, layers.Dense(3, activation="softmax")(layers.LSTM(4)(x)))


def two_outputs():
    inputs = layers.Input((6,))
    h = layers.Dense(4, activation="tanh")(inputs)
    early = layers.Dense(3, activation="softmax", name="early")(h)
    late = layers.Dense(3, activation="softmax", name="late")(layers.Concatenate()([h, early]))
    return btf.Model(inputs, [early, late])


def single():
    return btf.Sequential([layers.Input((6,)), layers.Dense(3, activation="softmax")])


MODELS = {f.__name__: f for f in (residual, convolutional, tokens, two_outputs, single)}


def batch_for(model, rng):
    shape = model.inputs[0].shape[1:]
    x = rng.integers(0, 7, (4, *shape)) if model.inputs[0].dtype == "int32" else rng.normal(size=(4, *shape))
    y = rng.integers(0, 3, 4)
    return x, [y, y[::-1].copy()] if len(model.outputs) > 1 else y


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_at_the_nominal_weights_the_gradient_is_that_of_the_loss(make, rng):
    """The squares are flat there, so every layer's first step goes down the loss."""
    keras.utils.set_random_seed(0)
    model = make()
    losses = "sparse_categorical_crossentropy"
    model.compile(EMSA(rho=3.0), [losses, losses] if len(model.outputs) > 1 else losses, run_eagerly=True)
    x, y = batch_for(model, rng)
    variables = model.trainable_variables
    found, _, truth = hamiltonians(model, (x, y), 3.0, watch=variables)
    truth = dict(zip(map(id, variables), truth, strict=True))
    seen = 0
    for player, ours in found:
        with tf.GradientTape() as tape:
            values = [tf.convert_to_tensor(v) for v in player.variables]
            tape.watch(values)
            value = ours(values)
        for variable, gradient in zip(player.variables, tape.gradient(value, values), strict=True):
            expected = np.array(tf.convert_to_tensor(truth[id(variable)]))
            assert_close(tf.convert_to_tensor(gradient), expected, rtol=1e-9, atol=1e-12, label=variable.path)
            seen += 1
    assert seen == len(variables)


@pytest.mark.parametrize("make", [residual, convolutional])
def test_a_step_lowers_every_players_hamiltonian(make, rng):
    keras.utils.set_random_seed(0)
    model = make()
    losses = "sparse_categorical_crossentropy"
    model.compile(EMSA(rho=3.0, iterations=3), [losses, losses] if len(model.outputs) > 1 else losses)
    x, y = batch_for(model, rng)
    seeds_before = [v.numpy() for v in model.seed_variables()]
    before = model.get_weights()
    model.train_on_batch(x, y)
    after = {id(v): v.numpy() for v in model.trainable_variables}
    model.set_weights(before)
    for variable, value in zip(model.seed_variables(), seeds_before, strict=True):
        variable.assign(value)
    found, _, _ = hamiltonians(model, (x, y), 3.0)
    for player, ours in found:
        old = float(ours([tf.convert_to_tensor(v) for v in player.variables]))
        assert float(ours([tf.constant(after[id(v)]) for v in player.variables])) < old, player.name


def residual_block():
    inputs = layers.Input((5,))
    x = layers.Dense(4, activation="tanh")(inputs)
    x = layers.Add()([x, layers.BatchNormalization()(layers.Dense(4, use_bias=False)(x))])
    return btf.Model(inputs, layers.Dense(3, activation="softmax")(x))


@pytest.mark.slow
def test_graph_and_xla_agree():
    finals = []
    for jit in (False, True):
        keras.utils.set_random_seed(0)
        model = residual_block()
        model.compile(EMSA(0.5, rho=3.0, iterations=3), "sparse_categorical_crossentropy", jit_compile=jit)
        x, y = batch_for(model, np.random.default_rng(0))
        for _ in range(2):
            model.train_on_batch(x, y)
        finals.append(np.concatenate([w.ravel() for w in model.get_weights()]))
    assert_close(*finals, rtol=1e-7)


# ---- refusals


def shared():
    layer = layers.Dense(4, activation="tanh")
    return btf.Sequential([layers.Input((4,)), layer, layer, layers.Dense(3)])


class Penalised(btf.Model):
    def __init__(self):
        super().__init__()
        self.head = layers.Dense(3)

    def call(self, x):
        return self.head(x)

    def compute_loss(self, **arguments):
        return super().compute_loss(**arguments) + tf.reduce_sum(tf.square(self.head.kernel))


def repeated_dropout():
    drop = layers.Dropout(0.5)
    return btf.Sequential([layers.Input((4,)), layers.Dense(4), drop, layers.Dense(4), drop, layers.Dense(3)])


class Constant(btf.Model):
    """A trace of it holds its scale as a number."""

    def __init__(self):
        super().__init__()
        self.head, self.scale = layers.Dense(3), self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, x):
        return self.head(x) * tf.nn.softplus(self.scale.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (shared, "every trainable layer applied once"),
        (Penalised, "a loss of its outputs alone"),
        (repeated_dropout, "draws random numbers once"),
        (Constant, "`rollout` must be 'linear'|every trainable layer applied once"),
    ],
)
def test_a_model_that_cannot_be_split_is_refused_with_a_way_out(make, message, rng):
    model = make()
    model(rng.normal(size=(2, 4)))
    before = model.get_weights()
    model.compile(EMSA(), cross_entropy())
    with pytest.raises(ValueError, match=message):
        model.train_on_batch(rng.normal(size=(4, 4)), rng.integers(0, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -1.0}, "`rho` must be a finite number >= 0"),
        ({"iterations": 0}, "`iterations` must be an integer >= 1"),
        ({"history": 1.5}, "`history` must be an integer >= 1"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        EMSA(**options)


def test_as_published_belongs_to_the_game():
    with pytest.raises(ValueError, match="`EMSA` must be made by its constructor"):
        EMSA.as_published()
