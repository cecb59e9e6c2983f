"""The approximate forms of the Gram matrix against what they say they are, and where they are exact."""

import dataclasses
import itertools
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf.curvature.diagonal import DIAGONAL
from bellman_tf.curvature.gram import gram
from bellman_tf.curvature.gram.across_replicas import sides
from bellman_tf.curvature.gram.plan import LIMITS, GramLimits, kept_channels, pairs_are_cheaper, plan
from bellman_tf.curvature.identity import IDENTITY
from bellman_tf.curvature.metric import MetricKind
from bellman_tf.curvature.whitening import mixtures, signs
from bellman_tf.layers.matrix_layout import Extent
from bellman_tf.layers.registry import coverage
from tests.curvature.gram.players import Player
from tests.helpers import assert_close
from tests.layers.cases import automatic, flat
from verification.problems.matrices import with_spectrum
from verification.references import gram as reference


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


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize(("name", "config", "kept", "channels"), [
    ("conv 2d", "identity", 1, 2), ("conv 2d stride 2", "rmsprop", 1, 2), ("conv 1d causal", "rmsprop", 1, 2),
    ("conv 3d", "identity", 1, 2), ("transposed 2d", "identity", 1, 2), ("transposed 2d stride 2", "rmsprop", 1, 2),
    ("conv 2d one by one", "identity", 2, 3), ("conv 2d", "kfac", 2, 2), ("conv 2d even", "ekfac", 2, 2),
    ("conv 2d groups", "identity", 2, 2),
])  # fmt: skip
def test_of_many_channels_the_first_stand_for_all_where_none_mix(name, config, kept, channels, pairs, rng, monkeypatch):
    player = Player(config, name, rng, 2)
    if pairs and not (player.metric.kind.sided and player.capture.groups == 1):
        return
    monkeypatch.setattr("bellman_tf.curvature.gram.sketch.pairs_are_cheaper", lambda *_: pairs)
    limits = GramLimits(thin_from=2, feature_share=2)
    assert player.plan("sketch", limits=limits).words.endswith("channels") == (kept < channels)
    kernel, *bias = automatic(player.sample)
    size = player.sample.layer.kernel_size
    keep = np.zeros((*size, 1, 1))
    keep[tuple((k - 1) // 2 for k in size)] = np.sqrt(np.prod(size) * channels / kept)
    some = np.arange(channels) < kept
    parts = flat([kernel * keep * (some if "transposed" in name else some[:, None]), *bias], 2)
    actual = gram(player.capture, player.metric, 2, "sketch", limits)
    assert_close(actual, reference.gram(parts, player.dense, 2), rtol=1e-10)
    eigenvalues = np.linalg.eigvalsh(actual)
    assert eigenvalues.min() >= -1e-10 * eigenvalues.max()
    assert player.plan("sketch", limits=GramLimits(thin_from=channels + 1)).words.endswith("taps")


def test_fewer_channels_than_stated_are_all_kept():
    extents = {count: Extent(9 * count, width=8, taps=9, channels=count) for count in (63, 64, 66)}
    kept = {count: kept_channels(extent, IDENTITY, LIMITS) for count, extent in extents.items()}
    assert kept == {63: 63, 64: 16, 66: 17}
    assert kept_channels(extents[64], MetricKind(tapwise=True), LIMITS) == 64


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
        extent = Extent(9 * channels**2, 1, positions, 9 * channels, channels, taps=9, channels=channels)
        chosen[positions] = pairs_are_cheaper(extent, MetricKind(tapwise=True, sided=True), None)
        assert not pairs_are_cheaper(extent, IDENTITY, None)  # a quarter of the channels
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


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize(
    "name", ["dense rank 3", "dense rank 4 without bias", "einsum two features", "einsum inputs apart"]
)
def test_mixtures_of_whitened_features_are_those_of_the_dense_metric(name, count, columns, rng):
    player = Player("kfac", name, rng, columns, mixtures=count)
    assert player.plan("features").form == "features"
    layout, (A_inv, B_inv) = coverage(player.sample.layer).matrix, (part.numpy() for part in player.state[2:4])
    q = _matrices(player.gradients, layout)
    mixed = np.einsum("nr,ijne->ijre", _mixing(A_inv, signs(len(A_inv)), count), q)
    dense = np.linalg.inv(float(player.metric.scale) * np.kron(np.eye(count), B_inv))
    for group_size in (None, 2):
        actual = gram(player.capture, player.metric, group_size, "features")
        expected = reference.gram(mixed.reshape(*q.shape[:2], -1), dense, group_size)
        assert_close(actual, expected, rtol=1e-9)
        eigenvalues = np.linalg.eigvalsh(actual)
        assert eigenvalues.min() >= -1e-10 * eigenvalues.max()
    if count >= len(A_inv):  # every feature has a mixture of its own
        assert_close(gram(player.capture, player.metric, None, "features"), player.expected(None), rtol=1e-9)


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("config", ["kfac", "kfac patches"])
@pytest.mark.parametrize("name", ["conv 2d one by one", "conv 2d one by one stride 2"])
def test_a_convolution_of_one_tap_has_mixtures_too(name, config, count, columns, rng):
    player = Player(config, name, rng, columns, mixtures=count)
    assert player.plan("features").form == "features"
    layout, (A_inv, B_inv) = coverage(player.sample.layer).matrix, (part.numpy() for part in player.state[2:4])
    q = _matrices(player.gradients, layout)
    mixed = np.einsum("nr,ijne->ijre", _mixing(A_inv, signs(len(A_inv)), count), q[:, :, : len(A_inv)])
    scale = float(player.metric.scale)
    expected = reference.gram(mixed.reshape(*q.shape[:2], -1), np.linalg.inv(scale * np.kron(np.eye(count), B_inv)), 2)
    if len(A_inv) == layout.rows and layout.bias_shape is not None:  # the bias's row stands apart
        bias_inv = float(player.state[4])
        expected = expected + reference.gram(q[:, :, -1], np.linalg.inv(scale * bias_inv * B_inv), 2)
    assert_close(gram(player.capture, player.metric, 2, "features"), expected, rtol=1e-9)
    if count >= len(A_inv):
        assert_close(gram(player.capture, player.metric, None, "features"), player.expected(None), rtol=1e-9)
    found = sides(player.capture, player.metric, "features", LIMITS)
    assert_close(found.rows(found.sent), gram(player.capture, player.metric, None, "features")[0], rtol=1e-9)


def test_convolutions_of_one_tap_and_many_channels_take_some_of_them():
    extent = Extent(64 * 64, 1, 65, 64, 64, taps=1, channels=64)
    identity, kfac = plan(extent, IDENTITY), plan(extent, MetricKind(kronecker=True, whitened=True))
    assert (identity.form, identity.words) == ("sketch", "sketch, 1 of 4 channels")
    assert (kfac.form, kfac.words) == ("features", "1 of 4 features")
    for small in (dataclasses.replace(extent, positions=64), dataclasses.replace(extent, channels=63, rows=63)):
        assert plan(small, IDENTITY).form == "per_sample"
    assert plan(dataclasses.replace(extent, positions=64), MetricKind(kronecker=True, whitened=True)).form != "features"


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**16), st.floats(0, 6))
def test_over_all_signs_mixtures_have_the_inverse_for_their_mean(size, count, seed, log_condition):
    rng = np.random.default_rng(seed)
    A = with_spectrum(rng, 10 ** -rng.uniform(0, log_condition, size=size))
    W = np.linalg.inv(np.linalg.cholesky(A))
    total = np.zeros_like(A)
    for drawn in itertools.product([-1, 1], repeat=size):
        with mock.patch("bellman_tf.curvature.whitening.signs", lambda _, drawn=drawn: np.array(drawn, np.int8)):
            R = mixtures(tf.constant(W), count).numpy()
        assert R.shape == (size, count)
        total += R @ R.T
    assert_close(total / 2**size, np.linalg.inv(A), rtol=1e-13 * np.linalg.cond(A))


def test_signs_are_as_often_one_as_the_other_and_always_the_same():
    drawn = signs(4000).astype(int)
    assert set(drawn) == {-1, 1} and np.array_equal(drawn, signs(4000))
    for shift in (0, 1, 7):  # themselves, and products of two of them
        assert abs(np.mean(drawn * np.roll(drawn, shift) if shift else drawn)) < 4 / np.sqrt(4000)


def _matrices(gradients, layout):
    """Flat gradients `[B, m, P]` in matrix form, the bias's row last."""
    size = layout.rows * layout.width
    kernel = tf.constant(gradients[..., :size].reshape(*gradients.shape[:2], *layout.kernel_shape))
    matrix = layout.kernel_matrix(kernel).numpy()
    return np.concatenate([matrix, gradients[..., size:].reshape(*gradients.shape[:2], -1, layout.width)], 2)


def _mixing(A_inv, drawn, count):
    """Whitened features summed with signs, from a Cholesky factor of A as NumPy has it."""
    W = np.linalg.inv(np.linalg.cholesky(np.linalg.inv(A_inv)))
    R = np.zeros((len(W), count))
    for k, sign in enumerate(drawn):
        R[:, k % count] += sign * W[k]
    return R


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
    q, rotated = capture.rotated_tap_gradients(1, tf.constant(left), tf.constant(right))
    assert_close(q, capture.tap_gradients(1), rtol=1e-12)
    assert_close(rotated, left.T @ q.numpy() @ right, rtol=1e-12)


def test_large_convolutions_are_sketched(rng):
    player = Player("kfac", "conv 2d", rng)
    assert player.plan("auto").form == "per_sample"
    small = GramLimits(sketch_above=30 * 19 * 3 - 1)
    assert player.plan("auto", limits=small).form == "sketch"
    assert player.plan("auto", limits=small).words == "sketch, 1 of 9 taps"
    assert player.plan("auto", limits=GramLimits(sketch_above=30 * 19 * 3)).form == "per_sample"
    assert player.plan("exact", limits=small).form == "per_sample"
