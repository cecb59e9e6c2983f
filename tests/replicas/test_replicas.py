"""Sums and means over replicas: what each of them receives."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from bellman_tf import replicas
from bellman_tf.training.native_pass import NativePass
from tests.replicas.training import strategy_of

NAN = float("nan")


def on_two(function, *values):
    """What `function` returns in each of two replicas, given one pair of values per argument."""
    strategy = strategy_of(2)
    pairs = [
        strategy.experimental_distribute_values_from_function(lambda c, v=v: tf.constant(v[c.replica_id_in_sync_group]))
        for v in values
    ]
    found = tf.function(lambda: strategy.run(function, args=pairs))()
    return [strategy.experimental_local_results(part) for part in found]


def test_a_sum_keeps_the_lists():
    def sums(a, b):
        [x, [y]] = replicas.total([a, [b]])
        return x, y

    first, second = on_two(sums, (1.0, 2.0), ([3.0, 4.0], [5.0, 6.0]))
    assert [float(part) for part in first] == [3.0, 3.0]
    np.testing.assert_array_equal(second, [[8.0, 10.0]] * 2)


@pytest.mark.parametrize(
    ("values", "present", "expected"),
    [((1.0, 4.0), (True, True), 2.5), ((1.0, NAN), (True, False), 1.0), ((NAN, NAN), (False, False), 0.0)],
)
def test_a_mean_is_that_of_the_replicas_with_samples(values, present, expected):
    [found] = on_two(lambda value, known: replicas.mean([value], known), values, present)
    assert [float(part) for part in found] == [expected] * 2


def test_one_replica_can_disagree():
    first, second = on_two(lambda a, b: replicas.agreed([a, b]), (True, True), (True, False))
    assert [bool(part) for part in first] == [True, True]
    assert [bool(part) for part in second] == [False, False]


def test_a_share_is_one_nth():
    [found] = on_two(lambda value: [replicas.share(value)], (4.0, 4.0))
    assert [float(part) for part in found] == [2.0, 2.0]


@pytest.mark.parametrize("sizes", [(2, 2), (3, 1), (2, 0)])
def test_rows_of_all_stand_one_replica_behind_the_other(sizes):
    strategy = strategy_of(2)
    rows = [np.arange(size, dtype="float32") + 10 * k for k, size in enumerate(sizes)]
    make = strategy.experimental_distribute_values_from_function
    given = make(lambda c: tf.constant(rows[c.replica_id_in_sync_group]))

    def all_of(own):
        pairs, single = replicas.gather([tf.stack([own, -own], 1)[:, None], own])
        return pairs, single, replicas.gather_rows(tf.stack([own[:, None], 2 * own[:, None]])), replicas.own_number()

    found = tf.function(lambda: strategy.run(all_of, args=(given,)))()
    expected = np.concatenate(rows)
    for k in range(2):
        pairs, single, stacked, number = (strategy.experimental_local_results(part)[k].numpy() for part in found)
        np.testing.assert_array_equal(single, expected)
        np.testing.assert_array_equal(pairs, np.stack([expected, -expected], 1)[:, None])
        np.testing.assert_array_equal(stacked, np.stack([expected, 2 * expected])[..., None])
        assert number == k


def test_nothing_happens_on_a_single_replica():
    tensors = [tf.constant(NAN)]
    assert replicas.count() == 1
    assert replicas.total(tensors) is tensors
    assert replicas.mean(tensors, None) is tensors
    assert replicas.agreed(tensors) is tensors
    assert replicas.share(tensors[0]) is tensors[0]
    assert replicas.gather(tensors) is tensors
    assert replicas.gather_rows(tensors[0]) is tensors[0]
    assert replicas.own_number() == 0


def test_replicas_micro_batches_and_objectives_have_signs_of_their_own():
    def seed(iteration, micro_batch, number):
        context = SimpleNamespace(iteration=tf.constant(iteration), micro_batch=tf.constant(micro_batch))
        step = SimpleNamespace(context=context)
        options, objectives = SimpleNamespace(micro_batches=3), [SimpleNamespace(number=k) for k in range(2)]
        this = SimpleNamespace(step=step, options=options, objectives=objectives)
        return NativePass._signs(this, objectives[number]).seed

    strategy, seen = strategy_of(2), set()
    cases = list(itertools.product(range(2), range(3), range(2)))
    for case in cases:
        seen |= {tuple(part.numpy()) for part in strategy.run(seed, case).values}
    assert len(seen) == 2 * len(cases)
