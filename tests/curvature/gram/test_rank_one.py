"""The metric of rank one that stands in for a wide diagonal one."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf.curvature import config as options
from bellman_tf.curvature.adam import AdamBlock
from bellman_tf.curvature.diagonal import DIAGONAL, DiagonalMetric, rank_one_sides
from bellman_tf.curvature.ekfac import EigenMetric
from bellman_tf.curvature.gram import GramLimits, gram
from bellman_tf.curvature.gram.compute import rank_one
from bellman_tf.curvature.gram.memory_use import MemoryUse
from bellman_tf.curvature.gram.plan import LIMITS, plan
from bellman_tf.curvature.kronecker_rows import KroneckerRows
from bellman_tf.curvature.metric import MetricKind
from bellman_tf.curvature.registry import player_layout
from bellman_tf.layers.matrix_layout import Extent
from bellman_tf.layers.registry import coverage
from tests.curvature.players import initial_state, step
from tests.helpers import assert_close
from tests.layers.cases import CASES, draw
from verification.problems.matrices import seeds

RATE = 0.3
WIDE = GramLimits(rank_one_above=1)
DIVISORS = {
    "rmsprop": lambda v: tf.sqrt(v + 1e-3),
    "adam": lambda v: tf.sqrt(v) + 1e-3,
    "fisher": lambda v: v + 1e-3,
}


def metric_of(sample, V, divisor=DIVISORS["adam"]):
    layout = coverage(sample.layer).matrix
    return DiagonalMetric(layout.unpack(tf.constant(V)), tf.constant(RATE, tf.float64), divisor, layout)


@pytest.mark.parametrize("name", ["dense", "dense without bias", "dense two positions", "einsum two features"])
@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("divisor", [lambda v: tf.sqrt(v), lambda v: v])
def test_it_is_exact_where_the_second_moments_have_rank_one(name, columns, divisor, rng):
    sample = draw(CASES[name], rng, batch=4, columns=columns)
    layout = coverage(sample.layer).matrix
    V = np.outer(rng.uniform(0.1, 10, layout.all_rows), rng.uniform(0.1, 10, layout.width))
    metric = metric_of(sample, V, divisor)
    for group_size in (None, 2):
        exact = gram(sample.capture, metric, group_size, "exact")
        assert_close(rank_one(sample.capture, metric, group_size, WIDE, MemoryUse()), exact, rtol=1e-12)
    one = sample.capture.positions == 1
    assert (plan(sample.capture.extent, metric.kind, "auto", None, WIDE).form == "rank_one") == one


@pytest.mark.parametrize("divisor", DIVISORS.values(), ids=DIVISORS)
def test_it_is_exact_where_the_second_moments_are_all_alike(divisor, rng):
    """With whatever is added to them."""
    sample = draw(CASES["dense"], rng, batch=4)
    metric = metric_of(sample, np.full((5, 3), 1e-4), divisor)
    exact = gram(sample.capture, metric, None, "exact")
    assert_close(gram(sample.capture, metric, None, "auto", WIDE), exact, rtol=1e-12)


@given(seeds, st.sampled_from(sorted(DIVISORS)), st.sampled_from([0.0, 1e-12, 1.0, 1e6]))
def test_its_sides_are_positive_and_keep_the_scale(seed, name, size):
    """So that the Gram matrix, an entrywise product of two, is symmetric and positive semidefinite."""
    rng = np.random.default_rng(seed)
    V = rng.uniform(size=(rng.integers(1, 6), rng.integers(1, 6))) ** 4 * size
    V *= rng.uniform(size=V.shape) > 0.3
    r, s = rank_one_sides(tf.constant(V), tf.constant(RATE, tf.float64), DIVISORS[name])
    assert np.all(r.numpy() > 0)
    assert np.all(s.numpy() > 0)
    assert np.all(np.isfinite(np.outer(r, s)))
    f = lambda v: DIVISORS[name](tf.constant(v)).numpy()
    inverse = RATE / f(V)
    assert np.outer(r, s).min() >= inverse.min() * (f(V.mean()) / f(V.max())) * (1 - 1e-12)
    assert np.outer(r, s).max() <= inverse.max() * (f(V.mean()) / f(V.min())) * (1 + 1e-12)


@pytest.mark.parametrize("config", ["rmsprop", "eigen"])
def test_the_gram_matrix_is_positive_semidefinite(config, rng):
    sample = draw(CASES["dense"], rng, batch=7, columns=2)
    V = rng.uniform(size=(5, 3)) ** 6
    if config == "eigen":
        U_A, U_B = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (5, 3))
        metric = eigen(sample, U_A, U_B, V, 1e-3)
    else:
        metric = metric_of(sample, V)
    found = gram(sample.capture, metric, None, "auto", WIDE)[0].numpy()
    assert_close(found, found.T, rtol=1e-14)
    assert np.linalg.eigvalsh(found).min() >= -1e-12 * np.linalg.eigvalsh(found).max()


def eigen(sample, U_A, U_B, V, damping):
    rows = KroneckerRows(coverage(sample.layer).matrix, 1, bias_apart=False)
    return EigenMetric(rows, *map(tf.constant, (U_A, U_B, V)), damping, tf.constant(RATE, tf.float64))


@pytest.mark.parametrize("name", ["dense", "dense two positions"])
def test_an_eigenbasis_is_turned_there_and_back(name, rng):
    sample = draw(CASES[name], rng, batch=4, columns=2)
    U_A, U_B = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (5, 3))
    metric = eigen(sample, U_A, U_B, np.outer(rng.uniform(1, 9, 5), rng.uniform(1, 9, 3)), 0.0)
    exact = gram(sample.capture, metric, None, "exact")
    assert_close(rank_one(sample.capture, metric, None, WIDE, MemoryUse()), exact, rtol=1e-12)


def test_a_dead_input_does_not_swamp_the_others(rng):
    """Means of v are small where one entry is zero; means of 1 / f(v) would be that entry's alone."""
    sample = draw(CASES["dense"], rng, batch=4)
    V = np.outer(rng.uniform(1, 2, 5), rng.uniform(1, 2, 3))
    V[0] = 0.0
    dead = sample._replace(inputs=sample.inputs * tf.constant([0.0, 1, 1, 1], tf.float64))
    metric = metric_of(dead, V, lambda v: tf.sqrt(v) + 1e-9)
    exact = gram(dead.capture, metric, None, "exact")
    assert_close(gram(dead.capture, metric, None, "auto", WIDE), exact, rtol=1e-6)


def test_it_runs_for_wide_players_only():
    """The default limit: one step past it, and never where a diagonal alone is asked for, or where it costs more."""
    narrow, wide = (Extent(P, positions=1, rows=P // 256, width=256) for P in (2**12, 2**12 + 256))
    assert plan(narrow, DIAGONAL).form == "per_sample"
    assert plan(wide, DIAGONAL).form == "rank_one"
    assert plan(wide, DIAGONAL, "exact").form == "per_sample"
    assert plan(wide, DIAGONAL, "auto", 1).form == "squares"
    assert plan(wide, MetricKind()).form == "per_sample"
    many = Extent(2**18, positions=64, rows=2**9, width=2**9)
    assert plan(many, DIAGONAL).form == "features"
    assert plan(many, DIAGONAL, "exact").form == "per_sample"
    assert plan(many, DIAGONAL).cost < plan(many, DIAGONAL, "exact").cost < 64 * 64 * 64 * 2**10
    assert LIMITS.rank_one_above == 2**12


def test_the_second_moments_are_those_of_the_state(rng):
    """Adam's: after one step the running mean of squares, corrected for its start through the rate."""
    sample = draw(CASES["dense"], rng, batch=4)
    block = AdamBlock(player_layout("p", sample.shapes, coverage(sample.layer)), options.Adam(epsilon=1e-12))
    gradient = sample.capture.gradient(sample.capture.mean_weights())
    state, metric = block.update(initial_state(block), sample.capture, gradient, step(0))
    V = np.concatenate([state[2].numpy(), state[3].numpy()[None]]) / (1 - 0.999)
    sides = metric.rank_one()
    expected = np.sqrt(V.mean() / np.outer(V.mean(axis=1), V.mean(axis=0)))
    assert_close(np.outer(sides.r, sides.s), RATE * expected, rtol=1e-6)
