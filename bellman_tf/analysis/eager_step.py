"""One step of a trained model without its second pass, eagerly: the model and its optimizer are left as they were."""

import contextlib
from collections.abc import Generator

import keras
import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Array
from bellman_tf.curvature.block import StateSpec
from bellman_tf.curvature.inner import InnerBlock
from bellman_tf.curvature.stacks import StoredState
from bellman_tf.game.players import Player, Program
from bellman_tf.optimizers.gtddp import GTDDP
from bellman_tf.training.context import StepContext
from bellman_tf.training.game_step import GameStep
from bellman_tf.training.round import Round
from bellman_tf.training.settings import GameOptions, StepSettings


def program_of(model: keras.Model) -> Program:
    """The game whose cuts and states are known call by call.

    Args:
        model: a model of this package.

    Returns:
        The game.
    """
    game = model.game
    return game if isinstance(game, Program) else game.program


def player_of(model: keras.Model, layer: keras.Layer | str) -> Player:
    """The player of a layer.

    Args:
        model: a model of this package.
        layer: the layer or its name.

    Returns:
        The player.

    Raises:
        ValueError: if it has no Gram form or acts in the first stage.
    """
    name = layer if isinstance(layer, str) else layer.name
    players = program_of(model).players
    found = [player for player in players if player.name == name and player.stage is not None]
    if not found or not found[0].covered:
        known = [player.name for player in players if player.covered]
        raise _checks.error("layer", f"be a player with a Gram form, one of {known}", name)
    if found[0].stage == 0:
        rule = "act behind the first stage: before it the state is the data, which does not deviate"
        raise _checks.error("layer", rule, name)
    return found[0]


@contextlib.contextmanager
def eager_step(model: keras.Model, x: Array, y: Array | None) -> Generator[GameStep, None, None]:
    """A step under the model's optimizer, "batch" coupling and the loss's whole Hessian; nothing is assigned.

    Args:
        model: a model of this package, compiled with an optimizer of this package.
        x: inputs of the batch.
        y: labels, or `None` for a loss whose Hessian does not depend on them.

    Yields:
        The step, not yet run; what the model writes meanwhile is undone at the end.

    Raises:
        ValueError: if the model is not compiled with an optimizer of this package.
    """
    optimizer = getattr(model, "optimizer", None)
    if not isinstance(optimizer, GTDDP):
        raise _checks.error("model", "be compiled with an optimizer of this package", model.name)
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    outputs = model(x, training=False)
    labels = _labels(model, outputs) if y is None else y
    kept = [(v, v.numpy()) for v in model.non_trainable_variables] + [(v, v.numpy()) for v in model.seed_variables()]
    game = program_of(model)
    batch = Round(model, game, *_seen(optimizer, game), (tf.convert_to_tensor(x), tf.convert_to_tensor(labels)))
    try:
        yield GameStep(batch)
    finally:
        for variable, value in kept:
            variable.assign(value)


def _seen(optimizer: GTDDP, game: Program) -> tuple[StepSettings, StepContext]:
    """An optimizer's curvature, player by player of another game, under the options that the gain is defined for."""
    known = {frozenset(map(id, p.variables)): k for k, p in enumerate(optimizer.players)}
    blocks, state, context = [], StoredState([]), optimizer.context()
    for player in game.players:
        place = known.get(frozenset(map(id, player.variables)))
        block = optimizer.make_block(player)
        blocks.append(block)
        fresh = [_initial(spec) for spec in block.state_specs()]
        fresh += block.read() if isinstance(block, InnerBlock) else []
        state.append(fresh if place is None else context.state[place])
    options = GameOptions("cooperative", "batch", "full", None, False, "exact", "nonlinear")
    return StepSettings(options, tuple(blocks)), context._replace(state=state, control=None)


def _initial(spec: StateSpec) -> tf.Tensor:
    return tf.eye(*spec.shape) if spec.initial == "identity" else tf.fill(spec.shape, float(spec.initial == "ones"))


def _labels(model: keras.Model, outputs: tf.Tensor) -> tf.Tensor:
    """Labels on which the Hessian of a usual loss does not depend."""
    name = str(getattr(model.loss, "name", model.loss))
    return tf.argmax(outputs, axis=-1) if "sparse" in name else tf.stop_gradient(outputs)
