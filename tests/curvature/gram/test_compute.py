"""Every form of the Gram matrix against `Q' M^{-1} Q`, group by group."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from bellman_tf.curvature import config as options
from bellman_tf.curvature.diagonal import DIAGONAL
from bellman_tf.curvature.gram import gram
from bellman_tf.curvature.gram.compute import RUN
from bellman_tf.curvature.gram.plan import LIMITS, GramLimits, pairs_are_cheaper, plan
from bellman_tf.curvature.identity import IDENTITY
from bellman_tf.curvature.registry import make_block, player_layout
from bellman_tf.layers.matrix_layout import Extent
from bellman_tf.layers.registry import coverage
from tests.curvature.players import initial_state, step
from tests.helpers import assert_close
from tests.layers.cases import CASES, automatic, draw, flat
from verification.references import gram as reference

FORMS_OPTION = ("auto", "exact", "per_sample", "positions", "sketch", "features", "reduced")
BATCH = 5
CONFIGS = {
    "identity": options.Identity(),
    "rmsprop": options.RMSprop(),
    "kfac": options.KFAC(damping=0.1),
    "kfac patches": options.KFAC(damping=0.1, convolution="patches"),
    "ekfac": options.EKFAC(damping=0.1),
    "ekfac patches": options.EKFAC(damping=0.1, convolution="patches"),
    "full": options.Full(damping=0.1),
}


class Player:
    """A capture with its metric, and the dense metric read off `solve`, which `test_metrics` has proved."""

    def __init__(self, config, name, rng, columns=1, batch=BATCH):
        self.sample = draw(CASES[name], rng, batch=batch, columns=columns)
        self.shapes = self.sample.shapes
        self.capture = self.sample.capture
        block = make_block(CONFIGS[config], player_layout(name, self.shapes, coverage(self.sample.layer)))
        gradient = self.capture.gradient(self.capture.mean_weights())
        _, self.metric = block.update(initial_state(block), self.capture, gradient, step(0))

    def plan(self, form, group_size=None, limits=LIMITS):
        return plan(self.capture.extent, self.metric.kind, form, group_size, limits)

    @functools.cached_property
    def dense(self):
        """M, from the solve of every unit vector."""
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        units = np.split(np.eye(sum(sizes)), np.cumsum(sizes)[:-1], axis=1)
        parts = [tf.constant(u.reshape(-1, *shape)) for u, shape in zip(units, self.shapes, strict=True)]
        return np.linalg.inv(flat(self.metric.solve(parts)))

    @functools.cached_property
    def gradients(self):
        return flat(automatic(self.sample), 2)

    def expected(self, group_size):
        return reference.gram(self.gradients, self.dense, group_size)

    def assert_gram(self, form, chosen, group_size, rtol=1e-9):
        assert self.plan(form, group_size).form == chosen
        actual = gram(self.capture, self.metric, group_size, form)
        assert_close(actual, self.expected(group_size), rtol=rtol, label=f"{form}, groups of {group_size}")


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
    ("separable 1d", "identity", "reduced", "per_sample"),
    ("embedding", "identity", "auto", "per_sample"),
    ("embedding", "full", "auto", "per_sample"),
    ("embedding of a large table", "identity", "auto", "lookup"),
    ("embedding of a large table", "rmsprop", "exact", "lookup"),
    ("embedding of a large table", "kfac", "per_sample", "per_sample"),
    ("embedding of a large table", "kfac", "auto", "lookup"),
    ("batch norm of images", "kfac", "auto", "per_sample"),
    ("group norm", "full", "auto", "per_sample"),
]


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize(("name", "config", "form", "chosen"), FORMS)
def test_every_form_is_the_gram_matrix(name, config, form, chosen, columns, rng):
    player = Player(config, name, rng, columns)
    for group_size in (None, 1, 2, BATCH, BATCH + 2):
        one = config == "rmsprop" and name == "dense" and group_size == columns == 1
        player.assert_gram(form, "squares" if one else chosen, group_size)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", CASES)
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
    for columns in (1, 2):
        several = found.capture(sample.layer, sample.inputs, sample.cotangents * columns)
        extent = found.extent(output_shape, columns)
        assert extent == several.extent
        for limits in (LIMITS, small):
            for group_size in (None, 1):
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


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize(("name", "config"), [
    ("conv 2d", "identity"), ("conv 2d", "rmsprop"), ("conv 2d stride 2", "kfac"), ("conv 2d even", "ekfac"),
    ("conv 1d causal", "kfac"), ("conv 2d without bias", "kfac"), ("conv 3d", "identity"),
    ("conv 2d groups", "kfac"), ("conv 2d groups", "rmsprop"),
    ("transposed 2d", "kfac"), ("transposed 2d stride 2", "rmsprop"), ("transposed 2d even", "ekfac"),
])  # fmt: skip
def test_the_sketch_is_the_centre_tap_times_the_number_of_taps(name, config, columns, rng):
    player = Player(config, name, rng, columns)
    assert player.plan("sketch").form == "sketch"
    kernel, *bias = automatic(player.sample)
    size = player.sample.layer.kernel_size
    assert kernel.shape[2:-2] == tuple(size)
    taps = np.prod(size)
    keep = np.zeros(size)
    keep[tuple((k - 1) // 2 for k in size)] = np.sqrt(taps)
    parts = flat([kernel * keep[..., None, None], *bias], 2)
    for group_size in (None, 2):
        actual = gram(player.capture, player.metric, group_size, "sketch")
        assert_close(actual, reference.gram(parts, player.dense, group_size), rtol=1e-10)
        eigenvalues = np.linalg.eigvalsh(actual)
        assert eigenvalues.min() >= -1e-10 * eigenvalues.max()


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("group_size", [None, 3])
@pytest.mark.parametrize(("name", "config"), [
    ("conv 2d", "identity"), ("conv 2d stride 2", "kfac"), ("conv 1d causal", "kfac"), ("transposed 2d", "kfac"),
])  # fmt: skip
def test_a_tap_from_pairs_of_positions_is_the_same(name, config, group_size, columns, rng, monkeypatch):
    player = Player(config, name, rng, columns)
    assert player.metric.kind.sided
    found = []
    for pairs in (False, True):
        monkeypatch.setattr("bellman_tf.curvature.gram.sketch.pairs_are_cheaper", lambda *_, pairs=pairs: pairs)
        found.append(gram(player.capture, player.metric, group_size, "sketch"))
    assert_close(found[1], found[0], rtol=1e-12)


def test_pairs_of_positions_are_for_few_positions_and_many_channels():
    layers = {16: 512, 64: 256, 1024: 64}
    chosen = {}
    for positions, channels in layers.items():
        extent = Extent(9 * channels**2, 1, positions, 9 * channels, channels, taps=9)
        chosen[positions] = pairs_are_cheaper(extent, IDENTITY, None)
        assert not pairs_are_cheaper(extent, DIAGONAL, None)
    assert chosen == {16: True, 64: False, 1024: False}


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("config", ["identity", "rmsprop"])
@pytest.mark.parametrize(
    "name", ["dense rank 3", "dense rank 4 without bias", "einsum two features", "einsum inputs apart"]
)
def test_features_are_the_first_rows_of_the_kernel_times_how_many_more_there_are(name, config, columns, rng):
    player = Player(config, name, rng, columns)
    assert player.plan("features").form == "features"
    kernel, *bias = automatic(player.sample)
    layout = coverage(player.sample.layer).matrix
    share = LIMITS.feature_share
    kept = -(-layout.rows // share)
    matrix = layout.kernel_matrix(tf.constant(kernel)).numpy()
    matrix[..., :kept, :] *= np.sqrt(layout.rows / kept)
    matrix[..., kept:, :] = 0
    parts = flat([layout.kernel_variable(tf.constant(matrix)).numpy(), *bias], 2)
    for group_size in (None, 2):
        actual = gram(player.capture, player.metric, group_size, "features")
        assert_close(actual, reference.gram(parts, player.dense, group_size), rtol=1e-10)
        eigenvalues = np.linalg.eigvalsh(actual)
        assert eigenvalues.min() >= -1e-10 * eigenvalues.max()
    exact = gram(player.capture, player.metric, None, "features", GramLimits(feature_share=1))
    assert_close(exact, player.expected(None), rtol=1e-10)


@pytest.mark.parametrize("config", ["kfac", "ekfac", "full"])
def test_metrics_that_mix_rows_have_no_form_from_some_of_them(config, rng):
    assert Player(config, "dense rank 3", rng).plan("features").form != "features"


def test_large_layers_with_positions_take_some_features(rng):
    player = Player("identity", "dense rank 3", rng)
    work = 5 * 5 * 3
    assert player.plan("auto", limits=GramLimits(sketch_above=work)).form == "per_sample"
    chosen = player.plan("auto", limits=GramLimits(sketch_above=work - 1))
    assert (chosen.form, chosen.words) == ("features", "1 of 4 features")
    assert player.plan("exact", limits=GramLimits(sketch_above=work - 1)).form == "per_sample"


def test_the_centre_tap_is_exact_for_kernels_of_one_tap(rng):
    player = Player("identity", "conv 2d one by one", rng)
    player.assert_gram("sketch", "sketch", None)


@pytest.mark.parametrize("positions", [2, 20])
def test_turned_gradients_of_a_tap(positions, rng):
    """Few positions are turned before the product, many behind it."""
    layer = keras.layers.Conv1D(4, 3, padding="same", dtype="float64")
    x, c = (tf.constant(rng.normal(size=(5, positions, size))) for size in (3, 4))
    layer.build(x.shape)
    capture = coverage(layer).capture(layer, x, [c, 2 * c])
    left, right = (rng.normal(size=(size, size)) for size in (3, 4))
    expected = left.T @ capture.tap_gradients(1).numpy() @ right
    assert_close(capture.tap_gradients(1, tf.constant(left), tf.constant(right)), expected, rtol=1e-12)


def test_large_convolutions_are_sketched(rng):
    player = Player("kfac", "conv 2d", rng)
    assert player.plan("auto").form == "per_sample"
    small = GramLimits(sketch_above=30 * 19 * 3 - 1)
    assert player.plan("auto", limits=small).form == "sketch"
    assert player.plan("auto", limits=small).words == "sketch, 1 of 9 taps"
    assert player.plan("auto", limits=GramLimits(sketch_above=30 * 19 * 3)).form == "per_sample"
    assert player.plan("exact", limits=small).form == "per_sample"


REDUCED = [
    ("conv 2d", "identity"),
    ("conv 2d stride 2", "kfac"),
    ("conv 2d even", "ekfac"),
    ("conv 1d causal", "rmsprop"),
    ("conv 2d stride 3 valid", "kfac"),
    ("conv 3d", "identity"),
]


@pytest.mark.parametrize(("name", "config"), REDUCED)
def test_the_reduced_form_pools_cells_and_is_positive_semi_definite(name, config, rng):
    limits = GramLimits(reduced_size=2)
    player = Player(config, name, rng, columns=2)
    capture = player.capture
    assert player.plan("reduced").form == "reduced"
    pixels = capture.pixels.numpy()
    sizes = capture.output_sizes
    stacked = np.stack([c.numpy().reshape(BATCH, *sizes, -1) for c in capture.cotangents], axis=1)
    x, c = pixels, stacked.reshape(2 * BATCH, *sizes, -1)
    for axis in range(1, len(sizes) + 1):
        x, c = np.moveaxis(x, axis, 1), np.moveaxis(c, axis, 1)
        cells = min(2, x.shape[1], c.shape[1])
        x = np.moveaxis(reference.cell_means(x, cells), 1, axis)
        c = np.moveaxis(reference.cell_sums(c, cells), 1, axis)
    tap = np.einsum("bli,bmlo->bmio", x.reshape(BATCH, -1, x.shape[-1]), c.reshape(BATCH, 2, -1, c.shape[-1]))
    taps = len(capture.taps.offsets)
    parts = [np.repeat(tap[:, :, None], taps, axis=2)]
    if capture.bias:
        parts.append(stacked.reshape(BATCH, 2, -1, stacked.shape[-1]).sum(axis=2))
    for group_size in (None, 2):
        actual = gram(capture, player.metric, group_size, "reduced", limits)
        assert_close(actual, reference.gram(flat(parts, 2), player.dense, group_size), rtol=1e-9)
        eigenvalues = np.linalg.eigvalsh(actual)
        assert eigenvalues.min() >= -1e-10 * eigenvalues.max()


@pytest.mark.parametrize("config", ["identity", "kfac"])
def test_the_reduced_form_of_a_transposed_convolution_is_exact_for_cotangents_constant_in_space(config, rng):
    """Its pixels are summed and its cotangents averaged."""
    player = Player(config, "transposed 2d stride 2 valid", rng, columns=2)
    constant = [tf.ones_like(c) * c[:, :1, :1] for c in player.sample.cotangents]
    player.sample = player.sample._replace(cotangents=constant)
    player.capture = player.sample.capture
    assert player.plan("reduced").form == "reduced"
    assert_close(gram(player.capture, player.metric, None, "reduced"), player.expected(None), rtol=1e-10)


@pytest.mark.parametrize("config", ["identity", "kfac", "ekfac"])
def test_the_reduced_form_is_exact_for_inputs_constant_in_space(config, rng):
    """Where no tap leaves the image: "valid" padding, here with strides that skip pixels."""
    player = Player(config, "conv 2d stride 3 valid", rng, columns=2)
    constant = tf.ones_like(player.sample.inputs) * player.sample.inputs[:, :1, :1]
    player.sample = player.sample._replace(inputs=constant)
    player.capture = player.sample.capture
    assert_close(gram(player.capture, player.metric, None, "reduced"), player.expected(None), rtol=1e-10)


MODES = [
    ("dense", "ekfac", "auto", 2),
    ("dense rank 3", "kfac", "positions", None),
    ("conv 2d stride 2", "kfac", "sketch", 2),
    ("conv 1d", "identity", "reduced", None),
    ("embedding of a large table", "kfac", "auto", 2),
    ("group norm", "full", "auto", 1),
]


@pytest.mark.parametrize(("name", "config", "form", "group_size"), MODES)
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
