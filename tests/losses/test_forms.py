"""Which closed form a loss and an activation make."""

import keras
import pytest
import tensorflow as tf

from bellman_tf import losses
from tests.losses.cases import (
    Wave,
)

L = keras.losses


class OwnCall(keras.losses.MeanSquaredError):
    def call(self, y_true, y_pred):
        return 2.0 * super().call(y_true, y_pred)


class OwnName(keras.losses.CategoricalCrossentropy):
    """Overrides nothing: still the same function."""


def _mutated():
    loss = keras.losses.MeanSquaredError()
    loss.call = lambda y_true, y_pred: tf.reduce_mean(y_pred**4, axis=-1)
    return loss


RECOGNISED = [
    (L.CategoricalCrossentropy(), "softmax", None, ("softmax", True)),
    (L.CategoricalCrossentropy(from_logits=True), None, None, ("softmax", False)),
    (L.CategoricalCrossentropy(from_logits=True), "relu", None, ("softmax", False)),
    (L.CategoricalCrossentropy(), None, None, ("automatic", False)),
    (L.CategoricalCrossentropy(), "sigmoid", None, ("softmax", True)),
    (L.CategoricalCrossentropy(from_logits=True), "softmax", None, ("softmax", True)),
    (L.CategoricalCrossentropy(axis=1), "softmax", None, ("automatic", True)),
    (L.CategoricalCrossentropy(axis=1), "softmax", 2, ("softmax", True)),
    (L.CategoricalCrossentropy(axis=1), "softmax", 3, ("automatic", True)),
    (OwnName(), "softmax", None, ("softmax", True)),
    (L.SparseCategoricalCrossentropy(), "softmax", None, ("softmax", True)),
    (L.SparseCategoricalCrossentropy(from_logits=True), "linear", None, ("softmax", False)),
    (L.BinaryCrossentropy(), "sigmoid", None, ("sigmoid", True)),
    (L.BinaryCrossentropy(), "softmax", None, ("sigmoid", True)),
    (L.BinaryCrossentropy(), "tanh", None, ("automatic", False)),
    (L.BinaryCrossentropy(from_logits=True), None, None, ("sigmoid", False)),
    (L.MeanSquaredError(), None, None, ("square", False)),
    (L.MeanSquaredError(), "softmax", None, ("square", False)),
    (L.Huber(), "sigmoid", None, ("huber", False)),
    (L.LogCosh(), None, None, ("log_cosh", False)),
    (L.Poisson(), "exponential", None, ("poisson", False)),
    ("poisson", None, None, ("poisson", False)),
    ("mse", None, None, ("square", False)),
    ("huber", None, None, ("huber", False)),
    ("categorical_crossentropy", "softmax", None, ("softmax", True)),
    ("BinaryCrossentropy", "sigmoid", None, ("sigmoid", True)),
    (keras.losses.sparse_categorical_crossentropy, "softmax", None, ("softmax", True)),
    (lambda y_true, y_pred: y_pred, "sigmoid", None, ("automatic", True)),
    (L.MeanAbsoluteError(), None, None, ("automatic", False)),
    (L.CategoricalFocalCrossentropy(), "softmax", None, ("automatic", True)),
    (OwnCall(), None, None, ("automatic", False)),
    (_mutated(), None, None, ("automatic", False)),
    (Wave(), "softmax", None, ("automatic", True)),
    (None, None, None, ("automatic", False)),
]


@pytest.mark.parametrize(("loss", "activation", "rank", "expected"), RECOGNISED)
def test_recognise(loss, activation, rank, expected):
    form = losses.recognise(loss, activation, rank)
    assert (form.kind, form.before_activation) == expected


def test_options_are_those_the_loss_computes_with():
    assert losses.recognise(L.Huber(delta=0.3)).options["delta"] == pytest.approx(0.3)
    assert (
        losses.recognise(L.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)).options["ignore_class"]
        == -1
    )
    loss = L.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    loss.label_smoothing = 0.9  # Keras ignores it
    assert losses.recognise(loss).options["label_smoothing"] == pytest.approx(0.1)


def test_options_survive_a_keras_that_hides_them():
    loss = L.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    del loss._fn_kwargs
    assert losses.recognise(loss).kind == "softmax"
    assert losses.recognise(loss).options["label_smoothing"] == pytest.approx(0.1)
    loss = L.Huber(delta=0.3)
    del loss._fn_kwargs
    assert losses.recognise(loss).kind == "automatic"


def test_losses_that_want_different_cuts_go_through_automatic_differentiation():
    forms = [losses.recognise("categorical_crossentropy", "softmax"), losses.recognise("mse", "softmax")]
    assert losses.agree(forms, "softmax") == [losses.LossForm("automatic", True)] * 2
    assert losses.agree(forms[:1], "softmax") == forms[:1]


class Unhashable:
    """A loss that is a callable object and compares by value."""

    __hash__ = None

    def __eq__(self, other):
        return True

    def __call__(self, y_true, y_pred):
        return tf.reduce_sum(y_pred, axis=-1)


def test_a_callable_that_equals_everything_is_no_closed_form():
    assert losses.recognise(Unhashable()).kind == "automatic"


def test_kinds_and_functions_are_registered_once():
    kinds = [form.kind for form in losses.CLOSED_FORMS]
    functions = [function for form in losses.CLOSED_FORMS for function in form.functions]
    assert len(set(kinds)) == len(kinds)
    assert len(set(functions)) == len(functions)


@pytest.mark.parametrize("kind", ["automatic", "hubert", ""])
def test_an_unknown_kind_is_refused_and_becomes_no_other_loss(kind):
    loss, z = L.Huber(), tf.ones([2, 3])
    observation = losses.Observation(loss, z, z, loss.call(z, z))
    with pytest.raises(ValueError, match=r"`kind` must be one of 'softmax', .*Received: kind='" + kind):
        losses.terminal_head(losses.LossForm(kind), observation, z, tf.ones([2]))
