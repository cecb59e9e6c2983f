"""Losses of every kind through `fit`: they train, are called once a step, and J is what Keras reports."""

import keras
import numpy as np
import pytest

import bellman_tf as btf
from tests.helpers import assert_close, thinned

L = keras.losses


def python_mean(y_true, y_pred):
    return keras.ops.mean(keras.ops.square(y_true - y_pred))


class Written(L.Loss):
    """Keeps the running sum of its values in a variable, as a loss with a moving scale does."""

    def __init__(self):
        super().__init__()
        self.calls = keras.Variable(0.0, trainable=False)

    def call(self, y_true, y_pred):
        self.calls.assign_add(1.0)
        return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1) * (1.0 + 0.0 * self.calls)


class Own(btf.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.last = keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(4, activation="sigmoid")

    def call(self, x):
        return self.last(self.hidden(x))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.losses.dice(y, y_pred)


def sequential():
    return btf.Sequential(
        [
            keras.layers.Input((6,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dense(4, activation="sigmoid"),
        ]
    )


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=[16, 6])
    return np.float32(x), np.float32(x[:, :4] > 0)


KINDS = [L.Dice, L.Tversky, python_mean, L.LogCosh, L.Poisson, Own]


@pytest.mark.parametrize(("kind", "terminal_hessian"), thinned(KINDS, ["matched", "full"]))
def test_losses_of_every_kind_train(kind, terminal_hessian):
    x, y = data()
    model, loss = (Own(), None) if kind is Own else (sequential(), kind if kind is python_mean else kind())
    model.compile(optimizer=btf.GTDDP(0.3, terminal_hessian=terminal_hessian), loss=loss)
    history = model.fit(x, y, epochs=12, batch_size=16, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    floor = np.mean(y) if kind is L.Poisson else 0.0  # the best rates are the counts, each 1 costs 1
    assert history[-1] - floor < 0.9 * (history[0] - floor)


def test_a_scalar_loss_reports_what_keras_reports():
    x, y = data()
    reported = []
    for make_model in (sequential, lambda: keras.Sequential(sequential().layers)):
        keras.utils.set_random_seed(1)
        model = make_model()
        model.compile(optimizer=btf.GTDDP(0.1) if isinstance(model, btf.Sequential) else "sgd", loss=L.Dice())
        reported.append(model.train_on_batch(x, y))
    assert_close(reported[0], reported[1], rtol=1e-6)


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_a_loss_that_writes_does_it_once_a_step(run_eagerly):
    x, y = data()
    loss, model = Written(), sequential()
    model.compile(optimizer=btf.GTDDP(0.1), loss=loss, run_eagerly=run_eagerly)
    model.fit(x, y, epochs=3, batch_size=8, verbose=0)
    assert float(loss.calls) == 6
    assert np.isfinite(model.get_weights()[0]).all()


def unreduced(own):
    """A loss value per sample, of a Keras loss or of a model's own."""

    class Unreduced(btf.Sequential if own == "game" else keras.Sequential):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean(keras.ops.square(y - y_pred), axis=-1)

    return Unreduced


STEPS = [
    {"information": "open"},
    {},
    {"terminal_hessian": "full"},
    {"rollout": "nonlinear"},
    {"step_control": btf.LevenbergMarquardt(trust=0.0)},
    {"inner_optimizer": "sgd"},
]


@pytest.mark.parametrize(("options", "own"), thinned(STEPS, [False, True]))
def test_a_loss_that_is_not_reduced_trains_on_its_sum_and_shows_its_mean_as_in_keras(options, own):
    x, y = data()
    rate, steps, shown = 1e-5, [], []
    for kind in ("keras", "game"):
        keras.utils.set_random_seed(1)
        layers = sequential().layers
        plain = btf.Sequential if kind == "game" else keras.Sequential
        model = (unreduced(kind) if own else plain)([keras.layers.Input((6,)), *layers])
        optimizer = keras.optimizers.SGD(rate)
        if kind == "game" and "inner_optimizer" in options:
            optimizer = btf.GTDDP(inner_optimizer=optimizer)
        elif kind == "game":
            optimizer = btf.GTDDP(rate, curvature="identity", **options)
        model.compile(optimizer, None if own else L.MeanSquaredError(reduction="none"), jit_compile=False)
        before = model.get_weights()
        shown.append(model.fit(x, y, batch_size=16, verbose=0).history["loss"])
        steps.append(np.concatenate([np.ravel(a - b) for a, b in zip(model.get_weights(), before, strict=True)]))
    assert_close(shown[1], shown[0], rtol=1e-6)
    assert np.max(np.abs(steps[0])) > 1e-6
    assert_close(steps[1], steps[0], rtol=5e-3)  # float32 weights of order 1 round steps of 1e-5 to 1e-7
