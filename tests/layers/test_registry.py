"""Which layers are covered, and the reasons given for the others."""

import keras
import pytest

from bellman_tf.layers.coverage import OUTPUT, PREACTIVATION, Coverage
from bellman_tf.layers.registry import coverage
from tests.layers.cases import CASES, draw

L = keras.layers


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_covered(name, rng):
    sample = draw(CASES[name], rng)
    found = coverage(sample.layer)
    assert isinstance(found, Coverage), found
    assert found.site == (PREACTIVATION if hasattr(sample.layer, "activation") else OUTPUT)
    assert found.convolution == name.startswith(("conv", "transposed"))


class Changed(L.Dense):
    def call(self, inputs):
        return 2 * super().call(inputs)


class Standardised(L.Conv2D):
    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel - keras.ops.mean(kernel))


class Tied(L.Dense):
    @property
    def kernel(self):
        return 2 * super().kernel


class Renamed(L.Dense):
    """Its own constructor and config, the family's computation."""

    def __init__(self, units=3, **options):
        super().__init__(units, **options)

    def build(self, input_shape):
        super().build(input_shape)

    def get_config(self):
        return super().get_config()


class Grown(Renamed):
    def build(self, input_shape):
        super().build(input_shape)
        self.extra = self.add_weight(shape=(3,))


def _built(layer, shape):
    layer.build(shape)
    return layer


def _without_bias(layer):
    layer.bias.trainable = False
    return layer


def _with_lora(layer):
    layer.enable_lora(2)
    return layer


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: _built(Changed(3), (None, 4)), "it overrides `call` of Dense"),
        (lambda: _built(Standardised(3, 2), (None, 4, 4, 2)), "it overrides `convolution_op` of Conv2D"),
        (lambda: _built(Tied(3), (None, 4)), "it overrides `kernel` of Dense"),
        (lambda: _built(Grown(3), (None, 4)), "its trainable variables are not just kernel and bias"),
        (lambda: _without_bias(_built(L.Dense(3), (None, 4))), "its trainable variables are not just kernel and bias"),
        (lambda: _with_lora(_built(L.Dense(3), (None, 4))), "it is adapted or quantised"),
        (lambda: _with_lora(_built(L.Embedding(5, 3), (None, 4))), "it is adapted or quantised"),
        (lambda: _built(L.BatchNormalization(renorm=True), (None, 4)), "it uses batch renormalisation"),
        (
            lambda: _built(L.BatchNormalization(synchronized=True), (None, 4)),
            "its statistics are synchronised across replicas",
        ),
        (lambda: _built(L.LayerNormalization(axis=[0, 1]), (3, 4)), "its scale runs along the batch axis"),
        (
            lambda: _built(L.EinsumDense("abc,cd->abd", (3, 3), bias_axes="b"), (None, 3, 4)),
            "Keras may add its bias along another axis of the same size",
        ),
        (
            lambda: _built(L.EinsumDense("ab,bc->ca", (None,)), (4, 4)),
            "its equation 'ab,bc->ca' has no leading batch axis",
        ),
        (
            lambda: _built(L.RMSNormalization(axis=1), (None, 4, 4)),
            "Keras multiplies by its scale along the last axes, whichever it normalises",
        ),
        (lambda: _built(L.RMSNormalization(axis=[0, 1]), (3, 4)), "it normalises along the batch axis"),
        (lambda: _built(L.LSTM(3), (None, 4, 2)), "LSTM has no Gram form"),
    ],
)
def test_other_layers_get_a_reason(make, reason):
    assert coverage(make()) == reason


def test_a_subclass_that_changes_no_computation_is_covered():
    assert coverage(_built(Renamed(), (None, 4))).kind == "dense"


def test_why_a_straying_bias_is_refused(rng):
    """`keras.ops.add` moves a bias of shape (3, 1) to the last axis; when this fails, Keras has been repaired."""
    moved = keras.ops.add(keras.ops.zeros([1, 3, 3]), keras.ops.ones([3, 1]) * [[0.0], [1.0], [2.0]])
    assert moved[0, 0].numpy().tolist() == [0.0, 1.0, 2.0]
