"""A Keras model as stages and players."""

from bellman_tf.game.players import Game, Player, Stage
from bellman_tf.game.stages import TracedGame

__all__ = ["Game", "Player", "Stage", "TracedGame"]
