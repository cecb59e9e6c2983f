"""A Keras model as stages and players."""

from bellman_tf.game.game import Game
from bellman_tf.game.players import Player, Stage
from bellman_tf.game.stages import TracedGame

__all__ = ["Game", "Player", "Stage", "TracedGame"]
