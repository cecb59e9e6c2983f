"""`game_summary`: stages and players as a table, in the manner of Keras's `summary`."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the game prints itself through this file
    from bellman_tf.game.stages import Game, Player

_COLUMNS = ("stage", "player", "kind", "parameters", "curvature", "gram", "coverage")


def _row(
    player: "Player", metrics: list[str] | None, grams: list[str] | None, ranges: dict[int, tuple[int, int]]
) -> tuple[str, ...]:
    metric = "-" if metrics is None else metrics[player.index]
    covered = f"covered ({player.coverage.site})" if player.covered else f"open-loop: {player.coverage}"
    gram = player.gram if grams is None else grams[player.index]
    stage = "-" if player.stage is None else str(player.stage)
    if player.stage is not None and ranges[player.index][1] > ranges[player.index][0]:
        stage += " ({}-{})".format(*ranges[player.index])
    return stage, player.name, player.kind, f"{player.parameters:,}", metric, gram, covered


def print_game(
    game: "Game",
    name: str,
    metrics: list[str] | None,
    print_fn: Callable | None = None,
    grams: list[str] | None = None,
) -> None:
    """Prints the game.

    Args:
        game: the game.
        name: the model's name.
        metrics: a description of each player's curvature, or `None` without one of our optimizers.
        print_fn: what to print with; Keras's `print` by default.
        grams: the form of each player's Gram matrix; by default that of the identity metric.
    """
    rows = [_row(player, metrics, grams, game.ranges) for player in game.players]
    widths = [max(len(row[k]) for row in [_COLUMNS, *rows]) for k in range(len(_COLUMNS))]
    line = "  ".join("-" * width for width in widths)

    def text(row: tuple[str, ...]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()

    covered = sum(player.parameters for player in game.players if player.covered)
    total = sum(player.parameters for player in game.players)
    lines = [f'Game of model "{name}"', line, text(_COLUMNS), line, *map(text, rows), line]
    if game.reason:
        lines.append(f"Not traced: {game.reason}")
    share = 100 * covered / total if total else 100.0
    lines.append(
        f"{len(game.stages)} stages, {len(game.players)} players, {total:,} parameters, {share:.1f}% of them covered"
    )
    if game.alignments.count > 1:
        lines.append(
            f"{game.alignments.count} alignments: a stage (from-to) is that of a player that may act elsewhere"
        )
    (print_fn or print)("\n".join(lines))
