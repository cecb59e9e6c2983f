"""Notes are taken from layers as they run, by the thread that asked, and nothing stays behind."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import bellman_tf as btf
from bellman_tf.game.instrument import Notes, noting, tapped
from tests.strategies.networks import cross_entropy, labels, normal


def network():
    inputs = keras.Input((4,))
    first, second = layers.Dense(3, activation="relu", name="first"), layers.Dense(2, name="second")
    return keras.Model(inputs, second(first(inputs))), first, second


def notes_of(before, behind):
    return Notes(before, behind, lambda tensor: None)


def test_it_notes_inputs_preactivations_and_outputs():
    model, first, second = network()
    x = tf.constant(normal(5, 4))
    with noting(notes_of([first], [second])) as notes:
        outputs = model(x)
    [note] = notes.calls[id(first)]
    assert np.array_equal(note.inputs, x)
    np.testing.assert_allclose(note.site, x @ first.kernel + first.bias, rtol=1e-6)
    assert float(tf.reduce_min(note.site)) < 0, "before the activation"
    [note] = notes.calls[id(second)]
    assert note.site is outputs
    assert list(notes.calls) == [id(first), id(second)]


def test_every_call_of_a_layer_is_noted_in_order():
    layer, x = layers.Dense(3), tf.ones([2, 3])
    layer.build((None, 3))
    with noting(notes_of([layer], [])) as notes:
        layer(layer(x))
    first, second = notes.calls[id(layer)]
    assert second.inputs is first.site


def test_nothing_stays_behind():
    model, first, second = network()
    attributes = {layer.name: dict(vars(layer)) for layer in (first, second)}
    with noting(notes_of([first, second], [])):
        model(normal(5, 4))
        assert "call" in vars(first)
    for layer in (first, second):
        assert vars(layer).keys() == attributes[layer.name].keys()
        assert layer.activation is attributes[layer.name]["activation"]


def test_a_call_of_the_users_own_comes_back():
    model, first, _ = network()
    own = lambda x: type(first).call(first, x) * 2
    object.__setattr__(first, "call", own)
    with noting(notes_of([], [first])) as notes:
        model(normal(5, 4))
    assert vars(first)["call"] is own
    assert id(first) in notes.calls


class Breaking(layers.Layer):
    """Runs a layer and then fails, or not."""

    def __init__(self):
        super().__init__()
        self.inside, self.fails = layers.Dense(3, activation="tanh"), True

    def call(self, x):
        h = self.inside(x)
        if self.fails:
            raise RuntimeError("broken on purpose")
        return h


@pytest.mark.filterwarnings("ignore:.*open-loop")
@pytest.mark.parametrize("rollout", ["linear", "nonlinear"])
def test_after_a_step_that_raises_the_model_is_what_it_was(rollout):
    """Weights, attributes and results: byte for byte usable with another optimizer."""
    broken = Breaking()
    broken.fails = False

    def make(inside):
        inputs = keras.Input((4,))
        return btf.Model(inputs, layers.Dense(2)(inside(inputs)))

    model = make(broken)
    model.compile(btf.GTDDP(rollout=rollout), **cross_entropy(), run_eagerly=True)
    x, y = normal(5, 4), labels(5) % 2
    model.optimizer.build(model.trainable_variables)
    before = [v.numpy() for v in model.variables]
    layers_of = [broken.inside, *model.layers]
    attributes = [set(vars(layer)) for layer in layers_of]
    broken.fails = True
    with pytest.raises(RuntimeError, match="broken on purpose"):
        model.train_on_batch(x, y)
    broken.fails = False
    assert [set(vars(layer)) for layer in layers_of] == attributes
    assert all(np.array_equal(v.numpy(), old) for v, old in zip(model.variables, before, strict=True))
    healthy = Breaking()
    healthy.fails = False
    twin = make(healthy)
    twin.set_weights(model.get_weights())
    for each in (model, twin):
        each.compile(keras.optimizers.Adam(0.01), **cross_entropy())
        each.train_on_batch(x, y)
    for mine, theirs in zip(model.get_weights(), twin.get_weights(), strict=True):
        assert np.array_equal(mine, theirs)


def test_other_threads_pass_straight_through():
    model, first, _ = network()
    x = normal(5, 4)
    expected = model(x).numpy()
    found = []
    with noting(notes_of([first], [])) as notes:
        thread = threading.Thread(target=lambda: found.append(model(x).numpy()))
        thread.start()
        thread.join()
        assert not notes.calls
        model(x)
    assert np.array_equal(found[0], expected)
    assert len(notes.calls[id(first)]) == 1


@pytest.mark.parametrize("compiled", [False, True])
def test_a_layer_inside_a_loop_is_hidden(compiled):
    layer = layers.Dense(3)
    layer.build((None, 3))
    seen = []

    def run(x):
        with noting(notes_of([layer], [])) as notes:
            tf.while_loop(lambda k, h: k < 3, lambda k, h: (k + 1, layer(h)), [0, x])
        seen.append(notes)
        return x

    (tf.function(run) if compiled else run)(tf.ones([2, 3]))
    assert seen[0].hidden == {id(layer)}
    assert not seen[0].calls


def test_the_tap_sees_what_the_activation_gets():
    layer = layers.Dense(3, activation="relu")
    seen = []
    with tapped(layer, seen.append):
        y = layer(-tf.ones([2, 3]))
    assert np.array_equal(tf.nn.relu(seen[0]), y)
    assert layer.activation is keras.activations.relu
