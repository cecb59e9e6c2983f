"""A Keras model as stages and players."""

from bellman_tf.game.stages import Game, Player, Stage
