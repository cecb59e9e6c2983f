"""Models that are nothing but last activations and a loss, with J written out in NumPy."""

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from bellman_tf import losses
from tests.losses.cases import Wave
from verification.references import losses as reference

ops, L = keras.ops, keras.losses


class Case(NamedTuple):
    """A model of its inputs' activations; `cost` is J as a function of labels and logits."""

    activations: list
    cost: Any
    loss: Any = None
    loss_weights: Any = None
    own: Any = None
    weighted: bool = False
    separate: bool = False
    kinds: tuple = ("automatic",)


def python_mean(y_true, y_pred):
    return ops.mean(ops.square(y_true - y_pred) * (1.0 + ops.square(y_pred)))


def mean_of_cross_entropies(y_true, y_pred):
    return ops.mean(L.categorical_crossentropy(y_true, y_pred))


def own_product(y, y_pred):
    """Couples two outputs of a sample and looks through one of them."""
    first = ops.mean(L.categorical_crossentropy(y[0], y_pred[0]))
    return first + ops.mean(ops.sum(ops.exp(y_pred[0]), axis=-1) * ops.sum(ops.square(y_pred[1]), axis=-1))


def own_square_of_a_loss(y, y_pred):
    return ops.square(L.MeanSquaredError()(y[0], y_pred[0]))


class Rooted(L.MeanSquaredError):
    """Does something to what Keras has reduced."""

    def __call__(self, y_true, y_pred, sample_weight=None):
        return ops.sqrt(super().__call__(y_true, y_pred, sample_weight))


class Alone(L.Loss):
    """Keras's own `__call__` never runs."""

    def __call__(self, y_true, y_pred, sample_weight=None):
        return ops.sqrt(ops.mean(ops.square(y_true - y_pred)))


def entropy(y, z):
    return -np.sum(y * np.log(reference.softmax(z)), axis=-1)


def wave(y, p):
    return np.sin(np.sum(y * p, axis=-1)) + np.sum(p**3, axis=-1)


F64 = "float64"
WEIGHTS = np.array([0.5, 2.0, 1.0])
CASES = {
    "dice": Case(["sigmoid"], lambda y, z: reference.dice(y[0], reference.sigmoid(z[0])), L.Dice(dtype=F64)),
    "dice on the output": Case([None], lambda y, z: reference.dice(y[0], z[0]), L.Dice(dtype=F64)),
    "dice on a softmax": Case(
        ["softmax"], lambda y, z: reference.dice(y[0], reference.softmax(z[0])), L.Dice(dtype=F64)
    ),
    "tversky": Case(
        ["sigmoid"],
        lambda y, z: reference.tversky(y[0], reference.sigmoid(z[0]), 0.3, 0.8),
        L.Tversky(dtype=F64, alpha=0.3, beta=0.8),
    ),
    "python mean": Case([None], lambda y, z: np.mean((y[0] - z[0]) ** 2 * (1 + z[0] ** 2)), python_mean),
    "python mean that looks through": Case(
        ["softmax"], lambda y, z: np.mean(entropy(y[0], z[0])), mean_of_cross_entropies
    ),
    "cosine": Case(
        [None], lambda y, z: np.mean(reference.cosine(y[0], z[0])), L.CosineSimilarity(dtype=F64), separate=True
    ),
    "subclass, weighted": Case(
        ["softmax"],
        lambda y, z: np.sum(WEIGHTS * wave(y[0], reference.softmax(z[0]))) / 3,
        Wave(dtype=F64),
        weighted=True,
        separate=True,
    ),
    "two outputs": Case(
        ["sigmoid", "softmax"],
        lambda y, z: 0.5 * reference.dice(y[0], reference.sigmoid(z[0])) + 3.0 * np.mean(entropy(y[1], z[1])),
        [L.Dice(dtype=F64), L.CategoricalCrossentropy(dtype=F64)],
        [0.5, 3.0],
        kinds=("softmax", "automatic"),
    ),
    "two automatic outputs": Case(
        [None, "softmax"],
        lambda y, z: np.mean(reference.cosine(y[0], z[0])) + np.mean(wave(y[1], reference.softmax(z[1]))),
        [L.CosineSimilarity(dtype=F64), Wave(dtype=F64)],
        separate=True,
    ),
    "loss with its own __call__": Case([None], lambda y, z: np.sqrt(np.mean((y[0] - z[0]) ** 2)), Rooted(dtype=F64)),
    "loss that is not seen, beside one that is": Case(
        [None, "softmax"],
        lambda y, z: np.sqrt(np.mean((y[0] - z[0]) ** 2)) + np.mean(entropy(y[1], z[1])),
        [Alone(dtype=F64), L.CategoricalCrossentropy(dtype=F64)],
        kinds=("softmax", "automatic"),
    ),
    "own compute_loss": Case(
        ["softmax", None],
        lambda y, z: (
            np.mean(entropy(y[0], z[0]))
            + np.mean(np.sum(np.exp(reference.softmax(z[0])), axis=-1) * np.sum(z[1] ** 2, axis=-1))
        ),
        own=own_product,
    ),
    "own compute_loss around a Keras loss": Case(
        [None], lambda y, z: np.mean((y[0] - z[0]) ** 2) ** 2, own=own_square_of_a_loss
    ),
    "sigmoid into a categorical cross-entropy": Case(
        ["sigmoid"],
        lambda y, z: np.mean(entropy(y[0], z[0])),
        L.CategoricalCrossentropy(dtype=F64),
        kinds=("softmax",),
    ),
    "softmax into a binary cross-entropy": Case(
        ["softmax"],
        lambda y, z: np.mean(np.log1p(np.exp(z[0])) - y[0] * z[0]),
        L.BinaryCrossentropy(dtype=F64),
        kinds=("sigmoid",),
    ),
    "binary cross-entropy from logits after a sigmoid": Case(
        ["sigmoid"],
        lambda y, z: np.mean(np.log1p(np.exp(z[0])) - y[0] * z[0]),
        L.BinaryCrossentropy(dtype=F64, from_logits=True),
        kinds=("sigmoid",),
    ),
}


class OwnLoss(keras.Model):
    """Computes J by a function of labels and outputs."""

    own = None

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return self.own(y if isinstance(y, list) else [y], y_pred if isinstance(y_pred, list) else [y_pred])


def make(case):
    """The model, its inputs (the logits), labels and sample weights."""
    rng = np.random.default_rng(3)
    sizes = [4, 3][: len(case.activations)]
    inputs = [keras.Input([size]) for size in sizes]
    outputs = [keras.layers.Activation(a or "linear")(t) for a, t in zip(case.activations, inputs, strict=True)]
    single = len(inputs) == 1
    arguments = (inputs[0], outputs[0]) if single else (inputs, outputs)
    if case.own is not None:
        model = OwnLoss(*arguments)
        model.own = case.own
    else:
        model = keras.Model(*arguments)
    model.compile(loss=case.loss, loss_weights=case.loss_weights)
    z = [rng.normal(size=[3, size]) for size in sizes]
    y = [np.eye(size)[rng.integers(size, size=3)] * 0.8 + 0.2 / size for size in sizes]
    return model, z, y, WEIGHTS if case.weighted else None


def pack(parts):
    return parts[0] if len(parts) == 1 else list(parts)


def terminal(model, z, y, sample_weight=None):
    """What a training step does: J, the terminal cost, and the cotangents of `z` and of the loss values."""
    rows = z[0].shape[0] if z[0].shape[0] is not None else tf.shape(z[0])[0]
    with tf.GradientTape() as tape:
        tape.watch(z)
        y_pred = model(pack(z), training=True)
        with losses.record_loss(losses.find_ends(y_pred), tape) as record:
            J = model.compute_loss(x=pack(z), y=pack(y), y_pred=y_pred, sample_weight=sample_weight, training=True)
    cost = losses.terminal_cost(record, J, rows, losses.keras_computes_loss(model))
    seed = tf.cast(rows, J.dtype)  # so that derivatives belong to phi_i = B J_i
    found = tape.gradient(J, [*cost.z, *cost.values], output_gradients=seed, unconnected_gradients="zero")
    return J, cost, found[: len(cost.z)], found[len(cost.z) :]


def in_modes(mode, function):
    """The function as it is, traced, or compiled by XLA."""
    return function if mode == "eager" else tf.function(function, jit_compile=mode == "jit")
