"""K-FAC of channel groups against a block-diagonal matrix of Kronecker products."""

import numpy as np
import pytest
import tensorflow as tf

from bellman_tf.curvature import config as options
from bellman_tf.curvature.grouped_kfac import GroupedKFACBlock
from bellman_tf.layers.registry import coverage
from tests.curvature.players import DAMPING, RATE, Player
from tests.helpers import assert_close
from verification.references import capture as reference

NAMES = ["conv 2d groups", "conv 2d groups without bias", "conv 1d groups"]


def moments(player, form):
    """A and B of every group of the last batch, from patches or pixels."""
    layer, sample = player.layer, player.samples[-1]
    x, c = sample.inputs.numpy(), sample.cotangents[0].numpy()
    p = reference.patches(x, c.shape[1:-1], layer.kernel_size, layer.strides, layer.dilation_rate, layer.padding)
    p, c = (
        p.reshape(len(x), -1, p.shape[-2] * p.shape[-1] if p.ndim > 3 else p.shape[-1]),
        c.reshape(len(x), -1, c.shape[-1]),
    )
    G, taps = layer.groups, int(np.prod(layer.kernel_size))
    L, size = c.shape[1], x.shape[-1] // G
    p = p.reshape(len(x), L, taps, G, size)
    found = []
    for g in range(G):
        rows = p[:, :, :, g].reshape(-1, taps * size)
        if form == "sua":
            pixels = x.reshape(-1, G, size)[:, g]
            A = pixels.T @ pixels / len(pixels) * L
        else:
            rows = np.concatenate([rows, np.ones((len(rows), 1))], 1) if layer.use_bias else rows
            A = rows.T @ rows / len(x)
        cotangents = c.reshape(-1, G, c.shape[-1] // G)[:, g]
        found.append((A, cotangents.T @ cotangents / len(cotangents)))
    return found, taps, L


def dense(player, form):
    """M times the learning rate over the variables side by side."""
    layer = player.layer
    found, taps, L = moments(player, form)
    kernel = np.arange(np.prod(layer.kernel.shape)).reshape(taps, layer.kernel.shape[-2], layer.groups, -1)
    M = np.zeros([sum(int(np.prod(shape)) for shape in player.shapes)] * 2)
    width = kernel.shape[-1]
    for g, (A, B) in enumerate(found):
        pi = np.sqrt((np.trace(A) / len(A)) / (np.trace(B) / len(B)))
        extra = pi * np.sqrt(DAMPING)
        B = B + np.sqrt(DAMPING) / pi * np.eye(len(B))
        bias = kernel.size + g * width + np.arange(width)
        own = kernel[:, :, g].reshape(-1, width)
        if form == "sua":
            A = np.kron(np.eye(taps), A + extra * np.eye(len(A)))
            if layer.use_bias:
                M[np.ix_(bias, bias)] = (L + extra) * B
        else:
            A = A + extra * np.eye(len(A))
            own = np.concatenate([own, bias[None]]) if layer.use_bias else own
        M[np.ix_(own.ravel(), own.ravel())] = np.kron(A, B)
    return M


@pytest.mark.parametrize("form", ["sua", "patches"])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_kronecker_product_per_group(name, form, rng):
    player = Player(options.KFAC(damping=DAMPING, convolution=form), name, rng)
    assert isinstance(player.block, GroupedKFACBlock)
    player.assert_solves(dense(player, form) / RATE, rng)


def test_its_statistics_are_running_means(rng):
    player = Player(options.KFAC(damping=DAMPING, decay=0.9, invert_every=1), "conv 2d groups", rng, steps=2)
    one, two = (s.capture.group_input_moments("sua") for s in player.samples)
    assert_close(player.state[0], (one + two) / 2, rtol=1e-13)
    assert_close(tf.linalg.inv(player.state[2])[1] - player.state[0][1], np.eye(2) * _extra(player, 1), rtol=1e-9)


def _extra(player, g):
    A, B = player.state[0][g].numpy(), player.state[1][g].numpy()
    return np.sqrt(DAMPING) * np.sqrt((np.trace(A) / len(A)) / (np.trace(B) / len(B)))


def test_one_group_is_plain_kfac(rng):
    """The same factors, for a convolution taken as one group."""
    player = Player(options.KFAC(damping=DAMPING), "conv 2d", rng)
    capture = player.samples[0].capture
    assert_close(capture.group_input_moments("sua")[0], capture.input_moment("sua"))
    assert_close(capture.group_input_moments("patches")[0], capture.input_moment("patches"))
    assert coverage(player.layer).matrix.groups == 1
