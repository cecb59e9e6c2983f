"""Small matrices with the instances on the last axis, against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from bellman_tf.trajectory import small_matrices
from tests.helpers import assert_close
from tests.trajectory import cases


@pytest.mark.parametrize("m", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("condition", [1.0, 1e6])
def test_definite_systems(rng, m, condition):
    A = np.stack([cases.random_spd(rng, m, condition) for _ in range(5)])
    A[2] -= 2.0 * A[2].max() * np.outer(np.eye(m)[-1], np.eye(m)[-1])
    A[3] = np.nan
    rhs = rng.standard_normal([5, m, 4])
    X, definite = small_matrices.solve_definite(
        small_matrices.last(tf.constant(A)), small_matrices.last(tf.constant(rhs))
    )
    assert definite.numpy().tolist() == [True, True, False, False, True]
    good = [0, 1, 4]
    error = np.linalg.norm(small_matrices.first(X).numpy()[good] - np.linalg.solve(A[good], rhs[good]), axis=(1, 2))
    assert (error <= 100.0 * m * condition * np.finfo(float).eps * np.linalg.norm(rhs[good], axis=(1, 2))).all()


@pytest.mark.parametrize("n", [1, 3, 20])
def test_products_written_out_and_by_einsum(rng, n):
    A, B = rng.standard_normal([2, n, n, 3])
    a, b = tf.constant(A), tf.constant(B)
    for found, expected in (
        (small_matrices.times(a, b), "ijs,jks->iks"),
        (small_matrices.pulled(a, b), "jis,jks->iks"),
    ):
        assert_close(found, np.einsum(expected, A, B), rtol=1e-12, atol=1e-12)
    assert_close(small_matrices.transposed(a), A.swapaxes(0, 1), rtol=0.0)


def test_rows_and_back(rng):
    states, controls = rng.standard_normal([4, 2, 3]), rng.standard_normal([4, 1, 3])
    x, u, t = small_matrices.rows_of(tf.constant(states), tf.constant(controls), 5)
    assert t.numpy().tolist() == [5] * 3 + [6] * 3 + [7] * 3 + [8] * 3
    assert (x.numpy()[4] == states[1, :, 1]).all() and (u.numpy()[4] == controls[1, :, 1]).all()
    assert (small_matrices.of_rows(x, 4).numpy() == states).all()


def test_what_is_finite():
    one = tf.constant([[1.0, np.inf, 1.0, np.nan]], tf.float64)
    two = tf.constant([[[1.0, 1.0, -np.inf, 1.0]], [[0.0] * 4]], tf.float64)
    assert small_matrices.finite(one).numpy().tolist() == [True, False, True, False]
    assert small_matrices.finite(one, None, two).numpy().tolist() == [True, False, False, False]
