"""Training deep networks as optimal control: differential dynamic programming and dynamic games for Keras."""

from bellman_tf import bellman, curvature, linalg
from bellman_tf.game import Game, Player, Stage
from bellman_tf.models import Model, Sequential, as_game
from bellman_tf.optimizers import DDP, EKFAC, GTDDP, KFAC, DDPNOpt

__version__ = "0.1.0"

__all__ = [
    # models
    "Model", "Sequential", "as_game",
    # optimizers
    "GTDDP", "DDPNOpt", "KFAC", "EKFAC", "DDP",
    # the game
    "Game", "Player", "Stage",
    # options and mathematics
    "curvature", "linalg", "bellman",
]  # fmt: skip
