"""What a step does to samples without a part in it, against steps from which each sample was left out."""

import numpy as np
import pytest
import tensorflow as tf

from bellman_tf.bellman.sample_space import SampleValue
from bellman_tf.training.held_out import held_out_model
from tests.helpers import assert_close
from verification.references import held_out as reference


def problem(samples, columns, rank, rng):
    """Columns of every sample, an inverse metric, a terminal value that is block-diagonal over samples, and l_u."""
    q = rng.normal(size=(7, samples, columns))
    root = rng.normal(size=(7, 7))
    a = rng.normal(size=(samples, columns))
    L = np.zeros((samples, columns, samples, rank))
    for i in range(samples):
        L[i, :, i] = rng.normal(size=(columns, rank))
    return q, root @ root.T, a, L.reshape(samples * columns, samples * rank), rng.normal(size=7)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize(("samples", "columns", "rank"), [(5, 1, 1), (4, 2, 1), (3, 3, 2), (1, 1, 1), (1, 2, 1)])
def test_each_sample_is_left_out_of_the_step_that_moves_it(samples, columns, rank, linear, rng):
    q, inverse, a, L, own = problem(samples, columns, rank, rng)
    own = own if linear else 0 * own
    expected = reference.held_out_model(q, inverse, a, L, own)
    flat = q.reshape(7, -1)
    gram, pull = flat.T @ inverse @ flat, flat.T @ inverse @ own
    terminal = SampleValue(tf.constant(a.ravel()), tf.constant(L))
    found = held_out_model(terminal, tf.constant(gram), tf.constant(pull) if linear else None, columns)
    assert_close(found, expected, rtol=1e-8, atol=1e-9)


def test_a_sample_without_curvature_divides_nothing_by_zero():
    terminal = SampleValue(tf.constant([0.5, 0.5]), tf.zeros([2, 2]))
    found = held_out_model(terminal, tf.constant([[2.0, 1.0], [1.0, 2.0]]), None, 1)
    assert found.numpy().tolist() == [0.5, 1.5, 0.0]


def test_a_leverage_of_one_stays_finite():
    terminal = SampleValue(tf.constant([0.5, 0.5]), 1e6 * tf.eye(2))
    assert np.isfinite(held_out_model(terminal, 1e6 * tf.eye(2), None, 1)).all()
