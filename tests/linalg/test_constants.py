"""Constants that a graph holds once."""

import numpy as np
import pytest
import tensorflow as tf

from bellman_tf.linalg import constants


def traced(function):
    return tf.function(function, autograph=False).get_concrete_function()


def test_a_graph_holds_equal_constants_once_and_others_apart():
    def run():
        return [constants.constant([1, 2]), constants.constant((1, 2)), constants.number(1, tf.float32)] + [
            constants.constant(1),
            constants.number(1.0, tf.float64),
        ]

    graph = traced(run).graph
    assert sum(op.type == "Const" for op in graph.get_operations()) == 4


def test_a_constant_does_not_wait_for_what_its_first_reader_waits_for():
    def run():
        with tf.control_dependencies([tf.random.uniform([], name="event")]):
            return constants.constant([7, 8])

    [made] = [op for op in traced(run).graph.get_operations() if op.type == "Const" and op.outputs[0].shape == [2]]
    assert not made.control_inputs


def test_what_is_made_in_a_branch_is_made_again_outside():
    class Holder:
        pass

    def run():
        holder, x = Holder(), tf.ones([])

        def branch():
            return constants.once(holder, "twice", lambda: 2 * x) + constants.constant(3, tf.float32)

        inside = tf.cond(x > 0, branch, lambda: x)
        outside = constants.once(holder, "twice", lambda: 2 * x)
        assert constants.once(holder, "twice", lambda: 5 * x) is outside
        return inside, outside

    assert [float(part) for part in traced(run)()] == [5.0, 2.0]


@pytest.mark.parametrize(
    ("before", "after"), [([2, 3], [3, 2]), ([2, 3], [-1]), ([6], [2, -1]), ([0, 3], [-1, 3]), ([1, 1], [1, 1])]
)
def test_reshape(before, after):
    x = np.arange(np.prod(before), dtype=np.float32).reshape(before)
    np.testing.assert_array_equal(constants.reshape(tf.constant(x), after), np.reshape(x, after))

    @tf.function(input_signature=[tf.TensorSpec([None] * len(before))])
    def unknown(x):
        return constants.reshape(x, after)

    np.testing.assert_array_equal(unknown(x), np.reshape(x, after))


def test_reshape_to_its_own_shape_is_nothing():
    x = tf.ones([2, 3])
    assert constants.reshape(x, [2, -1]) is x
