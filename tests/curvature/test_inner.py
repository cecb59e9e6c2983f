"""One number per variable as a metric: every exact form of its Gram matrix, and the measured numbers."""

import numpy as np
import pytest
import tensorflow as tf

from bellman_tf.curvature.block import PlayerLayout
from bellman_tf.curvature.gram import gram
from bellman_tf.curvature.gram.plan import GramLimits, plan
from bellman_tf.curvature.inner import ScaledBlock
from bellman_tf.curvature.inner.scaled import ScaledMetric
from bellman_tf.layers.registry import coverage
from tests.helpers import assert_close
from tests.layers.cases import CASES, automatic, draw

FORMS = [
    ("dense", "auto", "factored"),
    ("dense", "per_sample", "per_sample"),
    ("dense without bias", "auto", "factored"),
    ("dense rank 3", "positions", "positions"),
    ("dense rank 3", "per_sample", "per_sample"),
    ("conv 2d", "positions", "positions"),
    ("conv 2d", "per_sample", "per_sample"),
]


@pytest.mark.parametrize(("name", "form", "chosen"), FORMS)
@pytest.mark.parametrize("columns", [1, 2])
def test_every_form_is_the_sum_over_variables(name, form, chosen, columns, rng):
    sample = draw(CASES[name], rng, batch=5, columns=columns)
    scales = [0.5, 3.0][: len(sample.shapes)]
    metric = ScaledMetric([tf.constant(s, tf.float64) for s in scales], coverage(sample.layer).matrix)
    assert plan(sample.capture.extent, metric.kind, form).form == chosen
    expected = 0
    for scale, q in zip(scales, automatic(sample), strict=True):
        rows = np.asarray(q).reshape(5 * columns, -1)
        expected = expected + scale * rows @ rows.T
    assert_close(gram(sample.capture, metric, None, form)[0], expected, rtol=1e-10)


def test_the_numbers_are_lengths_of_steps_over_lengths_of_gradients():
    block = ScaledBlock(PlayerLayout("player", ((2,), (3,), (1,))), None, [], "rate")
    moves = [tf.constant(part) for part in ([3.0, 4.0], [1.0, 2.0, 2.0], [7.0])]
    gradients = [tf.constant(part) for part in ([0.0, 10.0], [0.0, 0.0, 6.0], [0.0])]
    scales = block.measured(tf.constant([9.0, 9.0, 9.0]), moves, gradients)
    assert_close(scales, [0.5, 0.5, 9.0])  # without a gradient the number stays


def test_features_with_nothing_left_out_are_exact(rng):
    sample = draw(CASES["dense rank 3"], rng, batch=5)
    metric = ScaledMetric([tf.constant(s, tf.float64) for s in (0.5, 3.0)], coverage(sample.layer).matrix)
    every = GramLimits(feature_share=1)
    assert plan(sample.capture.extent, metric.kind, "features", limits=every).form == "features"
    exact = gram(sample.capture, metric, None, "per_sample")
    assert_close(gram(sample.capture, metric, None, "features", every), exact, rtol=1e-10)
