"""A metric that takes far more memory than its layer is announced before it is allocated."""

import types
import warnings

import keras
import pytest

import bellman_tf as btf
from bellman_tf.curvature import KFAC
from bellman_tf.curvature.registry import make_block, player_layout
from bellman_tf.layers.registry import coverage
from bellman_tf.optimizers import large_states
from tests.strategies.networks import classify, cross_entropy

x, y = classify(6)(8)


def said(curvature, width=200):
    inputs = keras.Input((6,))
    outputs = keras.layers.Dense(3)(keras.layers.Dense(width, name="wide")(inputs))
    model = btf.Model(inputs, outputs)
    model.compile(btf.GTDDP(0.01, curvature=curvature), **cross_entropy())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model.train_on_batch(x, y)
    return [str(w.message) for w in seen if "GiB" in str(w.message)]


@pytest.mark.parametrize("curvature", ["kfac", "ekfac"])
def test_the_layer_the_memory_and_the_way_out_are_named(curvature, monkeypatch):
    monkeypatch.setattr(large_states, "LARGE", 200 * 200 * 4)
    messages = said(curvature)
    assert len(messages) == 2  # the layer behind it has as many inputs
    assert "'wide'" in messages[0]
    assert "curvature='rmsprop'" in messages[0]


def test_nothing_is_said_of_small_layers_and_of_metrics_as_large_as_the_weights(monkeypatch):
    assert not said("kfac")
    monkeypatch.setattr(large_states, "LARGE", 0)
    assert not said("adam")
    assert not said("identity")


def test_a_vocabulary_is_large():
    """Of 30,000 outputs, without making the layer: what K-FAC keeps is known before."""
    layer = keras.layers.Dense(30_000, use_bias=False)
    layer.build((None, 8))
    block = make_block(KFAC(), player_layout("head", ((8, 30_000),), coverage(layer)))
    head = types.SimpleNamespace(name="head", variables=layer.trainable_variables)
    with pytest.warns(UserWarning, match="'head'"):
        large_states.warn_large("GTDDP", [head], [block])
