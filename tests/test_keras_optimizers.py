"""What `keras_optimizers` says about optimizers, against what they do."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import optimizers

from bellman_tf import keras_optimizers


def variables():
    return [keras.Variable(np.ones(shape, "float32"), name=f"v{k}") for k, shape in enumerate([(2,), (3,)])]


def test_what_an_optimizer_was_built_for():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    optimizer = keras.optimizers.SGD(0.1, weight_decay=0.1, use_ema=True)
    assert keras_optimizers.trained_variables(optimizer) == []
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build(model.trainable_variables)
    assert [id(v) for v in keras_optimizers.trained_variables(optimizer)] == [id(v) for v in model.trainable_variables]
    assert [v.shape for v in keras_optimizers.averages_of(optimizer)] == [v.shape for v in model.trainable_variables]
    assert [keras_optimizers.decays(optimizer, v) for v in model.trainable_variables] == [True, False]


def test_an_update_rule_is_that_of_the_class_that_wrote_it():
    assert keras_optimizers.updates_as(optimizers.AdamW(0.1), optimizers.Adam)
    assert not keras_optimizers.updates_as(optimizers.Adam(0.1), optimizers.AdamW)
    assert not keras_optimizers.updates_as(optimizers.Nadam(0.1), optimizers.Adam)


@pytest.mark.parametrize(
    "make",
    [
        lambda: optimizers.Adam(0.1, beta_2=0.75),
        lambda: optimizers.Adam(0.1, beta_2=0.75, amsgrad=True),
        lambda: optimizers.Nadam(0.1, beta_2=0.75),
        lambda: optimizers.RMSprop(0.1, rho=0.75),
        lambda: optimizers.RMSprop(0.1, rho=0.75, centered=True),
    ],
)
def test_the_moments_are_means_of_squares(make):
    own, optimizer = variables(), make()
    optimizer.build(own)
    gradients = [tf.constant([1.0, 2.0]), tf.constant([3.0, 0.0, 1.0])]
    optimizer.apply(gradients, own)
    moments = keras_optimizers.moments_of(optimizer, own[::-1])
    expected = [0.25 * tf.square(g) for g in gradients[::-1]]
    if getattr(optimizer, "centered", False):
        expected += [0.25 * g for g in gradients[::-1]]
    assert len(moments) == len(expected)
    for moment, wanted in zip(moments, expected, strict=True):
        assert np.allclose(moment, wanted)


@pytest.mark.skipif(not hasattr(optimizers, "MultiOptimizer"), reason="this Keras has no MultiOptimizer")
def test_a_variable_has_its_optimizer_before_and_after_the_build():
    own, parts = variables(), [optimizers.SGD(0.1), optimizers.Adam(0.1)]
    multi = optimizers.MultiOptimizer(lambda variable: parts[variable.shape == (3,)])
    assert keras_optimizers.is_multi(multi)
    assert [keras_optimizers.mover_of(multi, v) for v in own] == parts
    multi.build(own)
    assert [keras_optimizers.mover_of(multi, v) for v in own] == parts
    assert [keras_optimizers.mover_of(parts[0], v) for v in own] == [parts[0]] * 2
    assert not keras_optimizers.is_multi(parts[0])
