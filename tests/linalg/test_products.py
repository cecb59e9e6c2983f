import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf.linalg.products import matmul, matvec
from tests.helpers import assert_close
from tests.linalg.modes import DTYPES, assert_modes_agree
from verification.problems.matrices import seeds


@st.composite
def products(draw):
    """Two matrices whose leading axes broadcast, either of them possibly transposed or without leading axes."""
    rng = np.random.default_rng(draw(seeds))
    lead = [draw(st.integers(1, 3)) for _ in range(draw(st.integers(0, 3)))]
    m, n, p = (draw(st.integers(1, 4)) for _ in range(3))
    flags = draw(st.booleans()), draw(st.booleans())
    tensors = []
    for transposed, (rows, columns) in zip(flags, ((m, n), (n, p)), strict=True):
        kept = lead[draw(st.integers(0, len(lead))) :]
        own = [draw(st.sampled_from([1, size])) for size in kept]
        tensors.append(rng.normal(size=(*own, *((columns, rows) if transposed else (rows, columns)))))
    return tensors, flags


def expected(A, B, transpose_a=False, transpose_b=False):
    """NumPy broadcasts in its own code."""
    A = np.swapaxes(A, -1, -2) if transpose_a else A
    return A @ (np.swapaxes(B, -1, -2) if transpose_b else B)


@given(products())
def test_it_is_the_product_with_leading_axes_broadcast(case):
    (A, B), (transpose_a, transpose_b) = case
    product = matmul(tf.constant(A), tf.constant(B), transpose_a=transpose_a, transpose_b=transpose_b)
    assert_close(product, expected(A, B, transpose_a, transpose_b), rtol=1e-13, atol=1e-13)
    if transpose_b is False:
        x = B[..., 0]
        want = expected(A, x[..., None], transpose_a)[..., 0]
        assert_close(matvec(tf.constant(A), tf.constant(x), transpose_a=transpose_a), want, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("left", "right"), [([3, 1, 64, 64], [1, 64, 1]), ([64, 64], [5, 64, 3]), ([7, 2, 64], [64, 64])]
)
def test_the_shapes_that_break_tensorflow_are_right_in_float32(left, right, rng):
    A, B = (rng.normal(size=shape).astype(np.float32) for shape in (left, right))
    for _ in range(20):
        assert_close(matmul(A, B), expected(A.astype(np.float64), B.astype(np.float64)), rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_modes_agree(dtype, rng):
    A, B, C = (rng.normal(size=shape).astype(dtype) for shape in ([3, 1, 4, 5], [2, 5, 4], [4, 5]))

    def compute(A, B, C):
        return {
            "broadcast": matmul(A, B),
            "rows": matmul(B, C, transpose_b=False),
            "columns": matmul(C, B),
            "transposed": matmul(C, A, transpose_a=True),
            "vector": matvec(A, B[..., 0]),
        }

    assert_modes_agree(compute, A, B, C, rtol=50 * np.finfo(dtype).eps)


def test_sizes_that_are_not_static_are_no_obstacle(rng):
    free = [tf.TensorSpec([None, None, 4, 5], tf.float64), tf.TensorSpec([None, 5, None], tf.float64)]
    traced = tf.function(matmul, input_signature=free)
    A, B = rng.normal(size=(3, 1, 4, 5)), rng.normal(size=(2, 5, 3))
    assert_close(traced(A, B), expected(A, B), rtol=1e-13)
    assert traced.get_concrete_function().output_shapes[-2] == 4
