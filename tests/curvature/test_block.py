"""Updating many players at once against updating each alone."""

import numpy as np
import pytest
import tensorflow as tf

from bellman_tf.curvature import config as options
from bellman_tf.curvature.cached import PlayerUpdate, update_all
from bellman_tf.curvature.registry import make_block, player_layout
from bellman_tf.curvature.step_scalars import StepScalars
from bellman_tf.layers.registry import coverage
from tests.curvature.players import initial_state, step
from tests.helpers import assert_close, slow_row
from tests.layers.cases import CASES, draw, flat

# Stacks of several matrices, of one, and of none; two periods; with and without a bias apart.
TEAM = [
    ("dense", options.KFAC(damping=0.1, invert_every=2)),
    ("conv 2d", options.KFAC(damping=0.2, invert_every=2)),
    ("dense", options.EKFAC(damping=0.1, invert_every=3)),
    ("dense", options.KFAC(damping=0.3, invert_every=2, update_every=2)),
    ("dense without bias", options.KFAC(damping=0.1, invert_every=3)),
    ("dense", options.RMSprop()),
    ("conv 2d", options.EKFAC(damping=0.1, invert_every=3)),
    ("dense", options.Full(damping=0.1, invert_every=2)),
    ("conv 1d groups", options.KFAC(damping=0.1, invert_every=2)),
]


@pytest.mark.parametrize("jit", [False, slow_row(True)])
def test_together_is_as_alone(jit, rng):
    samples = [draw(CASES[name], rng, batch=5, columns=1) for name, _ in TEAM]
    blocks = [
        make_block(config, player_layout(name, sample.shapes, coverage(sample.layer)))
        for (name, config), sample in zip(TEAM, samples, strict=True)
    ]
    shapes = [sample.shapes for sample in samples]

    def seen(states, scale):
        captures = [sample.capture.scaled(scale) for sample in samples]
        gradients = [capture.gradient(capture.mean_weights()) for capture in captures]
        return [PlayerUpdate(*args) for args in zip(blocks, states, captures, gradients, strict=True)]

    @tf.function(jit_compile=jit, autograph=False)
    def together(states, iteration, scale):
        return results(update_all(seen(states, scale), StepScalars(iteration, step(0).learning_rate)))

    def results(updated):
        units = [[tf.ones(shape, tf.float64) for shape in own] for own in shapes]
        solved = [metric.solve(unit) for (_, metric), unit in zip(updated, units, strict=True)]
        return [state for state, _ in updated], solved

    states = [initial_state(block) for block in blocks]
    for t in range(4):
        scale = tf.constant(rng.uniform(0.5, 2.0, 5))
        now = step(t)
        alone = results([s.block.update(s.state, s.capture, s.gradient, now) for s in seen(states, scale)])
        found = together(states, now.iteration, scale)
        for k, (name, config) in enumerate(TEAM):
            label = f"step {t}, {name}, {type(config).__name__}"
            assert_close(flat(found[1][k], 0), flat(alone[1][k], 0), rtol=1e-8, label=label)
            for entry, expected in zip(found[0][k], alone[0][k], strict=True):
                if not isinstance(config, options.EKFAC):  # whose eigenvectors have free signs
                    np.testing.assert_allclose(entry, expected, rtol=1e-8, atol=1e-12, err_msg=label)
        states = alone[0]
