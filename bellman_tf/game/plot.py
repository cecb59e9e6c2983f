"""`Game.plot`: a picture of stages and players, left to right.

Players are boxes, coloured by kind, dashed if open-loop; circles bring tensors together; blue edges are shortcuts. What
leaves a row at the right with a number enters the next with the same number at the left. Below the boxes of a row a bar
per movable player spans the stages it may act at, with a dot where it does.
"""

import math
import pathlib
from typing import TYPE_CHECKING, Any, TypedDict

from bellman_tf import _checks
from bellman_tf.game.flow import Node
from bellman_tf.game.layout import BAR, BOX, CIRCLE, FOOT, HEAD, MARGIN, PILL, Bar, Layout, Point, Row, Wire
from bellman_tf.game.players import Player, Program

if TYPE_CHECKING:  # an optional dependency
    from matplotlib.axes import Axes


SUFFIXES = (".png", ".svg", ".pdf")

CHARACTERS = 22  # of a name in a box
COLOURS = ("#cfe2f3", "#fde3c8", "#d5ead3", "#f4d3da", "#e3daf0", "#f5efc4", "#d0ece9", "#e9d8cb")
GREY, INK, ACCENT, SHADE = "#e4e4e4", "#444444", "#1f6fb4", "#f6f6f6"
TITLE, LEGEND, APART = 0.75, 0.55, 0.2
CORNER = 0.1  # radius


class PlotOptions(TypedDict, total=False):
    """Options of `plot_game`."""

    name: str
    stages_per_row: int
    dpi: int


def plot_game(
    game: Program, path: str | pathlib.Path, name: str = "model", stages_per_row: int = 10, dpi: int = 120
) -> None:
    """Draws a game into a file.

    Args:
        game: the game.
        path: of the file; its suffix says the format, .png, .svg or .pdf.
        name: the model's name, for the title.
        stages_per_row: more stages than that continue in another row.
        dpi: dots per inch of a .png.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the suffix is another one, the folder does not exist, or a number is not positive.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise _checks.error("path", f"end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}", str(path))
    if not path.parent.is_dir():
        raise _checks.error("path", "lie in a folder that exists", str(path), f"Make {path.parent} first.")
    _checks.check_integer("stages_per_row", stages_per_row, least=1)
    _checks.check_integer("dpi", dpi, least=1)
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ImportError('`Game.plot` draws with matplotlib: `pip install "bellman_tf[examples]"`.') from error
    layout = Layout(game, stages_per_row)
    width = max([row.width for row in layout.rows], default=8.0)
    per_line = max(1, int((width - 2 * MARGIN) / (BOX[0] + APART)))
    lines = math.ceil(len(game.loose_players) / per_line)
    height = TITLE + sum(row.height for row in layout.rows) + (HEAD + lines * (BOX[1] + APART)) * (lines > 0) + LEGEND
    figure = matplotlib.figure.Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))  # its unit is an inch
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    picture = _Picture(game, layout, axes)
    picture.title(name, height)
    top = height - TITLE
    for row in layout.rows:
        picture.row(row, top)
        top -= row.height
    picture.loose(per_line, top)
    picture.legend()
    figure.savefig(path, dpi=dpi)


class _Picture:
    """Draws the parts of a layout on axes whose unit is an inch."""

    def __init__(self, game: Program, layout: Layout, axes: "Axes") -> None:
        self.game, self.layout, self.axes = game, layout, axes
        kinds = sorted({player.kind for player in game.players if player.covered})
        self.colours = {kind: COLOURS[i % len(COLOURS)] for i, kind in enumerate(kinds)}

    def text(self, x: float, y: float, text: str, size: float, **options: Any) -> None:
        options = {"ha": "center", "va": "center", "zorder": 4, **options}
        self.axes.text(x, y, text, fontsize=size, **options)

    def patch(self, kind: str, *args: Any, **options: Any) -> None:
        import matplotlib.patches

        self.axes.add_patch(getattr(matplotlib.patches, kind)(*args, **options))

    def plate(self, x: float, y: float, size: Point, radius: float, **options: Any) -> None:
        corner, style = (x - size[0] / 2, y - size[1] / 2), f"round,pad=0,rounding_size={radius}"
        self.patch("FancyBboxPatch", corner, *size, boxstyle=style, edgecolor=INK, zorder=3, **options)

    def title(self, name: str, top: float) -> None:
        game = self.game
        total = sum(player.parameters for player in game.players)
        self.text(MARGIN, top - 0.3, name, 13, ha="left", fontweight="bold")
        text = f"{len(game.stages)} stages, {len(game.players)} players, {total:,} parameters"
        self.text(MARGIN, top - 0.54, text, 9, ha="left", color=INK)

    def legend(self) -> None:
        x, y = MARGIN, LEGEND / 2
        for kind in [*self.colours, *(["open-loop"] if self.game.open_loop_players else [])]:
            self.kind_plate(kind, x + 0.12, y, (0.24, 0.16))
            self.text(x + 0.3, y, kind, 8, ha="left", color=INK)
            x += 0.5 + 0.075 * len(kind)

    def loose(self, per_line: int, top: float) -> None:
        players = self.game.loose_players
        if players:
            traced = "" if self.layout.rows else ": the model cannot be traced"
            self.text(MARGIN, top - 0.15, f"Open-loop, place in the network not known{traced}", 9, ha="left", color=INK)
        for i, player in enumerate(players):
            down, right = divmod(i, per_line)
            x = MARGIN + BOX[0] / 2 + right * (BOX[0] + APART)
            self.player(player, x, top - HEAD - BOX[1] / 2 - down * (BOX[1] + APART))

    def kind_plate(self, kind: str, x: float, y: float, size: Point) -> None:
        line = "-" if kind in self.colours else "--"
        self.plate(x, y, size, 0.06, facecolor=self.colours.get(kind, GREY), linestyle=line)

    def player(self, player: Player, x: float, y: float, again: bool = False) -> None:
        self.kind_plate(player.kind, x, y, BOX)
        count = "applied again" if again else f"{player.parameters:,} param" + "s" * (player.parameters != 1)
        self.text(x, y + 0.16, _short(player.name), 7.5 if len(player.name) <= 18 else 6.6, fontweight="bold")
        self.text(x, y, player.kind, 7)
        self.text(x, y - 0.16, count, 7)

    def row(self, row: Row, top: float) -> None:
        shift = top - HEAD - row.top
        bottom = row.floor + shift - FOOT - row.below
        for t in range(row.start, row.stop):
            left = row.x[t, 0] - BOX[0] / 2 - 0.08
            self.patch("Rectangle", (left, bottom), BOX[0] + 0.16, top - 0.06 - bottom, color=SHADE, zorder=0)
            self.text(row.x[t, 0], top - 0.16, f"stage {t}", 7.5, color="#777777")
        for wire in row.wires:
            self.wire(wire, shift)
        for node in row.nodes:
            self.node(node, row.x[node[:2]], row.y[node] + shift)
        for bar in row.bars:
            self.bar(row, bar, row.floor + shift - 2 * FOOT - bar.line * BAR)

    def wire(self, wire: Wire, shift: float) -> None:
        from matplotlib.path import Path

        colour = ACCENT if wire.edge.shortcut else INK
        path = [(x, y + shift) for x, y in wire.path]
        slanted = len(path) == 2 and path[0][1] != path[1][1]
        self.patch(
            "FancyArrowPatch", path=Path(*(_curve(*path) if slanted else _rounded(path))), color=colour, linewidth=1.1,
            arrowstyle="-|>,head_length=3,head_width=1.6", joinstyle="round", zorder=2,
        )  # fmt: skip
        for node, (x, y), side in ((wire.source, path[0], -0.1), (wire.target, path[-1], 0.1)):
            if node is None:
                disc = {"boxstyle": "circle,pad=0.2", "facecolor": colour, "edgecolor": "none"}
                tag = str(self.layout.tags[wire.edge.source])
                self.text(x + side, y, tag, 7, color="white", fontweight="bold", bbox=disc, zorder=5)

    def node(self, node: Node, x: float, y: float) -> None:
        if node.kind == "player":
            player = self.game.players[node.index]
            self.player(player, x, y, again=node.stage != player.stage)
        elif node.kind == "merge":
            self.patch("Circle", (x, y), CIRCLE, facecolor="white", edgecolor=INK, zorder=3)
            self.text(x, y, node.label, 10 if len(node.label) == 1 else 6.5)
        else:
            self.plate(x, y, PILL, PILL[1] / 2, facecolor="white")
            self.text(x, y, node.label, 8)

    def bar(self, row: Row, bar: Bar, y: float) -> None:
        player = self.game.players[bar.player]
        first, last = max(bar.early, row.start), min(bar.late, row.stop - 1)
        left, right = row.x[first, 0] - BOX[0] / 2, row.x[last, 0] + BOX[0] / 2
        colour = self.colours.get(player.kind, GREY)
        self.axes.plot([left, right], [y, y], color=colour, linewidth=8, solid_capstyle="butt", zorder=1)
        for x, is_end in ((left, first == bar.early), (right, last == bar.late)):
            if is_end:
                self.axes.plot([x, x], [y - 0.07, y + 0.07], color=INK, linewidth=1.2, zorder=2)
        x, side = left + 0.06, "left"
        if first <= player.place <= last:
            here = row.x[player.place, 0]
            self.axes.plot([here], [y], "o", color=INK, markersize=4, zorder=2)
            x, side = (here + 0.08, "left") if right - here >= here - left else (here - 0.08, "right")
        text = f"{_short(player.name)}, {bar.early} to {bar.late}"
        self.text(x, y, text, 6.5, color=INK, ha=side, va="center_baseline")


def _short(name: str) -> str:
    begin, end = CHARACTERS // 2, CHARACTERS - CHARACTERS // 2 - 1
    return name if len(name) <= CHARACTERS else f"{name[:begin]}…{name[-end:]}"


def _curve(begin: Point, end: Point) -> tuple[list[Point], list[int]]:
    """A straight line that leaves and arrives level."""
    middle = (begin[0] + end[0]) / 2
    return [begin, (middle, begin[1]), (middle, end[1]), end], [1, 4, 4, 4]


def _rounded(path: list[Point]) -> tuple[list[Point], list[int]]:
    """A line of level and upright parts with its corners rounded."""
    vertices, codes = [path[0]], [1]
    for before, corner, after in zip(path, path[1:], path[2:], strict=False):
        for other in (before, after):
            length = math.dist(corner, other)
            share = min(CORNER, length / 2) / length if length else 0
            point = corner[0] + share * (other[0] - corner[0]), corner[1] + share * (other[1] - corner[1])
            vertices += [point] if other is before else [corner, point]
            codes += [2] if other is before else [3, 3]
    return [*vertices, path[-1]], [*codes, 2]
