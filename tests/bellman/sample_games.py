"""A random game in sample coordinates: its terminal value, its Gram matrices in groups, its values."""

import numpy as np
import tensorflow as tf
from hypothesis import settings

from bellman_tf.bellman import sample_space

EPS = np.finfo(np.float64).eps
few = settings(max_examples=max(5, settings().max_examples // 2))


def tolerance(game):
    """Both sides solve with the metrics: eps cond(M), beside what cancels in the values."""
    condition = max(np.linalg.cond(p.metric) for s in game.stages for p in s.players)
    return 1e-10 + EPS * condition


def start(game, group_size=None):
    if game.root is None:
        value = sample_space.init(game.batch_size, beta_squared=tf.constant(game.beta_squared), group_size=group_size)
    else:
        value = sample_space.init(game.batch_size, rank=game.root.shape[2], group_size=group_size, dtype=tf.float64)
    return value


def columns_of_group(game, g, size):
    m = game.columns.shape[2]
    return slice(g * size * m, min((g + 1) * size, game.batch_size) * m)


def grouped(game, grams, linears, size=None):
    """Gram matrices [T, G, n, n] and linear terms [T, G, n] of each group, padded with zeros."""
    size = game.batch_size if size is None else size
    n, count = size * game.columns.shape[2], -(-game.batch_size // size)
    G, l = np.zeros((len(grams), count, n, n)), np.zeros((len(grams), count, n))
    for g in range(count):
        part = columns_of_group(game, g, size)
        width = part.stop - part.start
        for t in range(len(grams)):
            G[t, g, :width, :width], l[t, g, :width] = grams[t][part, part], linears[t][part]
    return G, l


def terms(game, size=None, *, joint=True):
    """Gram matrices [T, G, n, n] and linear terms, or [T, N, G, n, n] of every player, as tensors."""
    if joint:
        pair = grouped(game, *game.grams(), size)
    else:
        count = max(len(stage.players) for stage in game.stages)
        own = [grouped(game, *game.grams(player), size) for player in range(count)]
        pair = (np.stack(x, axis=1) for x in zip(*own, strict=True))
    return tuple(map(tf.constant, pair))


def values_of(game, size=None, player=None):
    G, l = grouped(game, *game.grams(player), size)
    return sample_space.backward_all(start(game, size), G, tf.constant(l), diagonal=game.root is None)


def roll_out(game, values, player=None):
    """Updates of every player when the closed loop runs on the linearised stages."""
    cuts, updates = game.all_columns(), []
    deviation = np.zeros_like(cuts[0][:, :, 0])
    for t, stage in enumerate(game.stages):
        d = np.einsum("bnm,bn->bm", cuts[t], deviation).ravel()
        value = sample_space.SampleValue(values.a[t, 0], values.L[t, 0])
        w = sample_space.weights(value, tf.constant(d)).numpy()
        updates.append([-np.linalg.solve(p.metric, p.l_u + game.parameter_columns(t, p) @ w) for p in stage.players])
        deviation = np.einsum("bij,bj->bi", stage.f_x, deviation) + stage.f_u @ np.concatenate(updates[-1])
    return updates
