"""What replicas say of their common step, against the games of both replicas solved in NumPy."""

import keras
import numpy as np
from keras import layers

import bellman_tf as btf
from tests.helpers import assert_close
from tests.replicas.training import assert_mirrored, compiled, fit
from tests.strategies.networks import normal

RATE, SAMPLES, COUNT = 0.2, 8, 2


def linear():
    return btf.Sequential([keras.Input((3,)), layers.Dense(1, use_bias=False)])


def games(x, y, theta):
    """q `[d, B]`, a, beta^2 / B of J = mean (x'theta - y)^2."""
    error = x @ theta - y
    q = (2 * error * x.T).astype(np.float64)
    return q, np.full(len(x), 1 / len(x)), 2 / (2 * error) ** 2 / len(x)


def step(q, a, s):
    """-du of the game of some samples."""
    gram = RATE * q.T @ q
    return RATE * q @ np.linalg.solve(np.eye(len(a)) + s[:, None] * gram, a)


def test_step_control_leaves_every_sample_out_of_its_own_replica():
    x, y = normal(SAMPLES, 3), normal(SAMPLES, seed=4)
    control = btf.LevenbergMarquardt(every=1)
    make = lambda: btf.GTDDP(RATE, curvature="identity", step_control=control)
    model, _ = compiled(COUNT, make, linear, loss="mse", run_eagerly=True)
    theta = model.get_weights()[0][:, 0]
    q, a, s = games(x, y, theta)
    halves = np.split(np.arange(SAMPLES), COUNT)
    steps = [step(q[:, half], a[half], s[half]) for half in halves]
    apart = np.empty(SAMPLES)
    for r, half in enumerate(halves):
        for i in half:
            others = half[half != i]
            apart[i] = q[:, i] @ (step(q[:, others], a[others], s[others]) + steps[1 - r])
    moved = q.T @ sum(steps)
    monitor = btf.callbacks.GameMonitor()
    history = fit(model, x, y, SAMPLES, 1, callbacks=[monitor])
    state = model.optimizer.control_state.numpy()
    change = 1 / state[0]
    expected = [np.sum(a * apart) * change, np.sum(a * moved) * change, np.sum(s * apart**2) * change**2]
    assert_close(state[1:4], expected, rtol=1e-4)
    new = theta - sum(steps)
    assert_close(model.get_weights()[0][:, 0], new, atol=1e-5)
    actual = np.mean((x @ theta - y) ** 2) - np.mean((x @ new - y) ** 2)
    assert_close(history["actual_reduction"], [actual], rtol=1e-4)
    assert_close(history["predicted_reduction"], [actual - np.sum(sum(steps) ** 2) / (2 * RATE)], rtol=1e-4)
    assert_mirrored(model)


def test_a_monitor_sees_the_decrease_that_momentum_makes():
    x, y = normal(2 * SAMPLES, 3), normal(2 * SAMPLES, seed=4)
    make = lambda: btf.GTDDP(RATE, curvature="identity", momentum=0.9)
    model, _ = compiled(COUNT, make, linear, loss="mse", run_eagerly=True)
    history = fit(model, x, y, SAMPLES, 2, callbacks=[btf.callbacks.GameMonitor()])
    assert_close(history["reduction_ratio"], np.ones(2), rtol=1e-3)  # the loss is quadratic, and the net linear
    assert np.isfinite(history["leverage"]).all()
