"""Several calls of one layer as one capture."""

import numpy as np
import pytest
import tensorflow as tf

from bellman_tf.curvature import config as options
from bellman_tf.curvature.gram import FORMS, gram
from bellman_tf.curvature.registry import make_block, player_layout
from bellman_tf.layers.calls import join_calls, joined_extent
from bellman_tf.layers.registry import coverage
from tests.curvature.players import initial_state, step
from tests.helpers import assert_close, thinned
from tests.layers.cases import CASES, Case, Sample, automatic, draw, flat
from verification.references import gram as reference

NAMES = ["dense", "dense rank 3", "dense one position", "einsum two features", "einsum batched kernel", "conv 2d",
         "conv 2d stride 2", "conv 1d causal", "conv 2d groups", "transposed 2d stride 2", "depthwise 2d", "embedding",
         "layer norm of sequences", "slope"]  # fmt: skip
LONGER = {"dense rank 3": (2, 4), "conv 2d": (3, 4, 2), "embedding": (2,), "einsum two features": (1, 4)}


def calls(name, rng, columns, count=2):
    """The same layer on other inputs, the last of another length where the layer takes it."""
    first = draw(CASES[name], rng, batch=4, columns=columns)
    samples = [first]
    for k in range(1, count):
        shape = LONGER.get(name, CASES[name].shape) if k == count - 1 else CASES[name].shape
        fresh = draw(Case(lambda **_: first.layer, shape, CASES[name].vocabulary), rng, batch=4, columns=columns)
        samples.append(Sample(first.layer, fresh.inputs, fresh.cotangents))
    return samples


@pytest.mark.parametrize(("columns", "count"), [(1, 2), (2, 3)])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_sums_over_the_calls(name, columns, count, rng):
    samples = calls(name, rng, columns, count)
    joined = join_calls([sample.capture for sample in samples])
    expected = [sum(parts) for parts in zip(*map(automatic, samples), strict=True)]
    for q, want in zip(joined.per_sample(), expected, strict=True):
        assert_close(q, want, rtol=1e-12)
    w = rng.normal(size=(4, columns))
    for g, want in zip(joined.gradient(tf.constant(w)), expected, strict=True):
        assert_close(g, np.tensordot(w, want, [[0, 1], [0, 1]]), rtol=1e-12)
    direction = [tf.constant(rng.normal(size=shape)) for shape in samples[0].shapes]
    inner = sum(np.tensordot(q, k, len(k.shape)) for q, k in zip(expected, direction, strict=True))
    assert_close(joined.inner(direction), inner, rtol=1e-12)
    assert joined.columns == columns
    found = coverage(samples[0].layer)
    extents = [found.extent((None, *sample.cotangents[0].shape[1:]), columns) for sample in samples]
    assert joined_extent(extents) == joined.extent
    assert joined.batch_size == 4
    alpha = rng.normal(size=4)
    for q, want in zip(joined.scaled(tf.constant(alpha)).per_sample(), expected, strict=True):
        assert_close(q, want[:, :1] * alpha.reshape(4, *[1] * (want.ndim - 1)), rtol=1e-12)


METRICS = [
    options.Identity(), options.RMSprop(), options.KFAC(), options.KFAC(convolution="patches"), options.EKFAC(),
    options.EKFAC(convolution="autocorrelation"), options.Full(),
]  # fmt: skip


@pytest.mark.parametrize(("name", "config"), thinned(NAMES, METRICS, every=3))
def test_every_metric_and_gram_form_takes_them(name, config, rng):
    samples = calls(name, rng, 1)
    joined = join_calls([sample.capture for sample in samples])
    block = make_block(config, player_layout(name, samples[0].shapes, coverage(samples[0].layer)))
    gradient = joined.gradient(joined.mean_weights())
    _, metric = block.update(initial_state(block), joined, gradient, step(0))
    assert block.kind == metric.kind
    units = np.eye(sum(int(np.prod(shape)) for shape in samples[0].shapes))
    sizes = np.cumsum([int(np.prod(shape)) for shape in samples[0].shapes])[:-1]
    parts = [
        tf.constant(u.reshape(-1, *shape))
        for u, shape in zip(np.split(units, sizes, axis=1), samples[0].shapes, strict=True)
    ]
    M = np.linalg.inv(flat(metric.solve(parts)))
    q = flat([sum(pair) for pair in zip(*map(automatic, samples), strict=True)], 2)
    approximate = {"sketch", "features", "hashed"}
    for form in set(FORMS) - approximate - {"auto"}:
        assert_close(gram(joined, metric, None, form), reference.gram(q, M, None), rtol=1e-8)
    for form in sorted(approximate):
        eigenvalues = np.linalg.eigvalsh(gram(joined, metric, None, form)[0])
        assert eigenvalues.min() >= -1e-10 * eigenvalues.max()


@pytest.mark.parametrize("name", ["dense", "dense rank 3", "conv 2d", "transposed 2d stride 2"])
def test_the_moments_are_those_of_one_longer_sample(name, rng):
    samples = calls(name, rng, 1)
    captures = [sample.capture for sample in samples]
    joined = join_calls(captures)
    rows = [np.asarray(c.augmented()).reshape(4, -1, c.layout.all_rows) for c in captures]
    outputs = [np.asarray(c.cotangents[0]).reshape(4, -1, c.layout.width) for c in captures]
    x, c = (np.concatenate(parts, axis=1) for parts in (rows, outputs))
    x, c = x.reshape(-1, x.shape[-1]), c.reshape(-1, c.shape[-1])
    assert joined.positions == len(x) // 4
    assert_close(joined.input_moment(), x.T @ x / 4, rtol=1e-12)
    assert_close(joined.cotangent_moment(), c.T @ c / len(c), rtol=1e-12)


def test_one_call_is_the_capture_itself(rng):
    capture = draw(CASES["dense"], rng).capture
    assert join_calls([capture]) is capture


def test_a_length_that_is_not_static(rng):
    """Dense layers called on sequences of any length."""
    samples = calls("dense rank 3", rng, 1)
    layer = samples[0].layer

    def compute(*tensors):
        captures = [coverage(layer).capture(layer, x, [c]) for x, c in zip(tensors[::2], tensors[1::2], strict=True)]
        joined = join_calls(captures)
        return joined.per_sample() + [joined.input_moment(), joined.cotangent_moment()]

    tensors = [t for sample in samples for t in (sample.inputs, sample.cotangents[0])]
    free = [tf.TensorSpec([None, None, t.shape[-1]], t.dtype) for t in tensors]
    for mine, want in zip(tf.function(compute, input_signature=free)(*tensors), compute(*tensors), strict=True):
        assert_close(mine, want, rtol=1e-12)
