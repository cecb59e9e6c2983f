import re

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given

from bellman_tf.linalg import eigh, is_finite, symmetrize
from bellman_tf.linalg.symmetric import _jacobi
from tests.helpers import assert_close
from tests.linalg.modes import assert_modes_agree
from verification.problems.matrices import KINDS, rotation, spectrum, symmetric_matrices, with_spectrum
from verification.references import symmetric as reference


def assert_decomposes(A, w, V):
    """The promise of `eigh`, for one matrix: 100 n eps, in the spectral norm."""
    bound = 100 * len(A) * np.finfo(A.dtype).eps
    residual, orthogonality = reference.eigen_residual(A, w, V)
    assert residual <= bound, f"residual {residual:.2e} above {bound:.2e}"
    assert orthogonality <= bound, f"V^T V - I is {orthogonality:.2e}, above {bound:.2e}"
    assert np.all(np.diff(w) >= 0), "eigenvalues are not ascending"
    # Weyl: an eigenvalue moves by at most the residual, and LAPACK's has one of its own.
    assert_close(w, reference.eigh(A)[0], atol=2 * bound * np.linalg.norm(A.astype(np.float64), 2))


@given(symmetric_matrices())
def test_it_decomposes_every_symmetric_matrix(A):
    w, V = eigh(A)
    assert w.dtype == V.dtype == A.dtype
    assert_decomposes(A, w.numpy(), V.numpy())


@pytest.mark.parametrize(("n", "dtype"), [(2, np.float64), (9, np.float64), (64, np.float64), (33, np.float32)])
def test_it_is_as_accurate_under_xla_on_every_kind_of_spectrum(n, dtype, rng):
    A = np.stack([with_spectrum(rng, spectrum(rng, kind, n)) for kind in KINDS]).astype(dtype)
    ws, Vs = tf.function(eigh, jit_compile=True)(A)
    for matrix, w, V in zip(A, ws.numpy(), Vs.numpy(), strict=True):
        assert_decomposes(matrix, w, V)


def test_the_start_that_xla_gives_is_not_good_enough(rng):
    """The reason for the refinement; when this fails, TensorFlow has been repaired and `eigh` may shrink."""
    A = with_spectrum(rng, rng.normal(size=24))
    w, V = tf.function(tf.linalg.eigh, jit_compile=True)(A)
    assert reference.eigen_residual(A, w, V)[0] > 100 * 24 * np.finfo(np.float64).eps


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_its_rotations_alone_diagonalise_from_a_cold_start(n, rng):
    A = with_spectrum(rng, rng.normal(size=n))
    w, V = _jacobi(tf.constant(A), tf.eye(n, dtype=tf.float64))
    order = np.argsort(w)
    assert_decomposes(A, w.numpy()[order], V.numpy()[:, order])


def test_it_leaves_a_diagonal_matrix_as_it_is():
    w, V = eigh(tf.linalg.diag(tf.constant([4.0, 1.0, 2.0], tf.float64)))
    assert_close(w, [1.0, 2.0, 4.0])
    assert_close(tf.abs(V), np.eye(3)[:, [1, 2, 0]])


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_it_neither_overflows_nor_underflows(scale, rng):
    A = scale * with_spectrum(rng, rng.normal(size=5))
    w, V = (x.numpy() for x in eigh(A))
    assert_decomposes(A / scale, w / scale, V)


def test_it_answers_a_matrix_that_is_not_finite_with_nan_and_the_others_as_usual():
    A = np.stack([np.eye(3), np.full((3, 3), np.nan), np.diag([1.0, np.inf, 1.0])])
    w, V = eigh(A)
    assert_close(w[0], np.ones(3))
    assert np.isnan(w[1:]).all()
    assert np.isnan(V[1:]).all()


def test_it_keeps_every_leading_axis(rng):
    A = np.stack([[with_spectrum(rng, rng.normal(size=3)) for _ in range(2)] for _ in range(4)])
    w, V = eigh(A)
    assert (w.shape, V.shape) == ((4, 2, 3), (4, 2, 3, 3))
    for index in np.ndindex(4, 2):
        assert_decomposes(A[index], w[index].numpy(), V[index].numpy())


def test_the_symmetric_part_is_exactly_symmetric_and_matches_the_definition(rng):
    A = rng.normal(size=(5, 5))
    part = symmetrize(A).numpy()
    assert np.array_equal(part, part.T)
    assert_close(part, reference.symmetrize(A))
    assert_close(symmetrize(part), part)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_finiteness_is_judged_per_matrix(bad):
    A = np.zeros((2, 3, 2))
    A[1, 2, 0] = bad
    assert is_finite(A).numpy().tolist() == [reference.is_finite(matrix) for matrix in A] == [True, False]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])  # XLA's own decompositions lose digits in float64
def test_eager_traced_and_compiled_agree(dtype, rng):
    def compute(A):
        w, V = eigh(A)
        # a function of A, so that signs and bases of repeated eigenvalues do not matter
        return {"symmetrize": symmetrize(A), "w": w, "V": tf.matmul(V * tf.exp(w)[:, tf.newaxis], V, transpose_b=True)}

    A = np.stack([with_spectrum(rng, spectrum(rng, kind, 5)) for kind in KINDS]).astype(dtype)
    # both are within 100 n eps of the truth, and exp(w) at most stretches by e^||A||, about 10 here
    assert_modes_agree(compute, A, rtol=2 * 100 * 5 * np.finfo(dtype).eps)
    assert tf.function(is_finite, jit_compile=True)(A).numpy().all()


def test_rotations_are_orthogonal_to_rounding(rng):
    _, V = _jacobi(tf.constant(with_spectrum(rng, rng.normal(size=6))), tf.constant(rotation(rng, 6)))
    assert_close(tf.matmul(V, V, transpose_a=True), np.eye(6), atol=100 * 6 * np.finfo(np.float64).eps)


@pytest.mark.parametrize(
    ("function", "argument", "message"),
    [
        (symmetrize, np.ones((2, 3)), "`A` must be square in its last two axes. Received: A.shape=(2, 3)."),
        (eigh, np.ones((2, 3)), "`A` must be square in its last two axes. Received: A.shape=(2, 3)."),
        (is_finite, np.ones(3), "`A` must have a known rank of at least 2. Received: A.shape=(3,)."),
        (eigh, np.ones((2, 2), np.int32), "`A.dtype` must be one of ('float32', 'float64')."),
    ],
)
def test_a_wrong_argument_is_named(function, argument, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        function(argument)


def test_a_size_unknown_while_tracing_is_refused():
    traced = tf.function(eigh, input_signature=[tf.TensorSpec([None, None], tf.float32)])
    with pytest.raises(ValueError, match="have a size that is known while tracing"):
        traced(tf.eye(2))
