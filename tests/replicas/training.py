"""Models that are trained on several logical CPU devices, and on one in groups of a replica's batch."""

import contextlib
import functools

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import bellman_tf as btf
from tests.helpers import assert_close
from tests.strategies.networks import normal

CLASSES = 3


@functools.cache
def strategy_of(count):
    """The strategy of `count` replicas on logical CPU devices, one for all tests of a process.

    None of them uses collective operations: TensorFlow numbers those of every strategy alike, and takes those of a
    second one in the same process for the first one's. The program of `docs/devices.md`, which may run in the same
    process, uses them.
    """
    reduction = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy([f"CPU:{k}" for k in range(count)], cross_device_ops=reduction)


def mlp():
    regularizer = keras.regularizers.L2(0.01)
    hidden = layers.Dense(5, activation="tanh", kernel_regularizer=regularizer)
    return btf.Sequential([keras.Input((4,)), hidden, layers.Dense(CLASSES)])


def branches():
    """Two Dense layers in one stage."""
    inputs = keras.Input((4,))
    sides = [layers.Dense(5, activation="tanh", name=name)(inputs) for name in ("left", "right")]
    return btf.Model(inputs, layers.Dense(CLASSES)(layers.Add()(sides)))


def data(samples, *shape):
    """Inputs and labels."""
    return normal(samples, *(shape or (4,))), np.random.default_rng(1).integers(0, CLASSES, samples)


def compiled(count, optimizer, make=mlp, **options):
    """A model on `count` replicas, in its strategy's scope, and the strategy; one replica has none.

    Args:
        count: of replicas.
        optimizer: makes one.
        make: makes the model.
        **options: of `compile`.
    """
    strategy = strategy_of(count) if count > 1 else None
    with contextlib.nullcontext() if strategy is None else strategy.scope():
        keras.utils.set_random_seed(0)
        model = make()
        loss = options.pop("loss", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.compile(optimizer(), loss, **options)
    return model, strategy


def fit(model, x, y, batch_size, epochs=2, **options):
    return model.fit(x, y, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0, **options).history


class Bases(keras.callbacks.Callback):
    """Notes EKFAC's state that is not unique, after every batch; or gives a model that of another one's notes.

    Where a factor has a null space, of fewer samples than rows, nothing determines the eigenvectors in it: rounding
    chooses them, and with them the diagonal that is measured in them until the next factorisation.
    """

    def __init__(self, notes=None):
        super().__init__()
        self.given, self.notes = notes, []

    def on_train_batch_end(self, batch, logs=None):
        free = [v for v in self.model.optimizer.variables if "_basis" in v.path or "_scalings" in v.path]
        assert free
        if self.given is None:
            self.notes.append([v.numpy() for v in free])
        else:
            for variable, value in zip(free, self.given[batch], strict=True):
                variable.assign(value)


def state_of(model):
    """(path, value) of everything that training changes, in the order of the model and its optimizer."""
    return [(v.path, v.numpy()) for v in [*model.variables, *model.optimizer.variables]]


def assert_same_training(model, alone, but=("basis",)):
    """Asserts that replicas have trained a model as one has trained another, and hold the same bits.

    Args:
        model: trained on several replicas.
        alone: trained on one.
        but: parts of paths of state that is not compared: eigenvectors have no sign.
    """
    for (path, value), (_, reference) in zip(state_of(model), state_of(alone), strict=True):
        if value.dtype.kind == "f" and not any(part in path for part in but):
            assert_close(value, reference, rtol=1e-4, atol=1e-5, label=path)
    for weight, value in zip(model.get_weights(), alone.get_weights(), strict=True):
        assert_close(weight, value, atol=1e-5)
    assert model.optimizer.iterations.numpy() == alone.optimizer.iterations.numpy() > 0
    assert model.optimizer.rejected_batches.numpy() == 0
    assert_mirrored(model)


def assert_mirrored(model, but=()):
    """Asserts that every replica holds the same bits.

    Args:
        model: trained on several replicas.
        but: parts of paths of variables that Keras keeps apart.
    """
    for variable in [*model.variables, *model.optimizer.variables]:
        if any(part in variable.path for part in but):
            continue
        first, *others = (part.numpy() for part in variable.value.values)
        for other in others:
            np.testing.assert_array_equal(other, first, err_msg=variable.path)
