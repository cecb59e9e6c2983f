"""Closed forms are the Hessians of Keras's own formulas."""

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import tensorflow as tf

from bellman_tf import losses
from tests.helpers import assert_close
from tests.losses.cases import (
    CLOSED,
    EPS,
    at_home,
    bits,
    counts,
    dense,
    floats,
    hessian_of_keras,
    observed_head,
    one_hot,
    outer,
    outputs,
)
from verification.references import losses as reference


@pytest.mark.parametrize("name", CLOSED)
@hypothesis.given(case=outputs())
@hypothesis.settings(max_examples=12)
def test_a_closed_form_is_the_hessian_of_kerass_own_formula(name, case):
    make, activation, label = CLOSED[name]
    z, labels, f = case
    z, loss = at_home(name, z), make(dtype="float64")
    y_true = label(labels, z)
    head = observed_head(loss, activation, z, y_true, f)
    assert head.kind != "automatic"
    gradient, H = hessian_of_keras(loss, activation, z, y_true, f)
    assert_close(head.gradient(), gradient, rtol=1e-10, atol=1e-13, label="gradient")
    assert_close(dense(head, z), H, rtol=1e-10, atol=1e-13, label="products")
    assert_close(outer(head.factor()), H, rtol=1e-10, atol=1e-13, label="factor")


@hypothesis.given(case=outputs(), smoothing=st.sampled_from([0.0, 0.3]))
def test_the_softmax_head_agrees_with_the_reference_to_the_last_digits(case, smoothing):
    z, labels, f = case
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=smoothing, dtype="float64")
    head = observed_head(loss, "softmax", z, one_hot(labels, z), f)
    Z = head.factor().numpy()
    classes = z.shape[-1]
    positions = int(np.prod(z.shape[1:-1]))
    assert Z.shape == (z.shape[0], positions * classes, positions * (classes - 1))
    H = dense(head, z)
    for i in range(z.shape[0]):
        rows = z[i].reshape(positions, classes)
        target = reference.smooth(one_hot(labels, z)[i].reshape(positions, classes), smoothing, classes)
        parts = [reference.categorical(a, t) for a, t in zip(rows, target, strict=True)]
        weights = np.reshape(f[i], positions)
        expected = reference.block_diagonal([part[2] for part in parts], weights)
        slope = np.concatenate([w * part[1] for w, part in zip(weights, parts, strict=True)])
        assert_close(np.ravel(head.gradient()[i]), slope, atol=1e-14, label="gradient")
        # Nothing cancels in either form, so tiny Hessians of confident samples keep relative accuracy; the exponents of
        # softmax are rounded at |z| <= 100 before exp, hence the factor.
        assert_close(outer(Z[i]), expected, rtol=1e-12, atol=1e-300, label="factor")
        assert_close(H[i], expected, rtol=1e-12, atol=1e-300, label="products")
        assert np.linalg.eigvalsh(outer(Z[i])).min() >= -1e-14 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["sigmoid", "square", "huber", "log_cosh", "poisson"])
@hypothesis.given(case=outputs())
@hypothesis.settings(max_examples=15)
def test_the_elementwise_heads_agree_with_the_reference(kind, case):
    z, labels, f = case
    make, formula, label = {
        "sigmoid": (keras.losses.BinaryCrossentropy(from_logits=True, dtype="float64"), reference.binary, bits),
        "square": (keras.losses.MeanSquaredError(dtype="float64"), reference.square, floats),
        "huber": (keras.losses.Huber(dtype="float64"), reference.huber, floats),
        "log_cosh": (keras.losses.LogCosh(dtype="float64"), reference.log_cosh, floats),
        "poisson": (keras.losses.Poisson(dtype="float64"), reference.poisson, counts),
    }[kind]
    z = at_home(kind, z)
    y_true = label(labels, z)
    head = observed_head(make, None, z, y_true, f)
    assert head.kind == kind
    for i in range(z.shape[0]):
        rows, targets = z[i].reshape(-1, z.shape[-1]), y_true[i].reshape(-1, z.shape[-1])
        parts = [formula(a, t) for a, t in zip(rows, targets, strict=True)]
        weights = np.ravel(f[i])
        assert_close(
            outer(head.factor()[i]),
            reference.block_diagonal([part[2] for part in parts], weights),
            rtol=1e-12,
            atol=1e-300,
        )
        slope = np.concatenate([w * part[1] for w, part in zip(weights, parts, strict=True)])
        assert_close(np.ravel(head.gradient()[i]), slope, rtol=1e-15, atol=1e-14)


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_absurd_logits_give_finite_factors_in_float32(scale):
    z = np.float32([[scale, -scale, 0.0], [scale, scale, -scale], [-scale, -scale, scale], [0.0, 0.0, 0.0]])
    labels = np.array([1, 0, 2, 0])
    for factor in (losses.softmax_factor, tf.function(losses.softmax_factor, jit_compile=True)):
        Z = factor(tf.nn.softmax(tf.constant(z)))
        assert np.isfinite(Z).all()
        expected = np.stack([reference.categorical(row, np.eye(3)[k])[2] for row, k in zip(z, labels, strict=True)])
        assert_close(outer(Z), expected, atol=4 * EPS["float32"])
    head = observed_head(keras.losses.SparseCategoricalCrossentropy(), "softmax", z, labels, np.ones(4))
    g = [head.gradient()]
    beta_squared = losses.matched_coefficient([head], g)
    assert np.isfinite(beta_squared).all()


def test_products_of_a_confident_sample_keep_their_digits_in_float32():
    z = np.float32([[17.0, 0.0, 1.0, -1.0]])  # 1 - max p = 2e-7: without the shift no digit would be right
    v = np.float32([[-0.3, 0.5, 0.1, -0.2]])
    expected = reference.categorical(z[0], np.eye(4)[0])[2] @ v[0].astype(np.float64)
    got = losses.softmax_hessian_times(tf.nn.softmax(tf.constant(z)), tf.constant(v))[0]
    assert_close(got, expected, rtol=40 * EPS["float32"])


def test_half_precision_is_computed_in_float32():
    z = tf.cast([[1.0, 2.0, 0.5]], tf.bfloat16)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    observation = losses.Observation(loss, tf.constant([1.0]), z, None)
    head = losses.terminal_head(losses.recognise(loss), observation, z, tf.constant([1.0]))
    assert head.factor().dtype == tf.float32
    g = [tf.cast(head.gradient(), tf.bfloat16)]
    assert losses.matched_coefficient([head], g).dtype == tf.float32


@pytest.mark.parametrize("name", ["categorical", "binary", "huber"])
@pytest.mark.parametrize("rank", [1, 2, 5, 6])
def test_top_factor_is_the_nearest_matrix_of_its_rank(name, rank, rng):
    make, activation, label = CLOSED[name]
    z, labels = rng.normal(size=[3, 2, 3]), rng.integers(3, size=[3, 2])
    f = rng.uniform(0.1, 2.0, size=[3, 2])
    head = observed_head(make(dtype="float64"), activation, z, label(labels, z), f)
    Z = head.top_factor(rank).numpy()
    assert Z.shape == (3, 6, rank)
    for part, full in zip(Z, dense(head, z), strict=True):
        assert_close(outer(part), reference.best_approximation(full, rank), atol=1e-12)
        lengths = np.sum(part**2, axis=0)
        assert (np.diff(lengths) <= 1e-14).all()


@pytest.mark.parametrize("rank", [0, 4, 1.0, True])
def test_a_rank_beyond_the_output_is_refused(rank, rng):
    head = observed_head(
        keras.losses.MeanSquaredError(), None, np.float32(rng.normal(size=[2, 3])), np.zeros([2, 3]), [1, 1]
    )
    with pytest.raises(ValueError, match=r"`rank` must be an integer from 1 to 3.*Received: rank="):
        head.top_factor(rank)
    with pytest.raises(ValueError, match="`rank` must"):
        losses.hessian_factor([head], rank)
    with pytest.raises(ValueError, match="`rank` must"):
        losses.top_factor(tf.eye(3), rank)


def test_a_negative_weight_bends_products_but_never_factors(rng):
    z = rng.normal(size=[1, 3])
    for make, activation, label in (CLOSED["categorical"], CLOSED["square"]):
        head = observed_head(make(dtype="float64"), activation, z, label(np.array([1]), z), [-1.0])
        assert np.trace(dense(head, z)[0]) < 0
        assert not head.factor().numpy().any()
        assert not head.top_factor(2).numpy().any()
