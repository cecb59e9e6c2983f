"""Logits behind an output, and that a head is what Keras computes with them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from bellman_tf import losses
from tests.helpers import assert_close, slow_row
from tests.losses.cases import outer
from tests.losses.networks import in_modes, terminal
from verification.references import losses as reference

MODES = ["eager", "graph", "jit"]


def by_hand(z):
    return 1.0 / (1.0 + tf.exp(-z))


class Raw(keras.Layer):
    """An activation that Keras does not see."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, z):
        return self.function(z)


SIGMOIDS = {
    "Activation": lambda: keras.layers.Activation("sigmoid"),
    "keras.ops": lambda: Raw(keras.ops.sigmoid),
    "tensorflow": lambda: Raw(tf.nn.sigmoid),
    "by hand": lambda: Raw(by_hand),
    "cast": lambda: Raw(lambda z: tf.cast(keras.activations.sigmoid(z), tf.float32)),
}


def step(layer, loss, z, y, mode, terminal_hessian="full"):
    """Gradient in the logits, the place of the cut, and H in `cost.z`."""
    inputs = keras.Input(z.shape[1:], dtype=z.dtype)
    model = keras.Model(inputs, layer(inputs))
    model.compile(loss=loss)
    kinds = []

    def run(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            y_pred = model(z)
            with losses.record_loss(losses.find_ends(y_pred), tape) as record:
                J = model.compute_loss(y=tf.constant(y), y_pred=y_pred)
        cost = losses.terminal_cost(record, J, float(len(y)), losses.keras_computes_loss(model))
        seed = tf.cast(len(y), J.dtype)
        flat = tape.gradient(J, [z, *cost.z, *cost.values], output_gradients=seed, unconnected_gradients="zero")
        kinds.append((cost.heads(flat[2:])[0].kind, record.ends[0].logits is not None))
        found = losses.terminal_curvature(cost, flat[1:2], flat[2:], terminal_hessian)
        return flat[0], flat[1], found.columns if terminal_hessian == "full" else found.beta_squared

    slope, at_z, found = in_modes(mode, run)(tf.constant(z))
    if terminal_hessian == "full":
        found = outer(np.stack([np.reshape(column[0], [len(z), -1]) for column in found], axis=2))
    return np.asarray(slope), np.asarray(at_z), found, kinds[-1]


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(
    ("how", "mode"),
    [
        *((how, mode) for how in ("Activation", "tensorflow") for mode in MODES),
        *((how, "graph") for how in ("keras.ops", "by hand")),
        *(slow_row(how, mode) for how in ("keras.ops", "by hand") for mode in ("eager", "jit")),
    ],
)
def test_a_sigmoid_into_a_categorical_cross_entropy_is_what_keras_makes_of_it(how, mode, rng):
    z, y = rng.normal(size=[3, 4]), np.eye(4)[[0, 2, 1]]
    p = reference.sigmoid(z)
    followed = how in {"Activation", "keras.ops"}
    loss = keras.losses.CategoricalCrossentropy(dtype="float64")
    slope, at_z, H, (kind, cut) = step(SIGMOIDS[how](), loss, z, y, mode)
    normalised = lambda t: -np.sum(y * np.log(t[0] / np.sum(t[0], axis=1, keepdims=True)))
    if followed:  # the softmax of the logits: the sigmoid is gone
        cost = lambda t: -np.sum(y * np.log(reference.softmax(t[0])))
    else:
        cost = lambda t: normalised([reference.sigmoid(t[0])])
    assert_close(slope.ravel(), reference.derivatives(cost, [z])[0], rtol=1e-9, label="Keras's own gradient")
    assert kind == ("softmax" if followed else "automatic")
    assert cut == (followed or (how == "tensorflow" and mode != "eager"))
    g, dense = reference.derivatives(*((cost, [z]) if cut else (normalised, [p])))
    assert_close(at_z.ravel(), g, rtol=1e-9)
    blocks = np.stack([dense[k : k + 4, k : k + 4] for k in (0, 4, 8)])
    assert_close(H, np.stack([reference.best_approximation(b, 4) for b in blocks]), atol=1e-7 * np.abs(blocks).max())


@pytest.mark.parametrize("mode", MODES)
def test_a_cast_hides_the_logits_from_the_loss(mode, rng):
    z, y = np.float32(rng.normal(size=[3, 4])), np.float32(np.eye(4)[[0, 2, 1]])
    layer = keras.layers.Activation("sigmoid", dtype="mixed_bfloat16")
    slope, at_z, _, (kind, _) = step(layer, "categorical_crossentropy", z, y, mode)
    assert kind == "automatic"
    p = reference.sigmoid(z.astype(np.float64))
    expected = (p.T / p.sum(axis=1)).T * (1 - p) - y * (1 - p)
    assert_close(slope, expected, rtol=2**-7)  # bfloat16 has 8 digits
    # a softmax of its own kind stays closed: Keras reads the probabilities, the formula is the same
    layer = keras.layers.Activation("softmax", dtype="mixed_bfloat16")
    slope, _, H, (kind, _) = step(layer, "categorical_crossentropy", z, y, mode)
    assert kind == "softmax"
    p = reference.softmax(z.astype(np.float64))
    assert_close(slope, p - y, atol=2**-7)
    assert_close(H, np.stack([np.diag(row) - np.outer(row, row) for row in p]), atol=2**-8)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("mode", MODES)
def test_a_softmax_over_another_axis_is_followed_to_its_logits(mode, rng):
    z = rng.normal(size=[2, 3, 2])
    y = np.transpose(np.eye(3)[[[0, 1], [2, 2]]], [0, 2, 1])
    loss = keras.losses.CategoricalCrossentropy(axis=1, dtype="float64")
    _, at_z, H, (kind, cut) = step(keras.layers.Softmax(axis=1), loss, z, y, mode)
    assert (kind, cut) == ("automatic", True)

    def cost(t):
        e = np.exp(t[0])
        return -np.sum(y * np.log(e / np.sum(e, axis=1, keepdims=True))) / 2  # a mean over the two positions

    g, dense = reference.derivatives(cost, [z])
    assert_close(at_z.ravel(), g, rtol=1e-9)
    assert_close(H, np.stack([dense[:6, :6], dense[6:, 6:]]), atol=1e-8)


@pytest.mark.filterwarnings("ignore:(?s).*using a softmax over axis -1")
@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("mode", MODES)
def test_a_squeezed_softmax_has_lost_its_logits_for_the_binary_cross_entropy(mode, rng):
    z, y = rng.normal(size=[3, 2, 1]), np.array([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    slope, _, H, (kind, _) = step(keras.layers.Softmax(), keras.losses.BinaryCrossentropy(dtype="float64"), z, y, mode)
    assert kind == "automatic"
    assert not slope.any()  # a softmax over one class is 1
    assert not np.asarray(H).any()
    layer = keras.layers.Activation("sigmoid")
    slope, _, H, (kind, _) = step(layer, keras.losses.BinaryCrossentropy(dtype="float64"), z, y, mode)
    assert kind == "sigmoid"
    p = reference.sigmoid(z[..., 0])
    assert_close(slope[..., 0], (p - y) / 2, rtol=1e-9)
    assert_close(H, np.stack([np.diag(row * (1 - row)) / 2 for row in p]), rtol=1e-9)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_ends_are_found_eagerly_and_in_a_graph(activation, rng):
    z = tf.constant(rng.normal(size=[3, 4]))
    end = losses.find_end(keras.activations.get(activation)(z))
    assert end.logits is z
    assert end.activation == activation
    seen = []

    @tf.function
    def trace(z):
        for function in (keras.activations.get(activation), getattr(tf.nn, activation)):
            seen.append((losses.find_end(function(z)), z))
        seen.append((losses.find_end(tf.identity(keras.activations.get(activation)(z))), None))
        return z

    trace(z)
    for end, logits in seen:
        assert end.logits is logits
        assert end.activation == (None if logits is None else activation)


def test_an_activation_that_the_values_do_not_tell_has_no_name():
    z = tf.zeros([3, 2])  # sigmoid and softmax agree
    y = keras.activations.sigmoid(z)
    end = losses.find_end(y)
    assert end.logits is z
    assert end.activation is None
    # a cross-entropy follows the logits whatever their activation is
    model = keras.Model(inputs := keras.Input([2]), keras.layers.Activation("sigmoid")(inputs))
    model.compile(loss="binary_crossentropy")
    _, cost, at_z, at_values = terminal(model, [z], [tf.constant([[1.0, 0.0]] * 3)])
    assert cost.heads(at_values)[0].kind == "sigmoid"
    assert cost.z[0] is z
    assert_close(at_z[0], [[-0.25, 0.25]] * 3, rtol=1e-6)


def test_outputs_that_are_no_floats_are_left_out():
    ends = losses.find_ends({"a": tf.ones([2, 3]), "b": tf.constant([1, 2]), "c": None})
    assert [end.output.shape for end in ends] == [[2, 3]]
