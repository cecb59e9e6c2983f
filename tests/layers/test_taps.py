"""What the taps of a kernel see."""

import numpy as np
import pytest
import tensorflow as tf

from bellman_tf.layers.taps import Taps, static_product
from tests.helpers import assert_close
from verification.references import capture as reference


@pytest.mark.parametrize(("size", "kernel", "stride", "dilation", "padding"), [
    (6, 3, 1, 1, "same"), (6, 3, 1, 1, "valid"), (7, 3, 2, 1, "same"), (6, 2, 2, 1, "valid"), (7, 3, 1, 2, "same"),
    (5, 4, 1, 1, "same"), (7, 3, 1, 2, "causal"), (3, 1, 1, 1, "same"),
])  # fmt: skip
def test_each_tap_sees_its_column_of_the_patches(size, kernel, stride, dilation, padding, rng):
    x = rng.normal(size=(2, size, 3))
    out = (size - (kernel - 1) * dilation - 1) // stride + 1 if padding == "valid" else -(-size // stride)
    taps = Taps(tf.constant(x), [out], [kernel], [stride], [dilation], padding)
    patches = reference.patches(x, (out,), (kernel,), (stride,), (dilation,), padding)
    for number in range(kernel):
        assert_close(taps.tap(number), patches[:, :, number])


def test_a_centre_tap_inside_the_input_is_the_input():
    """Nothing is padded or cut for it."""
    x = tf.random.normal((2, 4, 4, 3))
    taps = Taps(x, [4, 4], [3, 3], [1, 1], [1, 1], "same")
    graph = tf.function(lambda: taps.tap(4)).get_concrete_function().graph
    assert {op.type for op in graph.get_operations()} <= {"Placeholder", "Const", "Reshape", "Identity", "NoOp"}
    assert_close(taps.tap(4), np.reshape(x, (2, 16, 3)))


def test_a_product_is_static_where_all_sizes_are():
    assert static_product([2, 3]) == 6
    assert static_product([2, tf.constant(3)]) == -1
