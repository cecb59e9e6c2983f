"""`game_summary`: stages and players as a table, in the manner of Keras's `summary`."""

from collections.abc import Callable

from bellman_tf.game.stages import Game, Player

_COLUMNS = ("stage", "player", "kind", "parameters", "curvature", "coverage")


def _row(player: Player, optimizer: object) -> tuple[str, ...]:
    if optimizer is None:
        metric = "-"
    else:
        block = optimizer.blocks[player.index] if optimizer.blocks else optimizer.make_block(player)
        metric = block.describe()
    covered = f"covered ({player.coverage.site})" if player.covered else f"open-loop: {player.coverage}"
    stage = "-" if player.stage is None else str(player.stage)
    return stage, player.name, player.kind, f"{player.parameters:,}", metric, covered


def game_summary(game: Game, name: str, optimizer: object = None, print_fn: Callable | None = None) -> None:
    """Prints the game.

    Args:
        game: the game.
        name: the model's name.
        optimizer: a `GTDDP`, or `None` if the model is not compiled with one.
        print_fn: what to print with; Keras's `print` by default.
    """
    rows = [_row(player, optimizer) for player in game.players]
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
    (print_fn or print)("\n".join(lines))
