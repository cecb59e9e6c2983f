"""Players with Kronecker factors and cross factors: the joint solve and the block form against dense matrices."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf.linalg import (
    block_khatri_rao,
    kron_solve,
    kronecker_block_form,
    kronecker_cooperative_solve,
    schur_complement,
)
from tests.helpers import assert_close
from tests.linalg.bounds import kron_bound
from tests.strategies.kronecker import correlated_kronecker_players, game
from verification.references import kronecker as reference

EPS = np.finfo(np.float64).eps


def joint_condition(players):
    """Condition numbers of the dense joint matrix and of the two joint factors."""
    H = reference.block_khatri_rao(players.A_blocks, players.B_blocks)
    return np.linalg.cond(H), np.linalg.cond(np.block(players.A_blocks)) * np.linalg.cond(np.block(players.B_blocks))


def stacked(solution):
    return np.concatenate([np.ravel(U) for U in solution])


@given(correlated_kronecker_players())
def test_the_joint_matrix_has_kronecker_blocks_and_is_positive_definite(players):
    H = block_khatri_rao(players.A_blocks, players.B_blocks)
    expected = reference.block_khatri_rao(players.A_blocks, players.B_blocks)
    assert_close(H, expected, rtol=4 * EPS)  # the block above the diagonal is the transpose of the one below
    assert np.linalg.eigvalsh(H).min() > 0


@given(correlated_kronecker_players(players=st.integers(1, 2), min_damping=1e-6))
def test_two_players_solve_the_joint_system_exactly(players):
    solution = kronecker_cooperative_solve(*players)
    H = reference.block_khatri_rao(players.A_blocks, players.B_blocks)
    x = np.concatenate([reference.vec(U.numpy()) for U in solution])
    g = np.concatenate([reference.vec(G) for G in players.gradients])
    # n eps times the conditions met on the way: of the whitened diagonal blocks and of the joint system
    blocks = [M[n][n] for M in (players.A_blocks, players.B_blocks) for n in range(len(solution))]
    condition = np.linalg.cond(H) + sum(map(np.linalg.cond, blocks))
    assert_close(x, np.linalg.solve(H, g), rtol=100 * len(g) * EPS * condition)
    assert np.linalg.norm(H @ x - g) <= 100 * len(g) * EPS * np.linalg.norm(H, 2) * np.linalg.norm(x)
    for U, expected in zip(solution, reference.kronecker_cooperative_solve(*players), strict=True):
        assert U.shape == expected.shape


@given(correlated_kronecker_players())
def test_the_block_form_is_a_principal_part_of_the_inverse(players):
    expected = reference.kronecker_block_form(*players)
    rtol = 1e3 * EPS * joint_condition(players)[1]
    largest = np.abs(stacked(expected)).max()
    for U, U_expected in zip(kronecker_block_form(*players), expected, strict=True):
        assert_close(U, U_expected, atol=rtol * largest)


@given(correlated_kronecker_players(players=st.integers(2, 3)))
def test_the_block_form_bounds_the_joint_inverse_from_above(players):
    """Loewner: g^T H^{-1} g <= g^T P g."""
    g = stacked(players.gradients)
    exact = g @ stacked(reference.kronecker_cooperative_solve(*players))
    bound = g @ stacked(kronecker_block_form(*players))
    assert exact <= bound * (1 + 1e3 * EPS * joint_condition(players)[1])


@given(correlated_kronecker_players(players=st.just(2)))
def test_with_a_silent_partner_the_block_form_is_the_papers_schur_product(players):
    (A_uu, A_uv), (_, A_vv) = players.A_blocks
    (B_uu, B_uv), (_, B_vv) = players.B_blocks
    G_u, G_v = players.gradients
    U = kronecker_block_form(players.A_blocks, players.B_blocks, [G_u, 0 * G_v])[0]
    expected = kron_solve(schur_complement(A_uu, A_uv, A_vv), schur_complement(B_uu, B_uv, B_vv), G_u)
    assert_close(U, expected, rtol=1e3 * EPS * joint_condition(players)[1])


@pytest.mark.parametrize("count", [3, 4])
def test_more_than_two_players_get_the_block_form(count, rng):
    players = game(rng, [2] * count, [3] * count, shared=0.5, damping=0.1)
    for actual, expected in zip(kronecker_cooperative_solve(*players), kronecker_block_form(*players), strict=True):
        assert np.array_equal(actual, expected)


@given(correlated_kronecker_players(players=st.integers(2, 3)))
def test_players_without_cross_blocks_do_not_notice_each_other(players):
    alone = lambda blocks: [[M if n == m else 0 * M for m, M in enumerate(row)] for n, row in enumerate(blocks)]
    A_blocks, B_blocks = alone(players.A_blocks), alone(players.B_blocks)
    for solve in (kronecker_cooperative_solve, kronecker_block_form):
        for n, U in enumerate(solve(A_blocks, B_blocks, players.gradients)):
            A, B = A_blocks[n][n], B_blocks[n][n]
            assert_close(U, kron_solve(A, B, players.gradients[n]), rtol=2 * kron_bound(A, B))


@pytest.mark.parametrize("gamma", [1.0, 0.01, 1e-8])
def test_identical_numbers_share_the_damping(gamma):
    """Curvature 1, damping gamma on the joint diagonal: exactly 1 / (2 + gamma) each; the papers' form is far off."""
    a = np.sqrt(1 + gamma)
    blocks = [[np.full((1, 1), a), None], [np.ones((1, 1)), np.full((1, 1), a)]]
    one = [np.ones((1, 1))] * 2
    for U in kronecker_cooperative_solve(blocks, blocks, one):
        assert_close(U, [[1 / (2 + gamma)]], rtol=20 * EPS * (1 + 2 / gamma))
    # P: [A^{-1}] = [[a, -1], [-1, a]] / gamma, twice, so (a^2 + 1) / gamma^2
    for U in kronecker_block_form(blocks, blocks, one):
        assert_close(U, [[(2 + gamma) / gamma**2]], rtol=20 * EPS * (1 + 2 / gamma))


def test_one_joint_factor_may_be_singular(rng):
    """Equal inputs without damping, different outputs: s_a = 1 but s_a s_b < 1."""
    A = np.eye(2)
    (B_u, B_uv), (_, B_v) = game(rng, [1, 1], [2, 2], shared=0.5, damping=0.1).B_blocks
    gradients = [rng.normal(size=(2, 2)) for _ in range(2)]
    arguments = [[A, A], [A, A]], [[B_u, B_uv], [B_uv.T, B_v]], gradients
    for U, expected in zip(
        kronecker_cooperative_solve(*arguments), reference.kronecker_cooperative_solve(*arguments), strict=True
    ):
        assert_close(U, expected, rtol=1e-12)  # condition below 100


@pytest.mark.parametrize("damping", [1e-6, 1e-7, 1e-8])
def test_two_players_whose_correlations_round_to_one_still_descend(damping, rng):
    """Equal inputs and outputs in float32: H is singular but for the damping, which is below the rounding of 1."""
    for _ in range(5):
        joint = []
        for _ in range(2):
            x = rng.normal(size=(24, 12))
            M = np.float32(np.kron(np.ones((2, 2)), x.T @ x / 24) + damping * np.eye(24))
            joint.append([[M[:12, :12], None], [M[12:, :12], M[12:, 12:]]])
        gradients = [rng.normal(size=(12, 12)).astype("float32") for _ in range(2)]
        solution = kronecker_cooperative_solve(*joint, gradients)
        decrease = sum(np.vdot(G, U) for G, U in zip(gradients, solution, strict=True))
        assert np.isfinite(decrease)
        assert decrease > 0


def test_under_xla_two_players_still_solve_a_nearby_system(rng):
    players = game(rng, [3, 2], [2, 4], shared=1.0, damping=1e-6)
    solution = tf.function(kronecker_cooperative_solve, jit_compile=True)(*players)
    H = reference.block_khatri_rao(players.A_blocks, players.B_blocks)
    x = np.concatenate([reference.vec(U.numpy()) for U in solution])
    g = np.concatenate([reference.vec(G) for G in players.gradients])
    assert np.linalg.norm(H @ x - g) <= 100 * len(g) * EPS * np.linalg.norm(H, 2) * np.linalg.norm(x)
