"""One layer with a curvature block that has seen a few batches, and checks of its metric."""

import numpy as np
import tensorflow as tf

from bellman_tf.curvature.registry import make_block, player_layout
from bellman_tf.curvature.step_scalars import StepScalars
from bellman_tf.layers.registry import coverage
from tests.helpers import assert_close
from tests.layers.cases import CASES, draw, flat

RATE = 0.3
DAMPING = 0.05


def initial_state(block, dtype=tf.float64):
    """The state an optimizer would start from."""
    make = {"zeros": np.zeros, "ones": np.ones, "identity": lambda shape: np.eye(*shape)}
    return [tf.constant(make[spec.initial](spec.shape), dtype) for spec in block.state_specs()]


def step(t, dtype=tf.float64):
    """Scalars of step t."""
    return StepScalars(tf.constant(t, tf.int64), tf.constant(RATE, dtype))


class Player:
    """One layer with a block that has seen a few batches."""

    def __init__(self, config, name, rng, steps=1, batch=4):
        self.samples = [draw(CASES[name], rng, batch=batch)]
        layer = self.samples[0].layer
        for _ in range(steps - 1):
            fresh = draw(CASES[name], rng, batch=batch)
            self.samples.append(fresh._replace(layer=layer))
        self.layer, self.shapes = layer, self.samples[0].shapes
        self.block = make_block(config, player_layout(name, self.shapes, coverage(layer)))
        self.state = initial_state(self.block)
        for t, sample in enumerate(self.samples):
            capture = sample.capture
            self.state, self.metric = self.block.update(
                self.state, capture, capture.gradient(capture.mean_weights()), step(t)
            )

    def assert_solves(self, M, rng, rtol=1e-10):
        """`solve`, with one vector, leading axes, and one tap or the bias alone, against the dense metric."""
        parts = [rng.normal(size=(2, 3, *shape)) for shape in self.shapes]
        solved = self.metric.solve([tf.constant(part) for part in parts])
        expected = np.linalg.solve(M, flat(parts, 2).reshape(6, -1).T).T.reshape(2, 3, -1)
        assert_close(flat(solved, 2), expected, rtol=rtol, label="solve with leading axes")
        for part, solution in zip(self.metric.solve([tf.constant(p[1, 2]) for p in parts]), solved, strict=True):
            assert_close(part, solution[1, 2], rtol=rtol, label="solve one by one")
        if self.metric.kind.tapwise and coverage(self.layer).convolution:
            self._assert_solves_taps(M, rng, rtol)

    def _assert_solves_taps(self, M, rng, rtol):
        layout = coverage(self.layer).matrix
        shape = layout.kernel_taps(tf.zeros(layout.kernel_shape)).shape  # [taps, c_in, c_out]
        taps = shape[0]
        for tap in {0, taps // 2, taps - 1}:
            kernel = np.zeros(shape)
            kernel[tap] = rng.normal(size=shape[1:])
            variable = layout.kernel_variable(tf.reshape(tf.constant(kernel), [layout.rows, layout.width]))
            parts = [variable.numpy()] + [np.zeros(shape) for shape in self.shapes[1:]]
            expected = np.linalg.solve(M, flat([p[None] for p in parts])[0])[: kernel.size]
            expected = layout.kernel_taps(tf.reshape(tf.constant(expected), layout.kernel_shape)).numpy()
            assert not np.delete(expected, tap, 0).any() or np.abs(np.delete(expected, tap, 0)).max() < 1e-12
            solved = self.metric.solve_tap(tf.constant(kernel[tap]), tap)
            assert_close(solved, expected[tap], rtol=rtol, label=f"solve_tap {tap}")
        if len(self.shapes) > 1:
            bias = rng.normal(size=(2, *self.shapes[1]))
            zero = np.zeros((2, kernel.size))
            expected = np.linalg.solve(M, np.concatenate([zero, bias], 1).T).T[:, kernel.size :]
            assert_close(self.metric.solve_bias(tf.constant(bias)), expected, rtol=rtol, label="solve_bias")
