"""Training deep networks as optimal control: differential dynamic programming and dynamic games for Keras."""

from bellman_tf import analysis, bandit, baselines, bellman, callbacks, curvature, linalg, trajectory, workers
from bellman_tf.game import Game, Player, Stage
from bellman_tf.models import Model, Sequential
from bellman_tf.optimizers import DDP, EKFAC, GTDDP, KFAC, DDPNOpt, DGNOpt
from bellman_tf.training.step_control import LevenbergMarquardt
from bellman_tf.wrapped import as_game

__version__ = "0.2.0"

__all__ = [
    # models
    "Model", "Sequential", "as_game",
    # optimizers
    "GTDDP", "DDPNOpt", "DGNOpt", "KFAC", "EKFAC", "DDP",
    # optimizers of other papers
    "baselines",
    # several machines
    "workers",
    # step control
    "LevenbergMarquardt",
    # the game
    "Game", "Player", "Stage",
    # seeing it
    "callbacks", "analysis",
    # options and mathematics
    "curvature", "linalg", "bellman", "trajectory", "bandit",
]  # fmt: skip
