"""`coupling="global"`: replicas take the steps of one replica that holds the whole batch."""

import keras
import numpy as np
import pytest
from keras import layers

import bellman_tf as btf
from bellman_tf.curvature.gram import gram
from bellman_tf.curvature.gram.across_replicas import GLOBAL_BATCH
from bellman_tf.training import contributions
from tests.helpers import assert_close, slow_row
from tests.replicas.training import (
    CLASSES,
    Bases,
    assert_mirrored,
    assert_same_training,
    compiled,
    data,
    fit,
    mlp,
    state_of,
)

IMAGES = (5, 5, 2)


def cnn():
    """Convolutions, a Dense layer with positions, slopes, an open-loop layer and own costs."""
    own = layers.SeparableConv2D(3, 2, bias_regularizer="l2")
    hidden = [layers.Conv2D(3, 2), layers.PReLU(shared_axes=[1, 2]), layers.Dense(3, "tanh"), own, layers.Flatten()]
    return btf.Sequential([keras.Input(IMAGES), *hidden, layers.Dense(CLASSES)])


OPTIMIZERS = {
    "identity": lambda **o: btf.GTDDP(0.1, curvature="identity", **o),
    "adam": lambda **o: btf.GTDDP(0.01, curvature="adam", **o),
    "kfac": lambda **o: btf.GTDDP(0.03, curvature=btf.curvature.KFAC(update_every=2, invert_every=2), **o),
    "ekfac": lambda **o: btf.GTDDP(0.03, curvature=btf.curvature.EKFAC(invert_every=2), **o),
    "AdamW": lambda **o: btf.GTDDP(inner_optimizer=keras.optimizers.AdamW(0.01), **o),
    "Lion": lambda **o: btf.GTDDP(inner_optimizer=keras.optimizers.Lion(0.01), **o),
    "momentum": lambda **o: btf.GTDDP(0.03, curvature="identity", momentum=0.9, nesterov=True, **o),
    "full": lambda **o: btf.GTDDP(0.03, curvature="full", **o),
    "exact Hessian": lambda **o: btf.GTDDP(0.1, curvature="identity", terminal_hessian="full", **o),
    "feedback": lambda **o: btf.GTDDP(0.1, curvature="identity", information="feedback", **o),
    "no feedback": lambda **o: btf.GTDDP(0.1, curvature="identity", information="cooperative_open", **o),
    "control": lambda **o: btf.GTDDP(0.1, step_control=btf.LevenbergMarquardt(every=1), **o),
    "sketch": lambda **o: btf.GTDDP(0.03, gram="sketch", **o),
    "features": lambda **o: btf.GTDDP(0.01, curvature="rmsprop", gram="features", **o),
}
NETWORKS = {"mlp": mlp, "cnn": cnn}
USUAL = [
    ("kfac", "mlp"),
    ("AdamW", "mlp"),
    slow_row("control", "mlp"),
    slow_row("feedback", "cnn"),
]  # the others, four replicas and uneven batches in one graph: the slow suite


def compare(name, count, network, samples, **options):
    """Steps of batches of 8; a last batch that is not shared evenly is that of weighted samples."""
    x, y = data(samples, *(IMAGES if network == "cnn" else ()))
    make = NETWORKS[network]
    model, _ = compiled(count, lambda: OPTIMIZERS[name](coupling="global"), make, **options)
    monitor = [btf.callbacks.GameMonitor()] if name in {"identity", "momentum", "control"} else []
    bases = [Bases()] if (name, network) == ("ekfac", "cnn") else []
    history = fit(model, x, y, 8, 1, callbacks=[*monitor, *bases])
    weights = np.ones(samples)
    if samples % 8:
        last, each = np.arange(samples - samples % 8, samples), -(-(samples % 8) // count)
        for start in range(0, len(last), each):
            rows = last[start : start + each]
            weights[rows] = len(last) / (count * len(rows))
    alone, _ = compiled(1, OPTIMIZERS[name], make, **options)
    given = [Bases(found.notes) for found in bases]
    expected = fit(alone, x, y, 8, 1, sample_weight=weights, callbacks=[*monitor, *given])
    for key in {"loss", "predicted_reduction", "actual_reduction", "damping", "leverage"} & set(expected):
        if not samples % 8:
            assert_close(history[key], expected[key], rtol=1e-4, label=key)
    assert_same_training(model, alone, but=("basis", "scalings") if bases else ("basis",))


@pytest.mark.parametrize(("name", "network"), USUAL)
def test_two_replicas(name, network):
    compare(name, 2, network, 16, run_eagerly=True)


def wide():
    """A layer of 13 inputs with the bias, more than a batch has samples."""
    hidden = layers.Dense(5, activation="tanh")
    return btf.Sequential([keras.Input((12,)), hidden, layers.Dense(CLASSES)])


def test_ekfac_of_few_samples_is_that_of_one_replica_in_the_same_eigenbasis():
    x, y = data(16, 12)
    options = {"make": wide, "run_eagerly": True}
    model, _ = compiled(2, lambda: OPTIMIZERS["ekfac"](coupling="global"), **options)
    alone, _ = compiled(1, OPTIMIZERS["ekfac"], **options)
    bases = Bases()
    fit(model, x, y, 8, 1, callbacks=[bases])
    fit(alone, x, y, 8, 1, callbacks=[Bases(bases.notes)])
    assert_same_training(model, alone, but=("basis", "scalings"))


@pytest.mark.parametrize(("period", "alike"), [(1, True), (2, False)])
@pytest.mark.usefixtures("_float64")
def test_between_factorisations_ekfac_of_few_samples_depends_on_their_order(period, alike):
    """Why the bases are handed over above: one replica is as far from itself."""
    x, y = data(16, 12)
    ekfac = btf.curvature.EKFAC(invert_every=period)
    order = np.concatenate([start + np.random.default_rng(0).permutation(8) for start in (0, 8)])
    weights = []
    for rows in (np.arange(16), order):
        model, _ = compiled(1, lambda: btf.GTDDP(0.03, curvature=ekfac), wide, run_eagerly=True)
        fit(model, x[rows], y[rows], 8, 1)
        weights.append(np.concatenate([part.ravel() for part in model.get_weights()]))
    gap = np.max(np.abs(weights[0] - weights[1]))
    assert gap < 1e-12 if alike else gap > 1e-3


@pytest.mark.parametrize(("count", "samples"), [(2, 11), slow_row(4, 13)])
def test_a_last_batch_that_is_not_shared_evenly(count, samples):
    """Replicas have 2 and 1 of its samples, or 2, 2, 1 and 0."""
    compare("identity", count, "mlp", samples, run_eagerly=count == 2)  # Keras's losses of no sample want a graph


def test_statistics_of_an_uneven_batch_are_the_mean_of_the_replicas_means():
    x, y = data(11)
    model, _ = compiled(2, lambda: OPTIMIZERS["ekfac"](coupling="global"), run_eagerly=True)
    fit(model, x, y, 8, 1)
    parts = [np.pad(part, [[0, 0], [0, 1]], constant_values=1) for part in (x[:8], x[8:10], x[10:])]
    first, *shares = [part.T @ part / len(part) for part in parts]
    [found] = [v for path, v in state_of(model) if "input_factor" in path and v.shape == (5, 5)]
    assert_close(found, (first + sum(shares) / 2) / 2, rtol=1e-6)
    assert_mirrored(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_in_one_graph(name):
    compare(name, 4, "mlp", 24)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "full"])  # whole kernels: too many parameters
def test_convolutions_in_one_graph(name):
    compare(name, 2, "cnn", 24)


@pytest.mark.slow
@pytest.mark.parametrize("samples", [9, 13, 22])  # replicas have 1, 0, 0, 0; 2, 2, 1, 0; 2, 2, 2, 0 of the last batch
@pytest.mark.parametrize("name", ["identity", "adam", "AdamW", "momentum", "feedback"])
def test_uneven_in_one_graph(name, samples):
    compare(name, 4, "mlp", samples)


def test_on_one_replica_it_changes_nothing():
    x, y = data(16)
    models = [compiled(1, lambda o=o: btf.GTDDP(0.03, **o), run_eagerly=True)[0] for o in ({}, {"coupling": "global"})]
    losses = [fit(model, x, y, 8, 1)["loss"] for model in models]
    assert losses[0] == losses[1]
    for (path, value), (_, reference) in zip(*map(state_of, models), strict=True):
        np.testing.assert_array_equal(value, reference, err_msg=path)


def test_what_is_too_much_to_send_is_named_and_stays_within_a_replica(monkeypatch):
    """Of two layers the first one's Gram matrix has no pairs of samples of two replicas."""
    x, y = data(16)
    memory = GLOBAL_BATCH * 4 * 20  # the first layer has 25 parameters, the second one 18
    make = lambda **o: lambda: btf.GTDDP(0.1, curvature="full", gram_memory=memory, **o)
    model, _ = compiled(2, make(coupling="global"), run_eagerly=True)
    name, found = model.layers[0].name, GLOBAL_BATCH * 4 * 25
    with pytest.warns(UserWarning, match=rf"these layers block-diagonal.*: {name}\. `gram_memory={found}` sends"):
        fit(model, x, y, 8, 1)
    mask = np.kron(np.eye(2), np.ones([4, 4])).astype("float32")

    def apart(capture, *options):
        matrix = gram(capture, *options)
        return matrix * mask if capture.layout.width == 5 else matrix

    monkeypatch.setattr(contributions, "gram", apart)
    alone, _ = compiled(1, make(), run_eagerly=True)
    fit(alone, x, y, 8, 1)
    assert_same_training(model, alone)


@pytest.mark.slow
def test_a_table_that_is_looked_up_stays_within_a_replica():
    def make():
        parts = [keras.Input((3,), dtype="int32"), layers.Embedding(300, 4), layers.Flatten(), layers.Dense(CLASSES)]
        return btf.Sequential(parts)

    x = np.random.default_rng(0).integers(0, 300, (8, 3))
    y = data(8)[1]
    adam = lambda **o: lambda: btf.GTDDP(0.01, curvature="adam", **o)
    model, _ = compiled(2, adam(coupling="global"), make, run_eagerly=True)
    with pytest.warns(UserWarning, match="block-diagonal.*embedding.*`gram='hashed'` makes sums"):
        fit(model, x, y, 8, 2)
    model, _ = compiled(2, adam(coupling="global", gram="hashed"), make, run_eagerly=True)
    alone, _ = compiled(1, adam(gram="hashed"), make, run_eagerly=True)
    assert_close(fit(model, x, y, 8, 2)["loss"], fit(alone, x, y, 8, 2)["loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"rollout": "nonlinear"}, "`rollout` must be 'linear' with coupling='global'"),
        ({"bilinear": True}, "`rollout` must be 'linear' with coupling='global'"),
        ({"value_hessian": "outer_product"}, "`rollout` must be 'linear' with coupling='global'"),
        ({"value_hessian": "block_diagonal"}, "`value_hessian` must be 'batch' with coupling='global'"),
        ({"group_size": 4}, "`group_size` must be None with coupling='global'"),
        ({"gradient_accumulation_steps": 2}, "`gradient_accumulation_steps` must be None with coupling='global'"),
    ],
)
def test_what_leaves_no_common_game_is_refused(options, rule):
    with pytest.raises(ValueError, match=rule):
        btf.GTDDP(0.1, coupling="global", **options)


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="`coupling` must be one of 'replica', 'global'"):
        btf.GTDDP(0.1, coupling="all")
