"""Models, data and comparisons of the tests of gradient accumulation."""

import keras
from keras import layers

import bellman_tf as btf
from tests.helpers import assert_close
from tests.optimizers.inside import MAKE
from tests.strategies.networks import cross_entropy, labels, normal

K, M = 3, 4  # micro-batches of an update, samples of a micro-batch
x, y = normal(36, 6), labels(36)


def small():
    penalty = keras.regularizers.L2(0.01)
    return btf.Sequential(
        [layers.Input((6,)), layers.Dense(5, activation="tanh", kernel_regularizer=penalty), layers.Dense(3)]
    )


def compiled(optimizer, make=small, **options):
    keras.utils.set_random_seed(0)
    model = make()
    model.compile(optimizer, **cross_entropy(), **{"jit_compile": False, **options})
    return model


def train(model, size=M, samples=slice(0, 36)):
    inputs, targets = x[samples], y[samples]
    for k in range(0, len(inputs), size):
        model.train_on_batch(inputs[k : k + size], targets[k : k + size])
    return model


def assert_same_weights(model, other, rtol=1e-5, variables="trainable_variables"):
    for v, w in zip(getattr(model, variables), getattr(other, variables), strict=True):
        if v.dtype.startswith("float"):
            assert_close(v.numpy(), w.numpy(), rtol=rtol, atol=1e-7, label=v.path)


INSIDE = ["momentum", "adam", "lion", "schedule", *(["multi"] if "multi" in MAKE else [])]


def accumulating(name):
    inner = MAKE[name]()
    for part in inner.optimizers if name == "multi" else [inner]:
        part.gradient_accumulation_steps = K  # read when it is built
    return inner
