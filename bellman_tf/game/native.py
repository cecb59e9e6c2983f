"""The game of a model as it runs: every layer with trainable variables, at any depth, is a player of its own.

Nothing is copied, and nothing traced unless `stages` or `program` are read. The model's graph (`rowwise.py`), or where
that does not say it one run on made-up samples (`survey.py`), tells which layers have a Gram form where they stand; the
rest trains open-loop, one player for each layer that holds nothing else.
"""

import dataclasses
import functools
from collections.abc import Iterator

import keras

from bellman_tf._typing import Shape, Signature
from bellman_tf.game.alignments import Alignments
from bellman_tf.game.dataflow import stages_of
from bellman_tf.game.game import Game
from bellman_tf.game.players import BACKWARD, COTANGENTS, Player, Stage
from bellman_tf.game.rowwise import read_off
from bellman_tf.game.stages import TracedGame
from bellman_tf.game.survey import Finding, Survey, survey
from bellman_tf.keras_access import children_of
from bellman_tf.layers.coverage import Coverage
from bellman_tf.layers.registry import coverage


class NativeGame(Game):
    """The players of a model, read off its graph or found by running it once on made-up samples.

    Attributes:
        players: covered players in the order of their first calls, then open-loop ones.
        written: Keras variables that the model writes while it runs.
        reason: why the model could not be run; empty otherwise.
    """

    def __init__(self, model: keras.Model, signature: Signature) -> None:
        """Surveys a model.

        Args:
            model: a built Keras model.
            signature: its inputs as symbolic tensors.
        """
        self._model, self._signature = model, signature
        self._paths = dict(_named(model))
        candidates, self._reasons = self._candidates(model)
        self._asked = {id(layer) for layer, _ in candidates}
        found = read_off(model, candidates) or survey(model, signature, candidates)
        self.written, self.reason = found.written, found.reason
        self.players: list[Player] = []
        self._add_covered(candidates, found)
        self._add_rest(model)
        self._enclose(found.enclosing)

    @staticmethod
    def _candidates(model: keras.Model) -> tuple[list[tuple[keras.Layer, Coverage]], dict[int, str]]:
        """Layers that might have a Gram form, and why the others have none, by `id`."""
        candidates, reasons = [], {}
        for layer, inside in _walk(model):
            if not layer.trainable_variables:
                continue
            found = coverage(layer)
            if isinstance(found, str):
                reasons[id(layer)] = found
            elif inside:
                reasons[id(layer)] = f"it runs inside the loop of {inside}"
            else:
                candidates.append((layer, found))
        return candidates, reasons

    def _add_covered(self, candidates: list[tuple[keras.Layer, Coverage]], found: Survey) -> None:
        nulls: list[tuple[keras.Layer, Finding]] = []
        order = sorted(candidates, key=lambda pair: found.findings[id(pair[0])].order)
        for layer, how in order:
            finding = found.findings[id(layer)]
            if finding.reason:
                self._reasons[id(layer)] = finding.reason
                continue
            variables = tuple(layer.trainable_variables)
            if finding.null:
                how = coverage(layer, bias=False)
                variables = tuple(v for v in variables if v is not layer.bias)
                nulls.append((layer, finding))
            way = COTANGENTS if finding.separate else BACKWARD
            self._add(layer, self._paths[id(layer)], variables, how, finding.shapes, way)
        for layer, _ in nulls:
            reason = "what follows takes every shift away"
            self._add(layer, f"{self._paths[id(layer)]}/bias", (layer.bias,), reason, null=True)

    def _add(
        self,
        layer: keras.Layer,
        name: str,
        variables: tuple[keras.Variable, ...],
        how: Coverage | str,
        shapes: tuple[Shape, ...] = (),
        way: str = BACKWARD,
        null: bool = False,
    ) -> None:
        player = Player(len(self.players), name, (layer,), variables, (), None, how, shapes, way, null)
        self.players.append(player)

    def _add_rest(self, model: keras.Model) -> None:
        """Variables without a Gram form: one player for each outermost layer that holds nothing else."""
        known = {id(v) for player in self.players for v in player.variables}

        def visit(layer: keras.Layer) -> None:
            variables = _unique(layer.trainable_variables)
            left = [v for v in variables if id(v) not in known]
            if not left:
                return
            children = [child for child in children_of(layer) if child.trainable_variables]
            if layer is not model and (isinstance(layer, keras.layers.RNN) or id(layer) in self._asked or not children):
                self._open_loop(layer, left, known)
                return
            for child in children:
                visit(child)
            left = [v for v in left if id(v) not in known]
            if left:
                self._open_loop(layer, left, known)

        visit(model)

    def _open_loop(self, layer: keras.Layer, variables: list[keras.Variable], known: set[int]) -> None:
        known.update(id(v) for v in variables)
        reason = self._reasons.get(id(layer), f"{type(layer).__name__} has no Gram form")
        if len(variables) < len(_unique(layer.trainable_variables)):  # its layers are players of their own
            own = ", ".join(v.name for v in variables)
            reason = f"weights of its own ({own}) have no Gram form"
        self._add(layer, self._paths.get(id(layer)) or layer.name, tuple(variables), reason)

    def _enclose(self, enclosing: dict[int, list[keras.Layer]]) -> None:
        """Open-loop players take their gradients from cotangents if all can; else one backward pass serves them all."""
        within: dict[int, keras.Layer] = {}
        for player in self.open_loop_players:
            first, *others = [enclosing.get(id(v), []) for v in player.variables]
            common = [layer for layer in first if all(layer in layers for layers in others)]
            if not common:
                return
            within[player.index] = common[0]
        for index, layer in within.items():
            self.players[index] = dataclasses.replace(self.players[index], weighing=COTANGENTS, within=layer)

    # ---- stages

    @functools.cached_property
    def _when(self) -> dict[int, int]:
        """Stage of each player's first call, by index; the model's forward pass is traced when this is first read."""
        layers = {
            id(player.layers[0]): player.layers[0] for player in self.players if player.layers[0] is not self._model
        }
        when = stages_of(self._model, self._signature, list(layers.values()))
        return {p.index: when[id(p.layers[0])] for p in self.players if id(p.layers[0]) in when and not p.null}

    @functools.cached_property
    def stages(self) -> list[Stage]:  # pyright: ignore[reportIncompatibleVariableOverride]  # made when first read
        """Players by the number of players on the longest path above them; those that are never called are left out."""
        count = 1 + max(self._when.values(), default=-1)
        times = range(count)
        return [Stage(tuple(p for p in self.players if self._when.get(p.index) == t), (), (), ()) for t in times]

    def stage_of(self, player: Player) -> int | None:
        """Stage of a player, `None` if it is not called as a layer.

        Args:
            player: of this game.

        Returns:
            The number of the stage.
        """
        return self._when.get(player.index)

    # ---- the layers as one sees them from outside

    @functools.cached_property
    def program(self) -> TracedGame:  # pyright: ignore[reportIncompatibleMethodOverride]  # made when first read
        """The model's top-level calls as a game: alignments, pictures, the nonlinear roll-out."""
        return TracedGame(self._model)

    @property
    def alignments(self) -> Alignments:
        """Placements of the players off the longest path, of `program`."""
        return self.program.alignments


def _walk(model: keras.Model) -> Iterator[tuple[keras.Layer, str]]:
    """Every layer once, with the name of the recurrent layer that it runs in, if it does."""
    seen: set[int] = set()
    stack: list[tuple[keras.Layer, str]] = [(model, "")]
    while stack:
        layer, inside = stack.pop()
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        yield layer, inside
        within = layer.name if isinstance(layer, keras.layers.RNN) else inside
        stack.extend((child, within) for child in reversed(children_of(layer)))


def _named(model: keras.Model) -> Iterator[tuple[int, str]]:
    """(`id`, path) of every layer: the names from below the model down, the first path found."""
    seen: set[int] = {id(model)}
    stack = [(child, child.name) for child in reversed(children_of(model))]
    yield id(model), model.name
    while stack:
        layer, path = stack.pop()
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        yield id(layer), path
        stack.extend((child, f"{path}/{child.name}") for child in reversed(children_of(layer)))


def _unique(variables: list[keras.Variable]) -> list[keras.Variable]:
    return list({id(v): v for v in variables}.values())
