"""The curvature block of every player of a game, and the couplings between the players of one stage."""

import dataclasses
import math

from bellman_tf.curvature.block import Block, state_dtype
from bellman_tf.curvature.config import Config
from bellman_tf.curvature.coupling.base import Coupling
from bellman_tf.curvature.coupling.choose import make_couplings
from bellman_tf.curvature.gram.across_replicas import GLOBAL_BATCH, sendable, sent_numbers
from bellman_tf.curvature.gram.plan import kept_features
from bellman_tf.curvature.kfac import KFACBlock
from bellman_tf.curvature.registry import make_block, player_layout
from bellman_tf.game.players import Player, Players
from bellman_tf.training.information import INFORMATION
from bellman_tf.training.settings import GameOptions


def curvature_block(curvature: Config, player: Player, options: GameOptions) -> Block:
    """The block of a player under a curvature.

    Args:
        curvature: what the user chose.
        player: of a game.
        options: of the recursion; a metric with whitened features keeps mixtures of them where its Gram matrix is
            formed of these.

    Returns:
        The block.
    """
    variables = player.covering.variables if player.covered else player.variables
    shapes = tuple(tuple(v.shape) for v in variables)
    block = make_block(curvature, player_layout(player.name, shapes, player.coverage))
    if isinstance(block, KFACBlock) and block.mixes and INFORMATION[options.information].curved:
        able = dataclasses.replace(block.kind, whitened=True)
        chosen = player.gram_plan(able, options.gram, options.coupled(), options.gram_limits)
        if chosen.form == "features":
            block.mixtures = kept_features(block.rows.size, options.gram_limits)
    return block


def _positions(player: Player) -> int | None:
    """At how many positions a player with a matrix form is applied to one sample; `None` if that is not static."""
    if not player.covered or player.covering.matrix is None:
        return None
    return player.extent.positions


def couplings_of(game: Players, blocks: list[Block], options: GameOptions) -> tuple[list[Coupling], list[str]]:
    """The couplings of a game's players in their earliest stages.

    Args:
        game: the game.
        blocks: of its players.
        options: of the recursion; with gram="exact" Gram matrices are those of the joint metrics whatever they cost.

    Returns:
        The couplings, and for each player a note for `game_summary`.
    """
    if not any(getattr(getattr(block, "config", None), "cooperative", False) for block in blocks):
        return [], [""] * len(blocks)
    stages = [game.stage_of(player) for player in game.players]
    most = math.inf if options.gram == "exact" else options.gram_limits.joint_up_to
    return make_couplings(blocks, stages, [_positions(player) for player in game.players], most)


def gram_forms(options: GameOptions, game: Players, blocks: list[Block]) -> list[str]:
    """The form of each player's Gram matrix, in words.

    Args:
        options: of the recursion.
        game: the game.
        blocks: of its players.

    Returns:
        One form per player; "none" for open-loop players, "joint" for those with one Gram matrix together.
    """
    if not INFORMATION[options.information].curved:
        return ["none"] * len(blocks)
    group_size = options.coupled()
    couplings, _ = couplings_of(game, blocks, options)
    joint = {k for coupling in couplings if coupling.joint and coupling.joint_gram for k in coupling.players}
    return [
        "joint" if k in joint else player.gram_plan(block.kind, options.gram, group_size, options.gram_limits).words
        for k, (player, block) in enumerate(zip(game.players, blocks, strict=True))
    ]


def players_apart(options: GameOptions, game: Players, blocks: list[Block]) -> dict[str, int | None]:
    """Players whose Gram matrices stay block-diagonal over replicas with `coupling="global"`.

    Args:
        options: of the recursion.
        game: the game.
        blocks: of its players.

    Returns:
        Their names, and the `gram_memory` from which on their samples meet; `None` where none is enough.
    """
    couplings, _ = couplings_of(game, blocks, options)
    joint = {k: coupling.players for coupling in couplings if coupling.joint_gram for k in coupling.players}
    apart: dict[str, int | None] = {}
    for k, player in enumerate(game.players):
        if not player.covered:
            continue
        itemsize, limits = 8 if state_dtype(player.variables) == "float64" else 4, options.gram_limits
        if k in joint:
            numbers = sum(game.players[member].parameters for member in joint[k])
        else:
            numbers = sent_numbers(player.extent, blocks[k].kind, options.gram, limits, itemsize)
        if not sendable(numbers, limits, itemsize):
            apart[player.name] = None if numbers is None else numbers * itemsize * GLOBAL_BATCH
    return apart
