"""Where everything of a game's picture stands. Lengths are inches, heights grow upwards.

Stages are columns, players boxes, merges circles. An edge to the next stage is straight; a shortcut runs level where
there is nothing in its way, and through a lane above the boxes otherwise. A row holds so many stages; what flows into
the next row leaves at the right margin and enters at the left.
"""

import math
from typing import NamedTuple

from bellman_tf.game.flow import Edge, Node, edges, heights
from bellman_tf.game.players import Program

BOX = (1.45, 0.56)
PILL = (0.8, 0.32)  # inputs and outputs
CIRCLE = 0.15  # radius of a merge
GAP = 0.5  # between two columns of boxes without a merge
LANE = 0.17  # between two lanes
PORT = 0.3  # from the margin to the first box
MARGIN = 0.25
BAR = 0.2  # from the bar of a movable player to the next
HEAD = 0.34  # above a row, for the numbers of its stages
FOOT = 0.12  # below its boxes
_APART = {0: BOX[1] + 0.2, 1: 3 * CIRCLE}

Point = tuple[float, float]
Ends = tuple[Node | None, Node | None, Edge]  # of a wire, as `Wire` has them


class Wire(NamedTuple):
    """The part of an edge in one row.

    Attributes:
        path: its corners.
        source: where it begins; `None` is the left margin.
        target: where it ends; `None` is the right margin.
        edge: what it is a part of.
    """

    path: list[Point]
    source: Node | None
    target: Node | None
    edge: Edge


class Bar(NamedTuple):
    """The range of a movable player.

    Attributes:
        line: how far below the boxes.
        player: its index.
        early: its first stage, perhaps in a row before.
        late: its last stage, perhaps in a row behind.
    """

    line: int
    player: int
    early: int
    late: int


class Layout:
    """The rows of a game's picture.

    Attributes:
        rows: from top to bottom; none if the model could not be traced.
        tags: a number for each node whose tensor goes on in another row.
    """

    def __init__(self, game: Program, stages_per_row: int) -> None:
        """Places everything.

        Args:
            game: the game.
            stages_per_row: at most so many; rows are of like length.
        """
        flow, depth = edges(game), len(game.stages)
        level = heights(flow, _APART)
        count = max(1, math.ceil(depth / stages_per_row)) if flow else 0
        each = math.ceil(depth / max(count, 1))
        self.rows = [Row(r * each, min((r + 1) * each, depth), depth, level) for r in range(count)]
        self.tags: dict[Node, int] = {}
        for edge in sorted(flow):
            self._split(edge)
        movable = {p.index: game.ranges[p.index] for p in game.players if p.index in game.ranges}
        for row in self.rows:
            row.lay_wires()
            row.place_bars({player: (early, late) for player, (early, late) in movable.items() if early < late})

    def _split(self, edge: Edge) -> None:
        first, last = (self._row_of(node) for node in edge)
        if first < last:
            self.tags.setdefault(edge.source, len(self.tags) + 1)
        for r in range(first, last + 1):
            self.rows[r].add(edge, edge.source if r == first else None, edge.target if r == last else None)

    def _row_of(self, node: Node) -> int:
        return next((r for r, row in enumerate(self.rows) if node.stage < row.stop), len(self.rows) - 1)


class Row:
    """The stages from `start` to before `stop`, the merges behind them, and the wires between.

    Attributes:
        nodes: what stands here.
        x: middle of each place, by stage and depth.
        y: height of each node.
        right: end of the last column.
        floor: lower end of the boxes.
        top: upper end of boxes and wires.
        wires: once laid.
        bars: once placed.
    """

    def __init__(self, start: int, stop: int, depth: int, level: dict[Node, float]) -> None:
        """Places the nodes.

        Args:
            start: first stage.
            stop: the stage after the last one.
            depth: number of stages of the game.
            level: height of every node.
        """
        self.start, self.stop, self.y = start, stop, level
        last = stop == depth
        low, high = (-1 if start == 0 else start), (stop if last else stop - 1)
        self.nodes = [node for node in level if low <= node.stage <= high]
        self.x: dict[tuple[int, int], float] = {}
        x = MARGIN + (PORT if start else 0)
        for t in range(low, high + 1):
            width = PILL[0] if t in {-1, depth} else BOX[0]
            merges = max((node.depth for node in self.nodes if node.stage == t), default=0)
            self.x[t, 0] = x + width / 2
            self.x.update({(t, d): x + width + GAP / 2 + (4 * d - 3) * CIRCLE for d in range(1, merges + 1)})
            x += width + GAP + 4 * CIRCLE * merges
        self.right = x - (GAP if last else GAP / 2)
        self.width = self.right + MARGIN + (0 if last else PORT)
        self._places = sorted(self.x)
        self._taken: dict[tuple[int, int], list[Point]] = {place: [] for place in self._places}
        for node in self.nodes:
            self._take(node[:2], self.y[node], half(node)[1])
        self.floor = min((self.y[node] - half(node)[1] for node in self.nodes), default=0.0)
        self.wires: list[Wire] = []
        self.bars: list[Bar] = []
        self._risers: dict[tuple[str, int], dict[Node, int]] = {}
        self._ends: dict[tuple[Node, Node | None], Ends] = {}

    @property
    def below(self) -> float:
        """Height of the bars."""
        return BAR * (1 + max(bar.line for bar in self.bars)) + FOOT if self.bars else 0.0

    @property
    def height(self) -> float:
        """From the head of this row to that of the next."""
        return HEAD + self.top - self.floor + FOOT + self.below + 0.3

    def add(self, edge: Edge, source: Node | None, target: Node | None) -> None:
        """Notes a wire; all that lead from one source to the margin, or through the row, are one.

        Args:
            edge: the edge.
            source: where it begins in this row, or `None`.
            target: where it ends in this row, or `None`.
        """
        self._ends.setdefault((edge.source, target), (source, target, edge))

    def lay_wires(self) -> None:
        """Gives every wire its path, the short ones first; then the height is known."""

        def span(ends: Ends) -> tuple[int, int]:
            first, last = self._span(*ends[:2])
            return last - first, first

        for source, target, edge in sorted(self._ends.values(), key=span):
            self.wires.append(Wire(self._path(source, target), source, target, edge))
        self.top = max((high for spans in self._taken.values() for _, high in spans), default=0.0)

    def place_bars(self, ranges: dict[int, tuple[int, int]]) -> None:
        """Finds a line for the bar of every movable player that has stages in this row.

        Args:
            ranges: first and last stage by the player's index.
        """
        ends: list[int] = []
        for player, (early, late) in ranges.items():
            if late >= self.start and early < self.stop:
                line = next((i for i, end in enumerate(ends) if end < early), len(ends))
                ends[line : line + 1] = [late]
                self.bars.append(Bar(line, player, early, late))

    def _take(self, place: tuple[int, int], y: float, reach: float = 0.0) -> None:
        self._taken[place].append((y - reach, y + reach))

    def _span(self, source: Node | None, target: Node | None) -> tuple[int, int]:
        first = self._places.index(source[:2]) if source else -1
        return first, self._places.index(target[:2]) if target else len(self._places)

    def _path(self, source: Node | None, target: Node | None) -> list[tuple[float, float]]:
        """Corners of a wire: straight to the next place, level if nothing is in the way, or through a lane above."""
        first, last = self._span(source, target)
        x_0 = self.x[source[:2]] + half(source)[0] if source else MARGIN + 0.1
        x_1 = self.x[target[:2]] - half(target)[0] if target else self.right + PORT - 0.1
        levels = [self.y[node] for node in (source, target) if node]
        passed = self._places[first + 1 : last]
        near = all(place[1] > 0 and self._free(min(levels), [place], max(levels)) for place in passed)
        if levels and near:
            return [(x_0, levels[0]), (x_1, levels[-1])]
        # A wire also keeps clear of others beside its own ends: where it rises behind a box, and comes down on a merge.
        ends = [node[:2] for node, merge in ((source, False), (target, True)) if node and (node.depth > 0) == merge]
        lane = levels[0] if levels else None
        if lane is None or not self._free(lane, passed):
            others = [high for place in ends for low, high in self._taken[place] if low == high]
            lane = LANE + max([high for place in passed for _, high in self._taken[place]] + levels + others)
        for place in passed + ends:
            self._take(place, lane)
        return self._way_out(source, x_0, lane) + self._way_in(target, x_1, lane)

    def _free(self, y: float, places: list[tuple[int, int]], upper: float | None = None) -> bool:
        """Whether nothing stands at a height, or from there to `upper`."""
        top = y if upper is None else upper
        return not any(low - 0.1 < top and y < high + 0.1 for place in places for low, high in self._taken[place])

    def _way_out(self, source: Node | None, x: float, lane: float) -> list[tuple[float, float]]:
        if source is None or self.y[source] == lane:
            return [(x, lane)]
        if source.kind == "merge":
            x = self.x[source[:2]] + 0.05
            return [(x, self.y[source] + CIRCLE * 0.94), (x, lane)]
        bend = x + 0.1 + self._riser("up", source)
        return [(x, self.y[source]), (bend, self.y[source]), (bend, lane)]

    def _way_in(self, target: Node | None, x: float, lane: float) -> list[tuple[float, float]]:
        if target is None or self.y[target] == lane:
            return [(x, lane)]
        y = self.y[target]
        if target.kind == "merge":
            x = self.x[target[:2]] - 0.05
            return [(x, lane), (x, y + math.copysign(CIRCLE * 0.94, lane - y))]
        bend = x - 0.2 - self._riser("down", target)
        return [(bend, lane), (bend, y), (x, y)]

    def _riser(self, way: str, node: Node) -> float:
        """Offset of the vertical part of a wire, one per node at a stage."""
        taken = self._risers.setdefault((way, node.stage), {})
        return 0.05 * taken.setdefault(node, len(taken))


def half(node: Node) -> Point:
    """Half the width and the height of a node.

    Args:
        node: any node.

    Returns:
        The pair.
    """
    if node.kind == "merge":
        return CIRCLE, CIRCLE
    size = BOX if node.kind == "player" else PILL
    return size[0] / 2, size[1] / 2
