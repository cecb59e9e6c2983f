import re

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf import linalg
from bellman_tf.linalg import (
    block_khatri_rao,
    ekfac_solve,
    kfac_solve,
    khatri_rao,
    kron,
    kron_multiply,
    kron_solve,
    kronecker_block_form,
    kronecker_cooperative_solve,
    split_damping,
    unvec,
    vec,
)
from tests.helpers import assert_close
from tests.linalg.bounds import kron_bound
from tests.linalg.modes import DTYPES, assert_modes_agree
from tests.strategies.kronecker import game
from verification.problems.matrices import dtypes, gram_matrices, rotation, seeds, spd_matrices, with_spectrum
from verification.references import kronecker as reference

EPS = np.finfo(np.float64).eps
double = st.just(np.float64)
sizes = st.integers(1, 4)


@st.composite
def rectangular(draw):
    """A `[m, n]`, B `[p, q]` and X `[q, n]`, none of them square in general."""
    m, n, p, q = (draw(sizes) for _ in range(4))
    rng, dtype = np.random.default_rng(draw(seeds)), draw(dtypes)
    return [rng.normal(size=shape).astype(dtype) for shape in ((m, n), (p, q), (q, n))]


@given(rectangular())
def test_the_product_with_vec_is_the_vec_of_the_product(matrices):
    A, B, X = matrices
    # two products of n <= 4 terms, each with relative error n eps in norm
    bound = 8 * 4 * np.finfo(A.dtype).eps * np.linalg.norm(A) * np.linalg.norm(B) * np.linalg.norm(X)
    product = kron_multiply(A, B, X)
    assert_close(vec(product), tf.linalg.matvec(kron(A, B), vec(X)), atol=bound)
    assert_close(product, reference.kron_multiply(A, B, X.astype(np.float64)), atol=bound)


@given(rectangular())
def test_the_dense_forms_agree_with_numpy(matrices):
    A, B, X = matrices
    rtol = np.finfo(A.dtype).eps  # one product per entry
    assert_close(kron(A, B), np.kron(A.astype(np.float64), B), rtol=rtol)
    assert_close(kron(A, B), reference.kron(A, B), rtol=rtol)
    B = np.resize(B, (len(B), A.shape[1]))
    assert_close(khatri_rao(A, B), reference.khatri_rao(A.astype(np.float64), B), rtol=rtol)
    assert np.array_equal(vec(X), X.ravel(order="F"))
    assert np.array_equal(vec(X), reference.vec(X))
    assert np.array_equal(unvec(vec(X), *X.shape), X)
    assert np.array_equal(unvec(X.ravel(), *X.shape), reference.unvec(X.ravel(), *X.shape))


def test_per_sample_gradients_are_the_columns_of_a_khatri_rao_product(rng):
    x, g = rng.normal(size=(3, 5)), rng.normal(size=(2, 5))
    columns = khatri_rao(x, g)
    for i in range(5):
        assert_close(columns[:, i], vec(np.outer(g[:, i], x[:, i])))


@given(spd_matrices(max_condition=1e5, dtype=double), spd_matrices(max_condition=1e5, dtype=double), seeds)
def test_a_solve_undoes_the_product_and_equals_the_dense_one(A, B, seed):
    X = np.random.default_rng(seed).normal(size=(len(B), len(A)))
    solution = kron_solve(A, B, X)
    # measured in the equation: forward error times ||A|| ||B|| is residual; both conditions may multiply
    size = np.linalg.norm(A, 2) * np.linalg.norm(B, 2) * np.linalg.norm(solution)
    assert np.linalg.norm(kron_multiply(A, B, solution) - X) <= kron_bound(A, B) * size
    dense = reference.kron_solve(A, B, X)
    condition = np.linalg.cond(A) * np.linalg.cond(B)  # of the dense matrix, which the reference suffers
    assert_close(solution, dense, rtol=kron_bound(A, B) * len(A) * len(B) + 1e3 * EPS * condition)


@given(gram_matrices(max_log_norm=4, dtype=double), gram_matrices(max_log_norm=4, dtype=double), st.floats(1e-6, 1e6))
def test_split_damping_keeps_the_product_and_the_ratio_of_mean_eigenvalues(A, B, damping):
    damping_A, damping_B = split_damping(A, B, damping)
    assert_close(damping_A * damping_B, damping, rtol=4 * EPS)
    # relative to its factor's mean eigenvalue each factor gets the same
    ratios = damping_A * len(A) / np.trace(A), damping_B * len(B) / np.trace(B)
    assert_close(ratios[0], ratios[1], rtol=40 * EPS)
    rtol = 1e3 * EPS  # the reference takes traces from eigenvalues
    assert_close([damping_A, damping_B], reference.split_damping(A, B, damping), rtol=rtol)


def test_split_damping_does_not_notice_how_scale_is_shared_between_the_factors(rng):
    A, B = (with_spectrum(rng, rng.uniform(1, 2, size=3)) for _ in range(2))
    X = rng.normal(size=(3, 3))
    assert_close(kfac_solve(A / 1024, 1024 * B, 0.5, X), kfac_solve(A, B, 0.5, X), rtol=1e-14)


@pytest.mark.parametrize(("scale_A", "scale_B"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_a_zero_factor_is_damped_evenly(scale_A, scale_B):
    dampings = split_damping(scale_A * tf.eye(2), scale_B * tf.eye(3), 0.25)
    assert [float(x) for x in dampings] == [0.5, 0.5]
    assert np.isfinite(kfac_solve(scale_A * tf.eye(2), scale_B * tf.eye(3), 0.25, tf.ones((3, 2)))).all()


def test_split_damping_survives_extreme_traces():
    tiny, huge = tf.constant([[1e-30]]), tf.constant([[1e30]])
    assert_close([float(x) for x in split_damping(tiny, huge, 1.0)], [1e-30, 1e30], rtol=1e-6)


@given(
    spd_matrices(max_condition=1e3, dtype=double),
    spd_matrices(max_condition=1e3, dtype=double),
    st.floats(1e-4, 1e2),
    seeds,
)
def test_kfac_and_ekfac_equal_their_dense_matrices(A, B, damping, seed):
    X = np.random.default_rng(seed).normal(size=(len(B), len(A)))
    dense_rtol = 1e3 * EPS * np.linalg.cond(A) * np.linalg.cond(B)
    assert_close(kfac_solve(A, B, damping, X), reference.kfac_solve(A, B, damping, X), rtol=dense_rtol)

    (w_A, U_A), (w_B, U_B) = np.linalg.eigh(A), np.linalg.eigh(B)
    scalings = np.outer(w_B, w_A)
    solution = ekfac_solve(U_A, U_B, scalings, damping, X)
    assert_close(solution, reference.ekfac_solve(U_A, U_B, scalings, damping, X), rtol=dense_rtol)
    # with K-FAC's own eigenvalues EKFAC is the inverse of A (x) B + damping I exactly
    matrix = reference.kron(A, B) + damping * np.eye(A.shape[0] * B.shape[0])
    assert_close(vec(solution), np.linalg.solve(matrix, reference.vec(X)), rtol=dense_rtol)


def test_ekfac_divides_scaling_by_scaling():
    X = np.arange(6.0).reshape(2, 3)
    assert_close(ekfac_solve(np.eye(3), np.eye(2), X + 1, 1.0, X * (X + 2)), X)


def test_without_damping_all_solves_are_one(rng):
    A, B, X = np.diag([1.0, 2.0, 4.0]), np.diag([2.0, 8.0]), rng.normal(size=(2, 3))
    expected = X / np.outer([2.0, 8.0], [1.0, 2.0, 4.0])
    for solution in (
        kron_solve(A, B, X),
        kfac_solve(A, B, 0.0, X),
        ekfac_solve(np.eye(3), np.eye(2), np.outer([2.0, 8.0], [1.0, 2.0, 4.0]), 0.0, X),
        kronecker_cooperative_solve([[A]], [[B]], [X])[0],
        kronecker_block_form([[A]], [[B]], [X])[0],
    ):
        assert_close(solution, expected, rtol=4 * EPS)


def test_leading_axes_broadcast(rng):
    many = [game(rng, [2, 3], [3, 1], shared=0.3, damping=1.0) for _ in range(4)]
    A_blocks = [[np.stack([one.A_blocks[n][m] for one in many]) for m in range(2)] for n in range(2)]
    B_blocks = many[0].B_blocks
    gradients = [rng.normal(size=(5, 1, *G.shape)) for G in many[0].gradients]
    A, B, G = A_blocks[0][0], B_blocks[0][0], gradients[0]
    damping = rng.uniform(1, 2, size=(5, 1))
    U_A, U_B, scalings = rotation(rng, 2), rotation(rng, 3), rng.uniform(1, 2, size=(4, 3, 2))
    cooperative = kronecker_cooperative_solve(A_blocks, B_blocks, gradients)
    block_form = kronecker_block_form(A_blocks, B_blocks, gradients)
    computed = {
        "kron": kron(A, G),
        "multiply": kron_multiply(A, B, G),
        "solve": kron_solve(A, B, G),
        "khatri_rao": khatri_rao(A, G),
        "kfac": kfac_solve(A, B, damping, G),
        "ekfac": ekfac_solve(U_A, U_B, scalings, damping, G),
        "unvec": unvec(vec(G + A[:, :1]), 3, 2),
    }
    for i, j in np.ndindex(5, 4):
        g, d = G[i, 0], damping[i, 0]
        expected = {
            "kron": np.kron(A[j], g),
            "multiply": reference.kron_multiply(A[j], B, g),
            "solve": reference.kron_solve(A[j], B, g),
            "khatri_rao": reference.khatri_rao(A[j], g),
            "kfac": reference.kfac_solve(A[j], B, d, g),
            "ekfac": reference.ekfac_solve(U_A, U_B, scalings[j], d, g),
            "unvec": g + A[j, :1],
        }
        for name, value in expected.items():
            assert_close(computed[name][i, j], value, rtol=1e-12, label=name)  # conditions below 30
        arguments = [[M[j] for M in row] for row in A_blocks], B_blocks, [G[i, 0] for G in gradients]
        for n in range(2):
            assert_close(cooperative[n][i, j], reference.kronecker_cooperative_solve(*arguments)[n], rtol=1e-12)
            assert_close(block_form[n][i, j], reference.kronecker_block_form(*arguments)[n], rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_eager_traced_and_compiled_agree(dtype, rng):
    def compute(A_blocks, B_blocks, gradients, basis):
        A, B, G = A_blocks[0][0], B_blocks[0][0], gradients[0]
        return {
            "vec": vec(G),
            "unvec": unvec(vec(G), *G.shape),
            "kron": kron(A, B),
            "kron_multiply": kron_multiply(A, B, G),
            "kron_solve": kron_solve(A, B, G),
            "khatri_rao": khatri_rao(A, G),
            "block_khatri_rao": block_khatri_rao(A_blocks, B_blocks),
            "split_damping": split_damping(A, B, 0.1),
            "kfac_solve": kfac_solve(A, B, 0.1, G),
            "ekfac_solve": ekfac_solve(A, basis, tf.square(G), 0.1, G),
            "cooperative": kronecker_cooperative_solve(A_blocks, B_blocks, gradients),
            "block_form": kronecker_block_form(A_blocks, B_blocks, gradients),
        }

    players = game(rng, [2, 1], [3, 2], shared=0.3, damping=1.0).astype(dtype)
    # conditions: at most about 5 per factor, 30 jointly; sums of at most 6 terms
    rtol = 10 * 6 * 30 * np.finfo(dtype).eps
    assert_modes_agree(compute, *players, rotation(rng, 3).astype(dtype), rtol=rtol)


def test_shapes_unknown_while_tracing_are_found_when_running(rng):
    G = rng.normal(size=(4, 2, 3))
    traced = tf.function(
        lambda X: kron(X, vec(X)[..., tf.newaxis]), input_signature=[tf.TensorSpec([None, None, None], tf.float64)]
    )
    assert_close(traced(G)[1], np.kron(G[1], reference.vec(G[1])[:, np.newaxis]), rtol=EPS)


def test_every_public_name_exists_and_is_documented():
    for name in linalg.__all__:
        assert getattr(linalg, name).__doc__, name
    assert sorted(linalg.__all__) == linalg.__all__


I2, I3 = np.eye(2), np.eye(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vec(np.ones(2)), "`X` must have a known rank of at least 2. Received: X.shape=(2,)."),
        (lambda: unvec(np.ones(5), 2, 3), "`v` must have rows * columns = 6 entries in its last axis."),
        (lambda: unvec(np.ones(4), 2, 0), "`columns` must be an integer >= 1. Received: columns=0."),
        (lambda: kron(I2, np.eye(2, dtype=np.float32)), "`B.dtype` must equal A.dtype, float64."),
        (lambda: kron_multiply(I2, I3, np.ones((2, 3))), "`X` must have one row per row of `B^T`."),
        (lambda: kron_multiply(I2, I3, np.ones((3, 3))), "`X` must have one column per row of `A^T`."),
        (lambda: kron_solve(I2, I3, np.ones((2, 3))), "`rhs` must have one row per row of `factor`."),
        (lambda: khatri_rao(I2, I3), "`B` must have one column per row of `A^T`."),
        (lambda: split_damping(I2, I3, -1.0), "`damping` must be a finite number >= 0.0."),
        (lambda: split_damping(I2, np.ones((2, 3)), 1.0), "`B` must be square in its last two axes."),
        (lambda: kfac_solve(I2, I3, float("nan"), np.ones((3, 2))), "`damping` must be a finite number >= 0.0."),
        (lambda: ekfac_solve(I2, I3, np.ones((2, 3)), 1.0, np.ones((3, 2))), "`scalings` must have one row per row of"),
        (lambda: ekfac_solve(I2, I3, np.ones((3, 2)), -1.0, np.ones((3, 2))), "`damping` must be a finite number"),
        (lambda: block_khatri_rao([[I2]], [[I2, I2], [I2, I2]]), "`len(B_blocks)` must be len(A_blocks) = 1."),
        (
            lambda: kronecker_cooperative_solve([[I2]], [[I3]], [np.ones((2, 3))]),
            "`gradients[0]` must have one row per row of `B_blocks[0][0]`.",
        ),
        (
            lambda: kronecker_block_form([[I2]], [[I3]], [np.ones((3, 3))]),
            "`gradients[0]` must have one column per row of `A_blocks[0][0]`. "
            "Received: A_blocks[0][0].shape=(2, 2), gradients[0].shape=(3, 3).",
        ),
    ],
)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
