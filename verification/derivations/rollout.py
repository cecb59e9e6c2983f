"""The value at the end of a game and the size of its moves."""

import numpy as np
import tensorflow as tf

from bellman_tf.bellman import sample_space
from verification.problems.games import Game


def terminal_of(game: Game):
    """Our value at the end, the whole batch in one group."""
    if game.root is None:
        return sample_space.init(game.batch_size, beta_squared=tf.constant(game.beta_squared))
    return sample_space.init(game.batch_size, rank=game.root.shape[2], dtype=tf.float64)


def reach(game: Game):
    """Size of what is added up to a move: M^{-1} l_u and M^{-1} Qc a."""
    return sum(
        np.linalg.norm(np.linalg.inv(p.metric), 2)
        * (np.linalg.norm(p.l_u) + np.linalg.norm(game.parameter_columns(t, p)))
        for t, stage in enumerate(game.stages)
        for p in stage.players
    )
