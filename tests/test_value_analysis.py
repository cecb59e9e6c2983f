"""V_XX and gains of trained models against the dense recursion of the whole batch as one sample."""

import keras
import numpy as np
import pytest
from keras import layers

import bellman_tf as btf
from tests.helpers import assert_close
from tests.strategies.networks import cross_entropy
from verification.references import training as reference

pytestmark = pytest.mark.usefixtures("_float64")
RATE, B, DECAY = 0.4, 4, 0.03125


def network(normalise):
    """Two players in the second stage, a shortcut over it, and perhaps a normalisation that couples samples."""
    keras.utils.set_random_seed(2)
    penalty = {"kernel_regularizer": keras.regularizers.L2(DECAY)}
    inputs = layers.Input((3,))
    x = layers.Dense(4, activation="tanh", name="first", **penalty)(inputs)
    h = layers.Dense(4, name="stream", **penalty)(x)
    if normalise:
        h = layers.BatchNormalization(center=False, scale=False, epsilon=1e-3)(h)
    s = layers.Dense(4, name="side", **penalty)(x)
    z = layers.Activation("tanh")(layers.Add()([h, s, x]))
    model = btf.Model(inputs, layers.Dense(3, name="last", **penalty)(z))
    model.compile(btf.GTDDP(RATE, curvature="identity"), **cross_entropy())
    return model


def stacked(model, x, y, normalise):
    """The batch as one sample whose state is that of all samples: stages of plain NumPy, cost the mean loss."""
    parts = {
        name: np.vstack([model.get_layer(name).kernel.numpy(), model.get_layer(name).bias.numpy()[None]])
        for name in ("first", "stream", "side", "last")
    }

    def dense(rows, W):
        return rows @ W[:-1] + W[-1]

    def first(X, U):
        return np.tanh(dense(X.reshape(B, 3), U[0])).ravel()

    def second(X, U):
        rows = X.reshape(B, 4)
        h = dense(rows, U[0])
        if normalise:
            centred = h - h.mean(axis=0)
            h = centred / np.sqrt((centred * centred).mean(axis=0) + 1e-3)
        return np.tanh(h + dense(rows, U[1]) + rows).ravel()

    def last(X, U):
        return dense(X.reshape(B, 4), U[0]).ravel()

    costs = [reference.softmax_cost(label) for label in y]

    def cost(Z):
        ends = [each(row) for each, row in zip(costs, Z.reshape(B, 3), strict=True)]
        value, g = np.mean([end[0] for end in ends]), np.concatenate([end[1] for end in ends]) / B
        H = np.zeros((3 * B, 3 * B))
        for i, end in enumerate(ends):
            H[3 * i : 3 * i + 3, 3 * i : 3 * i + 3] = end[2] / B
        return value, g, H

    stages = [
        (first, [parts["first"]]), (second, [parts["stream"], parts["side"]]), (last, [parts["last"]]),
    ]  # fmt: skip
    line = reference.Linearisation(stages, x.reshape(1, -1), [cost])
    masked = {name: np.vstack([2 * DECAY * W[:-1], 0 * W[-1:]]) for name, W in parts.items()}
    own = [
        np.concatenate([masked[name].ravel() for name in names]) for names in (["first"], ["stream", "side"], ["last"])
    ]
    columns = [np.arange(len(l_u)) for l_u in own]
    return reference.policies_and_values(line, [0], columns, own, RATE, "full")


@pytest.fixture(params=[False, True], ids=["samples apart", "normalised"])
def normalise(request):
    return request.param


def test_value_hessian_and_gains_are_the_dense_ones(normalise, rng):
    model, x, y = network(normalise), rng.normal(size=(B, 3)), rng.integers(0, 3, B)
    before = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    _, (k, K, W), (_, _, W_last) = stacked(model, x, y, normalise)
    V = btf.analysis.value_hessian(model, x, "stream")
    assert V.shape == (B, 4, B, 4)
    assert_close(V.reshape(4 * B, 4 * B), W, rtol=1e-9, atol=1e-12)
    N = btf.analysis.value_hessian(model, x, "last", y, factor=True)
    assert N.shape == (B, 4, 2 * B)
    flat = N.reshape(4 * B, -1)
    assert_close(flat @ flat.T, W_last, rtol=1e-9, atol=1e-12)
    off = [np.abs(V[i, :, j]).max() for i in range(B) for j in range(B) if i != j]
    assert max(off) > 1e-3  # samples are coupled
    for name, rows in (("stream", slice(0, 20)), ("side", slice(20, 40))):
        found = btf.analysis.gains(model, x, model.get_layer(name), y)
        assert found.feedback.shape == (20, B, 4)
        assert_close(found.open, k[rows], rtol=1e-8, atol=1e-12)
        assert_close(found.feedback.reshape(20, -1), K[rows], rtol=1e-8, atol=1e-12)
    after = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    assert len(before) <= len(after)
    for old, new in zip(model.variables, before, strict=False):
        np.testing.assert_array_equal(old.numpy(), new)


def test_the_spectrum_is_that_of_the_gain(rng):
    model, x, y = network(False), rng.normal(size=(B, 3)), rng.integers(0, 3, B)
    K = btf.analysis.gains(model, x, "last", y).feedback
    values = np.linalg.svd(K.reshape(len(K), -1), compute_uv=False)
    ours = btf.analysis.feedback_spectrum(model, x, "last", y)
    count = min(len(values), len(ours))
    assert_close(ours[:count], values[:count], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: btf.analysis.value_hessian(m, x, "first"), "`layer` must act behind the first stage"),
        (lambda m, x: btf.analysis.value_hessian(m, x, "nobody"), "`layer` must be a player with a Gram form"),
        (lambda m, x: btf.analysis.value_hessian(m, x, "last", memory=1000), "`memory` must be at least"),
        (lambda m, x: btf.analysis.gains(m, x, "last", memory=1000), "`memory` must be at least"),
    ],
)
def test_what_does_not_fit_is_refused(call, message, rng):
    with pytest.raises(ValueError, match=message):
        call(network(False), rng.normal(size=(B, 3)))


def test_a_metric_of_the_models_fisher_matrix_is_that_here_too():
    """Squares of one output: residuals of 1/sqrt(2) have gradients whose squares are the Hessian, 2."""

    def seen(fisher, y):
        keras.utils.set_random_seed(2)
        inputs = layers.Input((3,))
        h = layers.Dense(4, activation="tanh", name="first")(inputs)
        model = btf.Model(inputs, layers.Dense(1, name="last")(layers.Dense(4, activation="tanh", name="second")(h)))
        curvature = btf.curvature.KFAC(fisher=fisher, invert_every=1)
        model.compile(btf.GTDDP(0.4, curvature=curvature), "mse")
        x = np.random.default_rng(0).normal(size=(B, 3))
        return np.array(btf.analysis.value_hessian(model, x, "second", y(np.array(model(x)))))

    drawn = seen("model", lambda ends: ends + 3.0)
    assert_close(drawn, seen("empirical", lambda ends: ends + 0.5**0.5), rtol=1e-9, atol=1e-12)
    assert np.abs(drawn - seen("empirical", lambda ends: ends + 3.0)).max() > 1e-3 * np.abs(drawn).max()
