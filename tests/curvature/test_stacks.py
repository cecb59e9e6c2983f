"""Small tensors of one shape taken as one."""

import keras
import numpy as np
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf.curvature.block import StateSpec
from bellman_tf.curvature.stacks import SMALL, Stacks, StateStore

SHAPES = st.lists(st.sampled_from([(), (2,), (3,), (2, 2), (1, 4), (SMALL + 1,)]), max_size=8)


@given(SHAPES, st.data())
def test_packing_is_undone(shapes, data):
    kinds = [data.draw(st.sampled_from("ab")) for _ in shapes]
    stacks = Stacks(shapes, kinds)
    tensors = [tf.fill(shape, float(k)) for k, shape in enumerate(shapes)]
    packed = stacks.pack(tensors)
    small = {(shape, kind) for shape, kind in zip(shapes, kinds, strict=True) if shape != (SMALL + 1,)}
    assert len(packed) == len(small) + shapes.count((SMALL + 1,))
    for before, after in zip(tensors, stacks.unpack(packed), strict=True):
        np.testing.assert_array_equal(before, after)


def store_of(*specs):
    made = []

    def add_variable(shape, initializer, dtype, name):
        made.append(keras.Variable(initializer, shape=shape, dtype=dtype, name=name))
        return made[-1]

    return StateStore([(f"player_{k}", list(own), "float32") for k, own in enumerate(specs)], add_variable), made


def test_initial_values_are_those_of_every_owner():
    matrix, vector = StateSpec("inverse", (3, 3), "identity"), StateSpec("scale", (2,), "ones")
    store, made = store_of([matrix, vector], [matrix], [StateSpec("inverse", (3, 3)), vector])
    assert [v.name for v in made] == ["player_0_and_1_more_inverse", "player_0_and_1_more_scale", "player_2_inverse"]
    first, second, third = store.read()
    for values, expected in zip(
        [*first, *second, *third], [np.eye(3), np.ones(2), np.eye(3), 0 * np.eye(3), np.ones(2)], strict=True
    ):
        np.testing.assert_array_equal(values, expected)


def test_what_has_changed_is_assigned_and_the_rest_of_its_stack_kept():
    pair = [StateSpec("mean", (2,)), StateSpec("count", ())]
    store, (mean, count) = store_of(pair, pair, pair)
    mean.assign(tf.reshape(tf.range(6.0), [3, 2]))
    state = store.read([[tf.constant(9.0)]])
    assert [len(own) for own in state] == [3, 2, 2]
    [(variable, value, before)] = store.changed(state, {(1, 0): tf.constant([7.0, 8.0])})
    assert variable is mean
    np.testing.assert_array_equal(before, [[0, 1], [2, 3], [4, 5]])
    np.testing.assert_array_equal(value, [[0, 1], [7, 8], [4, 5]])
    assert store.changed(state, {}) == []
