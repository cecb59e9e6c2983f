"""Which player's output reaches which player: the game's picture as nodes and edges, before it is drawn.

Between players stand calls without parameters. One that reads a single tensor (an activation, a pooling) is not a
node: its input flows through. One that brings several together (Add, Concatenate) is a node of its own, a merge, so
that a chain of residual blocks keeps one edge per shortcut.
"""

from collections.abc import Sequence
from typing import NamedTuple

import keras

from bellman_tf.game.graph import Call, Slot
from bellman_tf.game.players import Program

_MERGES = {
    "Add": "+", "Subtract": "-", "Multiply": "x", "Concatenate": "cat", "Average": "avg", "Maximum": "max",
    "Minimum": "min", "Dot": "dot", "Matmul": "dot", "Divide": "/", "TrueDivide": "/", "Stack": "stack",
}  # fmt: skip


class Node(NamedTuple):
    """A box or a circle of the picture.

    Attributes:
        stage: where it stands; -1 for inputs, the number of stages for outputs.
        depth: 0 for players, inputs and outputs; merges stand behind their stage, one behind another from 1 on.
        kind: "player", "merge", "input" or "output".
        index: of the player in `Game.players`, or a running number.
        label: what to write in a merge, an input or an output.
    """

    stage: int
    depth: int
    kind: str
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  # hides tuple.index, which no one asks of a node
    label: str = ""


class Edge(NamedTuple):
    """A tensor that flows from one node to another.

    Attributes:
        source: where it is made.
        target: where it is read.
    """

    source: Node
    target: Node

    @property
    def shortcut(self) -> bool:
        """Whether it passes over the players of some stage."""
        ahead = self.source.stage + (self.target.depth == 0)
        return self.target.stage > ahead


def edges(game: Program) -> list[Edge]:
    """The flow of a game, input to output.

    A player stands at the stages where its layer is applied: a layer applied twice is two nodes with one index.

    Args:
        game: the game.

    Returns:
        Edges in the order of the calls, without repetition; none if the model could not be traced.
    """
    if game.graph is None:
        return []
    when = {id(call): t for t, stage in enumerate(game.stages) for call in stage.calls}
    made = {slot: Node(-1, 0, "input", i, label) for i, (slot, label) in enumerate(_named("input", game.graph.inputs))}
    found: dict[Edge, None] = {}
    merges = 0
    for call in game.graph.calls:
        sources = list(dict.fromkeys(made[slot] for slot in call.inputs if slot in made))
        if id(call) in when:
            node = Node(when[id(call)], 0, "player", game.player_of[id(call)].index)
        elif len(sources) > 1:
            place = max((source.stage, source.depth) for source in sources)
            node = Node(place[0], place[1] + 1, "merge", merges, _merge_label(call))
            merges += 1
        elif sources:
            made.update(dict.fromkeys(call.outputs, sources[0]))
            continue
        else:
            continue
        found.update(dict.fromkeys(Edge(source, node) for source in sources))
        made.update(dict.fromkeys(call.outputs, node))
    for i, (slot, label) in enumerate(_named("output", keras.tree.flatten(game.graph.outputs))):
        if slot in made:
            found[Edge(made[slot], Node(len(game.stages), 0, "output", i, label))] = None
    return list(found)


def _named(name: str, slots: Sequence[Slot]) -> list[tuple[Slot, str]]:
    return [(slot, name if len(slots) == 1 else f"{name} {i + 1}") for i, slot in enumerate(slots)]


def _merge_label(call: Call) -> str:
    kind = type(call.operation).__name__
    return _MERGES.get(kind, kind.lower() if len(kind) <= 6 else kind[:5].lower() + ".")


def heights(flow: list[Edge], apart: dict[int, float]) -> dict[Node, float]:
    """A height for every node: level with what it reads, as far as its neighbours above and below leave room.

    Args:
        flow: the edges.
        apart: least distance of two nodes of one stage, by depth; merges deeper than the last take the last.

    Returns:
        Heights, 0 in the middle, upwards.
    """
    readers: dict[Node, list[Node]] = {}
    for edge in flow:
        readers.setdefault(edge.source, [])
        readers.setdefault(edge.target, []).append(edge.source)
    columns: dict[tuple[int, int], list[Node]] = {}
    for node in sorted(readers):
        columns.setdefault(node[:2], []).append(node)
    found: dict[Node, float] = {}
    for (_, depth), nodes in columns.items():
        wish = {node: _mean([found[source] for source in readers[node] if source in found]) for node in nodes}
        nodes.sort(key=lambda node: (wish[node], -node.index))
        distance = apart[min(depth, max(apart))]
        found.update(zip(nodes, _spread([wish[node] for node in nodes], distance), strict=True))
    return found


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _spread(wishes: list[float], distance: float) -> list[float]:
    """The points nearest to ascending `wishes` that keep a distance: isotonic regression, pooling violators."""
    pools: list[list[float]] = []  # [sum of wishes less their offsets, how many]
    for i, wish in enumerate(wishes):
        pools.append([wish - i * distance, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] >= pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1][0] += total
            pools[-1][1] += count
    levels = [total / count for total, count in pools for _ in range(int(count))]
    return [level + i * distance for i, level in enumerate(levels)]
