"""The sample-space recursion: groups and padding, dtypes, XLA, threads, extreme numbers, wrong arguments."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf import bellman
from bellman_tf.bellman import groups, sample_space
from tests.helpers import assert_close


@given(st.integers(1, 7), st.integers(1, 9), st.integers(1, 3))
def test_groups_come_back_and_pad_with_zeros(batch_size, group_size, columns):
    x = np.arange(1.0, batch_size * columns + 1).reshape(batch_size, columns)
    x = x[:, 0] if columns == 1 else x
    grouped_x = groups.to_groups(x, group_size)
    assert grouped_x.shape == (-(-batch_size // group_size), group_size * columns)
    assert_close(groups.from_groups(grouped_x, batch_size, columns), x)
    assert np.count_nonzero(grouped_x) == x.size


@pytest.mark.parametrize("group_size", [None, 1, 2, 3])
def test_padding_is_inert_and_the_rest_is_the_terminal_value(group_size):
    for value, m in (
        (sample_space.init(5, beta_squared=tf.constant([4.0, 1.0, 0.0, 9.0, 1.0]), group_size=group_size), 1),
        (sample_space.init(5, rank=2, group_size=group_size), 3),
    ):
        a = groups.from_groups(value.a, 5, m).numpy().reshape(5, m)
        S = np.asarray(value.L) @ np.asarray(value.L).swapaxes(1, 2)
        diagonal = groups.from_groups(tf.linalg.diag_part(S), 5, m).numpy().reshape(5, m)
        assert_close(a, np.tile(np.eye(m)[0] / 5, (5, 1)), rtol=1e-6)
        assert_close(
            diagonal, np.array([[4.0], [1], [0], [9], [1]]) / 5 if m == 1 else np.tile([0, 0.2, 0.2], (5, 1)), rtol=1e-6
        )
        assert_close(np.sum(np.abs(S)), np.sum(diagonal), rtol=1e-6)  # nothing off the diagonal, nothing in the padding
        assert_close(np.sum(value.a), 1.0, rtol=1e-6)


@pytest.mark.parametrize("group_size", [None, 1, 2])
@pytest.mark.parametrize("rank", [0, 2])
def test_a_batch_of_unknown_size_gives_the_same_values(group_size, rank, rng):
    beta = tf.constant(rng.uniform(size=5))

    def make(n, beta):
        beta = None if rank else beta
        return sample_space.init(n, beta_squared=beta, rank=rank, group_size=group_size, dtype=tf.float64)

    size = (group_size or 5) * (1 + rank)
    Qc = rng.standard_normal((2, -(-5 // (group_size or 5)), 4, size))
    grams = tf.constant(Qc.swapaxes(-1, -2) @ Qc)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float64), tf.TensorSpec([2, None, None, None], tf.float64)])
    def unknown(beta, grams):
        value = sample_space.backward_all(make(tf.shape(beta)[0], beta), grams)
        columns = groups.to_groups(tf.ones([tf.shape(beta)[0], 3], tf.float64), group_size)
        return value, columns, groups.from_groups(value.a[0], tf.shape(beta)[0], 1 + rank)

    value, columns, a = unknown(beta, grams)
    expected = sample_space.backward_all(make(5, beta), grams)
    assert_close(value.a, expected.a, rtol=1e-13)
    assert_close(value.L, expected.L, rtol=1e-13)
    assert_close(a, groups.from_groups(expected.a[0], 5, 1 + rank), rtol=1e-13)
    assert_close(tf.reduce_sum(columns), 15.0)


# Number formats


def test_several_threads_do_not_break_the_broadcast_of_one_group_over_the_stages():
    """A product [3, 1, n, n] @ [1, n, k] corrupts memory under oneDNN; the other tests run in one thread."""
    code = (
        "import numpy as np, tensorflow as tf; from bellman_tf import bellman as b; L = b.init(8, rank=1);"
        "G = tf.eye(16, batch_shape=[3, 1]); v = [b.backward_all(L, G) for _ in range(20)];"
        "w = [b.weights(x, tf.ones([1, 16])).numpy() for x in v]; assert all((x == w[0]).all() for x in w);"
        "assert np.allclose(w[0][:, 0, 1], [1 / 11, 1 / 10, 1 / 9])"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


def fixed_case(rng, rank, group_size, batch_size, dtype):
    size, m = group_size or batch_size, 1 + rank
    value = (
        sample_space.init(batch_size, rank=rank, group_size=group_size, dtype=dtype)
        if rank
        else sample_space.init(batch_size, beta_squared=tf.ones([batch_size], dtype), group_size=group_size)
    )
    Qc = rng.standard_normal((3, -(-batch_size // size), 6, size * m))
    return (
        value,
        tf.constant(Qc.swapaxes(-1, -2) @ Qc, dtype),
        tf.constant(rng.standard_normal(Qc[:, :, 0].shape), dtype),
    )


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
@pytest.mark.parametrize(("rank", "group_size", "batch_size"), [(0, None, 6), (0, 1, 4), (2, 2, 5)])
def test_compiled_and_eager_agree_in_both_precisions(rng, rank, group_size, batch_size, dtype):
    value, grams, linear = fixed_case(rng, rank, group_size, batch_size, dtype)

    def step(value, grams, linear):
        values = sample_space.backward_all(value, grams, linear, diagonal=rank == 0)
        one = sample_space.backward(value, grams[-1], linear[-1])
        return (
            values,
            one,
            sample_space.weights(values, values.a),
            sample_space.predicted_reduction(value, one, grams, linear),
        )

    eager = tf.nest.flatten(step(value, grams, linear))
    for compiled in (tf.function(step), tf.function(step, jit_compile=True)):
        for x, y in zip(tf.nest.flatten(compiled(value, grams, linear)), eager, strict=True):
            assert x.dtype == dtype
            assert_close(x, y, rtol=2e-5 if dtype == tf.float32 else 1e-13)
    double = fixed_case(np.random.default_rng(0), rank, group_size, batch_size, tf.float64)
    for x, y in zip(eager, tf.nest.flatten(step(*double)), strict=True):
        assert_close(x, y, rtol=2e-5 if dtype == tf.float32 else 1e-13)


@pytest.mark.parametrize(("rank", "group_size"), [(0, None), (0, 1), (3, None), (1, 4)])
@pytest.mark.parametrize("scale", [1e12, 1e6, 1.0, 1e-12, 0.0])
def test_huge_tiny_and_rank_deficient_grams_stay_finite_in_float32(rng, rank, group_size, scale):
    B, m = 8, 1 + rank
    size = group_size or B
    Qc = np.float32(rng.standard_normal((4, B // size, 2, size * m)) * np.sqrt(scale))  # rank 2: singular
    grams = tf.constant(Qc.swapaxes(-1, -2) @ Qc)
    linear = tf.constant(Qc[:, :, 0])
    value = sample_space.init(B, rank=rank, group_size=group_size, beta_squared=None if rank else tf.ones([B]))

    def at_once():
        return sample_space.backward_all(value, grams, linear, diagonal=rank == 0)

    results = [at_once(), value]
    for t in reversed(range(4)):
        results.append(sample_space.backward(results[-1], grams[t], linear[t]))
    if scale > 1e11 and rank != 1:
        results.append(tf.function(at_once, jit_compile=True)())
    for x in tf.nest.flatten(results):
        assert np.isfinite(x).all()


# Errors


def test_wrong_arguments_are_refused_in_the_house_form():
    value = sample_space.init(3, beta_squared=tf.ones([3]))
    cases = [
        (
            r"`gram.shape` must end in \[n, n\] with n the rows of `value.L`. Received",
            "backward",
            value,
            tf.ones([2, 2]),
        ),
        (r"`grams` must be a matrix or a batch of matrices", "backward_all", value, tf.ones([3])),
        (r"`gram.dtype` must be that of the value, float32", "backward", value, tf.ones([3, 3], tf.float64)),
        (r"`columns` must have the axes \[B\] or \[B, m\]", "to_groups", tf.ones([2, 2, 2])),
        (r"`group_size` must be an integer >= 1. Received: group_size=0", "to_groups", tf.ones([2]), 0),
        (r"`x` must have the axes", "from_groups", tf.ones([2]), 2),
        (r"`columns` must be an integer >= 1", "from_groups", tf.ones([2, 1]), 2, 0),
        (r"`beta_squared` must be given exactly when `rank` is 0. Received: beta_squared=None", "init", 3),
    ]
    for message, name, *arguments in cases:
        with pytest.raises(ValueError, match=message):
            getattr(bellman, name)(*arguments)
    cases = [
        (r"`beta_squared` must be given exactly", {"rank": 1, "beta_squared": tf.ones([3])}),
        (r"`beta_squared.dtype` must be one of", {"beta_squared": tf.ones([3], tf.float16)}),
        (r"`rank` must be an integer >= 0", {"rank": -1}),
        (r"`group_size` must be an integer >= 1", {"rank": 1, "group_size": 0}),
    ]
    for message, options in cases:
        with pytest.raises(ValueError, match=message):
            sample_space.init(3, **options)
    with pytest.raises(ValueError, match=r"`value.L` must be square when `diagonal=True`"):
        sample_space.backward(sample_space.init(2, rank=1), tf.ones([4, 4]), diagonal=True)
