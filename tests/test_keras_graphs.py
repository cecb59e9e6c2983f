"""What `keras_graphs` says about functional models, against what they run."""

import keras
from keras import layers

from bellman_tf import keras_access, keras_graphs


class Own(keras.Model):
    def call(self, x):
        return x


def test_nodes_are_the_calls_in_the_order_in_which_they_run():
    inputs = keras.Input((4,))
    first, second, merged = layers.Dense(4), layers.Dense(4), layers.Add()
    x = first(inputs)
    model = keras.Model(inputs, merged([second(x), x]))
    ran = []
    for layer in (first, second, merged):
        own = layer.call
        layer.__dict__["call"] = lambda *args, layer=layer, own=own: (ran.append(layer), own(*args))[1]
    model(keras.ops.ones((2, 4)))
    assert [node.operation for node in keras_graphs.nodes_of(model)] == ran == [first, second, merged]


def test_only_a_call_of_keras_runs_the_graph():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    stack = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    assert keras_graphs.runs_its_graph(model)
    assert keras_graphs.runs_its_graph(stack)
    assert keras_graphs.runs_its_graph(keras_access.functional_core(stack))
    assert not keras_graphs.runs_its_graph(Own())
    with keras_access.replaced(model, "call", lambda x: x):
        assert not keras_graphs.runs_its_graph(model)


def test_symbolic_calls_can_leave_no_record():
    layer = layers.Dense(2)
    layer(keras.Input((3,)))
    with keras_graphs.nodes_forgotten(layer):
        layer(keras.Input((3,)))
        assert len(layer._inbound_nodes) == 2
    assert len(layer._inbound_nodes) == 1
