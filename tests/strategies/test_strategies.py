"""Each strategy is valid in every example, and its hard cases can be reached."""

import hypothesis
import numpy as np
import pytest
from hypothesis import given

from tests.strategies.kronecker import correlated_kronecker_players
from verification.problems.linear import branches, linear_networks
from verification.problems.matrices import (
    KINDS,
    gram_matrices,
    partitioned_spd,
    rotation,
    spd_matrices,
    spectrum,
    symmetric_matrices,
)
from verification.problems.outputs import outputs

SEARCH = hypothesis.settings(max_examples=500, derandomize=True, deadline=None, database=None)
QUIET = {"phases": [hypothesis.Phase.generate]}


def reaches(strategy, condition):
    hypothesis.find(strategy, condition, settings=hypothesis.settings(SEARCH, **QUIET))


@given(spd_matrices())
def test_spd_matrices_are_symmetric_and_positive_definite(A):
    assert np.array_equal(A, A.T)
    assert np.linalg.eigvalsh(A.astype(np.float64)).min() > 0


@given(spd_matrices(max_condition=10.0))
def test_spd_matrices_respect_the_condition_asked_for(A):
    assert np.linalg.cond(A.astype(np.float64)) < 10.1


@pytest.mark.parametrize(
    "condition",
    [
        lambda A: np.linalg.cond(A.astype(np.float64)) > 1e11,
        lambda A: A.shape == (1, 1),
        lambda A: len(A) == 8 and np.abs(A[0, 1:]).min() > 1e-3 * np.abs(A).max() and A.dtype == np.float32,
    ],
    ids=["ill-conditioned", "a number", "full"],
)
def test_hard_spd_matrices_are_reached(condition):
    reaches(spd_matrices(), condition)


@given(symmetric_matrices())
def test_symmetric_matrices_are_symmetric(A):
    assert np.array_equal(A, A.T)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_the_spectrum_of_its_name(kind, rng):
    gaps = np.diff(np.sort(spectrum(rng, kind, 12)))
    assert {
        "random": gaps.min() > 0,
        "repeated": np.count_nonzero(gaps == 0) >= 9,
        "clustered": np.count_nonzero(gaps < 1e-9) >= 10 and gaps.max() > 0.9,
        "graded": gaps.min() < 1e-12 and gaps.max() > 0.9,
        "rank_one": np.count_nonzero(gaps) == 1,
        "zero": np.count_nonzero(gaps) == 0,
    }[kind]


def test_indefinite_and_zero_symmetric_matrices_are_reached():
    reaches(symmetric_matrices(), lambda A: np.linalg.eigvalsh(A).min() < -1e-3)
    reaches(symmetric_matrices(), lambda A: len(A) > 3 and not A.any())


def test_rotations_are_orthogonal(rng):
    V = rotation(rng, 7)
    assert np.abs(V.T @ V - np.eye(7)).max() < 1e-14


@given(gram_matrices())
def test_gram_matrices_are_semidefinite_to_rounding(A):
    eps = np.finfo(A.dtype).eps
    assert np.isfinite(A).all()
    assert np.linalg.eigvalsh(A.astype(np.float64)).min() >= -len(A) * eps * np.trace(A, dtype=np.float64)


def test_gram_matrices_that_break_a_plain_cholesky_are_reached():
    reaches(gram_matrices(), lambda A: len(A) > 3 and np.linalg.eigvalsh(A.astype(np.float64)).min() < -1.0)
    reaches(gram_matrices(), lambda A: len(A) > 3 and np.linalg.matrix_rank(A) == 1)


@given(partitioned_spd())
def test_partitioned_matrices_are_positive_definite_and_fit_their_right_hand_sides(game):
    joint = game.joint.astype(np.float64)
    assert np.array_equal(joint, joint.T)
    assert np.linalg.eigvalsh(joint).min() > 0
    assert [len(row[n]) for n, row in enumerate(game.blocks)] == [len(r) for r in game.rhs]


def test_one_player_and_silent_players_are_reached():
    reaches(partitioned_spd(), lambda game: len(game.rhs) == 1)
    reaches(partitioned_spd(), lambda game: len(game.rhs) == 4 and not any(r.any() for r in game.rhs))


@given(correlated_kronecker_players())
def test_kronecker_players_have_positive_definite_joint_factors(game):
    for blocks in (game.A_blocks, game.B_blocks):
        joint = np.block(blocks)
        assert np.allclose(joint, joint.T, rtol=0, atol=1e-15)
        assert np.linalg.eigvalsh(joint).min() > 0
    assert [G.shape for G in game.gradients] == [
        (len(B[n]), len(A[n])) for n, (A, B) in enumerate(zip(game.A_blocks, game.B_blocks, strict=True))
    ]


def test_independent_and_identical_kronecker_players_are_reached():
    def correlation(game):
        return np.abs(game.A_blocks[0][1]).max() / np.abs(game.A_blocks[0][0]).max()

    pairs = correlated_kronecker_players(players=hypothesis.strategies.just(2), max_size=2)
    reaches(pairs, lambda game: correlation(game) > 0.999)
    reaches(pairs, lambda game: correlation(game) < 0.3)


@given(branches())
def test_a_layer_of_a_branch_has_the_same_gradients_in_either_order(problem):
    columns = []
    for order in problem.orders:
        game = problem.game(order)
        layers = enumerate(problem.layers(order))
        columns.append({layer: game.parameter_columns(t, game.stages[t].players[0]) for t, layer in layers})
    assert columns[0].keys() == columns[1].keys()
    for layer, Qc in columns[0].items():
        assert np.allclose(Qc, columns[1][layer], rtol=1e-12, atol=1e-12)


def test_orders_that_differ_are_reached():
    reaches(branches(), lambda problem: problem.orders[0] != problem.orders[1] and len(problem.orders[0]) > 4)


@given(linear_networks())
def test_the_stages_of_a_linear_network_are_its_jacobians_and_the_bilinear_term(network):
    """All of it, since a product of two changes is the only term that is not linear in them."""
    game, states = network.game()
    rng = np.random.default_rng(0)
    for t, stage in enumerate(game.stages):
        dx, du = rng.standard_normal(states[t].shape), [rng.standard_normal(len(p.l_u)) for p in stage.players]
        linear = np.einsum("bij,bj->bi", stage.f_x, dx) + stage.f_u @ np.concatenate(du)
        moved = network.stage(t, states[t] + dx, du) - states[t + 1]
        assert np.allclose(moved, linear + network.bilinear(t, du, dx), rtol=1e-10, atol=1e-10)


def test_deep_affine_and_bilinear_networks_with_three_players_and_shortcuts_are_reached():
    def deep(network, affine):
        shapes = [kernels[0].shape for kernels in network.kernels]
        return (
            network.affine == affine
            and max(map(len, network.kernels)) == 3
            and any(new == old for new, old in shapes)
            and len(shapes) > 2
        )

    for affine in (True, False):
        reaches(linear_networks(), lambda network, affine=affine: deep(network, affine))


@given(outputs(ridges=(0.0,), everything=True))
def test_all_pairs_of_different_outputs_have_a_regular_kernel_matrix(problem):
    N, d = problem.X.shape
    C = problem.ours()[0].numpy().reshape(N * d, N * d)
    assert np.linalg.matrix_rank(C) == N * d


@pytest.mark.parametrize(
    "wanted",
    [
        lambda p: len(p.X) == 1,
        lambda p: len(p.X) > 1 and np.array_equal(p.X[0], p.X[1]),
        lambda p: not p.gradient.any(),
        lambda p: p.J.shape[2] > 1 and np.linalg.matrix_rank(p.J.reshape(-1, p.J.shape[2])) == 1 < p.J.size,
        lambda p: len(p.points) > p.X.size,
    ],
    ids=["one sample", "repeated", "zero gradient", "rank one", "more pairs than numbers"],
)
def test_degenerate_outputs_are_reached(wanted):
    reaches(outputs(), wanted)
