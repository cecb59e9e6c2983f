"""The whole step against `verification/references/training.py`, in float64, three steps each."""

import keras
import numpy as np
import pytest
from keras import layers

import bellman_tf as btf
from tests.helpers import assert_close
from verification.references import training as reference

RATE = 0.7


pytestmark = pytest.mark.usefixtures("_float64")


def chain():
    """A tanh network, one player per stage; a player is one matrix whose last row is the bias."""
    model = btf.Sequential(
        [
            layers.Input((4,)),
            layers.Dense(5, activation="tanh"),
            layers.Dense(3, activation="tanh"),
            layers.Dense(3),
        ]
    )
    tanh = lambda x, U: np.tanh(x @ U[0][:-1] + U[0][-1])
    return model, [(0, tanh), (1, tanh), (2, lambda x, U: x @ U[0][:-1] + U[0][-1])]


def block():
    """Two players in the second stage, and two tensors beside the main path across the third cut."""
    inputs = layers.Input((4,))
    x = layers.Dense(3, activation="tanh", name="p0")(inputs)
    h = layers.Dense(2, activation="tanh", name="p1")(x)
    s = layers.Dense(3, name="p2")(x)
    z = layers.Add()([layers.Dense(3, activation="tanh", name="p3")(h), s, x])
    model = btf.Model(inputs, layers.Dense(3, name="p4")(z))

    def dense(x, W):
        return x @ W[:-1] + W[-1]

    return model, [
        (("p0",), lambda x, U: np.tanh(dense(x, U[0]))),
        (("p1", "p2"), lambda x, U: np.concatenate([np.tanh(dense(x, U[0])), dense(x, U[1]), x])),
        (("p3",), lambda s, U: np.tanh(dense(s[:2], U[0])) + s[2:5] + s[5:]),
        (("p4",), lambda x, U: dense(x, U[0])),
    ]


def players(model, names):
    """Kernel and bias of each named layer as one matrix."""
    names = names if isinstance(names, tuple) else (names,)
    found = [model.get_layer(name=n) if isinstance(n, str) else model.layers[n] for n in names]
    return [np.vstack([layer.kernel.numpy(), layer.bias.numpy()[None]]) for layer in found]


def data(batch=6):
    rng = np.random.default_rng(4)
    return rng.normal(size=(batch, 4)), rng.integers(0, 3, batch)


def follow(make, optimizer, step, *, costs=None, y=None, loss=None, rate=RATE):
    """Trains three steps both ways and compares losses and weights after each."""
    keras.utils.set_random_seed(3)
    model, stages = make()
    x, labels = data()
    y = labels if y is None else y
    costs = costs or [reference.softmax_cost(label) for label in labels]
    model.compile(optimizer=optimizer, loss=loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    parameters = [players(model, names) for names, _ in stages]
    for _ in range(3):
        network = [(f, U) for (_, f), U in zip(stages, parameters, strict=True)]
        parameters, expected_loss, *rest = step(network, x, costs, rate)
        model.reset_metrics()  # Keras 3.8 goes on with the mean of the batch before
        observed = model.train_on_batch(x, y)
        assert_close(observed, expected_loss, rtol=1e-10, label="loss")
        for (names, _), expected in zip(stages, parameters, strict=True):
            for actual, matrix in zip(players(model, names), expected, strict=True):
                assert_close(actual, matrix, rtol=1e-9, label=f"weights of {names}")
    return model, rest


def with_options(**options):
    return lambda network, x, costs, rate: reference.train_step(network, x, costs, rate, **options)


def identity(**options):
    return btf.GTDDP(RATE, curvature="identity", **options)


@pytest.fixture(params=["linear", "nonlinear"])
def rollout(request):
    return request.param


def both(rollout, theirs=None, **options):
    """The optimizer and the reference with the same options; `theirs` where the reference has other names."""
    return identity(rollout=rollout, **options), with_options(
        rollout=rollout, **(options if theirs is None else theirs)
    )


@pytest.mark.parametrize("terminal", ["matched", "outer_product", "full", 1, 2])
def test_a_batch_coupled_step_is_the_dense_recursion(terminal, rollout):
    follow(block, *both(rollout, {"terminal": terminal}, terminal_hessian=terminal))


@pytest.mark.parametrize("information", ["open", "feedback", "cooperative_open", "cooperative"])
@pytest.mark.parametrize("make", [chain, block])
def test_every_information_structure_is_the_dense_one(make, information, rollout):
    follow(make, *both(rollout, information=information))


def test_feedback_players_with_a_full_terminal_hessian_keep_values_of_their_own(rollout):
    options = {"information": "feedback"}
    follow(block, *both(rollout, {"terminal": "full", **options}, terminal_hessian="full", **options))


@pytest.mark.parametrize("group_size", [1, 2, 4, 6])
def test_groups_are_dense_recursions_side_by_side(group_size, rollout):
    follow(block, *both(rollout, group_size=group_size))


@pytest.mark.parametrize("information", ["feedback", "cooperative_open", "cooperative"])
def test_groups_of_full_terminal_hessians(information, rollout):
    options = {"group_size": 4, "information": information}
    follow(chain, *both(rollout, {"terminal": "full", **options}, terminal_hessian="full", **options))


def test_block_diagonal_is_groups_of_one(rollout):
    follow(block, *both(rollout, {"group_size": 1}, value_hessian="block_diagonal"))


def test_squared_error_has_its_own_terminal_hessian(rollout):
    y = np.random.default_rng(5).normal(size=(6, 3))
    costs = [reference.square_cost(row) for row in y]
    loss = keras.losses.MeanSquaredError()
    optimizer, step = both(rollout, {"terminal": "full"}, terminal_hessian="full")
    follow(block, optimizer, step, costs=costs, y=y, loss=loss)


@pytest.mark.parametrize("information", ["feedback", "cooperative_open", "cooperative"])
def test_regularizers_enter_the_recursion(information, rollout):
    options = {"information": information, "rollout": rollout}

    def make():
        model, stages = chain()
        for layer in model.layers:
            layer.kernel.regularizer = layer.bias.regularizer = keras.regularizers.L2(0.0625)
        return model, stages

    def step(network, x, costs, rate):
        new, loss = reference.train_step(
            network, x, costs, rate, regularizer_gradient=lambda part: 0.125 * part, **options
        )
        own = 0.0625 * sum(np.sum(part**2) for _, U in network for part in U)
        return new, loss + own

    follow(make, identity(**options), step)


def test_a_partial_last_batch_is_a_smaller_game(rollout):
    keras.utils.set_random_seed(3)
    model, stages = block()
    x, y = data()
    model.compile(identity(rollout=rollout), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    parameters = [players(model, names) for names, _ in stages]
    for part in (slice(0, 4), slice(4, 6)):
        network = [(f, U) for (_, f), U in zip(stages, parameters, strict=True)]
        costs = [reference.softmax_cost(label) for label in y[part]]
        parameters, _ = reference.train_step(network, x[part], costs, RATE, rollout=rollout)
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    for (names, _), expected in zip(stages, parameters, strict=True):
        for actual, matrix in zip(players(model, names), expected, strict=True):
            assert_close(actual, matrix, rtol=1e-9, label=f"weights of {names}")


def test_the_step_does_not_depend_on_the_order_of_the_samples(rollout):
    weights = []
    for order in (np.arange(6), np.random.default_rng(0).permutation(6)):
        keras.utils.set_random_seed(3)
        model, _ = block()
        x, y = data()
        model.compile(identity(rollout=rollout), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.train_on_batch(x[order], y[order])
        weights.append(model.get_weights())
    for first, second in zip(*weights, strict=True):
        assert_close(first, second, rtol=1e-11)


def test_compiled_and_eager_agree(rollout):
    weights = []
    for options in ({}, {"jit_compile": True}, {"run_eagerly": True}):
        keras.utils.set_random_seed(3)
        model, _ = block()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=btf.GTDDP(0.1, rollout=rollout), loss=loss, **options)
        for _ in range(2):
            model.train_on_batch(*data())
        weights.append(model.get_weights())
    for other in weights[1:]:
        for first, second in zip(weights[0], other, strict=True):
            assert_close(first, second, rtol=1e-10)


def test_the_reference_agrees_with_finite_differences():
    """The oracle's own derivatives: its open step is the gradient of the mean cost."""
    model, stages = block()
    x, y = data()
    network = [(f, players(model, names)) for names, f in stages]
    costs = [reference.softmax_cost(label) for label in y]
    new, loss = reference.train_step(network, x, costs, 1e-6, information="open")
    squared = sum(
        np.sum((a - b) ** 2) for (_, U), V in zip(network, new, strict=True) for a, b in zip(U, V, strict=True)
    )
    moved = [(f, V) for (f, _), V in zip(network, new, strict=True)]
    after = reference.Linearisation(moved, x, costs).loss
    assert after - loss == pytest.approx(-squared / 1e-6, rel=1e-3)
