"""A Keras model as a game: its trainable layers are the players, cut into stages.

The stage of a layer is the number of trainable layers on the longest path above it. The state before stage t is every
tensor that crosses the cut: made before, read at stage t or later (or an output of the network), and dependent on some
player. Source: GTDDP Sec. 3.1; DGN Fig. 2.
"""

import copy
import dataclasses
import functools
from typing import Self

import keras

from bellman_tf import _checks, keras_access
from bellman_tf.game.alignments import Alignments
from bellman_tf.game.game import Game
from bellman_tf.game.graph import Call, Graph, Slot, UntraceableModelError, changed, trace
from bellman_tf.game.players import Player, Program, Stage
from bellman_tf.game.replayable import Verdict, judge
from bellman_tf.game.survey import signature_of
from bellman_tf.layers.coverage import PREACTIVATION, Coverage
from bellman_tf.layers.registry import coverage


class TracedGame(Game, Program):
    """The players and stages of a model.

    Attributes:
        graph: the model as a flat program, or `None` if it cannot be traced.
        reason: why `graph` is `None`.
        players: every player, in order of stage; then those whose place is not known.
        stages: the stages in forward order.
        after: calls without parameters behind the last stage.
        normalised_by: for a player whose pre-activation goes through one BatchNormalization and nowhere else, by
            `index`, the call of that normalisation.
        player_of: player of each call that has one, by `id` of the call.
        when: stage of each of these calls, by `id` of the call.

    Example:
        >>> inputs = keras.Input((3,))
        >>> x = keras.layers.Dense(4, activation="tanh", name="first")(inputs)
        >>> y = keras.layers.Dense(4, name="second")(x)
        >>> model = keras.Model(inputs, keras.layers.Add()([keras.layers.Dense(4, name="shortcut")(inputs), y]))
        >>> [sorted(player.name for player in stage) for stage in TracedGame(model).stages]
        [['first', 'shortcut'], ['second']]
    """

    def __init__(self, model: keras.Model) -> None:
        """Reads a model's graph.

        Args:
            model: a built Keras model.
        """
        self._model, self.reason = model, ""
        try:
            self.graph: Graph | None = trace(model)
        except UntraceableModelError as error:
            self.graph, self.reason = None, str(error)
        calls = self.graph.calls if self.graph else ()
        groups = _players_of(calls)
        made, self.when = _times(calls, {id(call) for group in groups for call in group})
        self.players: list[Player] = []
        self.player_of: dict[int, Player] = {}
        for group in sorted(groups, key=lambda group: self.when[id(group[0])]):
            self._add_player(group, self.when[id(group[0])])
        self._add_loose(model)
        self._cut(calls, made)
        self.normalised_by = self._normalisations(calls)

    @property
    def program(self) -> Self:
        """This game."""
        return self

    @functools.cached_property
    def verdict(self) -> Verdict:
        """What is wrong with a replay of the graph.

        The model runs on made-up samples when this is first read; once for all games with the same calls that are made
        of it between two calls of `compile`.
        """
        model, calls = self._model, self.graph.calls if self.graph else ()
        compiled = (getattr(model, "optimizer", None), getattr(model, "loss", None))
        key = [*compiled, *(call.operation for call in calls)]
        kept = model.__dict__.get("_game_verdict")
        if kept is None or len(kept[0]) != len(key) or any(a is not b for a, b in zip(kept[0], key, strict=True)):
            kept = (key, judge(self, model, signature_of(model)))
            object.__setattr__(model, "_game_verdict", kept)  # past Keras's attribute tracking
        return kept[1]

    @property
    def refusal(self) -> str:
        """Why a replay of the graph would train the model wrongly; empty if it is the model."""
        return self.verdict.unlike or self.verdict.disorder

    @property
    def stale(self) -> str:
        """How the model's `call` differs from the graph that was once made of it; empty if it does not."""
        return changed(self.graph, self._model) if self.graph is not None else ""

    @functools.cached_property
    def alignments(self) -> Alignments:  # pyright: ignore[reportIncompatibleMethodOverride]  # made when first read
        """The placements of players off the longest path.

        Example:
            >>> inputs = keras.Input((3,))
            >>> y = keras.layers.Dense(4, name="second")(keras.layers.Dense(4, activation="tanh", name="first")(inputs))
            >>> model = keras.Model(inputs, keras.layers.Add()([keras.layers.Dense(4, name="shortcut")(inputs), y]))
            >>> game = TracedGame(model)
            >>> [game.alignments.named(placement) for placement in game.alignments]
            [{'shortcut': 0}, {'shortcut': 1}]
        """
        return Alignments(self)

    @property
    def ranges(self) -> dict[int, tuple[int, int]]:
        """Earliest and latest stage of every player whose place is known, by index."""
        return self.alignments.ranges

    def aligned(self, placement: dict[int, int]) -> "TracedGame":
        """The same players in other stages.

        Args:
            placement: stage of each player that is to move, by the player's index.

        Returns:
            A game; players keep their indices.

        Raises:
            ValueError: if a player cannot act at its stage.

        Example:
            >>> inputs = keras.Input((3,))
            >>> y = keras.layers.Dense(4, name="second")(keras.layers.Dense(4, activation="tanh", name="first")(inputs))
            >>> model = keras.Model(inputs, keras.layers.Add()([keras.layers.Dense(4, name="shortcut")(inputs), y]))
            >>> game = TracedGame(model)
            >>> [[player.name for player in stage] for stage in game.aligned(game.alignments.alap).stages]
            [['first'], ['shortcut', 'second']]
        """
        game = copy.copy(self)
        vars(game).pop("alignments", None)
        wanted = {
            id(self.players[index].calls[0]): stage for index, stage in placement.items() if self.players[index].calls
        }
        calls = self.graph.calls if self.graph else ()
        made, game.when = _times(calls, set(self.player_of), wanted)
        for index, stage in placement.items():
            player = self.players[index]
            early, late = self.ranges.get(index, (stage + 1, stage))
            if player.stage is None or not early <= stage <= late or game.when[id(player.calls[0])] != stage:
                raise _checks.error(
                    "alignment", f"keep the order of the layers, {player.name} in stages {early} to {late}", stage,
                    "`model.game.alignments` lists what is possible.",
                )  # fmt: skip
        game.players = [
            dataclasses.replace(p, stage=game.when[id(p.calls[0])]) if p.stage is not None else p for p in self.players
        ]
        game.player_of = {call: game.players[player.index] for call, player in self.player_of.items()}
        game._cut(calls, made)
        return game

    def _add_player(self, calls: list[Call], stage: int) -> None:
        operations = {id(call.operation): call.operation for call in calls}.values()
        layers = [operation for operation in operations if isinstance(operation, keras.Layer)]
        variables = tuple({id(v): v for layer in layers for v in layer.trainable_variables}.values())
        if len(layers) > 1:
            found: Coverage | str = "several layers share its variables"
        elif len(calls) > 1:
            found = f"it is applied {len(calls)} times"
        elif len(calls[0].outputs) != 1:
            found = f"it has {len(calls[0].outputs)} outputs"
        else:
            [layer] = layers
            found = coverage(layer)
            if _masked_normalisation(calls[0]):
                found = "its statistics are masked"
        name = " + ".join(layer.name for layer in layers)
        shapes = tuple(call.shapes[0][1:] for call in calls)
        player = Player(len(self.players), name, tuple(layers), variables, tuple(calls), stage, found, shapes)
        self.players.append(player)
        self.player_of.update({id(call): player for call in calls})

    def _add_loose(self, model: keras.Model) -> None:
        """Trainable variables that no traced layer owns still train, one open-loop player per owner."""
        known = {id(v) for player in self.players for v in player.variables}
        for layer in keras_access.layers_of(model):
            own = [
                v
                for v in keras_access.own_trainable_variables(layer)
                if id(v) not in known and v.trainable and layer.trainable
            ]
            if own:
                known.update(id(v) for v in own)
                reason = "its model cannot be traced" if self.graph is None else "its place in the network is not known"
                self.players.append(Player(len(self.players), layer.name, (layer,), tuple(own), (), None, reason))

    def _normalisations(self, calls: tuple[Call, ...]) -> dict[int, Call]:
        readers: dict[Slot, list[Call]] = {}
        for call in calls:
            for slot in call.inputs:
                readers.setdefault(slot, []).append(call)
        outputs = set(keras.tree.flatten(self.graph.outputs)) if self.graph else set()
        found = {}
        for player in self.players:
            if not player.covered or player.covering.site != PREACTIVATION:
                continue
            [slot] = player.calls[0].outputs
            [layer] = player.layers
            plain = layer.activation is None or layer.activation is keras.activations.linear
            plain = plain and layer.activity_regularizer is None  # which reads the pre-activation as well
            reading = readers.get(slot, [])
            if plain and len(reading) == 1 and slot not in outputs:
                after = self.player_of.get(id(reading[0]))
                batch = isinstance(reading[0].operation, keras.layers.BatchNormalization)
                if batch and after is not None and after.covered:
                    found[player.index] = reading[0]
        return found

    def _cut(self, calls: tuple[Call, ...], made: dict[Slot, int]) -> None:
        depth = 1 + max(self.when.values(), default=-1)
        last_read: dict[Slot, int] = {}
        between: list[list[Call]] = [[] for _ in range(depth + 1)]
        acting: list[list[Call]] = [[] for _ in range(depth)]
        for call in calls:
            if id(call) in self.player_of:
                time = self.when[id(call)]
                acting[time].append(call)
            else:
                time = max((made[slot] for slot in call.inputs), default=0) - 1
                between[time + 1].append(call)
            for slot in call.inputs:
                last_read[slot] = max(last_read.get(slot, -1), time)
        if self.graph:
            for slot in keras.tree.flatten(self.graph.outputs):
                last_read[slot] = depth
        self.stages: list[Stage] = []
        for t in range(depth):
            state = tuple(s for s, time in made.items() if 1 <= time <= t and last_read.get(s, -1) >= t)
            players = tuple(p for p in self.players if p.stage == t)
            self.stages.append(Stage(players, tuple(between[t]), state, tuple(acting[t])))
        self.after = tuple(between[depth])


def _times(
    calls: tuple[Call, ...], acting: set[int], wanted: dict[int, int] | None = None
) -> tuple[dict[Slot, int], dict[int, int]]:
    """Stage from which each slot is there, and stage of each player call, by `id`: the earliest, or later if wanted."""
    made: dict[Slot, int] = {}
    when: dict[int, int] = {}
    for call in calls:
        for slot in call.inputs:
            made.setdefault(slot, 0)
        time = max((made[slot] for slot in call.inputs), default=0)
        if id(call) in acting:
            when[id(call)] = time = max(time, (wanted or {}).get(id(call), 0))
            time += 1
        made.update(dict.fromkeys(call.outputs, time))
    return made, when


def _players_of(calls: tuple[Call, ...]) -> list[list[Call]]:
    """Groups the calls that share trainable variables."""
    groups: list[list[Call]] = []
    owner: dict[int, list[Call]] = {}
    for call in calls:
        if not isinstance(call.operation, keras.Layer) or not call.operation.trainable_variables:
            continue
        keys = [id(v) for v in call.operation.trainable_variables]
        joined = list({id(owner[k]): owner[k] for k in keys if k in owner}.values())
        group = joined[0] if joined else []
        if not joined:
            groups.append(group)
        for other in joined[1:]:
            group.extend(other)
            groups.remove(other)
            owner.update({k: group for k, g in owner.items() if g is other})
        group.append(call)
        owner.update(dict.fromkeys(keys, group))
    return groups


def _masked_normalisation(call: Call) -> bool:
    is_batch = isinstance(call.operation, keras.layers.BatchNormalization)
    return is_batch and call.kwargs.get("mask") is not None


def require_one_call(game: TracedGame, method: str, advice: str) -> None:
    """Refuses layers that have no one place in the network, for methods that treat each at its stage.

    Args:
        game: the game.
        method: whose demand it is.
        advice: what to do instead.

    Raises:
        ValueError: if a trainable layer is applied several times, or at a place that is not known.
    """
    scattered = [player.name for player in game.players if player.stage is None or len(player.calls) != 1]
    if game.graph is None or scattered:
        rule = f"have every trainable layer applied once, at a known place, for {method}"
        raise _checks.error("model", rule, game.reason or scattered, advice)
