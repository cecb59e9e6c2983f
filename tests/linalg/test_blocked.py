"""Whiteners in blocks of rows, of several sizes in one loop, and the inverses that they make."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf.linalg.blocked import BLOCK, whiteners_in_blocks
from bellman_tf.linalg.symmetric import padded
from tests.helpers import assert_close
from tests.linalg.test_solve import backward_bound
from verification.problems.matrices import with_spectrum
from verification.references import solve as reference


def stack(seed, count, size, log_condition=1.0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    spectra = [10 ** -rng.uniform(0, log_condition, size=size) for _ in range(count)]
    return np.stack([with_spectrum(rng, spectrum) for spectrum in spectra]).astype(dtype)


@given(
    st.lists(st.integers(1, 3 * BLOCK), min_size=1, max_size=3),
    st.integers(0, 2**16),
    st.floats(0, 6),
    st.sampled_from([np.float32, np.float64]),
)
def test_every_size_is_inverted_as_if_it_were_alone(sizes, seed, log_condition, dtype):
    stacks = [stack(seed + k, 1 + k, size, log_condition, dtype) for k, size in enumerate(sizes)]
    damping = 10.0**-log_condition
    dampings = [tf.fill([len(A)], tf.constant(damping, dtype)) for A in stacks]
    found = whiteners_in_blocks([tf.constant(A) for A in stacks], dampings)
    for A, W in zip(stacks, found, strict=True):
        assert W.dtype == dtype and np.array_equal(W, np.tril(W))
        X = tf.matmul(W, W, transpose_a=True)
        damped = A.astype(np.float64) + np.float64(dtype(damping)) * np.eye(A.shape[-1])
        for one, inverse in zip(damped, X.numpy().astype(np.float64), strict=True):
            # as `inverse_spd`; what the bound holds for is the padded matrix
            rtol = 4 * backward_bound(np.eye(-(-len(one) // BLOCK) * BLOCK, dtype=dtype)) * np.linalg.cond(one)
            assert np.linalg.norm(one @ inverse - np.eye(len(one)), 2) <= rtol
            assert_close(inverse, reference.inverse_spd(one), rtol=rtol)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_an_indefinite_matrix_is_nan_and_leaves_the_others_alone(jit_compile):
    bad = np.eye(40)
    bad[35, 35] = -2.0  # in its second block
    stacks = [np.stack([np.eye(40), bad]), 2 * np.eye(3)[None]]
    compute = tf.function(whiteners_in_blocks, jit_compile=jit_compile)
    first, second = compute([tf.constant(A) for A in stacks], [tf.ones([2], tf.float64), tf.ones([1], tf.float64)])
    assert_close(first[0], np.eye(40) / np.sqrt(2), rtol=1e-14)
    assert np.isnan(first[1]).any()
    assert_close(second[0], np.eye(3) / np.sqrt(3), rtol=1e-14)


def test_the_compiled_whiteners_are_the_eager_ones():
    stacks = [tf.constant(stack(k, 2, size)) for k, size in enumerate((70, 5))]
    dampings = [tf.constant([0.1, 0.2], tf.float64)] * 2
    compiled = tf.function(whiteners_in_blocks, jit_compile=True)(stacks, dampings)
    for one, other in zip(compiled, whiteners_in_blocks(stacks, dampings), strict=True):
        assert_close(one, other, rtol=1e-12)


def test_padding_leaves_the_inverse_what_it_is():
    A = stack(0, 1, 3)
    assert_close(np.linalg.inv(padded(tf.constant(A), 5).numpy())[0, :3, :3], np.linalg.inv(A)[0], rtol=1e-12)
    assert padded(tf.constant(A), 3).shape == (1, 3, 3)
