"""Every form of the Gram matrix against `Q' M^{-1} Q`, group by group."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from bellman_tf.curvature import config as options
from bellman_tf.curvature.gram import gram, plan
from bellman_tf.curvature.gram import reduced as reduced_module
from bellman_tf.curvature.gram.factored import squares
from bellman_tf.curvature.gram.plan import choose_form
from bellman_tf.curvature.gram.sketch import draw_taps
from bellman_tf.curvature.registry import make_block, player_layout
from bellman_tf.layers.registry import coverage
from tests.curvature.players import initial_state, step
from tests.helpers import assert_close
from tests.layers.cases import CASES, automatic, draw, flat
from verification.references import gram as reference

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

    def dense(self):
        """M, from the solve of every unit vector."""
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        units = np.split(np.eye(sum(sizes)), np.cumsum(sizes)[:-1], axis=1)
        parts = [tf.constant(u.reshape(-1, *shape)) for u, shape in zip(units, self.shapes, strict=True)]
        return np.linalg.inv(flat(self.metric.solve(parts)))

    def expected(self, group_size):
        return reference.gram(flat(automatic(self.sample), 2), self.dense(), group_size)

    def assert_gram(self, form, chosen, group_size, rtol=1e-9):
        assert choose_form(self.capture, self.metric, form) == chosen
        [taps] = draw_taps([(self.capture, self.metric)], form, [1, 2])
        actual = gram(self.capture, self.metric, group_size, form, taps)
        assert_close(actual, self.expected(group_size), rtol=rtol, label=f"{form}, groups of {group_size}")


FORMS = [
    ("dense", "identity", "auto", "factored"),
    ("dense", "kfac", "auto", "factored"),
    ("dense without bias", "identity", "auto", "factored"),
    ("dense", "kfac", "per_sample", "per_sample"),
    ("dense", "rmsprop", "auto", "per_sample"),
    ("dense", "ekfac", "auto", "per_sample"),
    ("dense", "full", "auto", "per_sample"),
    ("einsum dense", "kfac", "auto", "factored"),
    ("dense rank 3", "identity", "positions", "positions"),
    ("dense rank 3", "kfac", "positions", "positions"),
    ("dense rank 3", "kfac", "per_sample", "per_sample"),
    ("dense rank 3", "ekfac", "positions", "per_sample"),
    ("dense one position", "kfac", "auto", "positions"),
    ("einsum two features", "kfac", "positions", "positions"),
    ("einsum batched kernel", "kfac", "auto", "per_sample"),
    ("conv 2d", "identity", "positions", "positions"),
    ("conv 2d", "identity", "auto", "per_sample"),
    ("conv 2d", "kfac", "positions", "per_sample"),
    ("conv 2d", "kfac patches", "positions", "positions"),
    ("conv 2d", "ekfac", "auto", "per_sample"),
    ("conv 2d stride 3 valid", "ekfac patches", "exact", "per_sample"),
    ("conv 2d one by one stride 2", "kfac", "positions", "positions"),
    ("depthwise 2d", "kfac", "auto", "per_sample"),
    ("separable 1d", "identity", "reduced", "per_sample"),
    ("embedding", "identity", "lookup", "lookup"),
    ("embedding", "kfac", "lookup", "lookup"),
    ("embedding", "full", "lookup", "lookup"),
    ("embedding", "rmsprop", "auto", "per_sample"),
    ("batch norm of images", "kfac", "auto", "per_sample"),
    ("group norm", "full", "auto", "per_sample"),
]


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize(("name", "config", "form", "chosen"), FORMS)
def test_every_form_is_the_gram_matrix(name, config, form, chosen, columns, rng, monkeypatch):
    if form == "lookup":
        monkeypatch.setattr(plan, "few_pairs", lambda capture: True)
    if name == "dense one position" and columns > 1:
        chosen = "per_sample"
    player = Player(config, name, rng, columns)
    for group_size in (None, 1, 2, BATCH, BATCH + 2):
        player.assert_gram(form, chosen, group_size)


def test_grouped_convolutions_form_their_gradients(rng):
    player = Player("kfac", "conv 2d groups", rng, columns=2, batch=2)
    assert choose_form(player.capture, player.metric, "positions") == "per_sample"
    assert choose_form(player.capture, player.metric, "reduced") == "per_sample"
    player.assert_gram("sketch", "per_sample", None)


@pytest.mark.parametrize("config", ["identity", "rmsprop", "ekfac", "full"])
def test_the_diagonal_alone_needs_no_per_sample_gradients(config, rng):
    player = Player(config, "dense", rng)
    found = squares(player.capture, player.metric)
    assert_close(found, player.expected(1), rtol=1e-9)


def test_few_pairs_compares_positions_with_tables(rng):
    few = Player("identity", "embedding of one token", rng).capture  # 5 pairs, 15 entries
    assert plan.few_pairs(few)
    assert not plan.few_pairs(Player("identity", "embedding", rng).capture)  # 5 * 36 pairs, 15 entries


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize(("name", "config"), [
    ("conv 2d", "identity"), ("conv 2d", "rmsprop"), ("conv 2d stride 2", "kfac"), ("conv 2d even", "ekfac"),
    ("conv 1d causal", "kfac"), ("conv 2d without bias", "kfac"),
])  # fmt: skip
def test_the_sketch_is_unbiased_and_positive_semi_definite(name, config, columns, rng):
    """The mean over all draws, tap by tap, is the Gram matrix itself."""
    player = Player(config, name, rng, columns)
    taps = len(player.capture.taps.offsets)
    assert choose_form(player.capture, player.metric, "sketch") == "sketch"
    sketches = []
    for tap in range(taps):
        drawn = tf.constant([tap])
        for group_size in (None, 2):
            eigenvalues = np.linalg.eigvalsh(gram(player.capture, player.metric, group_size, "sketch", drawn))
            assert eigenvalues.min() >= -1e-10 * eigenvalues.max()
        sketches.append(gram(player.capture, player.metric, None, "sketch", drawn).numpy())
    assert_close(np.mean(sketches, axis=0), player.expected(None), rtol=1e-10)


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


def test_every_tap_is_drawn_and_none_twice(rng, monkeypatch):
    """By players with 3, 9, 3 and 8 taps beside one that is not sketched."""
    names = ("conv 1d", "conv 2d", "dense", "conv 1d", "conv 2d even")
    players = [Player("identity", name, rng) for name in names]
    kept = [(player.capture, player.metric) for player in players]
    draw_all = tf.function(lambda k: draw_taps(kept, "sketch", [0, k]))
    drawn = [draw_all(k) for k in map(tf.constant, range(200))]
    assert all(taps[2] is None for taps in drawn)
    for place, total in ((0, 3), (1, 9), (3, 3)):
        assert {int(taps[place][0]) for taps in drawn} == set(range(total))
    for one, other, total in ((0, 3, 3), (0, 1, 9), (1, 4, 9)):  # independent: they agree once in `total` steps
        agree = np.mean([int(taps[one][0]) == int(taps[other][0]) for taps in drawn])
        assert agree < 1 / total + 4 * np.sqrt(1 / total / len(drawn))
    monkeypatch.setattr(plan, "SKETCHED_TAPS", 3)
    taps = draw_taps(kept, "sketch", [0, 0])
    assert [len(set(taps[place].numpy())) for place in (0, 1, 3)] == [3, 3, 3]


def test_xla_draws_the_same_taps(rng):
    kept = [
        (player.capture, player.metric) for player in (Player("identity", name, rng) for name in ("conv 1d", "conv 2d"))
    ]
    draws = [tf.function(lambda k: draw_taps(kept, "sketch", [k, 0]), jit_compile=jit) for jit in (False, True)]
    for k in map(tf.constant, range(20)):
        for taps, others in zip(*(compiled(k) for compiled in draws), strict=True):
            np.testing.assert_array_equal(taps, others)


def test_more_sketched_taps_come_closer(rng):
    player = Player("kfac", "conv 2d", rng)
    actual = gram(player.capture, player.metric, None, "sketch", tf.range(9))
    assert_close(actual, player.expected(None), rtol=1e-10)


def test_large_convolutions_are_sketched(rng, monkeypatch):
    player = Player("kfac", "conv 2d", rng)
    assert choose_form(player.capture, player.metric, "auto") == "per_sample"
    monkeypatch.setattr(plan, "SKETCH_ABOVE", 30 * 18 * 3 - 1)
    assert choose_form(player.capture, player.metric, "auto") == "sketch"
    assert choose_form(player.capture, player.metric, "exact") == "per_sample"


REDUCED = [
    ("conv 2d", "identity"),
    ("conv 2d stride 2", "kfac"),
    ("conv 2d even", "ekfac"),
    ("conv 1d causal", "rmsprop"),
    ("conv 2d stride 3 valid", "kfac"),
    ("conv 3d", "identity"),
]


@pytest.mark.parametrize(("name", "config"), REDUCED)
def test_the_reduced_form_pools_cells_and_is_positive_semi_definite(name, config, rng, monkeypatch):
    monkeypatch.setattr(reduced_module, "REDUCED_SIZE", 2)
    player = Player(config, name, rng, columns=2)
    capture = player.capture
    assert choose_form(capture, player.metric, "reduced") == "reduced"
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
        actual = gram(capture, player.metric, group_size, "reduced")
        assert_close(actual, reference.gram(flat(parts, 2), player.dense(), group_size), rtol=1e-9)
        eigenvalues = np.linalg.eigvalsh(actual)
        assert eigenvalues.min() >= -1e-10 * eigenvalues.max()


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
    ("embedding", "kfac", "lookup", 2),
    ("group norm", "full", "auto", 1),
]


@pytest.mark.parametrize(("name", "config", "form", "group_size"), MODES)
def test_float32_agrees_in_every_mode_and_with_any_batch_size(name, config, form, group_size, rng, monkeypatch):
    """From the layer's tensors to state, step and Gram matrix in one graph."""
    monkeypatch.setattr(plan, "few_pairs", lambda capture: form == "lookup")
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
        [taps] = draw_taps([(capture, metric)], form, [3, 4])
        results["gram"] = gram(capture, metric, group_size, form, taps)
        return results

    x, c = sample.inputs, sample.cotangents[0]
    wide = tf.cast(x, tf.float64) if x.dtype.is_floating else x
    expected = run(exact, wide, tf.cast(c, tf.float64), tf.float64)
    if config == "ekfac":
        del expected["state"]  # eigenvectors have no sign
    if form == "sketch":  # the stateless draw knows no dtype
        assert choose_form(sample.capture, Player(config, name, rng).metric, form) == "sketch"
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


def test_an_unknown_length_is_no_obstacle(rng, monkeypatch):
    """Sequences whose length is not static: dense layers and embeddings, in groups."""
    monkeypatch.setattr(plan, "few_pairs", lambda capture: True)
    for name in ("dense rank 3", "embedding"):
        player = Player("kfac", name, rng)
        layer, x, c = player.sample.layer, player.sample.inputs, player.sample.cotangents[0]

        def compute(x, c, layer=layer, metric=player.metric):
            return gram(coverage(layer).capture(layer, x, [c]), metric, 2)

        free = [tf.TensorSpec([None, None, *t.shape[2:]], t.dtype) for t in (x, c)]
        actual = tf.function(compute, autograph=False, input_signature=free)(x, c)
        assert_close(actual, player.expected(2), rtol=1e-9)
