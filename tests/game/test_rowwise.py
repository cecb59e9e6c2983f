"""What the graph of a model says against what running it says."""

import keras
import pytest
from keras import layers

import bellman_tf as btf
from bellman_tf.game.native import NativeGame
from bellman_tf.game.rowwise import read_off
from bellman_tf.game.survey import signature_of, survey
from benchmarks.networks import PROBLEMS
from tests.zoo import ZOO


def both(model):
    """What is read off, and what the survey finds."""
    candidates, _ = NativeGame._candidates(model)
    return read_off(model, candidates), survey(model, signature_of(model), candidates)


def assert_alike(model, read):
    """Both say the same, if both say anything; `read` tells whether the graph must say something."""
    off, run = both(model)
    assert not run.reason
    assert (off is not None) == read
    if off is not None:
        assert off.findings == run.findings
        assert {id(v) for v in off.written} == {id(v) for v in run.written}
        assert len(off.findings) > 0


@pytest.mark.parametrize("name", ZOO)
def test_what_is_read_off_is_what_the_survey_finds(name):
    model = ZOO[name].compiled(btf.Model, btf.GTDDP())
    if model.built:
        off, run = both(model)
        if off is not None:
            assert off.findings == run.findings
            assert {id(v) for v in off.written} == {id(v) for v in run.written}


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet18", "cifar", "autoencoder", "branches"])
def test_networks_of_the_benchmarks_are_read_off(name):
    assert_alike(btf.as_game(PROBLEMS[name].network()), read=True)


def images(*body, shape=(6, 6, 3)):
    x = inputs = keras.Input(shape)
    for layer in body:
        x = layer(x)
    return btf.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def convolution(*body, **options):
    return lambda: images(layers.Conv2D(4, 3, **options), *(make() for make in body))


NORMALISED, NORMALISED_ROWS = layers.BatchNormalization, lambda: layers.BatchNormalization(axis=1)


@pytest.mark.parametrize(
    ("make", "read"),
    [
        (convolution(NORMALISED, layers.ReLU), True),
        (convolution(NORMALISED, layers.ReLU, use_bias=False), True),
        (convolution(NORMALISED, activation="relu"), True),
        (convolution(lambda: layers.Activation("tanh"), NORMALISED), True),
        (convolution(NORMALISED_ROWS), False),
        (convolution(layers.MaxPooling2D, NORMALISED), False),
        (convolution(layers.LeakyReLU, NORMALISED), True),
        (convolution(lambda: layers.Dropout(0.3), layers.ReLU), True),
        (convolution(activation=lambda x: x[::-1]), False),
        (convolution(activity_regularizer="l2"), False),
        (convolution(lambda: layers.Lambda(lambda x: x[::-1])), False),
        (convolution(activation="softmax"), True),
        (convolution(NORMALISED, activation="softmax"), True),
        (convolution(layers.LayerNormalization), False),
    ],
)
def test_bodies_on_images(make, read):
    assert_alike(make(), read)


def test_a_frozen_normalisation_mixes_nothing():
    frozen = layers.BatchNormalization(trainable=False)
    assert_alike(images(layers.Conv2D(4, 3), frozen), read=True)


def test_a_normalisation_at_rest_is_left_to_the_survey():
    inputs = keras.Input((4,))
    x = layers.BatchNormalization()(layers.Dense(3)(inputs), training=False)
    assert both(btf.Model(inputs, layers.Dense(2)(x)))[0] is None


def test_channels_that_are_weighed_by_the_whole_image():
    x = inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3)(x)
    pooled = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Multiply()([x, layers.Conv2D(4, 1, activation="sigmoid")(pooled)])
    assert_alike(btf.Model(inputs, layers.Dense(3)(layers.Flatten()(x))), read=True)


def test_probabilities_are_read_off_where_they_are_not_constant():
    inputs = keras.Input((4,))
    x = layers.Dense(3)(inputs)
    assert_alike(btf.Model(inputs, layers.Dense(2, activation="softmax")(x)), read=True)
    model = btf.Model(inputs, layers.Dense(1, activation="softmax")(x))
    assert read_off(model, NativeGame._candidates(model)[0]) is None


def test_a_layer_that_is_called_twice_is_left_to_the_survey():
    inputs, again = keras.Input((4,)), layers.Dense(4)
    assert both(btf.Model(inputs, layers.Dense(2)(again(again(inputs)))))[0] is None


def test_two_branches_of_which_a_sum_is_normalised_are_left_to_the_survey():
    inputs = keras.Input((4,))
    x = layers.Add()([layers.Dense(3)(inputs), layers.Dense(3)(inputs)])
    model = btf.Model(inputs, layers.Dense(2)(layers.BatchNormalization()(x)))
    off, run = both(model)
    assert off is None
    assert sum(finding.null for finding in run.findings.values()) == 2


def test_an_output_in_front_of_a_normalisation_keeps_its_bias():
    inputs = keras.Input((4,))
    x = layers.Dense(3)(inputs)
    model = btf.Model(inputs, [x, layers.BatchNormalization()(x)])
    off, run = both(model)
    assert off is None
    assert not any(finding.null for finding in run.findings.values())


def test_a_model_with_a_call_of_its_own_is_left_to_the_survey():
    class Reversed(btf.Model):
        def call(self, x):
            return super().call(x[::-1])

    inputs = keras.Input((4,))
    model = Reversed(inputs, layers.Dense(2)(layers.Dense(3)(inputs)))
    assert both(model)[0] is None


def test_a_layer_beside_the_graph_is_not_called():
    inputs = keras.Input((4,))
    model = btf.Model(inputs, layers.Dense(2)(inputs))
    model.beside = layers.Dense(2)
    model.beside.build((None, 4))
    off, run = both(model)
    assert off.findings == run.findings
    assert [finding.reason for finding in off.findings.values()] == ["", "the model does not call it"]
