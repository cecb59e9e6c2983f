"""What ties an optimizer to a model: the variables and players it was built for, and models that it refuses."""

import keras
import numpy as np
import pytest
from keras import layers

import bellman_tf as btf
from tests.strategies.networks import cross_entropy, labels, mlp, normal


def test_a_frozen_layer_after_building_is_noticed():
    model = mlp()
    model.compile(optimizer=btf.GTDDP(), **cross_entropy())
    x, y = normal(8, 6), labels(8)
    model.train_on_batch(x, y)
    model.layers[0].trainable = False
    model.compile(optimizer=btf.GTDDP(), **cross_entropy())
    model.train_on_batch(x, y)
    model.layers[0].trainable = True
    model.make_train_function(force=True)
    with pytest.raises(ValueError, match="`model` must have the trainable variables"):
        model.train_function(iter([(x, y)]))


def test_a_strategy_with_several_replicas_is_refused(monkeypatch):
    model = mlp()
    monkeypatch.setattr(type(model), "distribute_strategy", type("Two", (), {"num_replicas_in_sync": 2}))
    with pytest.raises(ValueError, match="`model` must run on one replica"):
        btf.GTDDP().bind(model)


def test_layers_of_two_precisions_are_refused():
    model = btf.Sequential([keras.Input((2,)), layers.Dense(4, dtype="float64"), layers.Dense(3)])
    before = model.get_weights()
    model.compile(btf.GTDDP(0.1), loss="mse")
    with pytest.raises(ValueError, match=r"`model` must have trainable variables of one dtype\. Received"):
        model.fit(np.ones((4, 2)), np.ones((4, 3)), verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
