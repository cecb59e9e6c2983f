import re

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf.linalg import block_inverse, cooperative_solve, schur_complement, symmetrize
from tests.helpers import assert_close
from tests.linalg.modes import DTYPES, assert_modes_agree
from verification.problems.matrices import partition, partitioned_spd, rotation, spd_matrices, with_spectrum
from verification.references import schur as reference
from verification.references.solve import backward_error

two_players = partitioned_spd(players=st.just(2), max_condition=1e8)


def backward_bound(A):
    """Block Cholesky is Cholesky in another order: 4 n (3 n + 1) u ||A||, Higham Thm. 10.4, u = eps / 2."""
    n = len(A)
    return 2 * n * (3 * n + 1) * np.finfo(A.dtype).eps


def blocks_of(game):
    (A, B), (_, D) = game.blocks
    return A, B, D


@given(two_players)
def test_its_inverse_is_a_block_of_the_inverse(game):
    A, B, D = blocks_of(game)
    S = schur_complement(A, B, D).numpy()
    assert S.dtype == A.dtype
    assert np.array_equal(S, S.T)
    # an error backward_bound ||joint|| in the blocks reaches S multiplied by at most 1 + cond(D), see the docstring
    expected = A.astype(np.float64) - B.astype(np.float64) @ np.linalg.solve(D.astype(np.float64), B.T)
    size = np.linalg.norm(game.joint, 2) * (1 + np.linalg.cond(D.astype(np.float64)))
    assert_close(S, expected, atol=backward_bound(game.joint) * size)
    # and in terms of the definition: relative error cond(joint) in the inverse of the inverse's block
    condition = np.linalg.cond(game.joint.astype(np.float64))
    assert_close(
        S,
        reference.schur_complement(*(x.astype(np.float64) for x in (A, B, D))),
        rtol=backward_bound(game.joint) * condition,
    )


@given(two_players)
def test_eliminating_a_player_lowers_curvature_but_keeps_it_positive(game):
    A, B, D = blocks_of(game)
    S = schur_complement(A, B, D).numpy().astype(np.float64)
    slack = backward_bound(game.joint) * np.linalg.norm(game.joint, 2) * (1 + np.linalg.cond(D.astype(np.float64)))
    assert np.linalg.eigvalsh(A - S).min() >= -slack
    # S^{-1} is a block of the inverse, so its smallest eigenvalue is not below that of the joint matrix
    assert np.linalg.eigvalsh(S).min() >= np.linalg.eigvalsh(game.joint.astype(np.float64)).min() - slack


@given(two_players)
def test_the_blocks_of_the_inverse_are_those_of_the_dense_inverse(game):
    condition = np.linalg.cond(game.joint.astype(np.float64))
    computed, expected = block_inverse(*blocks_of(game)), reference.block_inverse(*blocks_of(game))
    size = np.linalg.norm(np.linalg.inv(game.joint.astype(np.float64)), 2)
    for place, (actual, block) in enumerate(zip(computed, expected, strict=True)):
        assert_close(actual, block, atol=4 * backward_bound(game.joint) * condition * size, label=f"block {place}:")
    for corner in (computed[0].numpy(), computed[2].numpy()):
        assert np.array_equal(corner, corner.T)


@given(partitioned_spd())
def test_the_joint_solution_solves_a_nearby_system_at_any_condition_number(game):
    solution = np.concatenate(cooperative_solve(game.blocks, game.rhs))
    assert solution.dtype == game.joint.dtype
    assert backward_error(game.joint, solution, np.concatenate(game.rhs)) <= backward_bound(game.joint)


@given(partitioned_spd(max_condition=1e6))
def test_it_agrees_with_the_dense_solve(game):
    rtol = 2 * backward_bound(game.joint) * np.linalg.cond(game.joint.astype(np.float64)) * len(game.joint)
    expected = reference.cooperative_solve(game.blocks, game.rhs)
    largest = max(np.max(np.abs(x)) for x in expected)  # errors of one player reach the others
    for actual, x in zip(cooperative_solve(game.blocks, game.rhs), expected, strict=True):
        assert_close(actual, x, atol=rtol * largest)


@given(partitioned_spd(max_condition=1e4))
def test_cooperation_never_raises_the_quadratic_model(game):
    """No player, nor any group of them, can improve on the joint solution: the gradient there is zero."""
    joint, rhs = game.joint.astype(np.float64), np.concatenate(game.rhs).astype(np.float64)
    model = lambda x: 0.5 * np.sum(x * (joint @ x)) - np.sum(x * rhs)
    solution = np.concatenate(cooperative_solve(game.blocks, game.rhs)).astype(np.float64)
    slack = 1e3 * backward_bound(game.joint) * (np.abs(model(solution)) + 1e-300)
    assert model(solution) <= slack
    for n, length in enumerate(map(len, game.rhs)):  # the selfish answer of each player alone
        alone, start = np.zeros_like(rhs), sum(map(len, game.rhs[:n]))
        place = slice(start, start + length)
        alone[place] = np.linalg.solve(joint[place, place], rhs[place])
        assert model(solution) <= model(alone) + slack


@given(two_players)
def test_two_players_give_the_papers_schur_form(game):
    Q_uu, Q_uv, Q_vv = (x.astype(np.float64) for x in blocks_of(game))
    Q_u, Q_v = (r.astype(np.float64) for r in game.rhs)
    k_u = -cooperative_solve([[Q_uu, None], [Q_uv.T, Q_vv]], [Q_u, Q_v])[0].numpy()
    expected = reference.two_player_response(Q_uu, Q_uv, Q_vv, Q_u, Q_v)
    condition = np.linalg.cond(game.joint.astype(np.float64))
    size = np.linalg.norm(np.linalg.inv(game.joint.astype(np.float64)), 2) * np.linalg.norm(np.concatenate(game.rhs))
    # both are forward stable to eps cond of the whole answer, not of the player's share
    assert_close(k_u, expected, atol=10 * backward_bound(game.joint.astype(np.float64)) * condition * size)


@pytest.mark.parametrize("players", [1, 2, 3, 6])
@pytest.mark.parametrize(("damping", "curvature"), [(1.0, 1.0), (0.25, 8.0), (1e-6, 1.0)])
def test_identical_players_share_the_damping(players, damping, curvature):
    """Each step is g / (gamma + N lambda); a Schur complement is gamma + lambda gamma / (gamma + (N - 1) lambda)."""
    joint = damping * np.eye(players) + curvature
    blocks = partition(joint, [1] * players)
    condition = 1 + players * curvature / damping
    rtol = backward_bound(joint) * condition
    for step in cooperative_solve(blocks, [np.ones((1, 1))] * players):
        assert_close(step, [[1 / (damping + players * curvature)]], rtol=rtol)
    if players > 1:
        left = schur_complement(joint[:1, :1], joint[:1, 1:], joint[1:, 1:])
        expected = damping + curvature * damping / (damping + (players - 1) * curvature)
        assert_close(left, [[expected]], rtol=rtol)


@given(spd_matrices(max_condition=10.0))
def test_players_without_cross_terms_do_not_notice_each_other(A):
    rhs = np.ones((len(A), 1), A.dtype)
    none = np.zeros_like(A)
    once, quarter = cooperative_solve([[A, none], [none, 4 * A]], [rhs, rhs])
    assert np.array_equal(once, 4 * quarter)
    assert_close(schur_complement(A, none, A), symmetrize(A))
    assert not block_inverse(A, none, A)[1].numpy().any()


def test_a_number_per_player_is_exact():
    A, B, D = (np.full((1, 1), x) for x in (5.0, 4.0, 4.0))
    assert schur_complement(A, B, D).numpy().tolist() == [[1.0]]
    assert [x.numpy().item() for x in block_inverse(A, B, D)] == [1.0, -1.0, 1.25]
    assert [x.numpy().item() for x in cooperative_solve([[D, B], [B, A]], [D + B, B + A])] == [1.0, 1.0]


def test_an_indefinite_companion_answers_with_nan():
    one = np.ones((1, 1))
    assert np.isnan(schur_complement(one, one, -one)).all()
    assert np.isnan(block_inverse(one, 2 * one, one)[0]).all()  # D is fine, the Schur complement is not
    assert np.isnan(cooperative_solve([[one, None], [2 * one, one]], [one, one])).all()


def test_leading_axes_broadcast(rng):
    sizes = [2, 1, 3]
    joints = np.stack([with_spectrum(rng, rng.uniform(1, 2, size=6)) for _ in range(4)])
    blocks, rhs = partition(joints, sizes), [rng.normal(size=(5, 1, n, 2)) for n in sizes]
    solution = cooperative_solve(blocks, rhs)
    A, D = rng.uniform(3, 4, size=(5, 1, 1, 1)) * np.eye(2), joints[:, 3:, 3:]
    S, inverse = schur_complement(A, blocks[0][2], D), block_inverse(A, blocks[0][2], D)
    for i, j in np.ndindex(5, 4):
        expected = reference.cooperative_solve([[block[j] for block in row] for row in blocks], [r[i, 0] for r in rhs])
        for actual, x in zip(solution, expected, strict=True):
            assert_close(actual[i, j], x, rtol=1e-12)  # condition 2
        arguments = A[i, 0], blocks[0][2][j], D[j]
        assert_close(S[i, j], reference.schur_complement(*arguments), rtol=1e-12)
        for block, expected_block in zip(inverse, reference.block_inverse(*arguments), strict=True):
            assert_close(tf.broadcast_to(block, (5, 4, *block.shape[-2:]))[i, j], expected_block, rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_eager_traced_and_compiled_agree(dtype, rng):
    def compute(blocks, rhs):
        A, B, D = blocks[0][0], blocks[0][1], blocks[1][1]
        return {
            "schur": schur_complement(A, B, D),
            "inverse": block_inverse(A, B, D),
            "solve": cooperative_solve(blocks, rhs),
        }

    joint = np.stack([with_spectrum(rng, rng.uniform(1, 10, size=6)) for _ in range(2)]).astype(dtype)
    rhs = [rng.normal(size=(2, n, 2)).astype(dtype) for n in (2, 1, 3)]
    assert_modes_agree(compute, partition(joint, [2, 1, 3]), rhs, rtol=2 * backward_bound(joint[0]) * 10)


def test_it_is_invariant_under_a_change_of_each_players_coordinates(rng):
    joint = with_spectrum(rng, rng.uniform(1, 2, size=5))
    U = np.zeros((5, 5))
    U[:2, :2], U[2:, 2:] = rotation(rng, 2), rotation(rng, 3)
    rhs = rng.normal(size=(5, 1))
    plain = np.concatenate(cooperative_solve(partition(joint, [2, 3]), np.split(rhs, [2])))
    turned = np.concatenate(cooperative_solve(partition(U.T @ joint @ U, [2, 3]), np.split(U.T @ rhs, [2])))
    assert_close(U @ turned, plain, rtol=1e-13)


I2, O2 = np.eye(2), np.zeros((2, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: schur_complement(np.eye(3), I2, I2),
            "`B` must have one row per row of `A`. Received: A.shape=(3, 3), B.shape=(2, 2).",
        ),
        (
            lambda: schur_complement(I2, np.ones((2, 3)), I2),
            "`B` must have one column per row of `D`. Received: D.shape=(2, 2), B.shape=(2, 3).",
        ),
        (lambda: block_inverse(I2, O2, np.ones((2, 3))), "`D` must be square in its last two axes."),
        (lambda: block_inverse(I2, O2, I2.astype(np.float32)), "`D.dtype` must equal A.dtype, float64."),
        (lambda: cooperative_solve([], []), "`blocks` must hold one row of blocks per player."),
        (lambda: cooperative_solve([[I2], [O2, I2]], [I2, I2]), "`len(blocks[0])` must be 2, one block per player."),
        (lambda: cooperative_solve([[I2, O2], [O2, I2]], [I2]), "`len(rhs)` must be 2, one matrix per player."),
        (
            lambda: cooperative_solve([[I2, O2], [np.ones((2, 3)), I2]], [I2, I2]),
            "`blocks[1][0]` must have one column per row of `blocks[0][0]`.",
        ),
        (
            lambda: cooperative_solve([[I2]], [np.ones((3, 1))]),
            "`rhs[0]` must have one row per row of `blocks[0][0]`. "
            "Received: blocks[0][0].shape=(2, 2), rhs[0].shape=(3, 1).",
        ),
    ],
)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
