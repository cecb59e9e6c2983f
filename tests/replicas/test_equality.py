"""Replicas of B/n samples each take the steps of one replica whose batch is coupled in groups of B/n."""

import keras
import pytest
from keras import layers

import bellman_tf as btf
from tests.helpers import assert_close, slow_row
from tests.replicas.training import CLASSES, Bases, assert_mirrored, assert_same_training, compiled, data, fit, mlp


def cnn():
    """A convolution, a layer without a Gram form, and a bias that a normalisation takes away."""
    convolution = layers.Conv2D(3, 2, activation="relu")
    own = layers.SeparableConv2D(3, 2, bias_regularizer="l2")
    return btf.Sequential([keras.Input((5, 5, 2)), convolution, own, layers.Flatten(), layers.Dense(CLASSES)])


OPTIMIZERS = {
    "identity": lambda **o: btf.GTDDP(0.1, curvature="identity", **o),
    "rmsprop": lambda **o: btf.GTDDP(0.01, curvature="rmsprop", **o),
    "adam": lambda **o: btf.GTDDP(0.01, curvature="adam", **o),
    "kfac": lambda **o: btf.GTDDP(0.03, curvature=btf.curvature.KFAC(update_every=2, invert_every=2), **o),
    "ekfac": lambda **o: btf.GTDDP(0.03, curvature=btf.curvature.EKFAC(invert_every=2), **o),
    "full": lambda **o: btf.GTDDP(0.03, curvature="full", **o),
    "momentum": lambda **o: btf.GTDDP(0.03, curvature="identity", momentum=0.9, nesterov=True, **o),
    "clipped": lambda **o: btf.GTDDP(0.1, curvature="identity", global_clipnorm=0.1, **o),
    "decay, averages": lambda **o: btf.GTDDP(0.1, curvature="identity", weight_decay=0.1, use_ema=True, **o),
    "exact Hessian": lambda **o: btf.GTDDP(0.1, curvature="identity", terminal_hessian="full", **o),
    "feedback": lambda **o: btf.GTDDP(0.1, curvature="identity", information="feedback", **o),
    "AdamW": lambda **o: btf.GTDDP(inner_optimizer=keras.optimizers.AdamW(0.01), **o),
    "SGD": lambda **o: btf.GTDDP(inner_optimizer=keras.optimizers.SGD(0.1, momentum=0.9), **o),
    "Lion": lambda **o: btf.GTDDP(inner_optimizer=keras.optimizers.Lion(0.01), **o),
}
USUAL = ("identity", "ekfac", "AdamW")  # K-FAC in a graph, on four replicas, and beside an open-loop layer


def singular(name, make):
    """Whether a metric has bases that are not unique: the last layer of `cnn` has 28 inputs, of 8 samples a batch."""
    return name == "ekfac" and make is cnn


def compare(name, count, make, shape, steps=4, **options):
    x, y = data(8 * steps, *shape)
    model, _ = compiled(count, OPTIMIZERS[name], make, metrics=["accuracy"], **options)
    bases = [Bases()] if singular(name, make) else []
    history = fit(model, x, y, 8, 1, callbacks=bases)
    grouped = lambda: OPTIMIZERS[name](group_size=8 // count)
    alone, _ = compiled(1, grouped, make, metrics=["accuracy"], **options)
    expected = fit(alone, x, y, 8, 1, callbacks=[Bases(found.notes) for found in bases])
    for key in expected:
        assert_close(history[key], expected[key], rtol=1e-5, label=key)
    assert_same_training(model, alone, but=("basis", "scalings") if bases else ("basis",))
    assert model.optimizer.iterations.numpy() == steps


@pytest.mark.parametrize("count", [2, slow_row(4)])
def test_drawn_cotangents_of_one_output(count, monkeypatch):
    """Whose squares do not depend on the signs, so that replicas with signs of their own have the same statistics."""

    def regression():
        return btf.Sequential([keras.Input((6,)), layers.Dense(4, activation="tanh"), layers.Dense(1)])

    drawn = btf.curvature.KFAC(update_every=2, invert_every=2, fisher="model")
    monkeypatch.setitem(OPTIMIZERS, "drawn", lambda **o: btf.GTDDP(0.03, curvature=drawn, **o))
    compare("drawn", count, regression, (6,), loss="mse")


@pytest.mark.parametrize("sharded", [slow_row(False), True])
def test_mixtures_of_features(sharded, monkeypatch):
    """Which every replica has from the factors of all samples."""

    def tokens():
        layer = layers.Dense(5, activation="tanh")
        return btf.Sequential([keras.Input((4, 6)), layer, layers.GlobalAveragePooling1D(), layers.Dense(CLASSES)])

    curvature = btf.curvature.KFAC(invert_every=2, sharded=sharded)
    monkeypatch.setitem(OPTIMIZERS, "mixed", lambda **o: btf.GTDDP(0.03, curvature=curvature, gram="features", **o))
    compare("mixed", 2, tokens, (4, 6))


@pytest.mark.parametrize("name", USUAL)
def test_two_replicas(name):
    compare(name, 2, mlp, (), 2, run_eagerly=True)


def test_four_replicas():
    compare("kfac", 4, mlp, (), 2, run_eagerly=True)


def test_two_replicas_in_one_graph():
    compare("kfac", 2, mlp, ())


def test_an_open_loop_layer():
    compare("kfac", 2, cnn, (5, 5, 2), 2, run_eagerly=True)


@pytest.mark.slow
def test_accumulated_gradients():
    x, y = data(32)
    make = lambda **o: lambda: btf.GTDDP(0.03, gradient_accumulation_steps=2, **o)
    model, _ = compiled(2, make())
    alone, _ = compiled(1, make(group_size=4))
    assert_close(fit(model, x, y, 8)["loss"], fit(alone, x, y, 8)["loss"], rtol=1e-5)
    for weight, value in zip(model.get_weights(), alone.get_weights(), strict=True):
        assert_close(weight, value, atol=1e-5)
    assert_mirrored(model)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_in_one_graph(name, count):
    compare(name, count, mlp, ())


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "full"])  # whole kernels: too many parameters
def test_convolutions_in_one_graph(name, count):
    compare(name, count, cnn, (5, 5, 2))
