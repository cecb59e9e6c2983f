"""Where a player off the longest path may act: its range of stages, and the placements of all movable players.

A stage is a time at which some layers act; on a branch that is shorter than the one beside it, a layer may act earlier
or later without changing what the network computes. Movable players that follow one another form a block, whose
placements keep their order; the placements of the network are the product over the blocks. Source: DGN Sec. 4.1,
GTDDP Sec. 3.2.
"""

import itertools
import math
import random
from collections.abc import Iterator

from bellman_tf.game.graph import Slot
from bellman_tf.game.players import Program

LISTED = 1024  # placements that are listed; of more, a sample is

Placement = dict[int, int]


class Alignments:
    """The placements of a game's movable players; a placement maps a player's index to its stage.

    Attributes:
        ranges: earliest and latest stage of every player whose place is known, by index.
        blocks: for each block of movable players, its placements.
        count: number of placements of the whole network, the product over the blocks.
    """

    def __init__(self, game: Program) -> None:
        """Lists the placements of every block.

        Args:
            game: a game in its earliest placement.
        """
        self.ranges = ranges(game)
        follows = _followers(game, {i for i, (early, late) in self.ranges.items() if late > early})
        self.blocks = [list(_placements(block, follows, self.ranges)) for block in _blocks(follows, self.ranges)]
        self.count = math.prod(len(block) for block in self.blocks)
        self._names = {player.index: player.name for player in game.players}

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Placement]:
        return iter(self.sample(LISTED))

    @property
    def asap(self) -> Placement:
        """Every movable player at its earliest stage."""
        return {player: self.ranges[player][0] for block in self.blocks for player in block[0]}

    @property
    def alap(self) -> Placement:
        """Every movable player at its latest stage."""
        return {player: self.ranges[player][1] for block in self.blocks for player in block[0]}

    def sample(self, most: int, seed: int = 0) -> list[Placement]:
        """All placements, or `most` different ones of them if there are more, the earliest and the latest first.

        Args:
            most: at least 1.
            seed: of the choice.

        Returns:
            Placements, without repetition.
        """
        if self.count <= most:
            return [dict(itertools.chain(*map(dict.items, parts))) for parts in itertools.product(*self.blocks)]
        draw = random.Random(seed)
        chosen = {tuple(placement.items()): placement for placement in [self.asap, self.alap][:most]}
        while len(chosen) < most:
            placement = dict(itertools.chain(*[draw.choice(block).items() for block in self.blocks]))
            chosen.setdefault(tuple(placement.items()), placement)
        return list(chosen.values())

    def named(self, placement: Placement) -> dict[str, int]:
        """A placement by layer names.

        Args:
            placement: by index.

        Returns:
            Name to stage.
        """
        return {self._names[player]: stage for player, stage in placement.items()}

    def __repr__(self) -> str:
        lines = [f"{self.count} alignments, {len(self.blocks)} blocks of movable players"]
        for block in self.blocks:
            spans = [f"{self._names[p]} in stages {self.ranges[p][0]}-{self.ranges[p][1]}" for p in block[0]]
            lines.append(f"  {len(block)} placements: {', '.join(spans)}")
        if self.count > LISTED:
            lines.append(f"  {LISTED} of them are listed, drawn at random")
        return "\n".join(lines)


def ranges(game: Program) -> dict[int, tuple[int, int]]:
    """Earliest and latest stage of every player whose place is known; a layer applied twice does not move.

    Args:
        game: a game in its earliest placement.

    Returns:
        Pairs by the player's index.
    """
    if game.graph is None:
        return {}
    depth = len(game.stages)
    needed: dict[Slot, int] = {}  # slot to the stage by which it must be there
    latest: dict[int, int] = {}
    for call in reversed(game.graph.calls):
        due = min((needed.get(slot, depth) for slot in call.outputs), default=depth)
        player = game.player_of.get(id(call))
        if player is not None:
            due = due - 1 if len(player.calls) == 1 else game.when[id(call)]
            latest[player.index] = min(due, latest.get(player.index, due))
        for slot in call.inputs:
            needed[slot] = min(due, needed.get(slot, depth))
    return {
        player.index: (player.stage, latest[player.index] if len(player.calls) == 1 else player.stage)
        for player in game.players
        if player.stage is not None
    }


def _followers(game: Program, movable: set[int]) -> dict[int, set[int]]:
    """For each movable player, the movable players that read what it makes, directly or through others."""
    above: dict[Slot, set[int]] = {}  # slot to the movable players it depends on
    follows: dict[int, set[int]] = {player: set() for player in sorted(movable)}
    for call in game.graph.calls if game.graph else ():
        sources = set().union(*(above.get(slot, set()) for slot in call.inputs))
        player = game.player_of.get(id(call))
        if player is not None and player.index in movable:
            for source in sources:
                follows[source].add(player.index)
            sources = sources | {player.index}
        for slot in call.outputs:
            above[slot] = sources
    return follows


def _blocks(follows: dict[int, set[int]], spans: dict[int, tuple[int, int]]) -> list[list[int]]:
    """Groups of players that can get in one another's way, each in order of index."""
    group = {player: player for player in follows}

    def root(player: int) -> int:
        while group[player] != player:
            player = group[player]
        return player

    for player, others in follows.items():
        for other in others:
            if spans[player][1] < spans[other][0]:
                continue
            first, second = sorted((root(player), root(other)))
            group[second] = first
    found: dict[int, list[int]] = {}
    for player in follows:
        found.setdefault(root(player), []).append(player)
    return list(found.values())


def _placements(
    block: list[int], follows: dict[int, set[int]], spans: dict[int, tuple[int, int]], start: Placement | None = None
) -> Iterator[Placement]:
    """All placements of a block that keep its order; players come in an order that their inputs allow."""
    placed = start or {}
    if len(placed) == len(block):
        yield dict(placed)
        return
    player = block[len(placed)]
    early, late = spans[player]
    behind = [stage for other, stage in placed.items() if player in follows[other]]
    for stage in range(max([early, *[s + 1 for s in behind]]), late + 1):
        yield from _placements(block, follows, spans, {**placed, player: stage})
