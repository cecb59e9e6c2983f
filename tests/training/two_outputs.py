"""A model with two outputs and rules which players feel which loss, of the tests of players' own losses."""

import keras
import numpy as np
from keras import layers

import bellman_tf as btf

random = np.random.default_rng(3)
X, LABELS, TARGETS = random.normal(size=(6, 5)), random.integers(0, 3, 6), random.normal(size=(6, 2))
RULES = {"trunk_1": ["a"], "b_*": ["b"], "side": ["b"]}
FELT = {"trunk_1": "a", "trunk_2": "ab", "side": "b", "a": "ab", "b_hidden": "b", "b": "ab"}


def network(base=btf.Model, *, regularizer=None, normalise=False, logits=True):
    """Two outputs behind a residual block with a trained shortcut, and a hidden layer of the second's own."""
    keras.utils.set_random_seed(1)
    x = keras.Input((5,))
    h = layers.Dense(4, activation="tanh", name="trunk_1", kernel_regularizer=regularizer)(x)
    g = layers.BatchNormalization(name="norm")(h) if normalise else h
    h = layers.Add()([layers.Dense(4, activation="tanh", name="trunk_2")(g), layers.Dense(4, name="side")(h)])
    a = layers.Dense(3, name="a", activation=None if logits else "softmax")(h)
    hidden = layers.Dense(3, activation="tanh", name="b_hidden")(h)
    return base(x, [a, layers.Dense(2, name="b")(hidden)])


def losses(dtype=None):
    return [keras.losses.SparseCategoricalCrossentropy(True, dtype=dtype), keras.losses.MeanSquaredError(dtype=dtype)]


def trained(optimizer, *, steps=1, weights=(1.0, 0.5), loss=None, make=network, **options):
    model = make()
    model.compile(optimizer, loss or losses(), loss_weights=list(weights), jit_compile=False, **options)
    for _ in range(steps):
        model.train_on_batch(X, [LABELS, TARGETS])
    return {v.path: v.numpy() for v in model.trainable_variables}
