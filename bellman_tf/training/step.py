"""One training step: capture, curvature, recursion, policy, new weights.

    pass 1        outputs, loss, watched tensors                     (passes.py)
    backward      one gradient call gives cotangents of all players and of the state at every cut (derivatives.py)
    curvature     each player's metric from its capture              (curvature/)
    recursion     Gram matrices to sample weights, all stages        (policy.py)
    pass 2        stage by stage: deviation, weights, new parameters (passes.py)
    update        assigned if everything is finite                   (update.py)

`game_step.py` puts these together; `information="open"` needs none of the last three beyond the metric and runs
`open_step.py`, the baseline's own step. `dense_step.py` is vanilla batch DDP, with every matrix written out.
"""

import keras

from bellman_tf.training.batch import Batch
from bellman_tf.training.game_step import game_step
from bellman_tf.training.open_step import open_step
from bellman_tf.training.policy import INFORMATION
from bellman_tf.training.switch import switched


def train_step(model: keras.Model, optimizer: object, data: object) -> dict:
    """Trains `model` on one batch.

    Args:
        model: a built model of this package, compiled.
        optimizer: its optimizer, a `GTDDP`.
        data: what Keras hands to `train_step`.

    Returns:
        The metrics' results, as Keras's `train_step`.
    """
    batch = Batch(model, optimizer, data)
    games = optimizer.games(model.game)
    if len(games) == 1:
        batch.game = games[0]
        optimizer.solve(batch)
    else:
        switched(batch, games, optimizer.branch(len(games)), optimizer.solve)
    return batch.finish()


def solve(batch: Batch) -> None:
    """The game's step, or the baseline's where the value's curvature is not used or no layer is known.

    Args:
        batch: the step; its new values are queued.
    """
    curved = INFORMATION[batch.optimizer.options.information].curved
    if curved and batch.game.graph is not None and batch.game.stages:
        game_step(batch)
    else:
        open_step(batch)
