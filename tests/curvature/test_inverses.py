"""Damped inverses of many matrices at once."""

import numpy as np
import pytest
import tensorflow as tf

from bellman_tf.curvature.inverses import damped_inverses
from tests.helpers import assert_close


def moments(count, size, seed=0):
    x = np.random.default_rng(seed + size).normal(size=(count, 2 * size, size))
    return x.transpose(0, 2, 1) @ x / (2 * size)


SIZES = {"near": [17, 16, 1, 10], "far": [40, 33, 32], "one": [5], "large": [66, 65, 60, 130]}
GROUPS = {"near": 1, "far": 2, "one": 1, "large": 2}


@pytest.mark.parametrize("case", SIZES)
def test_sizes_that_are_near_are_factorised_as_one_and_stay_what_they_are(case):
    stacks = [(tf.constant(moments(2, n)), tf.constant([1e-3, 0.5], tf.float64)) for n in SIZES[case]]
    graph = tf.function(damped_inverses).get_concrete_function(stacks).graph
    assert sum(op.type == "Cholesky" for op in graph.get_operations()) == GROUPS[case]
    compiled = damped_inverses(stacks, compiled=True)
    for (matrices, damping), (inverses, used, W), (other, _, V) in zip(
        stacks, damped_inverses(stacks), compiled, strict=True
    ):
        size = matrices.shape[-1]
        expected = np.linalg.inv(matrices.numpy() + damping.numpy()[:, None, None] * np.eye(size))
        assert_close(inverses.numpy(), expected, rtol=1e-9, atol=1e-9)
        assert_close(used.numpy(), damping.numpy())
        assert_close(other.numpy(), expected, rtol=1e-9, atol=1e-9)
        for whitener, inverse in ((W, inverses), (V, other)):
            assert np.array_equal(inverse.numpy(), inverse.numpy().swapaxes(1, 2))
            assert_close(tf.matmul(whitener, whitener, transpose_a=True), inverse, rtol=1e-13)
            assert np.array_equal(whitener, np.tril(whitener))


def test_a_matrix_that_is_not_finite_leaves_the_others_alone():
    bad = moments(1, 4)
    bad[0, 1, 1] = np.nan
    stacks = [(tf.constant(m), tf.constant([0.1], tf.float64)) for m in (bad, moments(1, 5))]
    (first, *_), (second, *_) = damped_inverses(stacks)
    assert np.isnan(first.numpy()).any()
    assert_close(second.numpy()[0], np.linalg.inv(moments(1, 5)[0] + 0.1 * np.eye(5)), rtol=1e-9)
