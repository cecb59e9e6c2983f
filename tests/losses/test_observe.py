"""What is recorded while J is computed, and that f holds everything Keras does to it."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from bellman_tf import losses
from tests.helpers import assert_close
from tests.losses.cases import (
    dense_model,
)
from tests.losses.networks import terminal
from verification.references import losses as reference

REDUCTIONS = ["sum", "sum_over_batch_size", "mean", "mean_with_sample_weight"]


def observe(model, x, y, sample_weight=None):
    """J, the observations and f of each."""
    with tf.GradientTape() as tape:
        y_pred = model(x, training=True)
        with losses.observe_losses(tape) as observed:
            J = model.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)
    gradients = tape.gradient(J, [o.values for o in observed], unconnected_gradients="zero")
    return J, y_pred, observed, [len(x) * g.numpy() for g in gradients]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_f_is_exact_for_every_reduction(reduction, weighted, rng):
    model = dense_model(keras.losses.SparseCategoricalCrossentropy(reduction=reduction))
    x, y = rng.normal(size=[5, 3]), rng.integers(4, size=5)
    sample_weight = np.array([1.0, 0.0, 2.0, 0.5, 3.0]) if weighted else None
    J, y_pred, [observation], [f] = observe(model, x, y, sample_weight)
    assert observation.y_pred is y_pred
    again = model.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight)
    assert not (J - again).numpy()
    assert_close(f, reference.value_weights((5,), reduction, sample_weight), rtol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_f_holds_the_mask_of_an_embedding(reduction, weighted, rng):
    model = keras.Sequential(
        [
            keras.layers.Input([4]),
            keras.layers.Embedding(7, 3, mask_zero=True),
            keras.layers.Dense(5, activation="softmax"),
        ]
    )
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(reduction=reduction))
    x = np.array([[1, 2, 0, 0], [3, 0, 0, 0], [1, 5, 6, 2]])
    sample_weight = rng.uniform(0.0, 2.0, size=[3, 4]) if weighted else None
    _, _, _, [f] = observe(model, x, rng.integers(5, size=[3, 4]), sample_weight)
    assert_close(f, reference.value_weights((3, 4), reduction, sample_weight, x != 0), rtol=2e-6)


@pytest.mark.parametrize("structure", ["list", "dict"])
def test_f_holds_the_weights_of_two_outputs(structure, rng):
    x = keras.Input([3])
    outputs = {"a": keras.layers.Dense(4, activation="softmax", name="a")(x), "b": keras.layers.Dense(2, name="b")(x)}
    y = {"a": rng.integers(4, size=5), "b": rng.normal(size=[5, 2])}
    pack = (lambda d: d) if structure == "dict" else lambda d: [d["a"], d["b"]]
    model = keras.Model(x, pack(outputs))
    model.compile(
        loss=pack({"a": "sparse_categorical_crossentropy", "b": "mse"}), loss_weights=pack({"a": 0.25, "b": 3.0})
    )
    sample_weight = {"a": rng.uniform(size=5), "b": rng.uniform(size=5)}
    _, y_pred, observed, f = observe(model, rng.normal(size=[5, 3]), pack(y), pack(sample_weight))
    assert [losses.recognise(o.loss, a).kind for o, a in zip(observed, ["softmax", None], strict=True)] == [
        "softmax",
        "square",
    ]
    for key, observation, got, weight in zip("ab", observed, f, [0.25, 3.0], strict=True):
        assert observation.y_pred is (y_pred[key] if structure == "dict" else y_pred["ab".index(key)])
        assert_close(got, reference.value_weights((5,), "mean", sample_weight[key], loss_weight=weight), rtol=1e-6)


def test_f_holds_class_weights_given_to_fit(rng):
    seen = []

    class Watching(keras.Model):
        def train_step(self, data):
            x, y, sample_weight = data
            seen.append((observe(self, x, y, sample_weight)[3][0], y.numpy()))
            return {"loss": 0.0}

    x = keras.Input([3])
    model = Watching(x, keras.layers.Dense(3, activation="softmax")(x))
    model.compile(loss="sparse_categorical_crossentropy", run_eagerly=True)
    model.fit(rng.normal(size=[4, 3]), np.array([0, 1, 2, 1]), class_weight={0: 0.5, 1: 2.0, 2: 0.0}, verbose=0)
    [(f, y)] = seen
    assert_close(f, np.array([0.5, 2.0, 0.0])[y.ravel().astype(int)], rtol=1e-6)


@pytest.mark.parametrize("form", ["mse", keras.losses.mean_squared_error, keras.losses.MeanSquaredError(), "own"])
def test_every_way_to_name_a_loss_is_observed(form, rng):
    loss = (lambda y_true, y_pred: tf.reduce_mean((y_true - y_pred) ** 2, axis=-1)) if form == "own" else form
    model = dense_model(loss)
    _, _, [observation], [f] = observe(model, rng.normal(size=[2, 3]), rng.normal(size=[2, 4]))
    assert observation.values.shape == [2]
    assert_close(f, [1.0, 1.0], rtol=1e-6)
    assert losses.recognise(observation.loss).kind == ("automatic" if form == "own" else "square")


def test_a_loss_made_of_losses_is_one_loss(rng):
    class Composite(keras.losses.Loss):
        inner = keras.losses.MeanSquaredError(reduction=None)

        def call(self, y_true, y_pred):
            return 3.0 * self.inner(y_true, y_pred)

    _, _, [observation], [f] = observe(dense_model(Composite()), rng.normal(size=[2, 3]), rng.normal(size=[2, 4]))
    assert isinstance(observation.loss, Composite)
    assert_close(f, [1.0, 1.0], rtol=1e-6)


def test_losses_called_by_an_own_compute_loss_are_observed_and_none_is_no_error(rng):
    class Own(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return tf.reduce_mean(y_pred**2) if y is None else keras.losses.Huber()(y, y_pred) * 2.0

    inputs = keras.Input([3])
    model = Own(inputs, keras.layers.Dense(4)(inputs))
    _, _, observed, _ = observe(model, rng.normal(size=[2, 3]), None)
    assert observed == []
    _, _, [observation], [f] = observe(model, rng.normal(size=[2, 3]), np.zeros([2, 4]))
    assert losses.recognise(observation.loss).kind == "huber"
    assert_close(f, [2.0, 2.0], rtol=1e-6)


def test_threads_do_not_see_each_other():
    loss, y = keras.losses.MeanSquaredError(), tf.ones([2, 1])
    inside, leave = threading.Event(), threading.Event()
    counts = {}

    def replica(name, calls):
        with losses.observe_losses() as observed:
            for _ in range(calls):
                loss(y, y)
            inside.set()
            leave.wait(10)
            loss(y, y)
        counts[name] = len(observed)

    other = threading.Thread(target=replica, args=("other", 3))
    other.start()
    assert inside.wait(10)
    loss(y, y)  # this thread is not recording
    with losses.observe_losses() as observed:
        loss(y, y)
    counts["this"] = len(observed)
    leave.set()
    other.join()
    assert counts == {"other": 4, "this": 1}


def test_keras_is_as_before_afterwards_also_after_an_error():
    before, loss = keras.losses.Loss.__call__, keras.losses.MeanSquaredError()

    class Broken(keras.losses.Loss):
        def call(self, y_true, y_pred):
            raise RuntimeError("broken")

    with losses.observe_losses() as outer_list:
        with pytest.raises(RuntimeError, match="broken"), losses.observe_losses():
            Broken()(tf.ones([1, 1]), tf.ones([1, 1]))
        loss(tf.ones([1, 1]), tf.ones([1, 1]))
    assert keras.losses.Loss.__call__ is before
    assert len(outer_list) == 1
    assert "call" not in vars(loss)
    loss(tf.ones([1, 1]), tf.ones([1, 1]))
    assert len(outer_list) == 1


class Penalised(keras.layers.Layer):
    """Adds a loss of its own, made with a Keras loss of an inner tensor."""

    def __init__(self):
        super().__init__()
        self.inner, self.dense = keras.losses.MeanSquaredError(), keras.layers.Dense(4)

    def call(self, x):
        h = self.dense(x)
        self.add_loss(self.inner(tf.zeros_like(h), h))
        return h


def test_only_losses_of_the_outputs_count(rng):
    inputs = keras.Input([3])
    model = keras.Model(inputs, keras.layers.Softmax()(Penalised()(inputs)))
    model.compile(loss="categorical_crossentropy")
    x, y = tf.constant(rng.normal(size=[2, 3]), tf.float32), tf.one_hot([1, 2], 4)
    J, cost, at_z, at_values = terminal(model, [x], [y])
    assert len(cost.values) == 1
    [head] = cost.heads(at_values)
    assert head.kind == "softmax"
    assert_close(at_values[0], [1.0, 1.0], rtol=1e-6)
    entropy = keras.losses.categorical_crossentropy(y, model(x))
    assert_close(J, np.mean(entropy) + sum(model.losses), rtol=1e-6)  # both are in J


def test_many_threads_enter_and_leave_at_once():
    before, loss, y = keras.losses.Loss.__call__, keras.losses.MeanSquaredError(), tf.ones([2, 1])
    counts, start = {}, threading.Barrier(6)

    def replica(calls):
        start.wait(10)
        found = []
        for _ in range(20):
            with losses.observe_losses() as observed:
                for _ in range(calls):
                    loss(y, y)
            loss(y, y)
            found.append(len(observed))
        counts[calls] = found

    threads = [threading.Thread(target=replica, args=(calls,)) for calls in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == {calls: [calls] * 20 for calls in range(1, 7)}
    assert keras.losses.Loss.__call__ is before
