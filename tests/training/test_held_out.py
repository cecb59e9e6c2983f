"""What the plain step does to samples without a part in it, against steps from which each sample was left out."""

import numpy as np
import pytest
import tensorflow as tf

from bellman_tf.bellman.sample_space import SampleValue
from bellman_tf.training.held_out import held_out_model
from tests.helpers import assert_close


@pytest.mark.parametrize(("samples", "columns"), [(5, 1), (4, 2), (2, 3)])
def test_each_sample_is_left_out_of_the_step_that_moves_it(samples, columns, rng):
    n, parameters = samples * columns, 7
    q = rng.normal(size=(parameters, samples, columns))  # cotangent columns of every sample in the parameters
    root = rng.normal(size=(parameters, parameters))
    inverse = root @ root.T
    a, L = rng.normal(size=(samples, columns)), rng.normal(size=(n, n))
    moved, apart = np.empty((samples, columns)), np.empty((samples, columns))
    for i in range(samples):
        others = [j for j in range(samples) if j != i]
        step = inverse @ np.einsum("pjm,jm->p", q, a)
        without = inverse @ np.einsum("pjm,jm->p", q[:, others], a[others]) * samples / (samples - 1)
        moved[i], apart[i] = q[:, i].T @ step, q[:, i].T @ without
    expected = [np.sum(a * apart), np.sum(a * moved), np.sum((L.T @ apart.ravel()) ** 2)]
    flat = q.reshape(parameters, n)
    terminal = SampleValue(tf.constant(a.ravel()), tf.constant(L))
    assert_close(held_out_model(terminal, tf.constant(flat.T @ inverse @ flat), columns), expected, rtol=1e-10)


def test_of_one_sample_nothing_is_left():
    terminal = SampleValue(tf.constant([2.0]), tf.constant([[3.0]]))
    assert held_out_model(terminal, tf.constant([[5.0]]), 1).numpy().tolist() == [0.0, 20.0, 0.0]
