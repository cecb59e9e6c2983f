"""Joint solves that factor once and apply many times, against the dense joint matrix."""

import re

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf.linalg import (
    cooperative_factors,
    factor_block_form,
    factor_game,
    factor_pair,
    kronecker_block_form,
    solve_block_form,
    solve_game,
    solve_pair,
)
from tests.helpers import assert_close
from tests.linalg.modes import DTYPES, assert_modes_agree
from tests.strategies.kronecker import correlated_kronecker_players, game
from verification.references import kronecker as reference

EPS = np.finfo(np.float64).eps


def dense(players):
    """H, its inverse times the gradients, and the condition numbers of H and of all diagonal blocks."""
    H = reference.block_khatri_rao(players.A_blocks, players.B_blocks)
    g = np.concatenate([reference.vec(G) for G in players.gradients])
    blocks = [M[n][n] for M in (players.A_blocks, players.B_blocks) for n in range(len(players.gradients))]
    return H, np.linalg.solve(H, g), np.linalg.cond(H) + sum(map(np.linalg.cond, blocks))


def stacked(solution):
    return np.concatenate([reference.vec(np.asarray(U)) for U in solution])


@given(correlated_kronecker_players(players=st.just(2), min_damping=1e-6))
def test_two_players_solve_the_joint_system(players):
    factor = factor_pair(players.A_blocks, players.B_blocks)
    _, expected, condition = dense(players)
    solution = solve_pair(factor, players.gradients)
    assert_close(stacked(solution), expected, rtol=1e3 * len(expected) * EPS * condition)
    for U, G in zip(solution, players.gradients, strict=True):
        assert U.shape == G.shape


@given(correlated_kronecker_players(players=st.just(2), min_damping=1e-6))
def test_the_inverse_is_the_second_players_own_and_the_rest_of_the_first(players):
    """What Gram matrices are made of: `<X, H^{-1} X>` in two squares, and one of them diagonal."""
    f = factor_pair(players.A_blocks, players.B_blocks)
    X_1, X_2 = players.gradients
    _, solved, condition = dense(players)
    Y = f.first_B.numpy().T @ X_1 @ f.first_A.numpy() - f.cross_B.numpy().T @ X_2 @ f.cross_A.numpy()
    value = np.sum(X_2 * (f.second_B.numpy() @ X_2 @ f.second_A.numpy())) + np.sum(f.weights.numpy() * Y**2)
    expected = stacked(players.gradients) @ solved
    assert_close(value, expected, rtol=1e3 * solved.size * EPS * condition)
    assert f.weights.numpy().min() >= 1


@given(correlated_kronecker_players(players=st.integers(1, 4), min_damping=1e-2))
def test_any_number_of_players_meets_the_tolerance(players):
    """In the norm of H the error is at most the root of the whitened condition times the tolerance."""
    H, expected, _ = dense(players)
    solution = stacked(solve_game(factor_game(players.A_blocks, players.B_blocks), players.gradients))
    count = len(players.gradients)
    alone = lambda blocks: [[M if n == m else 0 * M for m, M in enumerate(row)] for n, row in enumerate(blocks)]
    D = reference.block_khatri_rao(alone(players.A_blocks), alone(players.B_blocks))
    L = np.linalg.cholesky(D)
    whitened = np.linalg.solve(L, np.linalg.solve(L, H).T)
    assert count == 1 or np.abs(np.diag(whitened) - 1).max() < 1e-9
    gap = solution - expected
    size = np.sqrt(expected @ H @ expected)
    bound = np.sqrt(np.linalg.cond(whitened)) * cooperative_factors.TOLERANCE + 1e4 * EPS * np.linalg.cond(H)
    assert np.sqrt(max(gap @ H @ gap, 0)) <= bound * size


def test_a_tighter_tolerance_gives_more_digits(rng):
    players = game(rng, [3, 2, 4], [2, 4, 3], shared=0.9, damping=0.05)
    factor = factor_game(players.A_blocks, players.B_blocks)
    _, expected, condition = dense(players)
    exact = stacked(solve_game(factor, players.gradients, tolerance=1e-13, most_iterations=200))
    assert_close(exact, expected, rtol=1e-12 * condition)
    few = stacked(solve_game(factor, players.gradients, most_iterations=1))
    assert np.linalg.norm(few - expected) > 1e-2 * np.linalg.norm(expected)


def test_players_without_anything_in_common_need_one_iteration(rng):
    players = game(rng, [2, 3, 2], [3, 1, 2], shared=0.5, damping=0.1)
    alone = [[[M if n == m else 0 * M for m, M in enumerate(row)] for n, row in enumerate(b)] for b in players[:2]]
    solution = solve_game(factor_game(*alone), players.gradients, most_iterations=1)
    for n, U in enumerate(solution):
        assert_close(U, reference.kron_solve(alone[0][n][n], alone[1][n][n], players.gradients[n]), rtol=1e-10)


@given(correlated_kronecker_players(players=st.integers(1, 3)))
def test_the_block_form_is_that_of_one_go(players):
    sizes = [[len(row[n]) for n, row in enumerate(blocks)] for blocks in players[:2]]
    inverses = factor_block_form(players.A_blocks, players.B_blocks)
    A, B = (
        [tf.split(rows, s, axis=1) for rows in tf.split(inverse, s)] for inverse, s in zip(inverses, sizes, strict=True)
    )
    expected = stacked(kronecker_block_form(*players))
    assert_close(stacked(solve_block_form(A, B, players.gradients)), expected, rtol=1e-9)


def test_the_minus_sign_turns_every_other_player(rng):
    """D P D with D = diag(I, -I)."""
    players = game(rng, [2, 3], [3, 2], shared=0.7, damping=0.1)
    A, B = (np.linalg.inv(np.block(blocks)) for blocks in players[:2])
    A, B = ([[M[i, j] for j in cuts] for i in cuts] for M, cuts in ((A, _cuts(2, 3)), (B, _cuts(3, 2))))
    minus = solve_block_form(A, B, players.gradients, sign=-1)
    G_1, G_2 = players.gradients
    expected = reference.kronecker_block_form(players.A_blocks, players.B_blocks, [G_1, -G_2])
    assert_close(minus[0], expected[0], rtol=1e-12)
    assert_close(minus[1], -expected[1], rtol=1e-12)


def _cuts(first, second):
    return [slice(0, first), slice(first, first + second)]


@pytest.mark.parametrize("gamma", [1.0, 1e-2, 1e-8])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_identical_numbers_share_the_damping(count, gamma):
    """Curvature 1 for all, damping gamma on the diagonal: 1 / (N + gamma) each."""
    root = np.sqrt(1 + gamma)
    blocks = [[np.full((1, 1), root if n == m else 1.0) for m in range(count)] for n in range(count)]
    one = [np.ones((1, 1))] * count
    solutions = [solve_game(factor_game(blocks, blocks), one)]
    if count == 2:
        solutions.append(solve_pair(factor_pair(blocks, blocks), one))
    for solution in solutions:
        for U in solution:
            assert_close(U, [[1 / (count + gamma)]], rtol=100 * EPS * (1 + 2 / gamma) + 2e-6 * (count > 2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_rounding_takes_to_one_stays_finite(dtype):
    """Identical rank-one players under a damping far below rounding."""
    x = np.arange(1.0, 4.0)[:, None]
    M = (x @ x.T).astype(dtype)
    damped = M + np.finfo(dtype).eps * 50 * np.eye(3, dtype=dtype)
    factor = factor_pair([[damped, None], [M, damped]], [[damped, None], [M, damped]])
    assert np.isfinite(factor.weights).all()
    assert np.min(factor.weights) >= 1


def test_leading_axes_are_systems_side_by_side(rng):
    players = game(rng, [2, 3, 1], [3, 1, 2], shared=0.6, damping=0.5)
    gradients = [rng.normal(size=(4, 5, *G.shape)) for G in players.gradients]
    pair = [[row[:2] for row in blocks[:2]] for blocks in players[:2]]
    many, two = solve_game(factor_game(*players[:2]), gradients), solve_pair(factor_pair(*pair), gradients[:2])
    for i, j in np.ndindex(4, 5):
        one = [G[i, j] for G in gradients]
        expected = reference.kronecker_cooperative_solve(*players[:2], one)
        for U, V in zip(many, expected, strict=True):
            assert_close(U[i, j], V, rtol=1e-4)
        for U, V in zip(two, reference.kronecker_cooperative_solve(*pair, one[:2]), strict=True):
            assert_close(U[i, j], V, rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_eager_traced_and_compiled_agree(dtype, rng):
    def compute(A, B, gradients):
        first = [[row[:2] for row in blocks[:2]] for blocks in (A, B)]
        return {
            "pair": solve_pair(factor_pair(*first), gradients[:2]),
            "game": solve_game(factor_game(A, B), gradients),
            "block form": factor_block_form(A, B),
        }

    players = game(rng, [2, 1, 3], [3, 2, 1], shared=0.3, damping=1.0).astype(dtype)
    assert_modes_agree(compute, *players, rtol=max(2e-6, 2e3 * np.finfo(dtype).eps))


I2, I3 = np.eye(2), np.eye(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: factor_pair([[I2]], [[I2]]), "`len(A_blocks)` must be 2. Received: len(A_blocks)=1."),
        (lambda: factor_pair([[I2, I2], [I2, I2]], [[I2]]), "`len(B_blocks)` must be len(A_blocks) = 2."),
        (lambda: factor_game([[I2, None], [I3, I2]], [[I2, None], [I2, I2]]), "`A_blocks[1][0]` must have one row per"),
    ],
)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
