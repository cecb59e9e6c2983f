import re

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf.linalg import Factor, factor_gram, factor_spd, inverse_spd, is_finite, solve_spd, whiten
from tests.helpers import assert_close
from tests.linalg.modes import DTYPES, assert_modes_agree
from verification.problems.matrices import gram_matrices, partitioned_spd, spd_matrices, with_spectrum
from verification.references import solve as reference


def backward_bound(A):
    """Higham, Thm. 10.4: (A + E) x = b with ||E|| <= 4 n (3 n + 1) u ||A||, u = eps / 2, for each column of x."""
    n = len(A)
    return 2 * n * (3 * n + 1) * np.finfo(A.dtype).eps


def reconstruct(factor):
    """L L^T in float64."""
    lower = factor.lower.numpy().astype(np.float64)
    return lower @ lower.T


@given(partitioned_spd())
def test_the_solution_solves_a_nearby_system_at_any_condition_number(game):
    A, rhs = game.joint, np.concatenate(game.rhs)
    X = solve_spd(factor_spd(A), rhs)
    assert X.dtype == A.dtype
    assert reference.backward_error(A, X, rhs) <= backward_bound(A)


@given(spd_matrices())
def test_the_factor_multiplies_back_to_the_damped_matrix(A):
    damping = 0.5 * np.trace(A)
    factor = factor_spd(A, damping)
    # |L L^T - A| <= (n + 1) u diag^(1/2) diag^(1/2)^T (Higham, Thm. 10.3), of norm (n + 1) u tr
    expected = A.astype(np.float64) + float(damping) * np.eye(len(A))
    gap = np.linalg.norm(reconstruct(factor) - expected, 2)
    assert gap <= (len(A) + 2) * np.finfo(A.dtype).eps * np.trace(expected)
    assert not np.triu(factor.lower.numpy(), 1).any()
    assert np.all(np.diag(factor.lower.numpy()) > 0)


@given(spd_matrices(max_condition=1e6, dtype=st.just(np.float64)))
def test_it_agrees_with_gaussian_elimination(A):
    rhs = np.linspace(-1.0, 2.0, 2 * len(A)).reshape(len(A), 2)
    factor = factor_spd(A)
    # forward error = backward error times condition, once for us and once for the reference
    rtol = 2 * backward_bound(A) * np.linalg.cond(A) * len(A)
    assert_close(solve_spd(factor, rhs), reference.solve_spd(A, rhs), rtol=rtol)
    assert_close(inverse_spd(factor), reference.inverse_spd(A), rtol=rtol)
    assert_close(factor.lower, reference.factor_spd(A), rtol=rtol)
    assert_close(whiten(factor, rhs), reference.whiten(A, rhs), rtol=rtol)


@given(spd_matrices(max_condition=1e6))
def test_whitening_turns_the_matrix_into_the_identity(A):
    factor = factor_spd(A)
    half = whiten(factor, A).numpy().astype(np.float64)  # L^{-1} A = L^T
    rtol = backward_bound(A) * np.linalg.cond(A.astype(np.float64))
    assert_close(half.T, factor.lower, rtol=rtol)


@given(spd_matrices(max_condition=1e6))
def test_the_inverse_is_exactly_symmetric_and_inverts(A):
    inverse = inverse_spd(factor_spd(A)).numpy()
    assert np.array_equal(inverse, inverse.T)
    gap = A.astype(np.float64) @ inverse.astype(np.float64) - np.eye(len(A))
    # ||A X - I|| <= c n^2 eps cond(A) for the inverse from a Cholesky factor (Higham, Sec. 14.3)
    assert np.linalg.norm(gap, 2) <= 4 * backward_bound(A) * np.linalg.cond(A.astype(np.float64))


@given(gram_matrices())
def test_the_gram_factor_never_fails_and_shifts_by_no_more_than_rounding(A):
    factor = factor_gram(A)
    assert is_finite(factor.lower)
    n, eps, trace = len(A), np.finfo(A.dtype).eps, np.trace(A, dtype=np.float64)
    # the shift, 4 n eps tr(A), and the factorisation's own (n + 1) u tr(I + A)
    gap = np.linalg.norm(reconstruct(factor) - np.eye(n) - A.astype(np.float64), 2)
    assert gap <= 4.01 * n * eps * trace + n * eps * (n + trace)


@given(gram_matrices(max_log_norm=2, dtype=st.just(np.float64)))
def test_the_gram_factor_of_a_moderate_matrix_is_not_shifted(A):
    # Lower factors of nearby matrices: the gap is at most cond(I + A) times that of the matrices.
    rtol = backward_bound(A) * (1 + np.trace(A))
    assert_close(factor_gram(A).lower, reference.factor_gram(A), rtol=rtol)


@pytest.mark.parametrize("n", [2, 40, 300])
@pytest.mark.parametrize("norm", [1e3, 1e6, 1e12])
def test_the_gram_factor_survives_where_plain_cholesky_fails(n, norm, rng):
    column = rng.normal(size=(1, n)).astype(np.float32)
    A = np.repeat(column, 3, axis=0).T @ np.repeat(column, 3, axis=0)
    A = (A * np.float32(norm / np.trace(A))).astype(np.float32)
    A -= np.float32(0.25 * n * np.finfo(np.float32).eps * norm) * np.eye(n, dtype=np.float32)  # error of a bad Gram
    assert is_finite(factor_gram(A).lower)
    if n == 300 and norm >= 1e6:
        assert not is_finite(factor_spd(A, 1.0).lower), "the case is not hard: plain Cholesky manages"


def test_a_larger_scale_of_rounding_can_be_declared():
    A = np.array([[0.0, 0.0], [0.0, -40.0]], np.float32)  # what cancellation left of terms of size 1e9
    assert not is_finite(factor_gram(A).lower)
    assert is_finite(factor_gram(A, scale=1e9).lower)
    assert not is_finite(factor_gram(A[1:, 1:]).lower)
    assert is_finite(factor_gram(A[1:, 1:], scale=1e9).lower)


def test_a_number_gives_its_root_with_no_shift():
    assert factor_gram(tf.constant([[[8.0]], [[1e12]]])).lower.numpy().ravel().tolist() == [3.0, 1e6]
    assert factor_spd(tf.constant([[9.0]], tf.float64)).lower.numpy().tolist() == [[3.0]]


def test_zero_and_the_identity_are_exact():
    zero, one = np.zeros((3, 3)), np.eye(3)
    assert_close(factor_gram(zero).lower, one)
    assert_close(factor_spd(zero, damping=4.0).lower, 2 * one)
    assert_close(solve_spd(factor_spd(one), np.zeros((3, 2))), np.zeros((3, 2)))


def test_a_python_damping_keeps_its_sixteen_digits():
    assert factor_spd(np.zeros((1, 1)), 0.1).lower.numpy().item() == np.sqrt(0.1)


@pytest.mark.parametrize("jit_compile", [None, True])
def test_failure_is_nan_in_that_matrix_only_and_can_be_told_from_bad_input(jit_compile):
    A = np.stack([np.eye(3), np.diag([1.0, -1.0, 1.0]), np.full((3, 3), np.inf)])
    compute = lambda A, rhs: (factor_spd(A).lower, solve_spd(factor_spd(A), rhs))
    lower, X = (tf.function(compute, jit_compile=True) if jit_compile else compute)(A, np.ones((3, 1)))
    assert is_finite(lower).numpy().tolist() == [True, False, False]
    assert is_finite(A).numpy().tolist() == [True, True, False]
    assert_close(X[0], np.ones((3, 1)))
    assert np.isnan(X[1:]).any(axis=(1, 2)).all()
    assert not np.triu(lower[1], 1).any()  # no leftover memory


def test_leading_axes_broadcast(rng):
    A = np.stack([with_spectrum(rng, rng.uniform(1, 2, size=3)) for _ in range(4)])
    rhs, damping = rng.normal(size=(5, 1, 3, 2)), rng.uniform(size=(5, 1))
    factor = factor_spd(A, damping)
    X, half, inverse = solve_spd(factor, rhs), whiten(factor_spd(A), rhs), inverse_spd(factor)
    gram = factor_gram(A).lower
    assert factor.lower.shape == inverse.shape == (5, 4, 3, 3)
    assert X.shape == half.shape == (5, 4, 3, 2)
    for i, j in np.ndindex(5, 4):
        damped = A[j] + damping[i, 0] * np.eye(3)
        assert_close(X[i, j], reference.solve_spd(damped, rhs[i, 0]), rtol=1e-13)  # condition below 2
        assert_close(inverse[i, j], reference.inverse_spd(damped), rtol=1e-13)
        assert_close(half[i, j], reference.whiten(A[j], rhs[i, 0]), rtol=1e-13)
        assert_close(gram[j], reference.factor_gram(A[j]), rtol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
def test_eager_traced_and_compiled_agree(dtype, rng):
    def compute(A, rhs, damping):
        factor = factor_spd(A, damping)
        return {
            "factor": factor,
            "whiten": whiten(factor, rhs),
            "solve": solve_spd(factor, rhs),
            "inverse": inverse_spd(factor),
            "gram": factor_gram(1e9 * A),
            "number": factor_gram(A[:, :1, :1]),
        }

    A = np.stack([with_spectrum(rng, rng.uniform(1, 10, size=4)) for _ in range(2)]).astype(dtype)
    arguments = A, rng.normal(size=(4, 3)).astype(dtype), np.array([0.0, 1.0], dtype)
    # condition 10; two orders of summation
    assert_modes_agree(compute, *arguments, rtol=2 * backward_bound(A[0]) * 10)


ONE = Factor(tf.eye(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: factor_spd(np.ones((2, 3))), "`A` must be square in its last two axes. Received: A.shape=(2, 3)."),
        (lambda: factor_spd(np.eye(2), -1.0), "`damping` must be a finite number >= 0.0. Received: damping=-1.0."),
        (lambda: factor_gram(np.ones((2, 3))), "`A` must be square in its last two axes."),
        (
            lambda: solve_spd(ONE, tf.ones((3, 1))),
            "`rhs` must have one row per row of `factor`. Received: factor.shape=(2, 2), rhs.shape=(3, 1).",
        ),
        (lambda: whiten(ONE, tf.ones(2)), "`rhs` must have a known rank of at least 2. Received: rhs.shape=(2,)."),
        (lambda: whiten(ONE, np.ones((2, 1))), "`rhs.dtype` must equal factor.dtype, float32."),
        (lambda: inverse_spd(Factor(tf.ones((2, 3)))), "`factor` must be square in its last two axes."),
    ],
)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
