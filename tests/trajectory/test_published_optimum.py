"""Our solver on the Bryson-Denham problem, whose optimum is published in closed form, for an arc on the limit, a touch
point and no contact; `verification/references/bryson_denham.py` has the mathematics, and the next tests try it.
"""

import functools

import numpy as np
import pytest

from bellman_tf.trajectory import Status
from tests.helpers import assert_close
from verification.problems import bryson_denham as problem
from verification.references import bryson_denham as published
from verification.references import constrained

CELLS = 60
ARCS, TOUCHES, FREE = (1 / 12, 1 / 9), (1 / 6, 0.2), (0.25, 0.3)
LIMITS = (*ARCS, *TOUCHES, *FREE)
UNMOVED = (*ARCS, 0.2, *FREE)  # at 1/6 the arc shrinks to a point, and held controls miss it


def at_nodes(limit):
    """Multipliers of x at the nodes 0 to CELLS."""
    y = np.zeros(CELLS + 1)
    for time in published.arc(limit) or ():
        y[round(time * CELLS)] += published.masses(limit) / 2
    return y


@pytest.mark.parametrize("limit", LIMITS)
def test_the_published_control_is_optimal_among_all_and_its_means_among_held_ones(limit):
    """What the derivation needs of it: ends, concavity, kinks on the limit; and the two costs, in NumPy alone."""
    h, t = 1 / CELLS, np.arange(CELLS + 1) / CELLS
    u, U = published.control(limit, t), published.held_controls(limit, CELLS)
    assert_close(U, (u[1:] + u[:-1]) / 2, rtol=1e-14, label="no kink inside a cell")
    assert_close(np.diff(u, 2), -h * at_nodes(limit)[1:-1], atol=1e-13, label="u'' is minus the masses")
    assert_close(published.end_multipliers(limit), [(u[-1] - u[-2]) / h, -u[-1]], rtol=1e-12)
    assert_close(published.cost(limit), h / 6 * np.sum(u[1:] ** 2 + u[1:] * u[:-1] + u[:-1] ** 2), rtol=1e-14)
    assert_close(published.roughness(limit), np.sum(np.diff(u) ** 2) / h, rtol=1e-11, atol=1e-25)
    states = published.held_states(U)
    exact = states - np.stack([h**2 / 12 * (u - u[0]), np.zeros(CELLS + 1)], axis=1)  # of u itself, at the nodes
    for x, most in ((states[:, 0], published.held_limit(limit, CELLS)), (exact[:, 0], limit)):
        assert x.max() <= most + 1e-15
        if limit <= 0.25:
            first, last = (round(time * CELLS) for time in published.arc(limit))
            assert_close(x[first : last + 1], np.full(last + 1 - first, most), atol=1e-15)
    assert_close(states[-1], [0.0, -1.0], atol=1e-14)
    assert_close(0.5 * h * U @ U, published.held_cost(limit, CELLS), rtol=1e-14)


@pytest.mark.parametrize("limit", LIMITS)
def test_a_dense_program_finds_the_published_means(limit):
    """So the reference of the other tests is held to something that we did not write."""
    arrays = published.linear_quadratic(published.held_limit(limit, CELLS), CELLS)
    controls, stage, _ = constrained.linear_quadratic(np.array([0.0, 1.0]), **arrays)
    assert_close(controls[:, 0], published.held_controls(limit, CELLS), atol=1e-10)
    assert_close(stage[:, 0], at_nodes(limit)[:-1], atol=1e-8)


@functools.cache
def found():
    """One solve of all limits, as published and moved to where the published means are optimal; NumPy arrays."""
    moved = [published.held_limit(limit, CELLS) for limit in LIMITS]
    solution = problem.solve([*moved, *UNMOVED], CELLS)
    assert solution.converged.numpy().all(), [Status(code).name for code in solution.status.numpy()]
    assert solution.violation.numpy().max() <= problem.GAP
    assert int(solution.iterations.numpy().max()) <= 110  # 83, and less than half of that without an arc
    return (
        solution.cost.numpy(),
        solution.controls.numpy()[..., 0],
        solution.states.numpy()[..., :2],
        solution.multipliers.stage.numpy()[..., 0],
        solution.multipliers.terminal.numpy() @ np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]),
    )


@pytest.mark.parametrize("limit", LIMITS)
def test_means_of_the_published_control_are_found_where_they_are_optimal(limit):
    cost, controls, states, multipliers, ends = (array[LIMITS.index(limit)] for array in found())
    allowed = problem.allowed(limit, CELLS)
    assert_close(cost, published.held_cost(limit, CELLS), atol=allowed.cost, label="cost")
    means = published.held_controls(limit, CELLS)
    assert_close(controls, means, atol=allowed.control, label="controls")
    assert_close(states, published.held_states(means), atol=allowed.control, label="states")
    pairs, true = np.append(multipliers, 0.0), at_nodes(limit)
    assert_close(pairs[1:] + pairs[:-1], true[1:] + true[:-1], atol=allowed.multiplier, label="multipliers")
    assert_close(ends, published.end_multipliers(limit), atol=allowed.multiplier, label="multipliers of the ends")


@pytest.mark.parametrize("limit", UNMOVED)
def test_the_published_optimum_is_that_of_held_controls_but_for_the_square_of_the_step(limit):
    """J at 1/9 is 4. By the identity, what is found beyond the least cost that held controls may have bounds how far
    its controls are from the published means, h/2 |U - means|^2, and the slack where the published state has its kinks.
    """
    cost, controls, states, *_ = (array[len(LIMITS) + UNMOVED.index(limit)] for array in found())
    allowed, h = problem.allowed(limit, CELLS), 1 / CELLS
    least, most = published.bracket(limit, CELLS)
    assert least - allowed.cost <= cost <= most + allowed.cost
    apart = h**2 * published.roughness(limit) / 24  # published cost and published means, held controls or not
    assert apart <= least - published.cost(limit) + 1e-15 and most - published.cost(limit) <= 1.2 * apart + 1e-15
    if limit in ARCS:
        assert most - least <= 0.01 * h**3 / limit**4  # so that the controls are within 0.15 h / limit^2
    surplus = most - published.cost(limit) - apart + 2 * allowed.cost
    means = published.held_controls(limit, CELLS)
    assert_close(controls, means, atol=np.sqrt(2 * surplus / h), label="controls")
    if limit < 0.25:
        first, last = (round(time * CELLS) for time in published.arc(limit))
        slack = limit - states[:, 0]
        assert slack.min() >= -problem.GAP
        assert (slack[first] + slack[last]) * published.masses(limit) / 2 <= surplus, "it does not touch the limit"
        # x moves by at most int s |U - means| over the nearer half, s from 0 to 1/2: |U - means| / sqrt(24)
        assert slack[first : last + 1].max() <= np.sqrt(2 * surplus / 24), "it leaves the limit"
