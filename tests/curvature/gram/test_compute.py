"""Every form of the Gram matrix against `Q' M^{-1} Q`, group by group."""

import keras
import pytest
import tensorflow as tf

from bellman_tf.curvature import config as options
from bellman_tf.curvature.gram import gram
from bellman_tf.curvature.gram.compute import RUN
from bellman_tf.curvature.gram.plan import LIMITS, GramLimits, plan
from bellman_tf.curvature.registry import make_block, player_layout
from bellman_tf.layers.registry import coverage
from tests.curvature.gram.players import BATCH, CONFIGS, Player
from tests.curvature.players import initial_state, step
from tests.helpers import assert_close, thinned
from tests.layers.cases import CASES, draw

FORMS_OPTION = ("auto", "exact", "per_sample", "positions", "sketch", "features", "hashed")
FORMS = [
    ("dense", "identity", "auto", "factored"),
    ("dense", "kfac", "auto", "factored"),
    ("dense without bias", "identity", "auto", "factored"),
    ("dense", "kfac", "per_sample", "per_sample"),
    ("dense", "rmsprop", "auto", "per_sample"),
    ("dense", "ekfac", "per_sample", "per_sample"),
    ("dense", "full", "auto", "per_sample"),
    ("einsum dense", "kfac", "auto", "factored"),
    ("dense rank 3", "identity", "positions", "positions"),
    ("dense rank 3", "kfac", "positions", "positions"),
    ("dense rank 3", "kfac", "per_sample", "per_sample"),
    ("dense rank 3", "ekfac", "positions", "per_sample"),
    ("dense one position", "kfac", "auto", "factored"),
    ("dense two positions", "kfac", "positions", "positions"),
    ("einsum two features", "kfac", "positions", "positions"),
    ("einsum batched kernel", "kfac", "auto", "per_sample"),
    ("conv 2d", "identity", "positions", "positions"),
    ("conv 2d", "identity", "auto", "per_sample"),
    ("conv 2d", "kfac", "positions", "per_sample"),
    ("conv 2d", "kfac patches", "positions", "positions"),
    ("conv 2d", "ekfac", "auto", "per_sample"),
    ("conv 2d stride 3 valid", "ekfac patches", "exact", "per_sample"),
    ("conv 2d one by one stride 2", "kfac", "positions", "positions"),
    ("conv 2d groups", "kfac", "positions", "per_sample"),
    ("conv 2d groups", "kfac patches", "auto", "per_sample"),
    ("conv 2d groups", "identity", "positions", "per_sample"),
    ("transposed 2d", "identity", "auto", "per_sample"),
    ("transposed 2d", "rmsprop", "auto", "per_sample"),
    ("transposed 2d stride 2", "kfac", "auto", "per_sample"),
    ("transposed 2d", "ekfac", "auto", "per_sample"),
    ("transposed 2d stride 2 valid", "kfac patches", "positions", "positions"),
    ("transposed 2d even", "identity", "positions", "positions"),
    ("depthwise 2d", "kfac", "auto", "per_sample"),
    ("separable 1d", "identity", "sketch", "per_sample"),
    ("embedding", "identity", "auto", "per_sample"),
    ("embedding", "full", "auto", "per_sample"),
    ("embedding of a large table", "identity", "auto", "lookup"),
    ("embedding of a large table", "rmsprop", "exact", "lookup"),
    ("embedding of a large table", "kfac", "per_sample", "per_sample"),
    ("embedding of a large table", "kfac", "auto", "lookup"),
    ("batch norm of images", "kfac", "auto", "per_sample"),
    ("group norm", "full", "auto", "per_sample"),
]


@pytest.mark.parametrize(("name", "config", "form", "chosen", "columns"), thinned(FORMS, [1, 3]))
def test_every_form_is_the_gram_matrix(name, config, form, chosen, columns, rng):
    player = Player(config, name, rng, columns)
    for group_size in (None, 1, 2, BATCH, BATCH + 2):
        one = config == "rmsprop" and name == "dense" and group_size == columns == 1
        player.assert_gram(form, "squares" if one else chosen, group_size)


@pytest.mark.parametrize(("name", "config"), thinned(CASES, CONFIGS, every=3))
def test_the_form_that_the_layer_announces_is_the_form_that_runs(name, config, rng, monkeypatch):
    """Before a batch is there: from the layer, its output shape and the block alone."""
    sample = draw(CASES[name], rng, batch=2)
    found = coverage(sample.layer)
    block = make_block(CONFIGS[config], player_layout(name, sample.shapes, found))
    ran = []
    for form, run in RUN.items():
        monkeypatch.setitem(RUN, form, lambda *args, form=form, run=run: (ran.append(form), run(*args))[1])
    capture = sample.capture
    _, metric = block.update(initial_state(block), capture, capture.gradient(capture.mean_weights()), step(0))
    assert block.kind == metric.kind
    small = GramLimits(sketch_above=50, rank_one_above=10)
    output_shape = (None, *sample.cotangents[0].shape[1:])
    # Of two values each, every pair of columns, limits and group sizes meets in one of four rounds. A layer runs two of
    # them under one metric and the other two under the next.
    rounds = ((1, LIMITS, None), (1, small, 1), (2, LIMITS, 1), (2, small, None))
    turn = (list(CASES).index(name) + list(CONFIGS).index(config)) % 2
    for columns, limits, group_size in rounds[turn::2]:
        several = found.capture(sample.layer, sample.inputs, sample.cotangents * columns)
        extent = found.extent(output_shape, columns)
        assert extent == several.extent
        for form in FORMS_OPTION:
            announced = plan(extent, block.kind, form, group_size, limits)
            assert announced.cost > 0
            gram(several, metric, group_size, form, limits)
            assert ran.pop() == announced.form


@pytest.mark.parametrize("config", ["identity", "kfac patches", "rmsprop"])
@pytest.mark.parametrize("name", ["dense", "dense rank 3", "conv 2d", "embedding of a large table"])
def test_auto_takes_the_cheapest_exact_form(name, config, rng):
    player = Player(config, name, rng)
    chosen = player.plan("exact")
    assert chosen.cost == min(player.plan(form).cost for form in ("exact", "per_sample", "positions"))
    assert player.plan("auto") == chosen


def test_more_positions_turn_the_balance(rng):
    """Few positions are paired, many are summed into per-sample gradients first."""
    layer = keras.layers.Dense(64, dtype="float64")
    layer.build((None, None, 64))
    found = coverage(layer)
    kind = make_block(options.KFAC(), player_layout("p", ((64, 64), (64,)), found)).kind
    forms = [plan(found.extent((None, length, 64)), kind).form for length in (1, 2, 4, 16, 64)]
    assert forms == ["factored", "positions", "positions", "per_sample", "per_sample"]
    assert plan(found.extent((None, None, 64)), kind)[:2] == ("per_sample", None)


MODES = [
    ("dense", "ekfac", "auto", 2),
    ("dense rank 3", "kfac", "positions", None),
    ("conv 2d stride 2", "kfac", "sketch", 2),
    ("conv 1d", "identity", "sketch", None),
    ("embedding of a large table", "kfac", "auto", 2),
    ("group norm", "full", "auto", 1),
]


@pytest.mark.parametrize(("name", "config", "form", "group_size"), thinned(MODES))
def test_float32_agrees_in_every_mode_and_with_any_batch_size(name, config, form, group_size, rng):
    """From the layer's tensors to state, step and Gram matrix in one graph."""
    sample = draw(CASES[name], rng, batch=BATCH, dtype="float32")
    exact = draw(CASES[name], rng, batch=BATCH).layer
    for variable, other in zip(exact.trainable_variables, sample.layer.trainable_variables, strict=True):
        variable.assign(tf.cast(other, tf.float64))
    block = make_block(CONFIGS[config], player_layout(name, sample.shapes, coverage(sample.layer)))

    def run(layer, x, c, dtype):
        state = initial_state(block, dtype)
        capture = coverage(layer).capture(layer, x, [c, 2 * c])
        results = {}
        for t in range(1 if config == "ekfac" else 2):  # the second step keeps the inverses of the first, in tf.cond
            state, metric = block.update(state, capture, None, step(t, dtype))
        results["state"] = state
        results["step"] = metric.solve(capture.gradient(capture.mean_weights()))
        results["gram"] = gram(capture, metric, group_size, form)
        return results

    x, c = sample.inputs, sample.cotangents[0]
    wide = tf.cast(x, tf.float64) if x.dtype.is_floating else x
    expected = run(exact, wide, tf.cast(c, tf.float64), tf.float64)
    if config == "ekfac":
        del expected["state"]  # eigenvectors have no sign
    compute = lambda x, c: run(sample.layer, x, c, tf.float32)
    free = [tf.TensorSpec([None, *t.shape[1:]], t.dtype) for t in (x, c)]
    modes = {
        "eager": compute,
        "compiled": tf.function(compute, autograph=False, jit_compile=True),
        "any batch size": tf.function(compute, autograph=False, input_signature=free),
    }
    for mode, function in modes.items():
        results = function(x, c)
        for key, want in expected.items():
            for a, b in zip(tf.nest.flatten(results[key]), tf.nest.flatten(want), strict=True):
                assert a.dtype == tf.float32
                assert_close(a, b, rtol=2e-4, label=f"{key}, {mode}")


def test_an_unknown_length_is_no_obstacle(rng):
    """Sequences whose length is not static: dense layers and embeddings, in groups."""
    for name in ("dense rank 3", "embedding"):
        player = Player("kfac", name, rng)
        layer, x, c = player.sample.layer, player.sample.inputs, player.sample.cotangents[0]

        def compute(x, c, layer=layer, metric=player.metric):
            return gram(coverage(layer).capture(layer, x, [c]), metric, 2)

        free = [tf.TensorSpec([None, None, *t.shape[2:]], t.dtype) for t in (x, c)]
        actual = tf.function(compute, autograph=False, input_signature=free)(x, c)
        assert_close(actual, player.expected(2), rtol=1e-9)
