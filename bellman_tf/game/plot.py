"""`Game.plot`: a picture of stages and players, left to right.

Stages are columns, players boxes, merges circles. An edge to the next stage is straight; a shortcut climbs to a lane
above the boxes it passes. A row holds so many stages; what flows into the next row leaves at the right with a number
and enters with the same number at the left. Below the boxes of a row a bar per movable player spans the stages it may
act at, with a dot where it does. All lengths are inches.
"""

import math
import pathlib
from typing import TYPE_CHECKING

from bellman_tf import _checks
from bellman_tf.game.flow import Edge, Node, edges, heights

if TYPE_CHECKING:  # a game draws itself through this file
    from bellman_tf.game.stages import Game, Player

SUFFIXES = (".png", ".svg", ".pdf")

BOX = (1.45, 0.56)
CIRCLE = 0.15  # radius
APART = {0: BOX[1] + 0.2, 1: 3 * CIRCLE}
GAP = 0.5  # between two columns of boxes without a merge
LANE = 0.17  # between two lanes
CORNER = 0.1  # radius
PORT = 0.3  # from the margin to the first box
MARGIN = 0.25
BAR = 0.2
CHARACTERS = 22  # of a name in a box
COLOURS = ("#cfe2f3", "#fde3c8", "#d5ead3", "#f4d3da", "#e3daf0", "#f5efc4", "#d0ece9", "#e9d8cb")
GREY, INK, ACCENT = "#e4e4e4", "#444444", "#1f6fb4"


def plot_game(
    game: "Game", path: str | pathlib.Path, name: str = "model", stages_per_row: int = 12, dpi: int = 120
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
    picture = _Picture(game, name, stages_per_row)
    figure = matplotlib.figure.Figure(figsize=(picture.width, picture.height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, picture.width), ylim=(0, picture.height))
    axes.axis("off")
    for draw in picture.strokes:
        draw(axes)
    figure.savefig(path, dpi=dpi)


class _Picture:
    """Everything placed; `strokes` draws it on axes whose unit is an inch."""

    def __init__(self, game: "Game", name: str, stages_per_row: int) -> None:
        self.game = game
        self.strokes: list = []
        self.flow = edges(game)
        self.heights = heights(self.flow, APART)
        kinds = sorted({player.kind for player in game.players if player.covered})
        self.colours = {kind: COLOURS[i % len(COLOURS)] for i, kind in enumerate(kinds)}
        rows = math.ceil(len(game.stages) / stages_per_row)
        each = math.ceil(len(game.stages) / max(rows, 1))  # rows of like length
        self.rows = [_Row(self, r * each, min((r + 1) * each, len(game.stages))) for r in range(max(rows, 1))]
        self.tags: dict[Node, int] = {}
        for edge in sorted(self.flow, key=lambda edge: (edge.source, edge.target)):
            self._split(edge)
        loose = game.loose_players
        self.width = max(3.5, *(row.width for row in self.rows)) if self.flow else 9.0
        per_line = max(1, int((self.width - 2 * MARGIN) / (BOX[0] + 0.2)))
        lines = math.ceil(len(loose) / per_line)
        for row in self.rows:
            row.finish()
        body = sum(row.height for row in self.rows) + (0.35 + lines * (BOX[1] + 0.2) if loose else 0)
        self.height = 0.75 + body + 0.55
        self._title(name)
        top = self.height - 0.75
        for row in self.rows:
            row.draw(top)
            top -= row.height
        self._loose(loose, per_line, top)
        self._legend()

    def add(self, method: str, *args: object, **options: object) -> None:
        """Keeps a call of a method of the axes for later."""
        self.strokes.append(lambda axes: getattr(axes, method)(*args, **options))

    def add_patch(self, kind: str, *args: object, **options: object) -> None:
        """Keeps a patch of matplotlib for later."""

        def draw(axes: object) -> None:
            import matplotlib.patches

            axes.add_patch(getattr(matplotlib.patches, kind)(*args, **options))

        self.strokes.append(draw)

    def row_of(self, node: Node) -> int:
        return next(r for r, row in enumerate(self.rows) if node.stage < row.stop or r == len(self.rows) - 1)

    def _split(self, edge: Edge) -> None:
        """One wire per row; `None` is the margin."""
        first, last = self.row_of(edge.source), self.row_of(edge.target)
        if first < last:
            self.tags.setdefault(edge.source, len(self.tags) + 1)
        for r in range(first, last + 1):
            target = edge.target if r == last else None
            self.rows[r].wire(edge.source if r == first else None, target, edge)

    def _title(self, name: str) -> None:
        game = self.game
        total = sum(player.parameters for player in game.players)
        text = f"{len(game.stages)} stages, {len(game.players)} players, {total:,} parameters"
        self.add("text", MARGIN, self.height - 0.3, name, fontsize=13, fontweight="bold", va="center")
        self.add("text", MARGIN, self.height - 0.54, text, fontsize=9, color=INK, va="center")

    def _loose(self, players: list["Player"], per_line: int, top: float) -> None:
        if players:
            text = "open-loop players whose place in the network is not known"
            self.add("text", MARGIN, top - 0.2, text, fontsize=9, color=INK, va="center")
        for i, player in enumerate(players):
            x = MARGIN + BOX[0] / 2 + (i % per_line) * (BOX[0] + 0.2)
            self.box(player, x, top - 0.35 - BOX[1] / 2 - (i // per_line) * (BOX[1] + 0.2))

    def _legend(self) -> None:
        names = list(self.colours) + (["open-loop"] if self.game.open_loop_players else [])
        x, y = MARGIN, 0.28
        for kind in names:
            self.box(kind, x + 0.12, y, (0.24, 0.16))
            self.add("text", x + 0.3, y, kind, fontsize=8, va="center", color=INK)
            x += 0.5 + 0.075 * len(kind)

    def box(
        self, player: "Player | str", x: float, y: float, size: tuple[float, float] = BOX, again: bool = False
    ) -> None:
        """A player's box, or that of its kind in the legend."""
        kind = player if isinstance(player, str) else player.kind
        closed = kind in self.colours
        self.add_patch(
            "FancyBboxPatch", (x - size[0] / 2, y - size[1] / 2), *size, boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=self.colours.get(kind, GREY), edgecolor=INK, linestyle="-" if closed else "--", linewidth=1, zorder=3,
        )  # fmt: skip
        if isinstance(player, str):
            return
        parameters = "applied again" if again else f"{player.parameters:,} param" + "s" * (player.parameters != 1)
        lines = ((0.16, _short(player.name), "bold", 7.5), (0.0, kind, "normal", 7), (-0.16, parameters, "normal", 7))
        for up, text, weight, points in lines:
            self.add("text", x, y + up, text, fontsize=points, fontweight=weight, ha="center", va="center", zorder=4)


class _Row:
    """The stages from `start` to before `stop`, the merges behind them, and the wires between."""

    def __init__(self, picture: _Picture, start: int, stop: int) -> None:
        self.picture, self.start, self.stop = picture, start, stop
        last = stop == len(picture.game.stages)
        low, high = (-1 if start == 0 else start), (stop if last else stop - 1)
        self.nodes = [node for node in picture.heights if low <= node.stage <= high]
        depths = {t: max((n.depth for n in self.nodes if n.stage == t), default=0) for t in range(low, high + 1)}
        self.left: dict[int, float] = {}
        self.x: dict[tuple[int, int], float] = {}
        x = MARGIN + (PORT if start else 0)
        for t, depth in depths.items():
            small = t in {-1, len(picture.game.stages)}
            self.left[t], width = x, 0.8 if small else BOX[0]
            self.x[t, 0] = x + width / 2
            x += width
            for d in range(1, depth + 1):
                self.x[t, d] = x + GAP / 2 + (d - 1) * 4 * CIRCLE + CIRCLE
            x += GAP + 4 * CIRCLE * depth
        self.right = x - (GAP if last else GAP / 2)
        self.width = self.right + MARGIN + (0 if last else PORT)
        self.places = sorted(self.x)
        ends = {place: [n for n in self.nodes if n[:2] == place] for place in self.places}
        self.skyline = {p: max((self._y(n) + self._half(n)[1] for n in own), default=0.0) for p, own in ends.items()}
        self.floor = min((self._y(n) - self._half(n)[1] for n in self.nodes), default=0.0)
        self.wires: dict[tuple, tuple] = {}
        self.risers: dict[tuple, dict] = {}

    def _y(self, node: Node) -> float:
        return self.picture.heights[node]

    @staticmethod
    def _half(node: Node) -> tuple[float, float]:
        """Half width and height."""
        if node.kind == "merge":
            return CIRCLE, CIRCLE
        return (BOX[0] / 2, BOX[1] / 2) if node.kind == "player" else (0.4, 0.16)

    def wire(self, source: Node | None, target: Node | None, edge: Edge) -> None:
        """Notes a wire; those from one source to the margin, or through the row, are one."""
        through = source is None and target is None
        key = (edge.source, target) if not through else (edge.source, None)
        if source is None and target is not None:
            key = (edge.source, target, "in")
        self.wires.setdefault(key, (source, target, edge))

    def finish(self) -> None:
        """Gives every wire its path and every movable player its bar; then the height is known."""
        self.paths: list[tuple] = []

        def span(wire: tuple) -> tuple:
            source, target, _ = wire
            first = self.places.index(source[:2]) if source else -1
            return (self.places.index(target[:2]) if target else len(self.places)) - first, first

        for source, target, edge in sorted(self.wires.values(), key=span):
            self.paths.append((self._path(source, target), source, target, edge))
        self.top = max([*self.skyline.values(), *(y for path, *_ in self.paths for _, y in path)], default=0.0)
        self.bars = self._place_bars()
        lines = 1 + max((line for line, *_ in self.bars), default=-1)
        self.below = lines * BAR + (0.12 if lines else 0)
        self.height = 0.34 + (self.top - self.floor) + 0.12 + self.below + 0.3

    def _path(self, source: Node | None, target: Node | None) -> list[tuple[float, float]]:
        places = self.places
        first = places.index(source[:2]) if source else -1
        last = places.index(target[:2]) if target else len(places)
        begin = (
            (MARGIN + 0.1, None) if source is None else (self.x[source[:2]] + self._half(source)[0], self._y(source))
        )
        end = (
            (self.right + PORT - 0.1, None)
            if target is None
            else (self.x[target[:2]] - self._half(target)[0], self._y(target))
        )
        between = [p for p in places[first + 1 : last] if p[1] == 0]
        if not between and (source or target):
            y_begin, y_end = begin[1], end[1]
            return [(begin[0], y_end if y_begin is None else y_begin), (end[0], y_begin if y_end is None else y_end)]
        level = max(
            [*(self.skyline[p] for p in places[first + 1 : last]), *(self._y(n) for n in (source, target) if n)]
        )
        lane = level + LANE
        for place in places[first + 1 : last]:
            self.skyline[place] = lane
        path: list[tuple[float, float]] = []
        if source is None:
            path.append((begin[0], lane))
        elif source.kind == "merge":
            x = self.x[source[:2]] + 0.05
            path += [(x, begin[1] + CIRCLE * 0.94), (x, lane)]
        else:
            x = begin[0] + 0.1 + self._riser("up", source)
            path += [begin, (x, begin[1]), (x, lane)]
        if target is None:
            path.append((end[0], lane))
        elif target.kind == "merge":
            x = self.x[target[:2]] - 0.05
            path += [(x, lane), (x, end[1] + CIRCLE * 0.94)]
        else:
            x = end[0] - 0.2 - self._riser("down", target)
            path += [(x, lane), (x, end[1]), end]
        return path

    def _riser(self, way: str, node: Node) -> float:
        """Offset of the vertical part of a wire, one per node at a stage."""
        taken = self.risers.setdefault((way, node.stage), {})
        return 0.05 * taken.setdefault(node, len(taken))

    def _place_bars(self) -> list[tuple]:
        """(line, player, first stage, last stage) of the movable players that have stages in this row."""
        found, ends = [], []
        ranges = getattr(self.picture.game, "ranges", {})
        for player in self.picture.game.players:
            early, late = ranges.get(player.index, (0, 0))
            if early == late or player.stage is None or late < self.start or early >= self.stop:
                continue
            line = next((i for i, end in enumerate(ends) if end < early), len(ends))
            ends[line : line + 1] = [late]
            found.append((line, player, early, late))
        return found

    def draw(self, top: float) -> None:
        """Draws the row below `top`."""
        picture = self.picture
        shift = top - 0.34 - self.top
        for t in range(self.start, self.stop):
            x = self.left[t]
            bottom = self.floor + shift - 0.12 - self.below
            picture.add_patch(
                "Rectangle", (x - 0.08, bottom), BOX[0] + 0.16, top - 0.06 - bottom, color="#f6f6f6", zorder=0
            )
            picture.add(
                "text",
                x + BOX[0] / 2,
                top - 0.16,
                f"stage {t}",
                fontsize=7.5,
                color="#777777",
                ha="center",
                va="center",
            )
        for path, source, target, edge in self.paths:
            self._draw_wire([(x, y + shift) for x, y in path], source, target, edge)
        for node in self.nodes:
            self._draw_node(node, self.x[node[:2]], self._y(node) + shift)
        for bar in self.bars:
            self._draw_bar(*bar, self.floor + shift - 0.24)

    def _draw_wire(self, path: list, source: Node | None, target: Node | None, edge: Edge) -> None:
        from matplotlib.path import Path

        colour = ACCENT if edge.shortcut else INK
        straight = len(path) == 2 and None not in {source, target}
        vertices, codes = _curve(*path) if straight else _rounded(path)
        self.picture.add_patch(
            "FancyArrowPatch", path=Path(vertices, codes), arrowstyle="-|>,head_length=3,head_width=1.6", color=colour,
            linewidth=1.1, zorder=2, fill=True, joinstyle="round",
        )  # fmt: skip
        for node, (x, y) in ((source, (path[0][0] - 0.1, path[0][1])), (target, (path[-1][0] + 0.1, path[-1][1]))):
            if node is None:
                tag = str(self.picture.tags[edge.source])
                self.picture.add("text", x, y, tag, fontsize=7, color="white", fontweight="bold", ha="center", va="center",
                                 bbox={"boxstyle": "circle,pad=0.2", "fc": colour, "ec": "none"}, zorder=5)  # fmt: skip

    def _draw_node(self, node: Node, x: float, y: float) -> None:
        picture = self.picture
        if node.kind == "player":
            player = picture.game.players[node.index]
            picture.box(player, x, y, again=node.stage != player.stage)
            return
        if node.kind == "merge":
            picture.add_patch("Circle", (x, y), CIRCLE, facecolor="white", edgecolor=INK, linewidth=1, zorder=3)
        else:
            picture.add_patch(
                "FancyBboxPatch", (x - 0.4, y - 0.16), 0.8, 0.32, boxstyle="round,pad=0,rounding_size=0.16",
                facecolor="white", edgecolor=INK, linewidth=1, zorder=3,
            )  # fmt: skip
        points = 10 if len(node.label) == 1 else 8 if node.kind != "merge" else 6.5
        picture.add("text", x, y, node.label, fontsize=points, ha="center", va="center", zorder=4)

    def _draw_bar(self, line: int, player: "Player", early: int, late: int, y: float) -> None:
        first, last = max(early, self.start), min(late, self.stop - 1)
        y -= line * BAR
        x_0, x_1 = self.x[first, 0] - BOX[0] / 2, self.x[last, 0] + BOX[0] / 2
        colour = self.picture.colours.get(player.kind, GREY)
        self.picture.add("plot", [x_0, x_1], [y, y], color=colour, linewidth=7, solid_capstyle="butt", zorder=1)
        for x, is_end in ((x_0, first == early), (x_1, last == late)):
            if is_end:
                self.picture.add("plot", [x, x], [y - 0.06, y + 0.06], color=INK, linewidth=1.2, zorder=2)
        if self.start <= player.stage < self.stop:
            self.picture.add("plot", [self.x[player.stage, 0]], [y], "o", color=INK, markersize=4, zorder=2)
        text = f"{_short(player.name)} in {early}-{late}"
        self.picture.add("text", x_0 + 0.06, y, text, fontsize=6.5, color=INK, va="center", zorder=3)


def _short(name: str) -> str:
    return (
        name if len(name) <= CHARACTERS else f"{name[: CHARACTERS // 2]}…{name[-(CHARACTERS - CHARACTERS // 2 - 1) :]}"
    )


def _curve(begin: tuple, end: tuple) -> tuple[list, list]:
    """A straight line that leaves and arrives level."""
    middle = (begin[0] + end[0]) / 2
    return [begin, (middle, begin[1]), (middle, end[1]), end], [1, 4, 4, 4]


def _rounded(path: list[tuple[float, float]]) -> tuple[list, list]:
    """A line of level and upright parts with its corners rounded."""
    vertices, codes = [path[0]], [1]
    for before, corner, after in zip(path, path[1:], path[2:], strict=False):
        for other in (before, after):
            length = math.dist(corner, other)
            share = min(CORNER, length / 2) / length if length else 0
            point = tuple(c + share * (o - c) for c, o in zip(corner, other, strict=True))
            vertices += [point] if other is before else [corner, point]
            codes += [2] if other is before else [3, 3]
    return [*vertices, path[-1]], [*codes, 2]
