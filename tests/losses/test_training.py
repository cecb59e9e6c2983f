"""Losses of every kind through `fit`: they train, are called once a step, and J is what Keras reports."""

import keras
import numpy as np
import pytest

import bellman_tf as btf
from tests.helpers import assert_close

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


@pytest.mark.parametrize("terminal_hessian", ["matched", "full"])
@pytest.mark.parametrize("make_loss", [L.Dice, L.Tversky, lambda: python_mean, L.LogCosh, L.Poisson, Own], ids=str)
def test_losses_of_every_kind_train(make_loss, terminal_hessian):
    x, y = data()
    model, loss = (Own(), None) if make_loss is Own else (sequential(), make_loss())
    model.compile(optimizer=btf.GTDDP(0.3, terminal_hessian=terminal_hessian), loss=loss)
    history = model.fit(x, y, epochs=12, batch_size=16, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    floor = np.mean(y) if make_loss is L.Poisson else 0.0  # the best rates are the counts, each 1 costs 1
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
