"""First-order metrics, the diagonal Fisher matrix and the full one: their formulas over several steps."""

import numpy as np
import pytest
import tensorflow as tf

from bellman_tf.curvature import config as options
from bellman_tf.curvature.fisher_diagonal import DiagonalFisherBlock
from bellman_tf.curvature.registry import player_layout
from bellman_tf.layers.registry import coverage
from tests.curvature.players import DAMPING, RATE, Player, initial_state, step
from tests.helpers import assert_close
from tests.layers.cases import automatic, flat
from verification.references import diagonal


@pytest.mark.parametrize("name", ["dense", "conv 2d", "embedding", "group norm"])
def test_identity_is_the_learning_rate(name, rng):
    player = Player(options.Identity(), name, rng)
    size = sum(int(np.prod(shape)) for shape in player.shapes)
    player.assert_solves(np.eye(size) / RATE, rng)


@pytest.mark.parametrize("name", ["dense", "conv 2d", "embedding", "separable 2d"])
def test_rmsprop_is_its_formula(name, rng):
    player = Player(options.RMSprop(rho=0.8, epsilon=1e-3), name, rng, steps=3)
    gradients = [flat(automatic(sample), 2)[:, 0].mean(axis=0) for sample in player.samples]
    player.assert_solves(np.diag(diagonal.rmsprop(gradients, 0.8, 1e-3, RATE)), rng)


@pytest.mark.parametrize("name", ["dense", "conv 2d", "embedding", "batch norm"])
def test_adam_is_its_formula(name, rng):
    player = Player(options.Adam(beta_1=0.7, beta_2=0.9, epsilon=1e-3), name, rng, steps=3)
    gradients = [flat(automatic(sample), 2)[:, 0].mean(axis=0) for sample in player.samples]
    M = diagonal.adam(gradients, 0.9, 1e-3, RATE)
    player.assert_solves(np.diag(M), rng)


def test_adam_averages_the_direction(rng):
    """Three steps with gradients that are not those of the metric, as feedback makes them."""
    config = options.Adam(beta_1=0.7, beta_2=0.9, epsilon=1e-3)
    player = Player(config, "dense", rng)
    state, directions, count = player.state, [], len(player.shapes)
    for t in range(3):
        capture = player.samples[0].capture
        state, metric = player.block.update(state, capture, capture.gradient(capture.mean_weights()), step(t))
        directions.append([rng.normal(size=shape) for shape in player.shapes])
        moved = metric.step([tf.constant(d) for d in directions[-1]])
        assert sorted(moved.changed) == list(range(count))
        state = [moved.changed.get(k, part) for k, part in enumerate(state)]
    expected = diagonal.adam_direction([flat([d[None] for d in ds])[0] for ds in directions], 0.7)
    assert_close(
        flat([m[None] for m in moved.formed])[0], flat([d[None] for d in metric.inverse])[0] * expected, rtol=1e-12
    )


@pytest.mark.parametrize("config", [options.Identity(), options.RMSprop(epsilon=1e-3), options.KFAC()])
def test_a_step_is_the_metric_solved(config, rng):
    player = Player(config, "dense", rng, steps=2)
    gradient = [tf.constant(rng.normal(size=shape)) for shape in player.shapes]
    for moved, solved in zip(player.metric.step(gradient).formed, player.metric.solve(gradient), strict=True):
        assert_close(moved, solved, rtol=1e-12)


def diagonal_fisher(samples, found):
    """Metric of the diagonal Fisher block after seeing the samples; `found` is what `coverage` said."""
    block = DiagonalFisherBlock(player_layout("p", samples[0].shapes, found), DAMPING, 0.6)
    state = initial_state(block)
    for t, sample in enumerate(samples):
        capture = sample.capture
        state, metric = block.update(state, capture, capture.gradient(capture.mean_weights()), step(t))
    return metric


@pytest.mark.parametrize("name", ["dense", "conv 1d", "depthwise 2d", "layer norm", "einsum batched kernel"])
def test_the_diagonal_is_that_of_the_fisher_matrix(name, rng):
    player = Player(options.Identity(), name, rng, steps=3)
    moments = [diagonal.fisher(flat(automatic(sample), 2)[:, 0]) for sample in player.samples]
    player.metric = diagonal_fisher(player.samples, coverage(player.layer))
    player.assert_solves(np.diag(np.diag(diagonal.running_mean(moments, 0.6)) + DAMPING) / RATE, rng)


def test_the_diagonal_of_an_embedding_takes_repeated_tokens_as_other_samples(rng):
    """Exact where no sample repeats a token; where one does, each occurrence counts for itself."""
    player = Player(options.Identity(), "embedding", rng)
    [sample] = player.samples
    expected = np.zeros(player.shapes[0])
    for i, l in np.ndindex(*sample.inputs.shape):
        expected[sample.inputs[i, l]] += sample.cotangents[0][i, l].numpy() ** 2 / len(sample.inputs)
    player.metric = diagonal_fisher([sample], coverage(player.layer))
    player.assert_solves(np.diag(expected.ravel() + DAMPING) / RATE, rng)

    once = sample._replace(inputs=tf.constant(np.stack([rng.permutation(5) for _ in range(4)])))
    once = once._replace(cotangents=[sample.cotangents[0][:, :5]])
    player.metric = diagonal_fisher([once], coverage(player.layer))
    player.assert_solves(np.diag(np.diag(diagonal.fisher(flat(automatic(once), 2)[:, 0])) + DAMPING) / RATE, rng)


def test_an_open_loop_player_squares_its_mean_gradient(rng):
    player = Player(options.Identity(), "dense", rng)
    g = flat(automatic(player.samples[0]), 2)[:, 0].mean(axis=0)
    player.metric = diagonal_fisher(player.samples, "not covered")
    player.assert_solves(np.diag(4 * g**2 + DAMPING) / RATE, rng)


@pytest.mark.parametrize("name", ["dense", "conv 1d", "embedding", "layer norm", "einsum two features"])
def test_full_is_the_damped_fisher_matrix(name, rng):
    player = Player(options.Full(damping=DAMPING, decay=0.6), name, rng, steps=3)
    moments = [diagonal.fisher(flat(automatic(sample), 2)[:, 0]) for sample in player.samples]
    M = diagonal.running_mean(moments, 0.6) + DAMPING * np.eye(len(moments[0]))
    player.assert_solves(M / RATE, rng)


def test_full_inverts_when_it_is_due(rng):
    player = Player(options.Full(damping=DAMPING, decay=0.6, invert_every=2), "dense", rng, steps=4)
    moments = [diagonal.fisher(flat(automatic(sample), 2)[:, 0]) for sample in player.samples]
    M = diagonal.running_mean(moments[:3], 0.6) + DAMPING * np.eye(len(moments[0]))
    player.assert_solves(M / RATE, rng)
    assert_close(player.state[0], diagonal.running_mean(moments, 0.6), rtol=1e-12)
