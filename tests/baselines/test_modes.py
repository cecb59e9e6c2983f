"""Both baselines on layers of many kinds, in the modes in which Keras trains."""

import keras
import numpy as np
import pytest
from keras import layers

import bellman_tf as btf
from tests.helpers import slow_row
from tests.strategies.networks import cross_entropy


def attention():
    inputs = layers.Input((4, 6))
    h = layers.MultiHeadAttention(2, 3)(inputs, inputs)
    h = layers.LayerNormalization()(layers.Add()([inputs, h]))
    return btf.Model(inputs, layers.Dense(3, dtype="float32")(layers.GlobalAveragePooling1D()(h)))


OPTIMIZERS = {
    "EMSA": lambda: btf.baselines.EMSA(0.3, rho=3.0, iterations=3),
    "KWNG": lambda: btf.baselines.KWNG(0.1),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("policy", [slow_row("float32"), "mixed_bfloat16"])
def test_attention_trains_in_half_precision_too(make, policy, rng):
    keras.utils.set_random_seed(0)
    keras.mixed_precision.set_global_policy(policy)
    model = attention()
    model.compile(make(), **cross_entropy())
    x, y = rng.normal(size=(8, 4, 6)).astype("float32"), rng.integers(0, 3, 8)
    losses = [float(model.train_on_batch(x, y)) for _ in range(6)]
    assert losses[-1] < losses[0] and int(model.optimizer.rejected_batches) == 0


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_network_of_one_parameter_and_a_batch_of_one(make):
    model = btf.Sequential([layers.Input((1,)), layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    model.compile(make(), "mse")
    x, y = np.ones((1, 1), "float32"), np.zeros((1, 1), "float32")
    for _ in range(30):
        model.train_on_batch(x, y)
    assert abs(float(model.get_weights()[0][0, 0])) < 0.5


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_without_a_gradient_nothing_moves(make):
    model = btf.Sequential([layers.Input((2,)), layers.Dense(2, kernel_initializer="identity")])
    model.compile(make(), "mse")
    x = np.array([[1.0, 2.0], [-1.0, 0.5]], "float32")
    before = model.get_weights()
    model.train_on_batch(x, x)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert int(model.optimizer.rejected_batches) == 0 and int(model.optimizer.iterations) == 1
