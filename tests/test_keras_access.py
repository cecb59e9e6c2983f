"""What Keras must give to `keras_access`; run on the oldest Keras (`pip install keras==3.8`) as on the newest."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from bellman_tf import keras_access


class Block(layers.Layer):
    """A layer with a weight and a counter of its own, a layer inside, and a mask argument."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def build(self, shape):
        self.scale = self.add_weight(shape=(3,), name="scale")
        self.count = self.add_weight(shape=(), name="count", trainable=False)
        self.dense.build(shape)

    def call(self, tokens, *, mask=None):
        return self.dense(tokens) * self.scale


class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.block = Block()
        self.again = self.block
        self.drop = layers.Dropout(0.5, seed=0)

    def call(self, t, training=None):
        return self.drop(self.block(t), training=training)


def functional():
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(2, name="head")(layers.ReLU()(inputs)))


def test_layers_of_finds_every_layer_once():
    net = Net()
    found = keras_access.layers_of(net)
    assert found[0] is net
    assert len(found) == len({id(layer) for layer in found})
    assert {id(layer) for layer in found} == {id(layer) for layer in (net, net.block, net.block.dense, net.drop)}
    assert {id(layer) for layer in keras_access.children_of(net)} == {id(net.block), id(net.drop)}


def test_a_layers_own_variables_leave_out_those_of_inner_layers():
    net = Net()
    net(np.ones((2, 3), "float32"))
    assert [v.name for v in keras_access.own_trainable_variables(net.block)] == ["scale"]
    assert [v.name for v in keras_access.own_non_trainable_variables(net.block)] == ["count"]
    net.block.trainable = False
    assert [v.name for v in keras_access.own_trainable_variables(net.block)] == ["scale"]
    assert keras_access.own_trainable_variables(net) == []


def test_arguments_of_call():
    assert keras_access.takes_training(Net())
    assert not keras_access.takes_training(Block())
    assert not keras_access.takes_training(keras_access.node_of(keras.ops.exp(keras.Input((2,)))).operation)
    assert keras_access.takes_training(functional())
    assert keras_access.first_argument(Net()) == "t"
    assert keras_access.first_argument(Block()) == "tokens"

    class Open(layers.Layer):
        def call(self, *args, **kwargs):
            return args[0]

    assert keras_access.first_argument(Open()) is None


def test_the_functional_core_of_a_sequential_model():
    model = functional()
    assert keras_access.functional_core(model) is model
    sequential = keras.Sequential([layers.Dense(2)])
    assert keras_access.functional_core(sequential) is sequential
    sequential(np.ones((2, 3), "float32"))
    core = keras_access.functional_core(sequential)
    assert isinstance(core, keras.Function)
    assert [operation for operation in core.operations if operation is sequential.layers[0]]


def test_flat_inputs_come_in_the_order_and_shape_of_the_model():
    left, right = keras.Input((2,), name="left"), keras.Input((1,), name="right")
    model = keras.Model({"right": right, "left": left}, layers.Concatenate()([left, right]))
    batch = {"left": tf.ones([4, 2]), "right": tf.zeros([4])}
    names, flat = [tensor.name for tensor in model.inputs], keras_access.flat_inputs(model, batch)
    shapes = {name: tuple(t.shape) for name, t in zip(names, flat, strict=True)}
    assert shapes == {"left": (4, 2), "right": (4, 1)}
    assert len(keras_access.flat_inputs(Net(), [tf.ones([2, 3]), None])) == 1


def test_replacing_call_and_activation_is_what_keras_runs_and_leaves_no_trace():
    net, x = Net(), tf.ones([2, 3])
    before, kept = net(x), dict(net.__dict__)
    with keras_access.replaced(net, "call", lambda inputs, **_: inputs * 7):
        assert np.array_equal(net(x), x * 7)
    assert np.array_equal(net(x), before)
    assert net.__dict__.keys() == kept.keys()
    dense = layers.Dense(2, activation="relu")
    dense(x)
    seen, activation = [], dense.activation
    with pytest.raises(RuntimeError), keras_access.replaced(dense, "activation", lambda h: seen.append(h) or h):
        dense(x)
        raise RuntimeError
    assert dense.activation is activation
    assert np.array_equal(seen[0], x @ dense.kernel + dense.bias)


def test_the_node_of_a_symbolic_tensor():
    model = functional()
    node = keras_access.node_of(model.output)
    assert node.operation is model.get_layer("head")
    assert node.outputs[0] is model.output
    [relu] = node.input_tensors
    assert node.arguments.args[0] is relu
    assert node.arguments.kwargs == {}
    assert isinstance(keras_access.node_of(relu).operation, layers.ReLU)
    assert keras_access.node_of(model.input).is_input


def test_symbolic_tensors_keep_sparse_and_ragged():
    assert not keras_access.symbolic((None, 3), "float32").sparse
    assert keras_access.symbolic((None, 3), "float32", sparse=True).sparse
    if "ragged" not in inspect.signature(keras.Input).parameters:
        with pytest.raises(NotImplementedError, match="has no symbolic ragged tensors"):
            keras_access.symbolic((None, None), "int32", ragged=True)
    else:
        assert keras_access.is_ragged(keras_access.symbolic((None, None), "int32", ragged=True))
    assert not keras_access.is_ragged(keras_access.symbolic((None, 3), "float32"))
    assert keras_access.input_like(keras_access.symbolic((None, 3), "int32", sparse=True)).sparse


def test_masks_and_logits_on_tensors():
    embedded = layers.Embedding(5, 2, mask_zero=True)(tf.constant([[1, 0]]))
    assert np.array_equal(keras_access.mask_of(embedded), [[True, False]])
    copy = tf.identity(embedded)
    assert keras_access.mask_of(copy) is None
    keras_access.set_mask(copy, None)
    assert keras_access.mask_of(copy) is None
    keras_access.set_mask(copy, keras_access.mask_of(embedded))
    pooled = layers.GlobalAveragePooling1D()(copy)
    assert np.allclose(pooled, embedded[:, 0])
    x = tf.constant([[1.0, 2.0]])
    assert keras_access.logits_of(x) is None
    for name in ("softmax", "sigmoid"):
        assert np.array_equal(keras_access.logits_of(layers.Activation(name)(x)), x)


def test_the_table_of_an_embedding_is_its_trainable_variable():
    layer = layers.Embedding(5, 2)
    layer(tf.constant([1]))
    assert keras_access.table_of(layer) is layer.trainable_variables[0]


def test_the_arguments_of_a_loss():
    assert keras_access.loss_arguments(keras.losses.Huber(delta=2.5))["delta"] == 2.5

    class Own(keras.losses.Loss):
        def call(self, y, z):
            return y - z

    assert keras_access.loss_arguments(Own()) is None


class Looking(keras_access.SeesData, keras.Model):
    """Notes what it is told of the data before it trains."""

    def __init__(self):
        super().__init__()
        self.head = layers.Dense(2)
        object.__setattr__(self, "seen", [])  # past Keras's tracking of lists

    def call(self, x):
        return self.head(x)

    def sees(self, data):
        self.seen.append(data)

    def train_step(self, data):
        assert self.seen, "a step is traced before the data have been seen"
        return super().train_step(data)


def test_a_model_sees_what_its_data_look_like_and_loses_none():
    x, y, drawn = np.ones((6, 4), "float32"), np.zeros((6, 2), "float32"), []

    def generator():
        for k in range(3):
            drawn.append(k)
            yield x[:2] * k, y[:2]

    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    for given in ({"x": x, "y": y, "batch_size": 4}, {"x": batches}, {"x": generator(), "steps_per_epoch": 3}):
        model = Looking()
        model.compile(optimizer="sgd", loss="mse")
        model.fit(**given, shuffle=False, verbose=0)
        assert [(tuple(spec.shape), spec.dtype.name) for spec in model.seen[0]] == [
            ((None, 4), "float32"), ((None, 2), "float32")
        ]  # fmt: skip
    assert drawn == [0, 1, 2]
    model = Looking()
    model.compile(optimizer="sgd", loss="mse")
    model.train_on_batch(x, y)
    assert model.seen[0][0] is x
