"""Any DAG is a game: the recursion of the samples equals the dense N-player one, nonlinear forward pass included."""

import keras
import numpy as np
import pytest
from keras import layers

import bellman_tf as btf
from tests.helpers import assert_close

pytestmark = pytest.mark.usefixtures("_float64")


def dense(x, units, name=None):
    return layers.Dense(units, activation="tanh", name=name)(x)


def inception(inputs):
    """Three branches of one to two layers, joined."""
    x = dense(inputs, 3)
    joined = layers.Concatenate()([dense(x, 2), dense(dense(x, 2), 2), layers.Dense(2)(x)])
    return layers.Dense(3)(joined)


def densenet(inputs):
    """Every layer reads all before it."""
    x = dense(inputs, 2)
    for _ in range(3):
        x = layers.Concatenate()([x, dense(x, 2)])
    return layers.Dense(3)(x)


def unet(inputs):
    """Down, down, up, up, with skips across, one of them trainable."""
    first = dense(inputs, 4)
    second = dense(first, 2)
    up = layers.Add()([dense(dense(second, 2), 4), layers.Dense(4)(first)])
    return layers.Dense(3)(layers.Concatenate()([dense(up, 2), second]))


def heads(inputs):
    """Two outputs with losses of their own."""
    x = dense(inputs, 3)
    return {"a": layers.Dense(3, name="a")(x), "b": layers.Dense(2, name="b")(dense(x, 2))}


def train(network, optimizer, steps=2):
    keras.utils.set_random_seed(5)
    inputs = layers.Input((4,))
    model = btf.Model(inputs, network(inputs))
    rng = np.random.default_rng(6)
    x, labels = rng.normal(size=(5, 4)), rng.integers(0, 3, 5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if network is heads:
        y = {"a": labels, "b": rng.normal(size=(5, 2))}
        model.compile(optimizer, {"a": loss, "b": "mse"}, loss_weights={"a": 1.0, "b": 0.3})
    else:
        y = labels
        model.compile(optimizer, loss)
    for _ in range(steps):
        model.train_on_batch(x, y)
    return model, np.concatenate([w.ravel() for w in model.get_weights()])


@pytest.mark.parametrize("network", [inception, densenet, unet, heads])
def test_cooperation_is_the_dense_recursion(network):
    model, ours = train(network, btf.GTDDP(0.6, curvature="identity", terminal_hessian="full", rollout="nonlinear"))
    _, truth = train(network, btf.DDP(0.6))
    assert_close(ours, truth, rtol=1e-10)
    if network is not densenet:
        assert max(map(len, model.game.stages)) > 1, "no stage has two players"


@pytest.mark.parametrize("network", [inception])
def test_information_structures_differ_where_players_share_a_stage(network):
    ends = {}
    for information in ("open", "feedback", "cooperative_open", "cooperative"):
        optimizer = btf.GTDDP(0.6, curvature="identity", terminal_hessian="full", information=information)
        model, ends[information] = train(network, optimizer, steps=1)
        assert np.isfinite(ends[information]).all()
    assert np.linalg.norm(ends["feedback"] - ends["cooperative"]) > 1e-6
    assert np.linalg.norm(ends["open"] - ends["cooperative_open"]) > 1e-4
