"""Every covered layer: gradients of single samples, their weighted sums and their inner products."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf.layers.capture import MatrixCapture
from bellman_tf.layers.registry import coverage
from tests.helpers import assert_close, thinned
from tests.layers.cases import CASES, Case, Sample, automatic, draw
from verification.problems.matrices import seeds
from verification.references import capture as reference

EXACT = 1e-12


def assert_answers(sample, rng, expected=None):
    """All answers of a capture, against per-sample gradients from elsewhere."""
    capture, m = sample.capture, len(sample.cotangents)
    expected = automatic(sample) if expected is None else expected
    variables = sample.layer.trainable_variables
    for q, want, variable in zip(capture.per_sample(), expected, variables, strict=True):
        assert q.dtype == tf.float64
        assert_close(q, want, rtol=EXACT, label=f"per_sample of {variable.path}")
    w = rng.normal(size=(len(sample.inputs), m))
    for g, want, variable in zip(capture.gradient(tf.constant(w)), expected, variables, strict=True):
        assert_close(g, np.tensordot(w, want, [[0, 1], [0, 1]]), rtol=EXACT, label=f"gradient of {variable.path}")
    K = [rng.normal(size=v.shape) for v in variables]
    inner = sum(np.tensordot(want, k, k.ndim) for want, k in zip(expected, K, strict=True))
    assert_close(capture.inner([tf.constant(k) for k in K]), inner, rtol=EXACT, label="inner")


@pytest.mark.parametrize(("name", "columns"), thinned(CASES, [1, 3]))
def test_it_agrees_with_automatic_differentiation_of_the_layer(name, columns, rng):
    assert_answers(draw(CASES[name], rng, columns=columns), rng)


@st.composite
def convolutions(draw):
    """A convolution of rank 1 or 2 whose every axis has its own size, kernel, stride or dilation."""
    rank = draw(st.integers(1, 2))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    dilated = draw(st.booleans())
    strides = 1 if dilated else draw(st.integers(1, 3))
    dilation = draw(st.integers(2, 3)) if dilated else 1
    padding = draw(st.sampled_from(["same", "valid"] + ["causal"] * (rank == 1)))
    sizes = tuple(draw(st.integers((k - 1) * dilation + 1, (k - 1) * dilation + 5)) for k in kernel)
    options = {"strides": strides, "dilation_rate": dilation, "padding": padding, "use_bias": draw(st.booleans())}
    kind = keras.layers.Conv1D if rank == 1 else keras.layers.Conv2D
    case = Case(lambda **common: kind(2, kernel, **options, **common), (*sizes, draw(st.integers(1, 3))))
    return case, draw(seeds)


@given(convolutions())
def test_any_convolution_agrees_with_patches_and_with_automatic_differentiation(case_and_seed):
    case, seed = case_and_seed
    rng = np.random.default_rng(seed)
    sample = draw(case, rng, batch=2)
    layer, c = sample.layer, sample.cotangents[0].numpy()
    p = reference.patches(
        sample.inputs.numpy(), c.shape[1:-1], layer.kernel_size, layer.strides, layer.dilation_rate, layer.padding
    )
    kernel, bias = reference.convolution(p, c.reshape(2, -1, c.shape[-1]))
    parts = [kernel.reshape(2, 1, *layer.kernel.shape), bias[:, None]][: 1 + layer.use_bias]
    assert_answers(sample, rng, parts)
    for mine, tape in zip(parts, automatic(sample), strict=True):
        assert_close(mine, tape, rtol=EXACT)


@pytest.mark.parametrize("name", ["conv 2d groups", "depthwise 2d multiplier", "embedding", "layer norm over two axes"])
def test_it_agrees_with_the_definition_of_the_layer(name, rng):
    sample = draw(CASES[name], rng)
    layer, x, c = sample.layer, sample.inputs.numpy(), sample.cotangents[0].numpy()
    if name == "embedding":
        expected = [reference.embedding(x, c, 5)]
    elif name == "layer norm over two axes":
        centred = x - x.mean(axis=(1, 2), keepdims=True)
        normalised = centred / np.sqrt((centred**2).mean(axis=(1, 2), keepdims=True) + layer.epsilon)
        expected = reference.scale_shift(normalised, c, (1, 2))
    else:
        positions = c.reshape(len(c), -1, c.shape[-1])
        out = c.shape[1:-1]
        p = reference.patches(x, out, layer.kernel_size, layer.strides, layer.dilation_rate, layer.padding)
        if name == "conv 2d groups":
            expected = reference.convolution(p, positions, groups=2)
        else:
            expected = reference.depthwise(p, positions)[:1]
    for q, want, shape in zip(sample.capture.per_sample(), expected, sample.shapes, strict=True):
        assert_close(q, want.reshape(len(x), 1, *shape), rtol=EXACT)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("dense", "einsum", "conv", "transposed"))])
def test_the_matrix_form_holds_the_same_numbers(name, rng):
    sample = draw(CASES[name], rng, columns=2)
    capture = sample.capture
    if not isinstance(capture, MatrixCapture):
        assert coverage(sample.layer).matrix is None
        return
    layout = capture.layout
    matrix = capture.matrix_per_sample()
    assert matrix.shape == (3, 2, layout.all_rows, layout.width)
    for q, want in zip(layout.unpack(matrix), capture.per_sample(), strict=True):
        assert_close(q, want)
    assert_close(layout.pack(capture.per_sample()), matrix)
    assert coverage(sample.layer).matrix == layout
    if "groups" in name:  # one matrix, whose columns have inputs of their own
        assert layout.groups == sample.layer.groups
        return
    x, c = capture.augmented().numpy(), capture.cotangents[0].numpy()
    rows, positions = x.reshape(3, -1, layout.all_rows), c.reshape(3, -1, layout.width)
    kernel, _ = reference.linear(rows, positions)
    assert_close(matrix[:, 0], kernel, rtol=EXACT)


@pytest.mark.parametrize(
    "name",
    ["dense", "dense rank 3", "einsum inputs apart", "conv 2d stride 2", "conv 1d causal", "transposed 2d stride 2"],
)
def test_new_inputs_meet_the_old_cotangents(name, rng):
    """Claims OURS-7: the bilinear term is the gradient with the new input."""
    sample = draw(CASES[name], rng, columns=2)
    other = Sample(sample.layer, tf.constant(rng.normal(size=sample.inputs.shape)), sample.cotangents)
    w = tf.constant(rng.normal(size=(3, 2)))
    for mine, want in zip(sample.capture.with_inputs(other.inputs).gradient(w), other.capture.gradient(w), strict=True):
        assert_close(mine, want, rtol=EXACT)


@pytest.mark.parametrize("name", ["dense", "conv 2d", "transposed 2d", "embedding", "batch norm", "separable 2d"])
def test_scaling_touches_the_first_column_alone(name, rng):
    sample = draw(CASES[name], rng, columns=2)
    alpha = rng.normal(size=3)
    scaled = sample.capture.scaled(tf.constant(alpha))
    assert scaled.columns == 1
    for mine, q in zip(scaled.per_sample(), sample.capture.per_sample(), strict=True):
        assert_close(mine, q[:, :1] * alpha.reshape(3, *[1] * (len(q.shape) - 1)), rtol=EXACT)


@pytest.mark.parametrize("name", ["dense", "embedding", "conv 2d"])
def test_mean_weights_give_the_mean_gradient(name, rng):
    sample = draw(CASES[name], rng, columns=2)
    weights = sample.capture.mean_weights()
    assert weights.dtype == tf.float64
    for mine, q in zip(sample.capture.gradient(weights), automatic(sample), strict=True):
        assert_close(mine, q[:, 0].mean(axis=0), rtol=EXACT)


def test_a_masked_batch_normalisation_leaves_hidden_entries_out(rng):
    layer = keras.layers.BatchNormalization(dtype="float64")
    x = tf.constant(rng.normal(size=(3, 4, 2)))
    layer.build(x.shape)
    x._keras_mask = tf.constant([[True, True, False, False], [True] * 4, [True, False, False, False]])
    assert_answers(Sample(layer, x, [tf.constant(rng.normal(size=x.shape))]), rng)


@pytest.mark.parametrize("name", ["dense rank 3", "einsum batched kernel", "conv 2d stride 2", "conv 1d causal",
                                  "transposed 2d stride 2", "separable 2d", "embedding", "batch norm of images",
                                  "group norm", "rms norm of sequences", "slope shared in space"])  # fmt: skip
def test_float32_agrees_in_every_mode_and_with_any_batch_size(name, rng):
    sample = draw(CASES[name], rng, dtype="float32")
    K = [tf.constant(rng.normal(size=v.shape), tf.float32) for v in sample.layer.trainable_variables]
    x, c, w = sample.inputs, sample.cotangents[0], tf.constant(rng.normal(size=(3, 2)), tf.float32)

    def compute(x, c, w):
        capture = coverage(sample.layer).capture(sample.layer, x, [c, 2 * c])
        return {"q": capture.per_sample(), "gradient": capture.gradient(w), "inner": capture.inner(K)}

    exact = draw(CASES[name], np.random.default_rng(0)).layer
    for variable, other in zip(exact.trainable_variables, sample.layer.trainable_variables, strict=True):
        variable.assign(tf.cast(other, tf.float64))
    c_exact = tf.cast(c, tf.float64)
    x_exact = tf.cast(x, tf.float64) if x.dtype.is_floating else x
    capture = coverage(exact).capture(exact, x_exact, [c_exact, 2 * c_exact])
    expected = {
        "q": capture.per_sample(),
        "gradient": capture.gradient(tf.cast(w, tf.float64)),
        "inner": capture.inner([tf.cast(k, tf.float64) for k in K]),
    }
    free = [tf.TensorSpec([None, *t.shape[1:]], t.dtype) for t in (x, c, w)]
    modes = {
        "eager": compute,
        "traced": tf.function(compute, autograph=False),
        "compiled": tf.function(compute, autograph=False, jit_compile=True),
        "any batch size": tf.function(compute, autograph=False, input_signature=free),
    }
    for mode, run in modes.items():
        results = run(x, c, w)
        for key, want in expected.items():
            for a, b in zip(tf.nest.flatten(results[key]), tf.nest.flatten(want), strict=True):
                assert a.dtype == tf.float32
                assert_close(a, b, rtol=2e-5, label=f"{key}, {mode}")


@pytest.mark.parametrize(
    "name", ["dense", "einsum dense", "conv 2d", "transposed 2d", "depthwise 2d", "embedding", "layer norm", "slope"]
)
def test_half_precision_is_computed_in_float32(name, rng):
    sample = draw(CASES[name], rng, dtype="mixed_bfloat16")
    half, inputs = sample.cotangents, sample.inputs
    assert half[0].dtype == tf.bfloat16
    w = tf.constant(rng.normal(size=(3, 1)), tf.float32)
    capture = coverage(sample.layer).capture(sample.layer, inputs, half)
    single = draw(CASES[name], rng, dtype="float32").layer
    for mine, theirs in zip(single.trainable_variables, sample.layer.trainable_variables, strict=True):
        mine.assign(theirs)
    whole = inputs if not inputs.dtype.is_floating else tf.cast(inputs, tf.float32)
    exact = coverage(single).capture(single, whole, [tf.cast(c, tf.float32) for c in half])
    for a, b in zip(capture.per_sample() + capture.gradient(w), exact.per_sample() + exact.gradient(w), strict=True):
        assert a.dtype == tf.float32
        assert_close(a, b, rtol=1e-6)


@pytest.mark.parametrize(("name", "columns"), thinned(CASES, [1, 2]))
def test_a_bias_can_be_left_out(name, columns, rng):
    """Where what follows takes it away again; nothing is left of a normalisation that only shifts."""
    sample = draw(CASES[name], rng, columns=columns)
    whole, found = coverage(sample.layer), coverage(sample.layer, bias=False)
    bias = getattr(sample.layer, "beta", None) if "norm" in name else getattr(sample.layer, "bias", None)
    if name in {"batch norm without scale", "group norm of vectors"}:
        assert found == "nothing is left of it without its shift"
        return
    kept = [k for k, v in enumerate(sample.layer.trainable_variables) if v is not bias]
    assert [id(v) for v in found.variables] == [id(sample.layer.trainable_variables[k]) for k in kept]
    assert [id(v) for v in whole.variables] == [id(v) for v in sample.layer.trainable_variables]
    capture = found.capture(sample.layer, sample.inputs, sample.cotangents)
    expected = [automatic(sample)[k] for k in kept]
    for q, want in zip(capture.per_sample(), expected, strict=True):
        assert_close(q, want, rtol=EXACT)
    w = rng.normal(size=(3, columns))
    for g, want in zip(capture.gradient(tf.constant(w)), expected, strict=True):
        assert_close(g, np.tensordot(w, want, [[0, 1], [0, 1]]), rtol=EXACT)
    direction = [tf.constant(rng.normal(size=v.shape)) for v in found.variables]
    inner = sum(np.tensordot(q, k, len(k.shape)) for q, k in zip(expected, direction, strict=True))
    assert_close(capture.inner(direction), inner, rtol=EXACT)
    if found.matrix is not None:
        assert found.matrix.bias_shape is None
        assert capture.layout == found.matrix
    assert found.extent((None, *sample.cotangents[0].shape[1:]), columns) == capture.extent
