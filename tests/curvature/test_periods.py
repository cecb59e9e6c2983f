"""What is renewed every so many steps only."""

import numpy as np
import pytest
import tensorflow as tf

from bellman_tf.curvature.periods import every


@pytest.mark.parametrize("due", [True, False])
def test_a_branch_gives_what_it_is_asked_for(due):
    keep = [tf.zeros([2]), tf.ones([2]), tf.ones([3])]

    @tf.function
    def run(iteration):
        return every(5, iteration, lambda: [part + 4 for part in keep], keep)

    for before, after in zip(keep, run(tf.constant(10 if due else 11, tf.int64)), strict=True):
        np.testing.assert_array_equal(after, before + 4 * due)
