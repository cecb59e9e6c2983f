"""The decrease of J that is predicted of moves with momentum, or of an optimizer inside."""

import keras
import numpy as np
import pytest
from keras import layers, optimizers

import bellman_tf as btf
from tests.strategies.networks import normal

OPTIONS = {
    "momentum": lambda: btf.GTDDP(0.2, curvature="identity", momentum=0.9),
    "nesterov": lambda: btf.GTDDP(0.02, curvature="rmsprop", momentum=0.8, nesterov=True, information="feedback"),
    "decay": lambda: btf.GTDDP(0.2, curvature="identity", momentum=0.5, weight_decay=0.5),
    "outside": lambda: btf.GTDDP(0.2, curvature="identity", momentum=0.9, momentum_in_policy=False),
    "sgd inside": lambda: btf.GTDDP(inner_optimizer=optimizers.SGD(0.2, momentum=0.9)),
    "adamw inside": lambda: btf.GTDDP(inner_optimizer=optimizers.AdamW(0.3, weight_decay=0.5)),
    "lion inside": lambda: btf.GTDDP(inner_optimizer=optimizers.Lion(0.2)),
}


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("case", OPTIONS)
def test_of_a_quadratic_loss_it_is_exact_however_long_the_step(case):
    """One linear layer, one output, mean squared error: slope and curvature at the end are all of J."""
    model = btf.Sequential([layers.Input((4,)), layers.Dense(1)])
    x = normal(8, 4)
    model.compile(OPTIONS[case](), keras.losses.MeanSquaredError(), jit_compile=False)
    y = x[:, :1] + 2.0 + normal(8, 1, seed=3)
    told = model.fit(x, y, batch_size=8, epochs=6, verbose=0, callbacks=[btf.callbacks.GameMonitor()]).history
    np.testing.assert_allclose(told["actual_reduction"][:5], -np.diff(told["loss"]), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(told["predicted_reduction"], told["actual_reduction"], rtol=1e-5, atol=1e-7)
    assert np.ptp(told["loss"]) > 0.1


@pytest.mark.usefixtures("_float64")
def test_layers_without_a_gram_form_count_with_their_slope():
    model = btf.Sequential([layers.Input((5, 3)), layers.GRU(4), layers.Dense(2)])
    optimizer = btf.GTDDP(inner_optimizer=optimizers.SGD(1e-4, momentum=0.9))
    x, y = normal(8, 5, 3), normal(8, 2)
    with pytest.warns(UserWarning, match="open-loop"):
        model.compile(optimizer, "mse", jit_compile=False)
        told = model.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=[btf.callbacks.GameMonitor()]).history
    np.testing.assert_allclose(told["reduction_ratio"], 1, atol=1e-3)  # ten times the rate
