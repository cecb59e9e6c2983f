"""What the taps of a kernel see."""

import numpy as np
import pytest
import tensorflow as tf

from bellman_tf.layers.taps import Taps, static_product
from tests.helpers import assert_close
from tests.layers.cases import CASES, draw
from verification.references import capture as reference


@pytest.mark.parametrize(("size", "kernel", "stride", "dilation", "padding"), [
    (6, 3, 1, 1, "same"), (6, 3, 1, 1, "valid"), (7, 3, 2, 1, "same"), (6, 2, 2, 1, "valid"), (7, 3, 1, 2, "same"),
    (5, 4, 1, 1, "same"), (7, 3, 1, 2, "causal"), (3, 1, 1, 1, "same"), (8, 3, 3, 1, "valid"), (9, 2, 4, 1, "same"),
    (6, 1, 2, 1, "same"), (5, 3, 2, 1, "causal"), (10, 3, 2, 1, "valid"), (7, 1, 3, 1, "valid"), (2, 3, 5, 1, "same"),
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


def test_a_tap_of_a_stride_is_one_slice_of_what_is_there():
    """TensorFlow's strided slice takes ten times as long."""
    x = tf.random.normal((2, 4, 6, 3))
    taps = Taps(x, [2, 2], [3, 3], [2, 3], [1, 1], "same")
    graph = tf.function(lambda: taps.tap(4)).get_concrete_function().graph
    assert {op.type for op in graph.get_operations()} <= {
        "Placeholder",
        "Const",
        "Reshape",
        "Slice",
        "Identity",
        "NoOp",
    }
    assert_close(taps.tap(4), np.reshape(np.asarray(x)[:, 1::2, 1::3], (2, 4, 3)))


@pytest.mark.parametrize("size", [4, 5, 6, 7])
def test_sizes_may_be_unknown_while_a_step_is_traced(size, rng):
    @tf.function(input_signature=[tf.TensorSpec([None, None, 2], tf.float64)], autograph=False)
    def taps(x):
        made = Taps(x, [-(-tf.shape(x)[1] // 3)], [2], [3], [1], "same")
        return [made.tap(number) for number in range(2)]

    x = rng.normal(size=(3, size, 2))
    patches = reference.patches(x, (-(-size // 3),), (2,), (3,), (1,), "same")
    for number, seen in enumerate(taps(x)):
        assert_close(seen, patches[:, :, number])


def test_a_product_is_static_where_all_sizes_are():
    assert static_product([2, 3]) == 6
    assert static_product([2, tf.constant(3)]) == -1


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("name", [
    "conv 2d", "conv 2d stride 2", "conv 1d causal", "conv 2d even", "conv 3d", "transposed 2d",
    "transposed 2d stride 2", "transposed 1d",
])  # fmt: skip
def test_moments_of_turned_taps_are_sums_over_the_positions(name, columns, rng):
    capture = draw(CASES[name], rng, columns=columns).capture
    channels, width = capture.extent.channels, capture.layout.width
    left, right = rng.normal(size=(channels, channels)), rng.normal(size=(width, width))
    expected = []
    for number in range(capture.extent.taps):
        x, (c, *_) = capture.sides(number)
        expected.append(np.einsum("bli,blj->ij", np.square(x @ left), np.square(c @ right)))
    assert_close(capture.tap_moments(tf.constant(left), tf.constant(right)), np.concatenate(expected), rtol=1e-11)
