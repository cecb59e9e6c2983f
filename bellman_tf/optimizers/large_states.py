"""A warning before the metric of one layer takes far more memory than the layer does."""

import math
import warnings
from collections.abc import Sequence

import tensorflow as tf

from bellman_tf.curvature.block import Block, state_dtype
from bellman_tf.game.players import Player

LARGE = 2**30  # bytes of a layer's metric below which nothing is said
OFTEN = 8  # how many times the bytes of the layer's weights


def warn_large(name: str, players: Sequence[Player], blocks: Sequence[Block]) -> None:
    """Names the players whose curvature keeps far more numbers than they have weights.

    K-FAC keeps matrices of `rows^2` and `width^2` numbers and their inverses: of a layer with 30,000 outputs, 7 GB.

    Args:
        name: of the optimizer's class.
        players: of the game.
        blocks: their curvature.
    """
    for player, block in zip(players, blocks, strict=True):
        item = tf.as_dtype(state_dtype(player.variables)).size
        state = item * sum(math.prod(spec.shape) for spec in block.state_specs())
        weights = item * sum(math.prod(v.shape) for v in player.variables)
        if state > max(LARGE, OFTEN * weights):
            warnings.warn(
                f"{name} keeps {state / 2**30:.3g} GiB for the metric of '{player.name}' ({block.describe()}), whose "
                f"weights take {weights / 2**30:.2g} GiB: its matrices hold the squares of the layer's sizes. "
                "curvature='rmsprop' or 'adam', or an `inner_optimizer`, keeps as many numbers as there are weights.",
                stacklevel=4,
            )
