"""`coupling="global"`: replicas take the steps of one replica that holds the whole batch."""

import keras
import numpy as np
import pytest
from keras import layers

import bellman_tf as btf
from tests.helpers import assert_close
from tests.replicas.training import CLASSES, assert_mirrored, compiled, data, fit, mlp, state_of


def cnn():
    """Convolutions by their centre tap, positions, a normalisation, an open-loop layer and own costs."""
    normalisation = [layers.GroupNormalization(2), layers.Activation("relu")]
    own = layers.SeparableConv2D(3, 2, bias_regularizer="l2")
    hidden = [layers.Conv2D(4, 2), *normalisation, layers.Dense(4), layers.Conv2D(4, 2), own]
    return btf.Sequential([keras.Input((6, 6, 2)), *hidden, layers.Flatten(), layers.Dense(CLASSES)])


OPTIMIZERS = {
    "identity": lambda **o: btf.GTDDP(0.1, curvature="identity", **o),
    "adam": lambda **o: btf.GTDDP(0.01, curvature="adam", **o),
    "kfac": lambda **o: btf.GTDDP(0.03, curvature=btf.curvature.KFAC(update_every=2, invert_every=2), **o),
    "ekfac": lambda **o: btf.GTDDP(0.03, curvature=btf.curvature.EKFAC(invert_every=2), **o),
    "AdamW": lambda **o: btf.GTDDP(inner_optimizer=keras.optimizers.AdamW(0.01), **o),
    "momentum": lambda **o: btf.GTDDP(0.03, curvature="identity", momentum=0.9, nesterov=True, **o),
    "full": lambda **o: btf.GTDDP(0.03, curvature="full", **o),
    "exact Hessian": lambda **o: btf.GTDDP(0.1, curvature="identity", terminal_hessian="full", **o),
    "feedback": lambda **o: btf.GTDDP(0.1, curvature="identity", information="feedback", **o),
    "no feedback": lambda **o: btf.GTDDP(0.1, curvature="identity", information="cooperative_open", **o),
    "control": lambda **o: btf.GTDDP(0.1, curvature="kfac", step_control=btf.LevenbergMarquardt(every=1), **o),
    "sketch": lambda **o: btf.GTDDP(0.03, gram="sketch", **o),
    "features": lambda **o: btf.GTDDP(0.01, curvature="adam", gram="features", **o),
}


def compare(name, count, make, shape, steps=3, **options):
    x, y = data(8 * steps, *shape)
    model, _ = compiled(count, lambda: OPTIMIZERS[name](coupling="global"), make, **options)
    history = fit(model, x, y, 8, 1)
    alone, _ = compiled(1, OPTIMIZERS[name], make, **options)
    expected = fit(alone, x, y, 8, 1)
    assert_close(history["loss"], expected["loss"], rtol=1e-5)
    for (path, value), (_, reference) in zip(state_of(model), state_of(alone), strict=True):
        if value.dtype.kind == "f" and "basis" not in path:  # eigenvectors have no sign
            assert_close(value, reference, rtol=1e-4, atol=1e-5, label=path)
    for weight, value in zip(model.get_weights(), alone.get_weights(), strict=True):
        assert_close(weight, value, atol=1e-5)
    assert model.optimizer.rejected_batches.numpy() == 0
    assert_mirrored(model)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("shape", [(), (6, 6, 2)], ids=["mlp", "cnn"])
def test_two_replicas(name, shape):
    compare(name, 2, cnn if shape else mlp, shape, 2, run_eagerly=True)
