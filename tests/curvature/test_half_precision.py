"""Variables, inputs and cotangents in half precision: statistics, metrics and Gram matrices in float32."""

import numpy as np
import pytest
import tensorflow as tf

from bellman_tf.curvature import config as options
from bellman_tf.curvature.block import state_dtype
from bellman_tf.curvature.gram import FORMS, gram
from bellman_tf.curvature.registry import make_block, player_layout
from bellman_tf.layers.calls import join_calls
from bellman_tf.layers.registry import coverage
from tests.curvature.players import initial_state, step
from tests.helpers import assert_close, thinned
from tests.layers.cases import CASES, draw

CONFIGS = [
    options.Identity(), options.RMSprop(), options.Adam(), options.KFAC(), options.KFAC(convolution="patches"),
    options.EKFAC(scalings="exact"), options.Full(),
]  # fmt: skip
NAMES = ["dense", "dense rank 3", "einsum two features", "einsum batched kernel", "conv 2d", "conv 2d groups",
         "transposed 2d stride 2", "depthwise 2d", "separable 1d", "embedding", "batch norm", "layer norm",
         "group norm", "rms norm", "slope"]  # fmt: skip


@pytest.mark.parametrize(("name", "policy"), thinned(NAMES, ["bfloat16", "float16", "mixed_bfloat16"], every=3))
def test_every_metric_and_gram_form_works_in_float32(name, policy, rng):
    """And equals that of a float32 layer given the same numbers, which float32 holds exactly."""
    sample = draw(CASES[name], rng, batch=4, dtype=policy)
    single = draw(CASES[name], rng, batch=4, dtype="float32").layer
    for mine, theirs in zip(single.trainable_variables, sample.layer.trainable_variables, strict=True):
        mine.assign(tf.cast(theirs.value, tf.float32))
    assert state_dtype(sample.layer.trainable_variables) == "float32"
    wide = sample.inputs if not sample.inputs.dtype.is_floating else tf.cast(sample.inputs, tf.float32)
    half = sample.capture
    exact = coverage(single).capture(single, wide, [tf.cast(c, tf.float32) for c in sample.cotangents])
    for config in CONFIGS:
        found = []
        for capture, layer in ((half, sample.layer), (exact, single)):
            block = make_block(config, player_layout(name, sample.shapes, coverage(layer)))
            state = initial_state(block, state_dtype(layer.trainable_variables))
            gradient = capture.gradient(capture.mean_weights())
            state, metric = block.update(state, capture, gradient, step(0, tf.float32))
            grams = [gram(capture, metric, None, form) for form in FORMS]
            found.append([*metric.solve(gradient), *grams, capture.inner([tf.cast(g, tf.float32) for g in gradient])])
        for mine, want in zip(*found, strict=True):
            assert mine.dtype == tf.float32
            assert np.all(np.isfinite(mine))
            assert_close(mine, want, rtol=1e-3)


@pytest.mark.parametrize("name", ["dense", "conv 2d", "embedding", "layer norm"])
def test_calls_in_half_precision_are_joined_in_float32(name, rng):
    sample = draw(CASES[name], rng, batch=4, dtype="bfloat16")
    joined = join_calls([sample.capture, sample.capture])
    for twice, once in zip(joined.per_sample(), sample.capture.per_sample(), strict=True):
        assert twice.dtype == tf.float32
        assert_close(twice, 2 * once, rtol=1e-6)


def test_double_precision_keeps_its_digits(rng):
    assert state_dtype(draw(CASES["dense"], rng).layer.trainable_variables) == "float64"
    assert state_dtype(draw(CASES["dense"], rng, dtype="float32").layer.trainable_variables) == "float32"
