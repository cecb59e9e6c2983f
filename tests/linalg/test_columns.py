"""The factorisation that XLA's programs use."""

import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf.linalg import factor_spd, solve
from bellman_tf.linalg.columns import COLUMNS, LARGEST, compiled_by_xla, factor_in_columns
from tests.helpers import assert_close
from tests.linalg.test_blocked import stack


@given(
    st.integers(1, 5 * COLUMNS),
    st.integers(1, 3),
    st.integers(0, 2**16),
    st.floats(0, 6),
    st.sampled_from([np.float32, np.float64]),
)
def test_the_factor_multiplies_back_and_is_scipys(size, count, seed, log_condition, dtype):
    log_condition = min(log_condition, 4.0 if dtype == np.float32 else 6.0)
    A = stack(seed, count, size, log_condition, dtype)
    unread = np.triu(np.full([size, size], np.nan, dtype), 1)
    L = factor_in_columns(tf.constant(np.tril(A) + unread)).numpy()
    assert L.dtype == dtype and not np.triu(L, 1).any()
    for one, lower in zip(A.astype(np.float64), L.astype(np.float64), strict=True):
        # Higham, Thm. 10.3: |L L^T - A| <= (n + 1) u diag^(1/2) diag^(1/2)^T, of norm (n + 1) u tr
        bound = (size + 2) * np.finfo(dtype).eps * np.trace(one)
        assert np.linalg.norm(lower @ lower.T - one, 2) <= bound
        # Sun (1991): the factor moves by at most its condition times the matrix's relative change
        assert_close(lower, scipy.linalg.cholesky(one, lower=True), rtol=4 * bound * np.linalg.cond(one))


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("broken", ["indefinite", "singular", "infinite", "nan"])
def test_a_matrix_without_a_factor_is_nan_on_and_below_the_diagonal(jit_compile, broken):
    bad = np.eye(3 * COLUMNS - 2)
    at = COLUMNS + 3  # columns before it have been written by then
    bad[at, at] = {"indefinite": -1.0, "singular": 0.0, "infinite": np.inf, "nan": np.nan}[broken]
    factor = tf.function(factor_in_columns, jit_compile=jit_compile)
    L = factor(tf.constant(np.stack([4 * np.eye(len(bad)), bad]))).numpy()
    assert_close(L[0], 2 * np.eye(len(bad)), rtol=1e-15)
    assert np.isnan(L[1][np.tril_indices(len(bad))]).all()
    assert not np.triu(L[1], 1).any()


def test_it_is_used_where_xla_compiles_and_nowhere_else(monkeypatch):
    used = []
    monkeypatch.setattr(solve, "factor_in_columns", lambda A: used.append(A.shape[-1]) or factor_in_columns(A))
    A = tf.constant(stack(0, 1, 20))

    def lower(A):
        return factor_spd(A).lower

    eager = lower(A)
    graph = tf.function(lower)(A)
    assert not used
    compiled = tf.function(lower, jit_compile=True)
    nested = tf.function(lambda A: tf.function(lower)(A), jit_compile=True)
    for found in (graph, compiled(A), nested(A)):
        assert_close(found, eager, rtol=1e-12)
    assert used == [20, 20]
    tf.function(lower, jit_compile=True).get_concrete_function(tf.TensorSpec([LARGEST + 1] * 2))
    tf.function(lower, jit_compile=True).get_concrete_function(tf.TensorSpec([None, None]))
    assert used == [20, 20]


def test_inside_a_program_or_not():
    seen = []

    def look(x):
        seen.append(compiled_by_xla())
        return x

    look(1.0)
    tf.function(look)(tf.constant(1.0))
    tf.function(look, jit_compile=True)(tf.constant(1.0))
    tf.function(lambda x: tf.while_loop(lambda x: x < 3.0, lambda x: look(x) + 1.0, [x]), jit_compile=True)(0.0)
    assert seen[:2] == [False, False] and len(seen) >= 4 and all(seen[2:])


def test_gradients_through_a_compiled_factor_are_the_eager_ones():
    A = tf.constant(stack(0, 1, 2 * COLUMNS + 3)[0])

    def gradient(A):
        with tf.GradientTape() as tape:
            tape.watch(A)
            total = tf.reduce_sum(factor_spd(A).lower ** 3)
        found = tape.gradient(total, A)
        return found + tf.transpose(found)  # which triangle carries it is each factorisation's own

    assert_close(tf.function(gradient, jit_compile=True)(A), gradient(A), rtol=1e-12, atol=1e-12)
