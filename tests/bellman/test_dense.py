"""The dense recursion against quadratics written out, whole horizons and Riccati."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from bellman_tf import bellman
from tests.helpers import assert_close
from verification.problems.games import games, random_spd
from verification.references import dense as reference

seeds = st.integers(0, 2**32 - 1)
sizes = st.tuples(*[st.integers(1, 4)] * 3)


def random_stage(rng, n, m, n_next, condition=10.0):
    """Everything a stage can have; the joint cost Hessian is positive definite, the tensors are small."""
    cost = random_spd(rng, n + m, condition)
    half = 0.05 * rng.standard_normal((n_next, n + m, n + m))
    tensor = half + half.transpose(0, 2, 1)
    return {
        "f_x": rng.standard_normal((n_next, n)),
        "f_u": rng.standard_normal((n_next, m)),
        "l_x": rng.standard_normal(n),
        "l_u": rng.standard_normal(m),
        "l_xx": cost[:n, :n],
        "l_ux": cost[n:, :n],
        "l_uu": cost[n:, n:],
        "f_xx": tensor[:, :n, :n],
        "f_ux": tensor[:, n:, :n],
        "f_uu": tensor[:, n:, n:],
    }


def ours(stage):
    """The same stage with our names."""
    names = {"f_x": "jacobian_state", "f_u": "jacobian_control"}
    names |= {f"l_{s}": f"cost_{s}" for s in ("x", "u", "xx", "ux", "uu")}
    names |= {f"f_{s}": f"dynamics_{s}" for s in ("xx", "ux", "uu")}
    return bellman.StageDerivatives(**{names[key]: tf.constant(array) for key, array in stage.items()})


def random_value(rng, n):
    return rng.standard_normal(n), random_spd(rng, n, 10.0)


@given(seeds, sizes, st.integers(0, 6))
def test_expansion_gains_and_both_updates_are_those_of_the_quadratic(seed, shape, log_condition):
    rng = np.random.default_rng(seed)
    n, m, n_next = shape
    stage, (v, W) = random_stage(rng, n, m, n_next), random_value(rng, n_next)
    W = W + 10 * np.eye(n_next)  # the tensors can then not make Q_uu indefinite
    gradient, hessian = reference.expand(v, W, **stage)
    derivatives = ours(stage)._asdict()
    derivatives.pop("metric")
    Q = bellman.expand(bellman.Value(tf.constant(v), tf.constant(W)), **derivatives)
    blocks = gradient[:n], gradient[n:], hessian[:n, :n], hessian[n:, :n], hessian[n:, n:]
    for actual, expected, name in zip(Q, blocks, Q._fields, strict=True):
        assert_close(actual, expected, rtol=1e-13, atol=1e-14, label=name)
    metric = random_spd(rng, m, 10.0**log_condition)
    for M in (None, metric):
        if M is None and np.linalg.eigvalsh(hessian[n:, n:])[0] < 0.1:
            continue
        gains = bellman.gains(Q, None if M is None else tf.constant(M))
        k, K = reference.minimise(gradient, hessian, n, M)
        assert_close(gains.open_loop, k, rtol=1e-9)
        assert_close(gains.feedback, K, rtol=1e-9)
        assert gains.skip is None
        for policy, (V_x, V_xx) in (
            (False, reference.schur_value(gradient, hessian, k, K)),
            (True, reference.follow(gradient, hessian, k, K)),
        ):
            value = bellman.value_update(Q, gains, policy=policy)
            assert_close(value.V_x, V_x, rtol=1e-8, atol=1e-8)
            assert_close(value.V_xx, V_xx, rtol=1e-8, atol=1e-8)


@given(seeds, st.integers(1, 5), sizes)
def test_the_recursion_solves_an_lq_problem_as_the_whole_horizon_does(seed, horizon, shape):
    rng = np.random.default_rng(seed)
    n, m, _ = shape
    stages = [random_stage(rng, n, m, n) for _ in range(horizon)]
    linear = [{key: x for key, x in stage.items() if key not in {"f_xx", "f_ux", "f_uu"}} for stage in stages]
    v, W = random_value(rng, n)
    U_0, U_x, V_x, V_xx = reference.whole_horizon(v, W, linear)
    gains, values = bellman.backward_dense(bellman.Value(tf.constant(v), tf.constant(W)), [ours(s) for s in linear])
    assert len(gains) == horizon
    assert len(values) == horizon + 1
    scale = max(1.0, np.abs(V_xx).max())
    assert_close(values[0].V_x, V_x, rtol=1e-9, atol=1e-9 * scale)
    assert_close(values[0].V_xx, V_xx, rtol=1e-9, atol=1e-9 * scale)
    x_0 = rng.standard_normal(n)
    x, controls = x_0, []
    for stage, gain in zip(linear, gains, strict=True):
        controls.append(gain.open_loop.numpy() + gain.feedback.numpy() @ x)
        x = stage["f_x"] @ x + stage["f_u"] @ controls[-1]
    assert_close(np.concatenate(controls), U_0 + U_x @ x_0, rtol=1e-7, atol=1e-8)


@given(seeds, st.integers(1, 30))
def test_constant_lq_problems_follow_the_riccati_equation(seed, horizon):
    rng = np.random.default_rng(seed)
    A, B = rng.standard_normal((3, 3)) / 2, rng.standard_normal((3, 2))
    Q, R, P = random_spd(rng, 3, 10.0), random_spd(rng, 2, 10.0), random_spd(rng, 3, 10.0)
    stage = bellman.StageDerivatives(*map(tf.constant, (A, B)), cost_xx=tf.constant(Q), cost_uu=tf.constant(R))
    terminal = bellman.Value(tf.zeros([3], tf.float64), tf.constant(P))
    _, values = bellman.backward_dense(terminal, [stage] * horizon)
    assert_close(values[0].V_xx, reference.riccati(A, B, Q, R, P, horizon), rtol=1e-10)
    assert_close(values[0].V_x, np.zeros(3))


@given(seeds, sizes, st.integers(-3, 3))
def test_the_joseph_form_stays_semidefinite_and_is_the_schur_form_for_the_minimiser(seed, shape, log_scale):
    """claims OURS-5: for any metric 0 <= V_xx; V_xx <= Q_xx if M >= Q_uu / 2."""
    rng = np.random.default_rng(seed)
    n, m, _ = shape
    H = random_spd(rng, n + m, 100.0)
    Q = bellman.Expansion(
        *map(tf.constant, (*np.split(rng.standard_normal(n + m), [n]), H[:n, :n], H[n:, :n], H[n:, n:]))
    )
    M = random_spd(rng, m, 10.0) * 10.0**log_scale
    gains = bellman.gains(Q, tf.constant(M))
    V_xx = bellman.value_update(Q, gains, policy=True).V_xx.numpy()
    inverse = np.linalg.inv(M)
    closed = H[:n, :n] - H[:n, n:] @ (2 * inverse - inverse @ H[n:, n:] @ inverse) @ H[n:, :n]
    scale = 1 + np.abs(V_xx).max()
    assert_close(V_xx, closed, rtol=1e-9, atol=1e-9 * scale)
    assert np.linalg.eigvalsh(V_xx)[0] >= -1e-12 * scale
    if np.linalg.eigvalsh(2 * M - H[n:, n:])[0] >= 0:
        assert np.linalg.eigvalsh(H[:n, :n] - V_xx)[0] >= -1e-10
    exact = bellman.gains(Q)
    for schur, joseph in zip(*(bellman.value_update(Q, exact, policy=p) for p in (False, True)), strict=True):
        assert_close(schur, joseph, rtol=1e-9, atol=1e-10)


@given(games())
def test_a_batch_is_one_system_with_stacked_states(game):
    """DDP1 Eqs. 18, 29-34: augmented Jacobians, and the 1 / B of the mean loss at the end."""
    terminal = bellman.augment_value(tf.constant(game.gradient), tf.constant(game.hessian))
    stages = []
    for stage in game.stages:
        F_X, F_u = bellman.augment_batch(tf.constant(stage.f_x), tf.constant(stage.f_u))
        for actual, expected in zip((F_X, F_u), reference.stack(stage.f_x, stage.f_u), strict=True):
            assert_close(actual, expected)
        stages.append(
            bellman.StageDerivatives(F_X, F_u, cost_u=tf.constant(stage.l_u), cost_uu=tf.constant(stage.metric))
        )
    gains, values = bellman.backward_dense(terminal, stages)
    steps = reference.backward_batch(game.gradient, game.hessian, game.dense_stages())
    for gain, value, (k, K, v, W, _) in zip(gains, values, steps, strict=False):
        for actual, expected in ((gain.open_loop, k), (gain.feedback, K), (value.V_x, v), (value.V_xx, W)):
            assert_close(actual, expected, rtol=1e-8, atol=1e-9)


def test_the_corrected_eq_37_of_ddp1():
    """B = 2, scalars, all Q equal to 1: V_XX = 1/2 [[1/2, -1/2], [-1/2, 1/2]], not [[0, -1], [-1, 0]] / 2."""
    one = tf.ones([2, 1, 1], tf.float64)
    F_X, F_u = bellman.augment_batch(one, one)
    terminal = bellman.augment_value(one[..., 0], one)
    stage = bellman.StageDerivatives(F_X, F_u, cost_uu=tf.zeros([1, 1], tf.float64))  # Q_uu = mean f_u' f_u = 1
    assert_close(bellman.backward_dense(terminal, [stage])[1][0].V_xx, [[0.25, -0.25], [-0.25, 0.25]])


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_compiled_and_eager_agree_with_batch_axes(rng, dtype):
    arrays = [ours(random_stage(rng, 3, 2, 3)) for _ in range(2)]
    stage = bellman.StageDerivatives(
        *[None if x is None else tf.cast(tf.stack([x, y]), dtype) for x, y in zip(*arrays, strict=True)]
    )
    terminal = bellman.Value(tf.ones([2, 3], dtype), 5 * tf.eye(3, batch_shape=[2], dtype=dtype))

    def step(terminal, policy):
        return bellman.backward_dense(terminal, [stage, stage], policy=policy)

    for policy in (False, True):
        eager = tf.nest.flatten(step(terminal, policy))
        for jit in (None, True):
            compiled = tf.function(lambda value, policy=policy: step(value, policy), jit_compile=jit)
            for x, y in zip(tf.nest.flatten(compiled(terminal)), eager, strict=True):
                assert x is y is None or x.dtype == dtype
                if x is not None:
                    assert_close(x, y, rtol=1e-4 if dtype == tf.float32 else 1e-12)
    for b in range(2):
        one = bellman.StageDerivatives(*[None if x is None else x[b] for x in stage])
        alone = bellman.backward_dense(bellman.Value(terminal.V_x[b], terminal.V_xx[b]), [one, one])
        together = step(terminal, False)
        assert_close(alone[1][0].V_xx, together[1][0].V_xx[b], rtol=1e-4 if dtype == tf.float32 else 1e-12)


def test_wrong_arguments_are_refused_in_the_house_form():
    value = bellman.Value(tf.ones([2]), tf.eye(2))
    rule = r"must end in \[n_next, n\] with n_next the size of `value.V_x`. Received: jacobian"
    with pytest.raises(ValueError, match=f"`jacobian_state.shape` {rule}"):
        bellman.expand(value, tf.eye(3), tf.eye(2))
    with pytest.raises(ValueError, match=f"`jacobian_control.shape` {rule}"):
        bellman.expand(value, tf.eye(2), tf.ones([2]))
    with pytest.raises(ValueError, match=r"`stages` must hold at least one stage"):
        bellman.backward_dense(value, [])
    with pytest.raises(ValueError, match=r"`policy` must be True or False. Received: policy=1"):
        Q = bellman.expand(value, tf.eye(2), tf.eye(2))
        bellman.value_update(Q, bellman.gains(Q), policy=1)
    with pytest.raises(ValueError, match=r"`jacobian_control.shape` must end in the axes \[B, n_next, size\]"):
        bellman.augment_batch(tf.ones([1, 2, 2]), tf.ones([2, 2]))
