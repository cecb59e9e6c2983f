"""Identity shortcuts against the joint state as one big state, and Prop. 2."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf import bellman
from tests.helpers import assert_close
from verification.problems.games import random_spd
from verification.references import residual as reference


def random_block(rng, inside, n):
    """(f_x, f_u, l_u, l_uu) of each stage of a block from R^n to R^n, and the value behind it."""
    sizes = [n, *rng.integers(1, 4, size=inside), n]
    stages = []
    for here, there in itertools.pairwise(sizes):
        m = int(rng.integers(1, 4))
        shapes = (there, here), (there, m), (m,)
        stages.append((*map(rng.standard_normal, shapes), random_spd(rng, m, 10.0)))
    return stages, rng.standard_normal(n), random_spd(rng, n, 10.0)


def run(stages, v, W):
    """Per stage (gains, joint value before the stage), first stage first."""
    joint, steps = bellman.enter_block(bellman.Value(tf.constant(v), tf.constant(W))), []
    for f_x, f_u, l_u, l_uu in reversed(stages):
        f_x, f_u, l_u, l_uu = map(tf.constant, (f_x, f_u, l_u, l_uu))
        gains, joint = bellman.backward_block(joint, f_x, f_u, cost_u=l_u, cost_uu=l_uu)
        steps.insert(0, (gains, joint))
    return steps


blocks = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 4), st.integers(1, 3))


@given(blocks)
def test_gains_and_value_are_those_of_the_stacked_state(block):
    """GTDDP Eqs. 9, 10, 27-30, 34."""
    seed, inside, n = block
    problem = random_block(np.random.default_rng(seed), inside, n)
    expected = reference.joint_block(problem[1], problem[2], problem[0])
    for t, ((gains, joint), (k, K, v, W)) in enumerate(zip(run(*problem), expected, strict=True)):
        scale = max(1.0, np.abs(W).max())
        assert_close(gains.open_loop, k, rtol=1e-9, atol=1e-9, label=f"k at {t}")
        assert_close(np.hstack([gains.feedback, gains.skip]), K, rtol=1e-9, atol=1e-9, label=f"[K Gamma] at {t}")
        assert_close(np.concatenate([joint.V_x, joint.V_r]), v, rtol=1e-9, atol=1e-9 * scale, label=f"V_x at {t}")
        blocks = np.block([[joint.V_xx.numpy(), joint.V_xr.numpy()], [joint.V_xr.numpy().T, joint.V_rr.numpy()]])
        assert_close(blocks, W, rtol=1e-9, atol=1e-9 * scale, label=f"V_xx at {t}")


@given(blocks)
def test_the_value_before_the_block_is_that_of_proposition_2(block):
    seed, inside, n = block
    stages, v, W = random_block(np.random.default_rng(seed), inside, n)
    value = bellman.leave_block(run(stages, v, W)[0][1])
    V_x, V_xx = reference.proposition_2(v, W, stages)
    scale = max(1.0, np.abs(V_xx).max())
    assert_close(value.V_x, V_x, rtol=1e-10, atol=1e-10 * scale)
    assert_close(value.V_xx, V_xx, rtol=1e-10, atol=1e-10 * scale)


@given(blocks)
def test_where_the_shortcut_opens_the_feedback_is_feedback_plus_skip(block):
    """GTDDP Eq. 31: expanding at x_r = x first, with the stage [f_x; I], gives k, K + Gamma and the same value."""
    seed, inside, n = block
    stages, v, W = random_block(np.random.default_rng(seed), inside + 1, n)
    steps = run(stages, v, W)
    (gains, before), (_, behind) = steps[0], steps[1]
    f_x, f_u, l_u, l_uu = stages[0]
    V_joint = tf.concat([behind.V_x, behind.V_r], axis=0)
    W_joint = np.block([[behind.V_xx.numpy(), behind.V_xr.numpy()], [behind.V_xr.numpy().T, behind.V_rr.numpy()]])
    Q = bellman.expand(
        bellman.Value(V_joint, tf.constant(W_joint)),
        tf.constant(np.vstack([f_x, np.eye(n)])),
        tf.constant(np.vstack([f_u, np.zeros((n, f_u.shape[1]))])),
        cost_u=tf.constant(l_u),
        cost_uu=tf.constant(l_uu),
    )
    opened = bellman.gains(Q)
    assert_close(gains.open_loop, opened.open_loop, rtol=1e-9, atol=1e-9)
    assert_close(gains.feedback + gains.skip, opened.feedback, rtol=1e-9, atol=1e-9)
    left, direct = bellman.leave_block(before), bellman.value_update(Q, opened)
    scale = max(1.0, np.abs(direct.V_xx).max())
    assert_close(left.V_x, direct.V_x, rtol=1e-9, atol=1e-9 * scale)
    assert_close(left.V_xx, direct.V_xx, rtol=1e-9, atol=1e-9 * scale)


def test_a_metric_stands_in_place_of_Q_uu(rng):
    stages, v, W = random_block(rng, 0, 2)
    f_x, f_u, l_u, _ = stages[0]
    metric = random_spd(rng, f_u.shape[1], 10.0)
    joint = bellman.enter_block(bellman.Value(tf.constant(v), tf.constant(W)))
    gains, before = bellman.backward_block(joint, f_x, f_u, cost_u=l_u, metric=metric)
    assert_close(gains.skip, -np.linalg.solve(metric, f_u.T @ W), rtol=1e-12)
    assert_close(before.V_rr, W - W @ f_u @ np.linalg.solve(metric, f_u.T @ W), rtol=1e-12, atol=1e-13)
    assert_close(gains.open_loop, -np.linalg.solve(metric, l_u + f_u.T @ v), rtol=1e-12)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_compiled_and_eager_agree_with_batch_axes(rng, dtype):
    f_x, f_u = (tf.constant(rng.standard_normal((2, 3, size)), dtype) for size in (3, 2))
    value = bellman.Value(tf.ones([2, 3], dtype), 2 * tf.eye(3, batch_shape=[2], dtype=dtype))

    def step(f_x, f_u):
        gains, joint = bellman.backward_block(bellman.enter_block(value), f_x, f_u, cost_uu=tf.eye(2, dtype=dtype))
        return *gains, *bellman.leave_block(joint)

    for jit in (None, True):
        for x, y in zip(tf.function(step, jit_compile=jit)(f_x, f_u), step(f_x, f_u), strict=True):
            assert x.dtype == dtype
            assert_close(x, y, rtol=1e-4 if dtype == tf.float32 else 1e-12)


def test_a_jacobian_that_does_not_fit_is_refused():
    joint = bellman.enter_block(bellman.Value(tf.ones([2]), tf.eye(2)))
    with pytest.raises(ValueError, match=r"`jacobian_control.shape` must end in"):
        bellman.backward_block(joint, tf.eye(2), tf.ones([3, 1]))
