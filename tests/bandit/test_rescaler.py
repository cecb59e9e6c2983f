"""Rewards of any size on the scale of the last ones."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf import bandit
from tests.helpers import assert_close

raw_rewards = st.lists(st.integers(-1000, 1000).map(lambda x: x / 8), min_size=1, max_size=12)
rescalers = st.sampled_from(
    [
        bandit.Rescaler(1),
        bandit.Rescaler(2, 0.1, 1.0),
        bandit.Rescaler(3, 0.0, 1.0),
        bandit.Rescaler(5, 0.3, 0.9),
        bandit.Rescaler(6, 0.0, 0.6),
        bandit.Rescaler(),
    ]
)


@functools.cache
def compiled(rescaler, jit=False):
    return tf.function(rescaler.update, jit_compile=jit)


def run(rescaler, raw, dtype="float64"):
    state, rewards = rescaler.init(dtype), []
    for x in raw:
        state, reward = compiled(rescaler)(state, tf.constant(x, dtype))
        rewards.append(float(reward))
    return np.array(rewards), state


@given(rescalers, raw_rewards)
def test_it_is_the_place_between_two_quantiles_of_the_window(rescaler, raw):
    expected = []
    for k in range(len(raw)):
        window = raw[max(0, k + 1 - rescaler.window) : k + 1]
        low, high = np.quantile(window, [rescaler.lower, rescaler.upper])
        flat = (1 + np.sign(raw[k] - low)) / 2
        expected.append(np.clip((raw[k] - low) / (high - low), 0, 1) if high > low else flat)
    assert_close(run(rescaler, raw)[0], expected, atol=1e-9)


@given(rescalers, raw_rewards, st.integers(-20, 20), st.integers(-100, 100))
def test_units_and_offset_do_not_matter(rescaler, raw, power, offset):
    """Powers of two and integers, so that the raw rewards themselves are transformed without rounding."""
    moved = [2.0**power * (x + offset) for x in raw]
    assert_close(run(rescaler, moved)[0], run(rescaler, raw)[0], atol=1e-9)


@given(rescalers, st.floats(-1e30, 1e30), st.integers(1, 20))
def test_a_constant_is_one_half(rescaler, x, count):
    assert run(rescaler, [x] * count, "float32")[0].tolist() == [0.5] * count


@given(rescalers, st.lists(st.floats(width=32), min_size=1, max_size=15))
def test_every_reward_is_in_the_unit_interval(rescaler, raw):
    """NaN, infinities, the largest floats and denormals included."""
    rewards, state = run(rescaler, raw, "float32")
    assert ((rewards >= 0) & (rewards <= 1)).all()
    assert np.isfinite(state.values.numpy()).all()


@given(rescalers, raw_rewards, st.data())
def test_what_is_not_finite_is_a_reward_of_zero_and_leaves_no_trace(rescaler, raw, data):
    bad = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    place = data.draw(st.integers(0, len(raw)))
    rewards, state = run(rescaler, raw)
    disturbed, after = run(rescaler, [*raw[:place], bad, *raw[place:]])
    assert disturbed[place] == 0
    assert (np.delete(disturbed, place) == rewards).all()
    for a, b in zip(state, after, strict=True):
        assert (a.numpy() == b.numpy()).all()


def test_a_larger_raw_reward_is_never_a_smaller_reward(rng):
    rescaler = bandit.Rescaler(window=20)
    _, state = run(rescaler, rng.normal(size=50))
    rewards = [float(rescaler.update(state, x)[1]) for x in np.linspace(-4, 4, 41)]
    assert (np.diff(rewards) >= 0).all()
    assert rewards[0] == 0
    assert rewards[-1] == 1


def test_a_rare_outlier_does_not_flatten_the_rest(rng):
    raw = rng.normal(size=200)
    clean, _ = run(bandit.Rescaler(), raw)
    raw[100] = -1e6
    disturbed, _ = run(bandit.Rescaler(), raw)
    assert disturbed[100] == 0
    assert np.abs(disturbed - clean)[101:].max() < 0.1


def test_it_follows_a_scale_that_shrinks(rng):
    """Loss decreases of 1, then of 1e-4: after one window the small ones fill the unit interval again."""
    raw = np.concatenate([rng.normal(size=100), 1e-4 * rng.normal(size=100)])
    rewards, _ = run(bandit.Rescaler(window=30), raw)
    assert rewards[140:].std() > 0.25


@pytest.mark.parametrize("jit", [False, True])
def test_compiled_is_eager(jit, rng):
    rescaler = bandit.Rescaler(window=5)
    raw = rng.normal(size=12).astype(np.float32)
    state, other = rescaler.init(), rescaler.init()
    for x in [*raw, np.float32(np.nan), *raw]:
        state, reward = rescaler.update(state, tf.constant(x))
        other, same = compiled(rescaler, jit)(other, tf.constant(x))
        assert_close(same, reward, atol=1e-6)
    for a, b in zip(state, other, strict=True):
        assert (a.numpy() == b.numpy()).all()


def test_serialisation_is_a_round_trip():
    rescaler = bandit.Rescaler(7, 0.2, 0.7)
    config = keras.saving.serialize_keras_object(rescaler)
    assert config["registered_name"] == "bellman_tf.bandit>Rescaler"
    assert keras.saving.deserialize_keras_object(config) == rescaler


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: bandit.Rescaler(0), "`window` must be an integer >= 1. Received: window=0"),
        (lambda: bandit.Rescaler(lower=1.0), "`lower` must be a finite number >= 0 and < 1. Received: lower=1.0"),
        (lambda: bandit.Rescaler(lower=0.9, upper=0.1), "`upper` must be a finite number > 0.9. Received: upper=0.1"),
        (lambda: bandit.Rescaler(upper=1.5), "`upper` must be at most 1. Received: upper=1.5"),
        (lambda: bandit.Rescaler().init("int32"), "`state.dtype` must be one of ('float32', 'float64')"),
    ],
)
def test_bad_options_are_named(make, text):
    with pytest.raises(ValueError) as caught:
        make()
    assert text in str(caught.value)
