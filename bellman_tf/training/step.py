"""One training step, from the batch and the optimizer's tensors to new values. Nothing is assigned here.

`rollout="linear"` runs the model once, as it is, and takes the gradient of a re-weighted loss (`native_step.py`).
`rollout="nonlinear"` replays a traced copy of the model, stage by stage:

    pass 1        outputs, loss, watched tensors                     (passes.py)
    backward      one gradient call gives cotangents of all players and of the state at every cut (derivatives.py)
    curvature     each player's metric from its capture              (curvature/)
    recursion     Gram matrices to sample weights, all stages        (policy.py)
    pass 2        stage by stage: deviation, weights, new parameters (passes.py)

Vanilla batch DDP (`dense_step.py`) and the baselines bring a solver of their own. `verdict.py` judges what came of the
step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from bellman_tf.game.players import Players
from bellman_tf.training.context import StepContext, StepResult
from bellman_tf.training.game_step import game_step
from bellman_tf.training.information import INFORMATION
from bellman_tf.training.native_step import native_step
from bellman_tf.training.open_step import open_step
from bellman_tf.training.round import Round
from bellman_tf.training.settings import StepSettings
from bellman_tf.training.switch import switched
from bellman_tf.training.verdict import conclude


def take_step(
    model: keras.Model,
    games: Sequence[Players],
    settings: StepSettings,
    context: StepContext,
    data: Any,
    branch: Callable[[], tf.Tensor],
) -> StepResult:
    """Solves one batch.

    Args:
        model: a built model, compiled.
        games: the placements of its players that the step may be taken in, at least one.
        settings: of the step.
        context: the optimizer's tensors.
        data: what Keras hands to `train_step`.
        branch: gives the number of the placement, where there are several.

    Returns:
        New values and the verdict on them.
    """
    step = Round(model, games[0], settings, context, data)
    if len(games) == 1:
        solve(step)
    else:
        switched(step, games, branch(), solve)
    return conclude(step)


def solve(step: Round) -> None:
    """Queues the new values of one step.

    Args:
        step: the step.
    """
    if step.settings.solver is not None:
        step.settings.solver(step)
    elif step.settings.options.rollout == "linear":
        native_step(step)
    elif INFORMATION[step.settings.options.information].curved and step.program.graph and step.game.stages:
        game_step(step)
    else:
        open_step(step)
