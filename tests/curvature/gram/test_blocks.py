"""Gram matrices in blocks of samples: the numbers of the whole, whatever the blocks."""

import functools
import math

import pytest
import tensorflow as tf

from bellman_tf.curvature.gram import GramLimits, blocks, gram
from bellman_tf.curvature.gram.memory_use import MemoryUse, largest
from bellman_tf.curvature.gram.plan import plan
from bellman_tf.curvature.identity import IDENTITY
from bellman_tf.layers.calls import join_calls
from bellman_tf.layers.matrix_layout import Extent
from bellman_tf.layers.registry import coverage
from tests.curvature.gram.players import Player
from tests.helpers import assert_close, thinned
from tests.layers.cases import CASES, Case, Sample, draw

BATCH = 5
FORMS = [
    ("dense", "rmsprop", "per_sample", "per_sample"),
    ("dense", "kfac", "per_sample", "per_sample"),
    ("dense", "ekfac", "per_sample", "per_sample"),
    ("dense", "full", "auto", "per_sample"),
    ("dense rank 3", "rmsprop", "rank_one", "rank_one"),
    ("dense rank 3", "kfac", "positions", "positions"),
    ("dense rank 3", "rmsprop", "features", "features"),
    ("einsum batched kernel", "identity", "auto", "per_sample"),
    ("conv 1d causal", "identity", "per_sample", "per_sample"),
    ("conv 2d", "kfac patches", "positions", "positions"),
    ("conv 2d stride 2", "kfac", "sketch", "sketch"),
    ("transposed 2d stride 2", "rmsprop", "sketch", "sketch"),
    ("conv 2d groups", "kfac", "sketch", "sketch"),
    ("separable 1d", "identity", "auto", "per_sample"),
    ("embedding of a large table", "rmsprop", "auto", "lookup"),
    ("batch norm of images", "identity", "auto", "per_sample"),
    ("group norm", "rmsprop", "auto", "per_sample"),
    ("slope", "identity", "auto", "per_sample"),
]
# Samples per group, and samples per block: whole groups, or some samples of one.
BLOCKS = [(None, 1), (None, 2), (1, 3), (2, 2), (2, 4), (3, 1), (BATCH + 2, 2)]


def room_for(load, samples, group_size):
    """Bytes in which blocks of so many float64 samples fit, and of one more not."""
    if group_size is not None and group_size <= samples:
        return 8 * (samples // group_size) * load.whole(group_size, group_size)
    return 8 * (2 * load.sample * samples + load.pair * samples**2)


@pytest.mark.parametrize(("name", "config", "form", "chosen", "columns"), thinned(FORMS, [1, 2]))
def test_blocks_of_samples_make_the_whole(name, config, form, chosen, columns, rng, monkeypatch):
    player = Player(config, name, rng, columns, batch=BATCH)
    met, even = [], blocks._even
    monkeypatch.setattr(blocks, "_even", lambda total, most: met.append((total, most)) or even(total, most))
    for group_size, samples in BLOCKS[columns - 1 :: 2]:
        planned = player.plan(form, group_size)
        whole = gram(player.capture, player.metric, group_size, form)
        assert (planned.form, met) == (chosen, [])
        inside = group_size is not None and group_size <= samples
        limits = GramLimits(memory=room_for(planned.load, samples, group_size))
        blocked = gram(player.capture, player.metric, group_size, form, limits)
        divided = (-(-BATCH // group_size), samples // group_size) if inside else (group_size or BATCH, samples)
        assert met.pop() == divided
        assert_close(blocked, whole, rtol=1e-12, label=f"groups of {group_size}, {samples} samples at once")


@pytest.mark.parametrize("name", thinned(["dense rank 3", "depthwise 2d", "embedding of a large table", "conv 2d"]))
def test_calls_of_one_layer_keep_together(name, rng):
    first = draw(CASES[name], rng, batch=BATCH)
    case = Case(lambda **_: first.layer, CASES[name].shape, CASES[name].vocabulary)
    second = draw(case, rng, batch=BATCH)
    capture = join_calls([first.capture, Sample(first.layer, second.inputs, second.cotangents).capture])
    metric = Player("identity", name, rng).metric
    whole = gram(capture, metric, None, "exact")
    assert_close(gram(capture, metric, None, "exact", GramLimits(memory=1)), whole, rtol=1e-12)


def test_one_sample_is_a_block(rng):
    player = Player("rmsprop", "dense", rng, batch=1)
    for group_size in (None, 1, 3):
        whole = gram(player.capture, player.metric, group_size, "per_sample")
        blocked = gram(player.capture, player.metric, group_size, "per_sample", GramLimits(memory=1))
        assert_close(blocked, whole, rtol=1e-12)


MODES = [("dense", "rmsprop", "per_sample", None), ("dense", "rmsprop", "per_sample", 2),
         ("conv 2d stride 2", "kfac", "sketch", None), ("embedding of a large table", "kfac", "auto", 3)]  # fmt: skip


@pytest.mark.parametrize(("name", "config", "form", "group_size"), thinned(MODES))
def test_blocks_of_a_batch_of_unknown_size_compile(name, config, form, group_size, rng):
    """In a graph and under XLA, with blocks as many as the batch asks for."""
    player = Player(config, name, rng)
    layer, memory = player.sample.layer, room_for(player.plan(form, group_size).load, 2, group_size)
    free = [tf.TensorSpec([None, *t.shape[1:]], t.dtype) for t in (player.sample.inputs, *player.sample.cotangents)]

    def compute(limits, x, c):
        return gram(coverage(layer).capture(layer, x, [c]), player.metric, group_size, form, limits)

    functions = [
        tf.function(functools.partial(compute, limits), autograph=False, jit_compile=compiled, input_signature=free)
        for limits, compiled in (
            (GramLimits(), False),
            (GramLimits(memory=memory), False),
            (GramLimits(memory=memory), True),
        )
    ]
    for batch in (1, 5):
        sample = draw(Case(lambda **_: layer, *CASES[name][1:]), rng, batch=batch)
        whole, *blocked = (function(sample.inputs, sample.cotangents[0]) for function in functions)
        for found in blocked:
            assert_close(found, whole, rtol=1e-12)


def test_the_plan_says_from_how_many_samples_on():
    """Twice 1000 x 4 bytes a sample; pairs of five positions, three products each."""
    limits = GramLimits(memory=800_000)
    gradients = Extent(1000, 1)
    assert plan(gradients, IDENTITY, "exact", limits=limits).words == "per sample, blocks above 100 samples"
    assert plan(gradients, IDENTITY, "exact", limits=limits, itemsize=8).words == "per sample, blocks above 50 samples"
    pairs, room = Extent(10**6, 1, positions=5, width=100, vocabulary=10**4), 200_000 // (3 * 5**2)
    words = {None: math.isqrt(room), 8: room // 64 * 8}
    for group_size, most in words.items():
        assert plan(pairs, IDENTITY, "exact", group_size, limits).words == f"lookup, blocks above {most} samples"


def test_gradients_no_larger_than_the_gram_matrix_are_never_blocks():
    """A batch whose Gram matrix alone takes the memory: 447 samples."""
    limits = GramLimits(memory=800_000)
    assert largest(200_000, 1) == 447
    assert plan(Extent(223, 1), IDENTITY, "exact", limits=limits).words == "per sample"
    assert plan(Extent(224, 1), IDENTITY, "exact", limits=limits).words == "per sample, blocks above 446 samples"
    assert MemoryUse().most(1, None, 1) is None


@pytest.mark.parametrize(("name", "kernel"), [("separable 2d", 1), ("einsum batched kernel", 0)])
def test_the_weighted_gradient_forms_no_gradients_per_sample(name, kernel, rng):
    """Of layers without a matrix form whose kernels may be large."""
    sample = draw(CASES[name], rng, batch=BATCH)

    def shapes(compute):
        function = tf.function(
            lambda x, c: compute(coverage(sample.layer).capture(sample.layer, x, [c])), autograph=False
        )
        graph = function.get_concrete_function(sample.inputs, sample.cotangents[0]).graph
        return {tuple(o.shape) for op in graph.get_operations() for o in op.outputs if o.shape.rank is not None}

    formed = (BATCH, *sample.shapes[kernel])
    assert formed in shapes(lambda capture: capture.per_sample())
    assert formed not in shapes(lambda capture: capture.gradient(tf.ones([BATCH, 1], tf.float64)))


@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("room", [1, 35, 36, 1000])
def test_the_largest_batch_is_the_one_whose_matrix_takes_all_the_room(room, columns):
    found = largest(room, columns)
    assert (found * columns) ** 2 <= room < ((found + 1) * columns) ** 2
