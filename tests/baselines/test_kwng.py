"""KWNG: one step against dense matrices, its damping against the rule, and what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import bellman_tf as btf
from bellman_tf.baselines import kwng, wasserstein
from tests.helpers import assert_close, slow_row
from verification.references import wasserstein as reference

KWNG = btf.baselines.KWNG
float64 = pytest.mark.usefixtures("_float64")


def network(**options):
    keras.utils.set_random_seed(3)
    hidden = layers.Dense(4, activation="tanh", **options)
    return btf.Sequential([layers.Input((3,)), hidden, layers.Dense(2)])


def flat(model):
    return np.concatenate([w.ravel() for w in model.get_weights()])


def derivatives(model, x, y):
    """Outputs, their Jacobian `[N, d, q]` and the gradient of J, by automatic differentiation of the plain model."""
    variables = [v.value for v in model.trainable_variables]
    with tf.GradientTape(persistent=True) as tape:
        outputs = model(x)
        loss = model.compute_loss(x, y, outputs)
    parts = tape.jacobian(outputs, variables)
    J = np.concatenate([np.reshape(p, (*outputs.shape, -1)) for p in parts], axis=-1)
    return outputs.numpy(), J, np.concatenate([np.ravel(g) for g in tape.gradient(loss, variables)])


def drawn(options, X, jit):
    """The pairs of the first step; which ones they are is ours to choose. XLA draws other ones."""
    draw = tf.function(lambda iteration: kwng._drawn(tf.constant(X), options, iteration), jit_compile=jit)
    basis = draw(tf.constant(0, tf.int64))
    return basis.points.numpy(), basis.coordinates.numpy()


@float64
@pytest.mark.parametrize(
    ("options", "jit"),
    [
        ({"basis": 3}, False),
        slow_row({"basis": 3}, True),
        ({"basis": 2, "coordinates": "all", "diagonal": False}, False),
        ({"basis": 3, "ridge": 0.1, "bandwidth": 3.0, "seed": 5}, False),
        ({"basis": 4, "max_norm": 1e-2}, False),
    ],
)
def test_a_step_is_that_of_the_dense_matrices(rng, options, jit):
    model = network(kernel_regularizer="l2")
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
    model.compile(KWNG(0.1, epsilon=1e-2, **options), "mse", jit_compile=jit)
    before, chosen = flat(model), model.optimizer.kernel
    X, J, gradient = derivatives(model, x, y)
    points, coordinates = drawn(chosen, X, jit)
    variance = chosen.bandwidth * np.mean(np.sum((points[:, None] - X[None]) ** 2, axis=-1))
    cutoff = len(points) * np.finfo(np.float64).eps
    G = reference.metric(points, coordinates, X, J, variance, chosen.ridge, cutoff)
    D = np.sqrt(np.diag(G)) + wasserstein.SMALLEST if chosen.diagonal else np.ones(len(G))
    step = np.linalg.solve(G + np.float32(1e-2) * np.diag(D), gradient)
    step *= min(1.0, (chosen.max_norm or np.inf) / np.linalg.norm(step))
    assert step @ gradient > 0
    model.train_on_batch(x, y)
    assert_close(before - flat(model), 0.1 * step, rtol=1e-7)
    assert_close(model.optimizer.damping_state.predicted, 0.1 * step @ gradient, rtol=1e-5)


def test_pairs_differ_from_step_to_step_and_not_from_run_to_run():
    X = tf.random.stateless_normal([8, 3], [1, 2])
    options = kwng.KWNGOptions(basis=5)
    first, again = (kwng._drawn(X, options, tf.constant(4, tf.int64)) for _ in range(2))
    other = kwng._drawn(X, options, tf.constant(5, tf.int64))
    assert np.array_equal(first.points, again.points) and np.array_equal(first.coordinates, again.coordinates)
    assert not np.array_equal(first.points, other.points)
    assert len(np.unique(first.points.numpy()[:, 0])) == 5  # no point twice


@float64
@pytest.mark.parametrize("size", [1, 2])
def test_a_batch_smaller_than_the_basis_gives_its_gauss_newton_matrix(rng, size):
    """All coordinates of all samples, some of them twice: (J'J/N + epsilon I)^{-1} grad J."""
    model = network()
    x, y = rng.normal(size=(size, 3)), rng.normal(size=(size, 2))
    options = {"basis": 5, "coordinates": "all", "diagonal": False, "max_norm": None, "epsilon": 0.5}
    model.compile(KWNG(0.1, **options), "mse")
    before = flat(model)
    _, J, gradient = derivatives(model, x, y)
    J = J.reshape(-1, J.shape[-1])
    step = np.linalg.solve(J.T @ J / size + 0.5 * np.eye(J.shape[1]), gradient)
    model.train_on_batch(x, y)
    assert_close(before - flat(model), 0.1 * step, rtol=1e-6)


def replayed(losses, predicted, every, epsilon=1.0):
    """The rule in plain Python: epsilon after every loss."""
    ratio, steps, found = 0.0, 0, []
    for k, loss in enumerate(losses):
        if k and predicted[k - 1] > 0:
            ratio = max(ratio, 2 * (losses[k - 1] - loss) / predicted[k - 1])
        steps += 1
        if every and steps % every == 0:
            epsilon = epsilon * 0.85 if ratio > 0.75 else epsilon / 0.85 if ratio < 0.25 else epsilon
            ratio, steps = 0.0, 0
        found.append(epsilon)
    return found


@pytest.mark.parametrize("every", [1, 3, None])
def test_the_damping_follows_its_rule(rng, every):
    losses = rng.uniform(0.5, 1.5, 24)
    predicted = rng.uniform(0.05, 3.0, 24)
    predicted[5] = 0.0
    state = kwng.Damping(*map(tf.constant, (1.0, 0.0, 0.0, 0.0)), tf.constant(0, tf.int64))
    ours = []
    for loss, next_predicted in zip(losses, predicted, strict=True):
        state = kwng.adapted(state, tf.constant(loss, tf.float32), every)
        ours.append(float(state.epsilon))
        state = state._replace(predicted=tf.constant(next_predicted, tf.float32))
    expected = replayed(losses, predicted, every)
    assert_close(ours, expected, rtol=1e-5)
    assert (len(set(np.round(expected, 6))) > 3) == (every is not None)


def test_the_damping_stays_within_its_bounds():
    for epsilon, ratio in ((kwng.LEAST, 1.0), (kwng.MOST, 0.0)):
        state = kwng.Damping(*map(tf.constant, (epsilon, 1.0, 0.0, ratio)), tf.constant(0, tf.int64))
        assert_close(kwng.adapted(state, tf.constant(1.0), 1).epsilon, epsilon, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_batch_leaves_weights_and_damping_alone(bad, rng):
    model = network()
    model.compile(KWNG(0.1, adapt_every=1), "mse")
    x, y = rng.normal(size=(4, 3)).astype("float32"), rng.normal(size=(4, 2)).astype("float32")
    model.train_on_batch(x, y)
    before = [flat(model), *(v.numpy() for v in model.optimizer.damping_state)]
    x[1, 2] = bad
    model.train_on_batch(x, y)
    assert int(model.optimizer.rejected_batches) == 1
    for old, new in zip(before, [flat(model), *(v.numpy() for v in model.optimizer.damping_state)], strict=True):
        assert np.array_equal(old, new)


def test_layers_of_every_kind_train(rng):
    """Convolution, normalisation, dropout, an embedding's sparse gradient, two outputs, several positions."""
    keras.utils.set_random_seed(0)
    image, token = layers.Input((6, 6, 1)), layers.Input((4,), dtype="int32")
    h = layers.MaxPooling2D()(layers.BatchNormalization()(layers.Conv2D(3, 3)(image)))
    e = layers.LSTM(3)(layers.Embedding(5, 3)(token))
    h = layers.Concatenate()([layers.Dropout(0.1, seed=1)(layers.Flatten()(h)), e])
    model = btf.Model([image, token], [layers.Dense(3, activation="softmax")(h), layers.Dense(1)(h)])
    model.compile(KWNG(0.3), ["sparse_categorical_crossentropy", "mse"])
    x = [rng.normal(size=(12, 6, 6, 1)), rng.integers(0, 5, (12, 4))]
    y = [rng.integers(0, 3, 12), rng.normal(size=(12, 1))]
    losses = [float(np.ravel(model.train_on_batch(x, y))[0]) for _ in range(25)]
    assert min(losses[-5:]) < 0.8 * losses[0]
    assert int(model.optimizer.rejected_batches) == 0


class Summed(btf.Model):
    """Outputs that are not one row per sample."""

    def __init__(self):
        super().__init__()
        self.head = layers.Dense(3)

    def call(self, x):
        return tf.reduce_sum(self.head(x))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=None):
        return tf.square(y_pred)


def test_outputs_without_samples_are_refused(rng):
    model = Summed()
    model(rng.normal(size=(2, 3)).astype("float32"))
    model.compile(KWNG())
    with pytest.raises(ValueError, match=r"`model` must return outputs .* with one row per sample.*Use EKFAC"):
        model.train_on_batch(rng.normal(size=(4, 3)), rng.normal(size=(4,)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"basis": 0}, "`basis` must be an integer >= 1"),
        ({"coordinates": "two"}, "`coordinates` must be one of 'one', 'all'"),
        ({"bandwidth": 0.0}, "`bandwidth` must be a finite number > 0"),
        ({"ridge": -1.0}, "`ridge` must be a finite number >= 0"),
        ({"epsilon": 0.0}, "`epsilon` must be a finite number > 0"),
        ({"diagonal": 1}, "`diagonal` must be True or False"),
        ({"adapt_every": 0}, "`adapt_every` must be an integer >= 1"),
        ({"max_norm": 0.0}, "`max_norm` must be a finite number > 0"),
        ({"seed": -1}, "`seed` must be an integer >= 0"),
        ({"learning_rate": -1.0}, "`learning_rate` must be a finite number >= 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        KWNG(**options)
