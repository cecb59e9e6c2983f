"""Factorisations that replicas share out, against those that each makes on its own."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import bellman_tf as btf
from bellman_tf import replicas
from bellman_tf.curvature import cached
from bellman_tf.curvature.sharded import deal, renewed_in_shares
from tests.helpers import assert_close, slow_row
from tests.replicas.test_equality import cnn
from tests.replicas.training import assert_mirrored, compiled, data, fit, mlp, state_of, strategy_of

KEPT = ([((2, 3), "float32"), ((), "float64")], [((4,), "float32")], [((1, 1), "float64")])  # of three players
SHAPES = {mlp: (), cnn: (5, 5, 2)}


def compare(make, count, curvature, **options):
    """Three steps in float32, factorisations renewed before the first and the third; rounding made 1.8e-6."""
    x, y = data(24, *SHAPES[make])
    found = {}
    for sharded in (True, False):
        model, _ = compiled(count, lambda s=sharded: btf.GTDDP(0.03, curvature=curvature(s)), make, **options)
        fit(model, x, y, 8, 1)
        found[sharded] = model
    for (path, value), (_, reference) in zip(*(state_of(found[s]) for s in (True, False)), strict=True):
        assert_close(value, reference, rtol=1e-5, label=path)
    assert_mirrored(found[True], but=("moving",))


def kfac(sharded, **options):
    return btf.curvature.KFAC(invert_every=2, sharded=sharded, **options)


def ekfac(sharded, **options):
    return btf.curvature.EKFAC(invert_every=2, sharded=sharded, **options)


CURVATURES = {
    "kfac": kfac,
    "ekfac": ekfac,
    "every step": lambda sharded: btf.curvature.KFAC(invert_every=1, sharded=sharded),
    "exact": lambda sharded: kfac(sharded, cooperative="exact"),
    "patches": lambda sharded: kfac(sharded, convolution="patches"),
}


def test_two_replicas():
    compare(mlp, 2, ekfac, run_eagerly=True)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])  # of four two have no player of `mlp`
@pytest.mark.parametrize("name", CURVATURES)
@pytest.mark.parametrize("make", SHAPES)
def test_in_one_graph(make, name, count):
    compare(make, count, CURVATURES[name])


@pytest.mark.parametrize("sharded", [True, slow_row(False)])
def test_a_player_is_factorised_by_one_replica_instead_of_by_all(monkeypatch, sharded):
    renewed, original = [], cached._refresh
    monkeypatch.setattr(cached, "_refresh", lambda own, *rest: (renewed.append(len(own)), original(own, *rest))[1])
    x, y = data(8)
    model, _ = compiled(2, lambda: btf.GTDDP(0.03, curvature=kfac(sharded)), run_eagerly=True)
    fit(model, x, y, 8, 2)  # two steps, of which one renews
    assert renewed == ([1, 1] if sharded else [2, 2])


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 3))
def test_a_deal_is_within_a_third_of_the_best_one(work, count):
    shares = deal(work, count)
    assert sorted(place for own in shares for place in own) == list(range(len(work)))
    busiest = max(sum(work[k] for k in own) for own in shares)
    every = itertools.product(range(count), repeat=len(work))
    best = min(max(sum(w for w, r in zip(work, to, strict=True) if r == k) for k in range(count)) for to in every)
    assert 3 * count * busiest <= (4 * count - 1) * best


@pytest.mark.parametrize("due", [True, False, None])
def test_tensors_of_two_dtypes_and_of_any_shape_come_back_in_place(due):
    keep = [[np.full(s, k, t) for s, t in parts] for k, parts in enumerate(KEPT)]

    def step():
        own = replicas.own_number()
        renew = lambda places: [[tf.cast(10 * k + own, p.dtype) + tf.zeros_like(p) for p in keep[k]] for k in places]
        flag = None if due is None else tf.constant(due)
        tensors = [[tf.constant(part) for part in parts] for parts in keep]
        return renewed_in_shares(flag, renew, tensors, [1, 3, 2])

    strategy = strategy_of(2)
    found = tf.function(lambda: strategy.run(step))()
    owner = {1: 0, 2: 1, 0: 1}  # 3; 2 and 1
    for k, (parts, old) in enumerate(zip(found, keep, strict=True)):
        for part, before in zip(parts, old, strict=True):
            for value in strategy.experimental_local_results(part):
                expected = before if due is False else np.full_like(before, 10 * k + owner[k])
                np.testing.assert_array_equal(value, expected)
                assert value.dtype == before.dtype
