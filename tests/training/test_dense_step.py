"""Vanilla DDP against `verification/references/vanilla.py`, and against the recursion in the space of samples."""

import re

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.datasets import load_digits

import bellman_tf as btf
from bellman_tf.training.dense_step import dense_bytes
from tests.helpers import assert_close
from verification.references import vanilla

pytestmark = pytest.mark.usefixtures("_float64")


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def chain():
    keras.utils.set_random_seed(1)
    widths = [layers.Dense(4, activation="tanh"), layers.Dense(3, activation="tanh"), layers.Dense(3)]
    return btf.Sequential([layers.Input((3,)), *widths])


def weights(model):
    return [(layer.kernel.numpy(), layer.bias.numpy()) for layer in model.layers]


def softmax(logits, y):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    H = np.einsum("bi,ij->bij", p, np.eye(p.shape[1])) - np.einsum("bi,bj->bij", p, p)
    return -np.log(p[np.arange(len(y)), y]).mean(), p - np.eye(p.shape[1])[y], H


@pytest.mark.parametrize(
    ("second_order", "damping", "jit"), [(False, 0.3, False), (True, 0.0, False), (True, 0.1, True)]
)
def test_three_steps_are_those_of_the_reference(rng, second_order, damping, jit):
    model = chain()
    x, y = rng.normal(size=(5, 3)), rng.integers(0, 3, 5)
    model.compile(btf.DDP(0.4, second_order=second_order, value_damping=damping), cross_entropy(), jit_compile=jit)
    expected = weights(model)
    for _ in range(3):
        _, g, H = softmax(vanilla.forward(x, expected)[0][-1], y)
        expected, _ = vanilla.step(x, expected, g, H, 0.4, second_order=second_order, value_damping=damping)
        model.train_on_batch(x, y)
        for ours, theirs in zip(weights(model), expected, strict=True):
            assert_close(ours[0], theirs[0], rtol=1e-6 if jit and second_order else 1e-10)  # eigenvalues under XLA
            assert_close(ours[1], theirs[1], rtol=1e-6 if jit and second_order else 1e-10)


def test_the_search_takes_the_first_step_that_lowers_the_loss(rng):
    model = chain()
    x, y = 3 * rng.normal(size=(5, 3)), rng.integers(0, 3, 5)
    model.compile(btf.DDP(300.0, second_order=True, line_search=20), cross_entropy())
    shortened = 0
    for _ in range(6):
        before = weights(model)
        cost, g, H = softmax(vanilla.forward(x, before)[0][-1], y)
        for trial in range(21):
            moved, decrease = vanilla.step(x, before, g, H, 300.0, second_order=True, alpha=0.5**trial)
            alpha = 0.5**trial
            found = (
                softmax(vanilla.forward(x, moved)[0][-1], y)[0] <= cost - 1e-4 * 2 * (alpha - alpha**2 / 2) * decrease
            )
            if found:
                break
        model.train_on_batch(x, y)
        shortened += alpha < 1
        assert float(model.optimizer.last_step) == (alpha if found else 0.0)
        for ours, theirs in zip(weights(model), moved if found else before, strict=True):
            assert_close(ours[0], theirs[0], rtol=1e-7)
    assert shortened, "no step was shortened: the example does not test the search"


def residual(regularizer=None):
    """Two cooperating players, a shortcut, dropout, a softmax at the end."""
    keras.utils.set_random_seed(2)
    inputs = layers.Input((64,))
    h = layers.Dense(6, activation="tanh")(inputs)
    h = layers.Dropout(0.2, seed=3)(h)
    y = layers.Dense(5, activation="tanh")(h)
    h = layers.Add()([layers.Dense(6, activation="tanh")(y), layers.Dense(6, kernel_regularizer=regularizer)(h)])
    return btf.Model(inputs, layers.Dense(10, activation="softmax")(layers.Add()([h, h])))


def digits():
    x, y = load_digits(return_X_y=True)
    return x / 16, y


def test_it_is_the_recursion_in_the_space_of_samples():
    """Ten steps on real DIGITS, with weight decay through a regularizer."""
    x, y = digits()
    finals = []
    optimizers = btf.DDP(0.5), btf.GTDDP(0.5, curvature="identity", terminal_hessian="full", rollout="nonlinear")
    for optimizer in optimizers:
        model = residual("l2")
        model.compile(optimizer, "sparse_categorical_crossentropy")
        losses = [model.train_on_batch(x[8 * k : 8 * k + 8], y[8 * k : 8 * k + 8]) for k in range(10)]
        finals.append(np.concatenate([w.ravel() for w in model.get_weights()] + [np.ravel(losses)]))
    assert_close(*finals, rtol=1e-8)


def test_normalisation_couples_samples_and_is_exact_here(rng):
    """A linear network with BatchNormalization and one player behind it: the Gauss-Newton step of its weights."""
    model = btf.Sequential([layers.Input((3,)), layers.BatchNormalization(scale=False, center=False), layers.Dense(2)])
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
    model.compile(btf.DDP(1e6), "mse")
    model.train_on_batch(x, y)
    normal = np.hstack([(x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3), np.ones((6, 1))])
    best = np.linalg.lstsq(normal, y, rcond=None)[0]
    dense = model.layers[-1]
    assert_close(np.vstack([dense.kernel.numpy(), dense.bias.numpy()[None]]), best, rtol=1e-4)


def test_what_does_not_fit_is_refused_with_its_size():
    x, y = digits()

    def train(budget):
        model = residual()
        model.compile(btf.DDP(0.1, memory_budget=budget), "sparse_categorical_crossentropy")
        before = model.get_weights()
        try:
            model.train_on_batch(x[:2], y[:2])
        finally:
            model.unchanged = all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
            models.append(model)

    models = []
    with pytest.raises(
        ValueError, match=r"stacked states of 2 samples .* Received: memory_budget=1000. Use GTDDP"
    ) as e:
        train(1000)
    needed = int(re.search(r"at least (\d+)", str(e.value))[1])
    with pytest.raises(ValueError, match="memory_budget"):
        train(needed - 1)
    train(needed)
    assert [model.unchanged for model in models] == [True, True, False]


def test_the_count_of_bytes_grows_as_the_square_of_the_batch():
    one, ten = (dense_bytes([B * 50, B * 50, B * 10], [2550, 510], 8) for B in (1000, 10000))
    assert 90 < ten / one < 100


def test_a_layer_applied_twice_is_refused():
    inputs, shared = layers.Input((3,)), layers.Dense(3)
    model = btf.Model(inputs, shared(shared(inputs)))
    model.compile(btf.DDP(0.1), "mse")
    with pytest.raises(ValueError, match="applied once"):
        model.train_on_batch(np.ones((2, 3)), np.ones((2, 3)))


@pytest.mark.parametrize(
    "option",
    [{"second_order": 1}, {"value_damping": -1.0}, {"line_search": -1}, {"memory_budget": 0}, {"learning_rate": 0}],
)
def test_options_outside_their_range_are_refused(option):
    with pytest.raises(ValueError, match=f"`{next(iter(option))}` must .* Received"):
        btf.DDP(**option)
