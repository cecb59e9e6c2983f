"""TensorFlow's own variables in a model: found, moved, put back."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from bellman_tf.game.raw_variables import moved, put_back, raw_variables


class Holder(layers.Layer):
    def __init__(self):
        super().__init__()
        self.weight = self.add_weight(shape=(2,), name="keras")
        self.count, self.scales = tf.Variable(3), [tf.Variable(1.0), tf.Variable([2.0, 2.0])]
        self.table = {"mean": tf.Variable(0.0)}


def test_variables_are_found_at_any_depth_and_keras_s_are_left_out():
    holder = Holder()
    found = raw_variables(keras.Sequential([layers.Input((2,)), keras.Sequential([holder])]))
    expected = [holder.count, *holder.scales, holder.table["mean"]]
    assert {id(v) for v in found} == {id(v) for v in expected}


def test_moved_ones_are_put_back_also_after_an_error():
    variables = raw_variables(Holder())
    before = [v.numpy() for v in variables]
    with moved(variables) as written:
        assert not written()
        floating = [v for v in variables if v.dtype.is_floating]
        assert all(np.all(v.numpy() != old) for v, old in zip(variables, before, strict=True) if v.dtype.is_floating)
        floating[0].assign_add(1.0)
        assert [v is floating[0] for v in written()] == [True]
    with pytest.raises(RuntimeError, match="stop"), put_back(variables):
        variables[0].assign(9)
        raise RuntimeError("stop")
    assert all(np.array_equal(v.numpy(), old) for v, old in zip(variables, before, strict=True))
