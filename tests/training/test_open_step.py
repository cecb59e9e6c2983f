"""Open-loop with a first-order curvature is Keras's optimizer, whatever Keras can add to it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import bellman_tf as btf
from tests.helpers import assert_close, thinned
from tests.strategies.networks import cross_entropy, labels, normal

BASELINES = {
    "identity": keras.optimizers.SGD,
    "rmsprop": keras.optimizers.RMSprop,
    "adam": keras.optimizers.Adam,
}
BATCH = 5


def network():
    """Regularizers of kernel and activity, a constraint, a frozen layer."""
    return btf.Sequential(
        [
            layers.Input((6,)),
            layers.Dense(6, activation="tanh", kernel_regularizer="l2", activity_regularizer="l2", name="one"),
            layers.Dense(6, activation="relu", kernel_constraint=keras.constraints.MaxNorm(0.8), name="two"),
            layers.Dense(6, trainable=False, name="fixed"),
            layers.Dense(3, name="three"),
        ]
    )


def trained(optimizer, *, compile=None, fit=None, data=None):
    """12 samples in batches of 5, the last one partial, for two epochs."""
    keras.utils.set_random_seed(0)
    model = network()
    model.compile(optimizer=optimizer, **{**cross_entropy(), **(compile or {})})
    x, y = data or (normal(12, 6), labels(12))
    options = {"batch_size": BATCH, "epochs": 2, "shuffle": False, "verbose": 0, **(fit or {})}
    return model, model.fit(x, y, **options).history


def assert_same(curvature, rate=0.05, optimizer=None, **options):
    expected, their_history = trained(BASELINES[curvature](rate, **(optimizer or {})), **options)
    mine = btf.GTDDP(rate, information="open", curvature=curvature, **(optimizer or {}))
    actual, history = trained(mine, **options)
    assert history.keys() == their_history.keys()
    for key, values in their_history.items():
        assert_close(history[key], values, rtol=1e-5, atol=1e-6, label=key)
    for theirs, ours in zip(expected.variables, actual.variables, strict=True):
        assert_close(ours, theirs, atol=2e-6, label=theirs.path)
    return expected, actual


SCHEDULE = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
OPTIONS = {
    "plain": {},
    "a schedule": {"rate": SCHEDULE},
    "weight decay": {"optimizer": {"weight_decay": 0.1}},
    "clipvalue": {"optimizer": {"clipvalue": 0.01}},
    "clipnorm": {"optimizer": {"clipnorm": 0.02}},
    "clipnorm of zero": {"optimizer": {"clipnorm": 0.0}},
    "global clipnorm": {"optimizer": {"global_clipnorm": 0.05}},
    "averages": {"optimizer": {"use_ema": True, "ema_momentum": 0.8}},
    "averages that overwrite": {"optimizer": {"use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 2}},
}


@pytest.mark.parametrize(("curvature", "option"), thinned(BASELINES, OPTIONS, every=3))
def test_it_is_the_baseline_with(curvature, option):
    assert_same(curvature, **OPTIONS[option])


def weighted(labels_only):
    return np.linspace(0.0, 2.0, len(labels_only)).astype("float32")


FIT = {
    "class weights": {"fit": {"class_weight": {0: 0.5, 1: 2.0, 2: 1.0}}},
    "sample weights": {"fit": {"sample_weight": weighted(range(12))}},
    "steps per execution": {"compile": {"steps_per_execution": 2}},
    "run eagerly": {"compile": {"run_eagerly": True}},
    "jit": {"compile": {"jit_compile": True}},
    "no jit": {"compile": {"jit_compile": False}},
    "sum": {"compile": {"loss": keras.losses.SparseCategoricalCrossentropy(True, reduction="sum")}, "rate": 0.01},
    "mean of weights": {
        "compile": {"loss": keras.losses.SparseCategoricalCrossentropy(True, reduction="mean_with_sample_weight")},
        "fit": {"sample_weight": weighted(range(12))},
    },
    "metrics and validation": {
        "compile": {"metrics": ["accuracy"], "weighted_metrics": ["sparse_categorical_crossentropy"]},
        "fit": {"validation_data": (normal(6, 6, seed=3), labels(6)), "sample_weight": weighted(range(12))},
    },
}


@pytest.mark.parametrize("name", FIT)
def test_it_is_sgd_with(name):
    assert_same("identity", **FIT[name])


def test_it_is_sgd_with_callbacks(tmp_path):
    def options():
        return {
            "fit": {
                "epochs": 4,
                "validation_data": (normal(6, 6, seed=3), labels(6)),
                "callbacks": [
                    keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (1 + epoch)),
                    keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", save_best_only=True),
                    keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True),
                ],
            }
        }

    expected, history = trained(keras.optimizers.SGD(0.1), **options())
    actual, mine = trained(btf.GTDDP(0.1, information="open", curvature="identity"), **options())
    assert len(history["loss"]) == len(mine["loss"])
    for theirs, ours in zip(expected.variables, actual.variables, strict=True):
        assert_close(ours, theirs, atol=1e-6)
    assert type(keras.saving.load_model(tmp_path / "best.keras").optimizer) is btf.GTDDP


@pytest.mark.parametrize("name", ["KFAC", "EKFAC"])
def test_kronecker_factors_are_sgd_where_the_damping_outweighs_them(name):
    damping = 1e12  # its root beside each factor, whose eigenvalues are below 10: M^{-1} is 1 / damping to 1e-5
    weights = np.linspace(0.5, 2.0, 12).astype("float32")
    data = normal(12, 6), labels(12)
    expected, _ = trained(keras.optimizers.SGD(0.05), data=data, fit={"sample_weight": weights})
    metric = getattr(btf.curvature, name)(damping=damping)
    optimizer = getattr(btf, name)(0.05 * damping, curvature=metric)
    actual, _ = trained(optimizer, data=data, fit={"sample_weight": weights})
    for theirs, ours in zip(expected.weights, actual.weights, strict=True):
        assert_close(ours.numpy(), theirs.numpy(), rtol=1e-4, label=theirs.path)


def test_it_is_sgd_on_a_dataset():
    def fit(optimizer):
        keras.utils.set_random_seed(0)
        model = network()
        model.compile(optimizer=optimizer, **cross_entropy())
        data = tf.data.Dataset.from_tensor_slices((normal(12, 6), labels(12))).batch(BATCH)
        model.fit(data, epochs=2, verbose=0, shuffle=False)
        model.train_on_batch(normal(3, 6), labels(3), sample_weight=np.ones(3))
        return model.get_weights()

    both = [fit(keras.optimizers.SGD(0.1)), fit(btf.GTDDP(0.1, information="open", curvature="identity"))]
    for theirs, ours in zip(*both, strict=True):
        assert_close(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("name", ["bias", "three"])  # a variable's name, a layer's
def test_variables_excluded_from_weight_decay_do_not_decay(name):
    def excluding(optimizer):
        optimizer.exclude_from_weight_decay(var_names=[name])
        return optimizer

    options = {"weight_decay": 0.2}
    expected, _ = trained(excluding(keras.optimizers.SGD(0.1, **options)))
    actual, _ = trained(excluding(btf.GTDDP(0.1, information="open", curvature="identity", **options)))
    for theirs, ours in zip(expected.variables, actual.variables, strict=True):
        assert_close(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(("curvature", "slots"), [("rmsprop", ["velocity"]), ("adam", ["momentum", "velocity"])])
def test_the_slots_are_the_baselines(curvature, slots):
    expected, actual = assert_same(curvature)
    found = {slot: [v for v in expected.optimizer.variables if v.path.endswith(f"_{slot}")] for slot in slots}
    for player, state in zip(actual.game.players, actual.optimizer.state, strict=True):
        count = len(player.variables)
        for k, variable in enumerate(player.variables):
            position = [id(v) for v in actual.trainable_variables].index(id(variable))
            for place, slot in enumerate(slots):
                assert_close(state[place * count + k], found[slot][position], rtol=1e-5, label=variable.path)
