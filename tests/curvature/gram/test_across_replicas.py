"""Rows of Gram matrices from what replicas send each other, against the matrix of all samples."""

import keras
import pytest
import tensorflow as tf

from bellman_tf.curvature.gram import gram
from bellman_tf.curvature.gram.across_replicas import GLOBAL_BATCH, of_pairs, sendable, sent_numbers, sides
from bellman_tf.curvature.gram.plan import LIMITS, GramLimits
from bellman_tf.curvature.metric import GradientPair
from bellman_tf.layers.registry import coverage
from tests.curvature.gram.players import BATCH, Player
from tests.helpers import assert_close

# What a sample sends for one column: a gradient, or less.
FORMS = [
    ("dense", "identity", "auto", 4 + 1 + 3),
    ("dense", "kfac", "auto", 4 + 1 + 3),
    ("dense without bias", "kfac", "auto", 4 + 3),
    ("dense", "rmsprop", "rank_one", 4 + 1 + 3),
    ("dense", "rmsprop", "auto", 15),
    ("dense", "ekfac", "auto", 15),
    ("dense", "full", "auto", 15),
    ("dense rank 3", "kfac", "positions", 15),
    ("dense rank 3", "rmsprop", "rank_one", 15),
    ("dense rank 3", "ekfac", "rank_one", 15),
    ("dense rank 3", "rmsprop", "features", (2 + 1) * 3),
    ("conv 2d", "kfac patches", "positions", 57),
    ("conv 2d", "kfac", "sketch", (2 + 1) * 3),
    ("conv 2d without bias", "rmsprop", "sketch", (2 + 1) * 3),
    ("conv 2d groups", "kfac", "sketch", (2 + 1) * 6),
    ("conv 2d", "ekfac", "auto", 57),
    ("embedding of a large table", "rmsprop", "hashed", 256 * 3),
    ("batch norm of images", "kfac", "auto", 8),
]
SPLITS = ([2, 3], [BATCH, 0], [1, 3, 1])


def shares(capture, sizes):
    parts = zip(*(tf.split(tensor, sizes) for tensor in capture.tensors()), strict=True)
    return [capture.made_of(list(part)) for part in parts]


def together(found):
    """Every replica's rows, given what all have sent."""
    everyone = [tf.concat(parts, 0) for parts in zip(*(side.sent for side in found), strict=True)]
    return tf.concat([side.rows(everyone) for side in found], 0)


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize(("name", "config", "form", "numbers"), FORMS)
def test_rows_of_all_replicas_are_the_whole_matrix(name, config, form, numbers, columns, rng):
    player = Player(config, name, rng, columns)
    whole = gram(player.capture, player.metric, None, form)[0]
    for sizes in SPLITS:
        found = [sides(part, player.metric, form, LIMITS) for part in shares(player.capture, sizes)]
        assert_close(together(found), whole, rtol=1e-9)
        sent = sum(tensor.shape[1:].num_elements() for tensor in found[0].sent)
        assert sent <= columns * numbers
    assert sent_numbers(Player(config, name, rng).capture.extent, player.metric.kind, form, LIMITS, 8) == numbers


@pytest.mark.parametrize("columns", [1, 2])
def test_rows_from_mixtures_of_features_are_the_whole_matrix(columns, rng):
    player = Player("kfac", "dense rank 3", rng, columns, mixtures=2)
    whole = gram(player.capture, player.metric, None, "features")[0]
    for sizes in SPLITS:
        found = [sides(part, player.metric, "features", LIMITS) for part in shares(player.capture, sizes)]
        assert_close(together(found), whole, rtol=1e-9)
        assert [tensor.shape[1:].as_list() for tensor in found[0].sent] == [[columns, 2, 3]]
    kind = player.metric.kind
    assert sent_numbers(player.capture.extent, kind, "features", LIMITS, 8) >= 2 * 3


def test_several_pairs_are_added(rng):
    x, y = (tf.constant(rng.normal(size=(4, 2, 3))) for _ in range(2))
    found = of_pairs([GradientPair([x, y], [y, x], 2.0), GradientPair([y], [y])])
    rows = [tf.reshape(t, [8, 3]) for t in (x, y)]
    between = lambda a, b: tf.matmul(rows[a], rows[b], transpose_b=True)
    expected = 2 * between(0, 1) + 2 * between(1, 0) + between(1, 1)
    assert_close(found.rows(found.sent), expected, rtol=1e-12)


def test_a_table_whose_pairs_are_looked_up_has_no_sides(rng):
    player = Player("rmsprop", "embedding of a large table", rng)
    assert sides(player.capture, player.metric, "auto", LIMITS) is None


def test_what_is_too_much_to_send_is_said(rng):
    player = Player("rmsprop", "dense", rng)
    for memory, known in ((15 * 8 * GLOBAL_BATCH, True), (15 * 8 * GLOBAL_BATCH - 1, False)):
        limits = GramLimits(memory=memory)
        assert sendable(15, limits, 8) is known
        assert (sides(player.capture, player.metric, "exact", limits) is not None) is known


def test_wide_dense_layers_send_inputs_and_cotangents(rng):
    layer = keras.layers.Dense(4096)
    layer.build((None, 4096))
    extent = coverage(layer).extent((None, 4096))
    kind = Player("kfac", "dense", rng).metric.kind
    assert sendable(sent_numbers(extent, kind, "auto", LIMITS, 4), LIMITS, 4)
