"""A layer's capture with its metric in every curvature, and the Gram matrix that it must have."""

import functools

import numpy as np
import tensorflow as tf

from bellman_tf.curvature import config as options
from bellman_tf.curvature.gram import gram
from bellman_tf.curvature.gram.plan import LIMITS, plan
from bellman_tf.curvature.registry import make_block, player_layout
from bellman_tf.layers.registry import coverage
from tests.curvature.players import initial_state, step
from tests.helpers import assert_close
from tests.layers.cases import CASES, automatic, draw, flat
from verification.references import gram as reference

BATCH = 5
CONFIGS = {
    "identity": options.Identity(),
    "rmsprop": options.RMSprop(),
    "kfac": options.KFAC(damping=0.1),
    "kfac patches": options.KFAC(damping=0.1, convolution="patches"),
    "ekfac": options.EKFAC(damping=0.1),
    "ekfac patches": options.EKFAC(damping=0.1, convolution="patches"),
    "full": options.Full(damping=0.1),
}


class Player:
    """A capture with its metric, and the dense metric read off `solve`, which `test_metrics` has proved."""

    def __init__(self, config, name, rng, columns=1, batch=BATCH, mixtures=0):
        self.sample = draw(CASES[name], rng, batch=batch, columns=columns)
        self.shapes = self.sample.shapes
        self.capture = self.sample.capture
        block = make_block(CONFIGS[config], player_layout(name, self.shapes, coverage(self.sample.layer)))
        if mixtures:
            block.mixtures = mixtures
        gradient = self.capture.gradient(self.capture.mean_weights())
        self.state, self.metric = block.update(initial_state(block), self.capture, gradient, step(0))

    def plan(self, form, group_size=None, limits=LIMITS):
        return plan(self.capture.extent, self.metric.kind, form, group_size, limits)

    @functools.cached_property
    def dense(self):
        """M, from the solve of every unit vector."""
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        units = np.split(np.eye(sum(sizes)), np.cumsum(sizes)[:-1], axis=1)
        parts = [tf.constant(u.reshape(-1, *shape)) for u, shape in zip(units, self.shapes, strict=True)]
        return np.linalg.inv(flat(self.metric.solve(parts)))

    @functools.cached_property
    def gradients(self):
        return flat(automatic(self.sample), 2)

    def expected(self, group_size):
        return reference.gram(self.gradients, self.dense, group_size)

    def assert_gram(self, form, chosen, group_size, rtol=1e-9):
        assert self.plan(form, group_size).form == chosen
        actual = gram(self.capture, self.metric, group_size, form)
        assert_close(actual, self.expected(group_size), rtol=rtol, label=f"{form}, groups of {group_size}")
