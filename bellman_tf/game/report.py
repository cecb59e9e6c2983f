"""`game_summary`: stages and players as a table, in the manner of Keras's `summary`."""

from collections.abc import Callable
from typing import Any

from bellman_tf.game.players import Player, Players, Program

_COLUMNS = ("stage", "player", "kind", "parameters", "curvature", "gram", "gradient", "coverage")


def print_game(
    game: Players,
    name: str,
    metrics: list[str] | None,
    print_fn: Callable[[str], Any] | None = None,
    grams: list[str] | None = None,
    losses: list[str] | None = None,
) -> None:
    """Prints the game.

    Args:
        game: the game.
        name: the model's name.
        metrics: a description of each player's curvature, or `None` without one of our optimizers.
        print_fn: what to print with; Keras's `print` by default.
        grams: the form of each player's Gram matrix; by default that of the identity metric.
        losses: the outputs whose losses each player minimises; no such column if `None`.
    """
    rows = [_row(game, player, metrics, grams) for player in game.players]
    columns = _COLUMNS
    if losses is not None:
        columns, rows = (*columns, "losses"), [(*row, felt) for row, felt in zip(rows, losses, strict=True)]
    widths = [max(len(row[k]) for row in [columns, *rows]) for k in range(len(columns))]
    line = "  ".join("-" * width for width in widths)

    def text(row: tuple[str, ...]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()

    total = sum(player.parameters for player in game.players)
    lines = [f'Game of model "{name}"', line, text(columns), line, *map(text, rows), line]
    if game.reason:
        lines.append(f"Layers not seen: {game.reason}")
    lines.append(
        f"{len(game.stages)} stages, {len(game.players)} players, {total:,} parameters, "
        f"{100 * game.coverage:.1f}% of them covered"
    )
    if isinstance(game, Program) and game.alignments.count > 1:
        lines.append(
            f"{game.alignments.count} alignments: a stage (from-to) is that of a player that may act elsewhere"
        )
    (print_fn or print)("\n".join(lines))


def _row(
    game: Players, player: Player, metrics: list[str] | None, grams: list[str] | None
) -> tuple[str, ...]:  # fmt: skip
    gram = player.gram if grams is None else grams[player.index]
    metric = "-" if metrics is None else metrics[player.index]
    covered = f"covered ({player.covering.site})" if player.covered else f"{player.kind}: {player.coverage}"
    parameters = f"{player.parameters:,}"
    way = "none" if player.null else player.weighing
    if player.within is not None and player.within is not player.layers[0]:
        way += f" of {player.within.name}"
    return _place(game, player), player.name, player.kind, parameters, metric, gram, way, covered


def _place(game: Players, player: Player) -> str:
    stage = game.stage_of(player)
    if stage is None:
        return "-"
    first, last = game.ranges[player.index] if isinstance(game, Program) else (stage, stage)
    return f"{stage} ({first}-{last})" if last > first else str(stage)
