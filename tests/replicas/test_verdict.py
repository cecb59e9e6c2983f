"""Batches that replicas reject together, batches that they do not share evenly, and what comes out the same twice."""

import keras
import numpy as np
import pytest
from keras import layers

import bellman_tf as btf
from tests.helpers import assert_close, slow_row
from tests.replicas.training import CLASSES, assert_mirrored, compiled, data, fit, state_of


def normalised(synchronized=False):
    normalisation = layers.BatchNormalization(synchronized=synchronized)
    hidden = [layers.Dense(5), normalisation, layers.Activation("tanh")]
    return btf.Sequential([keras.Input((4,)), *hidden, layers.Dense(CLASSES)])


OPTIMIZERS = {
    "kfac": lambda: btf.GTDDP(0.03),
    "kfac, global": lambda: btf.GTDDP(0.03, coupling="global"),
    "SGD": lambda: btf.GTDDP(inner_optimizer=keras.optimizers.SGD(0.1, momentum=0.9)),
}


@pytest.mark.parametrize("name", ["kfac", *(slow_row(n) for n in ("kfac, global", "SGD"))])
def test_one_nan_rejects_the_batch_on_all_replicas(name):
    x, y = data(16)
    model, _ = compiled(2, OPTIMIZERS[name], normalised, run_eagerly=True)
    fit(model, x[:8], y[:8], 8, 1)
    expected = state_of(model)
    x[14] = np.nan  # in the second replica's half of the second batch
    model, _ = compiled(2, OPTIMIZERS[name], normalised, run_eagerly=True)
    history = fit(model, x, y, 8, 1)
    assert np.isfinite(history["loss"]).all()
    assert model.optimizer.rejected_batches.numpy() == 1
    for (path, value), (_, reference) in zip(state_of(model), expected, strict=True):
        if "rejected" not in path:
            np.testing.assert_array_equal(value, reference, err_msg=path)
    assert_mirrored(model, but=("moving",))


@pytest.mark.parametrize(("samples", "shares"), [(15, (4, 3)), (17, (1, 0))])
def test_the_mean_of_the_replicas_means_is_minimised(samples, shares):
    x, y = data(samples)
    make = lambda **o: lambda: btf.GTDDP(0.1, curvature="identity", **o)
    model, _ = compiled(2, make(), run_eagerly=min(shares) > 0)  # Keras's losses of no sample want a graph
    fit(model, x, y, 8, 1)
    last = sum(shares)
    weights = np.ones(samples)
    weights[-last:] = np.repeat([last / (2 * max(share, 1)) for share in shares], shares)
    alone, _ = compiled(1, make(group_size=4), run_eagerly=True)
    fit(alone, x, y, 8, 1, sample_weight=weights)
    for weight, value in zip(model.get_weights(), alone.get_weights(), strict=True):
        assert_close(weight, value, atol=1e-5)
    assert model.optimizer.rejected_batches.numpy() == 0
    assert_mirrored(model)


@pytest.mark.parametrize("curvature", ["kfac", slow_row("ekfac")])
def test_a_replica_without_samples_has_no_part_in_the_statistics(curvature):
    x, y = data(17)
    model, _ = compiled(2, lambda: btf.GTDDP(0.03, curvature=curvature), normalised)
    fit(model, x, y, 16, 2)
    assert model.optimizer.iterations.numpy() == 4
    assert_mirrored(model, but=("moving",))
    for layer in model.layers:
        for variable in layer.variables:
            for part in variable.value.values:
                assert np.isfinite(part).all(), variable.path


@pytest.mark.parametrize("synchronized", [False, slow_row(True)])
def test_open_loop_steps_are_those_of_keras(synchronized):
    x, y = data(15)
    make = lambda: normalised(synchronized)
    model, _ = compiled(2, lambda: btf.GTDDP(0.1, curvature="identity", information="open"), make, run_eagerly=True)
    plain, _ = compiled(2, lambda: keras.optimizers.SGD(0.1), make, run_eagerly=True)
    assert_close(fit(model, x, y, 8, 1)["loss"], fit(plain, x, y, 8, 1)["loss"], rtol=1e-6)
    for own, theirs in zip(model.variables, plain.variables, strict=True):
        for part, reference in zip(own.value.values, theirs.value.values, strict=True):
            assert_close(part, reference, atol=1e-6, label=own.path)


@pytest.mark.filterwarnings("ignore:.*trains these layers open-loop")
def test_a_synchronised_normalisation_sees_the_whole_batch():
    x, y = data(16)
    make = lambda: normalised(True)
    model, _ = compiled(2, lambda: btf.GTDDP(0.03), make, run_eagerly=True)
    alone, _ = compiled(1, lambda: btf.GTDDP(0.03, group_size=4), make, run_eagerly=True)
    assert_close(fit(model, x, y, 8, 1)["loss"], fit(alone, x, y, 8, 1)["loss"], rtol=1e-5)
    for weight, value in zip(model.get_weights(), alone.get_weights(), strict=True):
        assert_close(weight, value, atol=1e-5)
    assert_mirrored(model)


@pytest.mark.slow
def test_training_is_the_same_twice():
    x, y = data(16)
    runs = []
    for _ in range(2):
        model, _ = compiled(2, lambda: btf.GTDDP(0.03), run_eagerly=True)
        fit(model, x, y, 8, 1)
        runs.append(state_of(model))
    for (path, value), (_, reference) in zip(*runs, strict=True):
        np.testing.assert_array_equal(value, reference, err_msg=path)
