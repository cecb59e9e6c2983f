"""The hashed form of an embedding's Gram matrix against its definition, its mean, and where it is exact."""

import numpy as np
import pytest

from bellman_tf.curvature.gram import gram, hashed
from bellman_tf.curvature.gram.plan import LIMITS, GramLimits, plan
from bellman_tf.curvature.identity import IDENTITY
from bellman_tf.layers.matrix_layout import Extent
from tests.curvature.gram.players import Player
from tests.helpers import assert_close
from verification.references import gram as reference

LARGE = "embedding of a large table"
CONFIGS = ["identity", "rmsprop", "kfac"]


def hashed_gradients(player, buckets):
    """Gradients per sample under the root of the metric, signed and summed in buckets, by matrices."""
    vocabulary, width = player.shapes[0]
    root = np.sqrt(np.diag(np.linalg.inv(player.dense))).reshape(vocabulary, width)
    rows = player.gradients.reshape(*player.gradients.shape[:2], vocabulary, width) * root
    signs = hashed.signs(vocabulary)
    bucket = np.arange(vocabulary) % buckets == np.arange(buckets)[:, None]
    return np.einsum("hv,bmve->bmhe", bucket * signs, rows).reshape(*rows.shape[:2], -1)


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("config", CONFIGS)
def test_tokens_go_to_their_bucket_with_their_sign(config, columns, rng):
    player = Player(config, LARGE, rng, columns)
    limits = GramLimits(buckets=3)
    q = hashed_gradients(player, 3)
    for group_size in (None, 2):
        actual = gram(player.capture, player.metric, group_size, "hashed", limits)
        assert_close(actual, reference.gram(q, np.eye(q.shape[-1]), group_size), rtol=1e-10)
        eigenvalues = np.linalg.eigvalsh(actual)
        assert eigenvalues.min() >= -1e-10 * eigenvalues.max()
        small = gram(player.capture, player.metric, group_size, "hashed", GramLimits(buckets=3, memory=500))
        assert_close(small, actual, rtol=1e-12)


@pytest.mark.parametrize("config", CONFIGS)
def test_it_is_exact_where_no_two_tokens_share_a_bucket(config, rng):
    player = Player(config, LARGE, rng, 2)
    actual = gram(player.capture, player.metric, None, "hashed", GramLimits(buckets=player.shapes[0][0]))
    assert_close(actual, player.expected(None), rtol=1e-9)


def test_its_mean_over_signs_is_the_exact_matrix(rng, monkeypatch):
    player = Player("rmsprop", "embedding", rng)
    draws = []
    for _ in range(400):
        signs = 1.0 - 2.0 * rng.integers(0, 2, size=player.shapes[0][0])
        monkeypatch.setattr(hashed, "signs", lambda vocabulary, signs=signs: signs)
        draws.append(gram(player.capture, player.metric, None, "hashed", GramLimits(buckets=2)).numpy())
    mean, spread = np.mean(draws, axis=0), np.std(draws, axis=0)
    assert spread.max() > 0.1 * mean.max()
    assert (np.abs(mean - player.expected(None)) <= 5 * spread / np.sqrt(len(draws)) + 1e-9).all()


def test_signs_are_the_same_at_every_call_and_of_both_kinds():
    signs = hashed.signs(1000)
    assert_close(signs, hashed.signs(1000))
    assert set(signs) == {-1.0, 1.0}
    assert abs(signs.sum()) < 150


def test_auto_takes_it_for_large_tables_read_at_many_positions():
    def form(vocabulary, length, name="auto"):
        extent = Extent(64 * vocabulary, positions=length, width=64, vocabulary=vocabulary)
        return plan(extent, IDENTITY, name, limits=GramLimits(memory=2**40))

    assert form(4096, 64).form == "hashed"
    assert form(4096, 64).words == f"hashed, {LIMITS.buckets} buckets"
    assert form(4096, 64, "exact").form in {"lookup", "per_sample"}
    assert form(4096, 2).form == "lookup"
    assert form(LIMITS.buckets, 64).form == "per_sample"
    assert form(4096, None).form == "hashed"
