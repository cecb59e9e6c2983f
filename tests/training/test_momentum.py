"""Momentum of our own curvatures, and the policy that knows of it."""

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from keras import layers

import bellman_tf as btf
from bellman_tf.bellman.rollout import cooperative_weights
from bellman_tf.bellman.sample_space import SampleValue
from bellman_tf.training.momentum import Momentum
from tests.helpers import assert_close, thinned
from tests.strategies.networks import cross_entropy, labels, mlp, normal
from verification.references import momentum as reference

x, y = normal(8, 6), labels(8)


def compiled(optimizer, network=mlp, **options):
    keras.utils.set_random_seed(0)
    model = network()
    model.compile(optimizer, **cross_entropy(), **{"jit_compile": False, **options})
    return model


def train(model, steps=4):
    return [float(model.train_on_batch(x, y)) for _ in range(steps)]


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("jit", [False, True])
def test_its_steps_minimise_the_model_around_the_momentum_step(nesterov, jit):
    penalty, rate, beta = 2.0**-6, 0.25, 0.75
    model = btf.Sequential(
        [
            layers.Input((4,)),
            layers.Dense(5, activation="tanh", kernel_regularizer=keras.regularizers.L2(penalty)),
            layers.Dense(3),
        ]
    )
    optimizer = btf.GTDDP(rate, curvature="identity", momentum=beta, nesterov=nesterov)
    model.compile(optimizer, **cross_entropy(), jit_compile=jit)
    weights = [w + 0.1 for w in model.get_weights()]
    model.set_weights(weights)
    inputs, targets = np.random.default_rng(1).normal(size=(6, 4)), labels(6)
    expected = reference.train(weights, inputs, targets, penalty, rate, beta, nesterov, 4)
    for _ in range(4):
        model.train_on_batch(inputs, targets)
    for actual, wanted in zip(model.get_weights(), expected, strict=True):
        assert_close(actual, wanted, rtol=1e-11)


@hypothesis.given(
    samples=st.integers(1, 5),
    parameters=st.integers(1, 6),
    beta=st.floats(0.0625, 0.9375),
    nesterov=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_the_weights_see_the_whole_displacement(samples, parameters, beta, nesterov, seed):
    """W = a + S <q, du> for the du that is made, momentum included, and du is the reference's."""
    random = np.random.default_rng(seed)
    Q, own, v = (random.normal(size=shape) for shape in ((samples, parameters), parameters, parameters))
    R = random.normal(size=(parameters, parameters))
    M, beta_squared = R @ R.T + np.eye(parameters), random.uniform(0, 3, samples)
    momentum = Momentum(beta, nesterov)
    inverse = np.linalg.inv(M)
    [ahead] = momentum.ahead([tf.constant(v)])
    gram, pull = momentum.direct * Q @ inverse @ Q.T, momentum.direct * Q @ inverse @ own
    a, L = np.full(samples, 1 / samples), np.diag(np.sqrt(beta_squared / samples))
    w = cooperative_weights(
        SampleValue(tf.constant(a), tf.constant(L)), tf.constant(gram), tf.constant(pull - Q @ ahead.numpy())
    ).numpy()
    [new], [decrease] = momentum.applied([tf.constant(v)], [tf.constant(inverse @ (Q.T @ w + own))])
    assert_close(w, a + L @ L.T @ Q @ -decrease.numpy(), atol=1e-9)
    du, velocity = reference.step(Q, beta_squared, own, M, v, beta, nesterov)
    assert_close(-decrease.numpy(), du, atol=1e-8)
    assert_close(new.numpy(), velocity, atol=1e-8)


@pytest.mark.parametrize("nesterov", [False, True])
def test_open_loop_it_is_the_momentum_of_keras(nesterov):
    plain = compiled(keras.optimizers.SGD(0.1, momentum=0.9, nesterov=nesterov))
    ours = compiled(btf.GTDDP(0.1, curvature="identity", information="open", momentum=0.9, nesterov=nesterov))
    for model in (plain, ours):
        train(model, 6)
    for expected, actual in zip(plain.get_weights(), ours.get_weights(), strict=True):
        assert_close(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_outside_the_policy_it_is_sgd_with_momentum_inside(nesterov):
    inner = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=nesterov)
    options = {"momentum": 0.9, "nesterov": nesterov}
    inside = compiled(btf.GTDDP(inner_optimizer=inner, inner_metric="rate"))
    outside = compiled(btf.GTDDP(0.1, curvature="identity", **options, momentum_in_policy=False))
    known = compiled(btf.GTDDP(0.1, curvature="identity", **options))
    for model in (inside, outside, known):
        train(model, 4)
    for expected, actual in zip(inside.get_weights(), outside.get_weights(), strict=True):
        assert_close(actual, expected, rtol=1e-6)
    gaps = [np.abs(a - b).max() for a, b in zip(known.get_weights(), outside.get_weights(), strict=True)]
    assert max(gaps) > 1e-4


@pytest.mark.parametrize(
    ("curvature", "information"),
    thinned(["identity", "rmsprop", "kfac", "ekfac"], ["cooperative", "feedback", "cooperative_open"]),
)
def test_it_trains_under_every_curvature(curvature, information):
    options = {"curvature": curvature, "information": information, "momentum": 0.8, "group_size": 4}
    losses = train(compiled(btf.GTDDP(0.01, **options)), 6)
    assert losses[-1] < losses[0]


def test_joint_metrics_have_momentum_too():
    inputs = keras.Input((6,))
    branches = [layers.Dense(4, activation="tanh", name=name)(inputs) for name in ("left", "right")]
    make = lambda: btf.Model(inputs, layers.Dense(3)(layers.Add()(branches)))
    curvature = btf.curvature.KFAC(cooperative="exact")
    losses = train(compiled(btf.GTDDP(0.05, curvature=curvature, momentum=0.5), make), 6)
    assert losses[-1] < losses[0]


def test_decay_and_constraints_go_with_it():
    def make():
        constraint = keras.constraints.MaxNorm(0.5)
        return btf.Sequential([layers.Input((6,)), layers.Dense(3, kernel_constraint=constraint)])

    plain = compiled(keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1), make)
    options = {"curvature": "identity", "information": "open", "momentum": 0.9, "weight_decay": 0.1}
    ours = compiled(btf.GTDDP(0.1, **options), make)
    for model in (plain, ours):
        train(model, 5)
    for expected, actual in zip(plain.get_weights(), ours.get_weights(), strict=True):
        assert_close(actual, expected, rtol=1e-6)


REFUSED = {
    "nonlinear": ({"rollout": "nonlinear"}, "`momentum` must be 0 with rollout='nonlinear'"),
    "adam": ({"curvature": "adam"}, "`momentum` must be 0 with curvature='adam'"),
    "inside": ({"inner_optimizer": "sgd"}, "`momentum` must be left out with an inner optimizer"),
    "large": ({"momentum": 1.0}, "`momentum` must be a finite number >= 0 and < 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_go_with_it_is_refused(case):
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        btf.GTDDP(**{"momentum": 0.9, **options})


def test_it_cannot_be_changed_later():
    with pytest.raises(ValueError, match="`momentum` must be given to the constructor"):
        btf.GTDDP(momentum=0.9).momentum = 0.5


def test_nesterov_needs_momentum():
    with pytest.raises(ValueError, match="`nesterov` must be False without momentum"):
        btf.GTDDP(nesterov=True)
