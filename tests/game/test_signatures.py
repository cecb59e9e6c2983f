"""What is known of a model's inputs after one call, after two, and from saved shapes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from bellman_tf.game import signatures


def shapes(signature):
    return [None if leaf is None else tuple(leaf.shape) for leaf in keras.tree.flatten(signature)]


def test_a_batch_is_described_for_any_batch_size():
    signature = signatures.of_batch({"x": np.ones((4, 3), "float32"), "t": tf.ones([4], tf.int64), "none": None})
    assert {k: None if v is None else (v.shape, v.dtype) for k, v in signature.items()} == {
        "x": ((None, 3), "float32"), "t": ((None,), "int64"), "none": None,
    }  # fmt: skip
    assert signatures.is_known(signature)


def test_a_size_that_differs_is_unknown():
    first, second = (signatures.of_batch(np.ones((4, n, 3), "float32")) for n in (5, 6))
    both = signatures.merged(first, second)
    assert shapes(both) == [(None, None, 3)]
    assert not signatures.is_known(both)
    assert shapes(signatures.merged(both, first)) == [(None, None, 3)]


@pytest.mark.parametrize("other", [np.ones((4, 5), "float32"), tf.sparse.from_dense(tf.ones([4, 5, 3]))])
def test_another_rank_or_layout_changes_nothing(other):
    first = signatures.of_batch(tf.ones([4, 5, 3]))
    assert signatures.merged(first, signatures.of_batch(other)) is first


def test_an_integer_batch_after_a_float_one_has_its_own_dtype():
    old, new = signatures.of_batch(np.ones((4, 5), "float32")), signatures.of_batch(np.ones((4, 5), "int32"))
    assert signatures.merged(old, new).dtype == "int32"
    assert signatures.merged(old, signatures.of_batch(np.ones((4, 5), "float64"))).dtype == "float32"


def test_signatures_are_compared_by_shape_dtype_and_layout():
    dense, sparse = tf.ones([4, 3]), tf.sparse.from_dense(tf.ones([4, 3]))
    keys = [signatures.described(signatures.of_batch(x)) for x in (dense, sparse, tf.cast(dense, tf.float64))]
    assert len({*keys, signatures.described(None)}) == 4
    assert keys[0] == signatures.described(signatures.of_batch(tf.zeros([7, 3])))


def test_saved_shapes_keep_their_nesting():
    signature = signatures.of_shapes({"a": [(8, 3), (8, 4, 2)], "b": (8,)})
    assert shapes(signature["a"]) == [(None, 3), (None, 4, 2)]
    assert shapes(signature["b"]) == [(None,)]


def test_what_has_no_shape_is_not_described():
    assert signatures.is_made_of_tensors([np.ones(3), None])
    assert not signatures.is_made_of_tensors([np.ones(3), "text"])


def test_arrays_of_strings_are_left_to_the_call():
    for words in (np.array(["a", "bc"]), np.array(["a", "bc"], object), np.array([b"a", b"bc"])):
        assert signatures.of_data({"words": words, "numbers": np.ones(2)}) is None
    assert signatures.of_data(tf.constant(["a", "bc"])).dtype == "string"


def shapes_of(model, x):
    """Static shapes that a step without sizes finds."""
    found = {}

    def look(x):
        found["of"] = keras.tree.map_structure(lambda leaf: tuple(leaf.shape), signatures.with_declared_sizes(model, x))
        return 0

    unknown = keras.tree.map_structure(lambda leaf: tf.TensorSpec([None] * leaf.ndim, leaf.dtype), x)
    tf.function(look).get_concrete_function(unknown)
    return found["of"]


def test_a_batch_without_sizes_takes_those_of_the_inputs():
    a, b, c = keras.Input((2,), name="a"), keras.Input((4, None), name="b"), keras.Input((1,))
    z, first, second = keras.layers.Dense(1)(a), np.ones([3, 2]), np.ones([3, 4, 5])
    given = {
        "one": (keras.Model(a, z), first, (None, 2)),
        "list": (keras.Model([a, b], z), [first, second], [(None, 2), (None, 4, None)]),
        "by name": (keras.Model([b, a], z), {"a": first, "b": second}, {"a": (None, 2), "b": (None, 4, None)}),
        "dict": (keras.Model({"b": b, "a": a}, z), {"a": first, "b": second}, {"a": (None, 2), "b": (None, 4, None)}),
        "an axis to be added": (keras.Model(c, -c), np.ones(3), (None,)),
        "one too many": (keras.Model([a, b], z), [first], [(None, None)]),
        "no inputs": (keras.layers.Dense(1), first, (None, None)),
    }
    for name, (model, x, expected) in given.items():
        assert shapes_of(model, x) == expected, name
