"""What every game consists of: players, stages, and how much of the network has a Gram form."""

import abc
import dataclasses
import math
from typing import Protocol

import keras

from bellman_tf import _checks
from bellman_tf._typing import Shape
from bellman_tf.curvature.block import state_dtype
from bellman_tf.curvature.gram.plan import LIMITS, GramForm, GramLimits, Plan, plan
from bellman_tf.curvature.identity import IDENTITY
from bellman_tf.curvature.metric import MetricKind
from bellman_tf.game.graph import Call, Graph, Slot
from bellman_tf.layers.calls import joined_extent
from bellman_tf.layers.coverage import Coverage
from bellman_tf.layers.matrix_layout import Extent

# How the gradient of the weighted loss is had: the cotangents of one backward pass weighed sample by sample, where
# samples stay apart behind the layer, or one more backward pass, of the weighted loss itself.
COTANGENTS, BACKWARD = "cotangents", "backward pass"


@dataclasses.dataclass(frozen=True, eq=False)
class Player:
    """The parameters of one layer, or of several that cannot be told apart.

    Attributes:
        index: position in the game's `players`.
        name: layer names.
        layers: the layers whose variables these are.
        variables: trainable variables, in the layers' order.
        calls: where the layers are applied; empty if that is not known, and in a `NativeGame`.
        stage: of the first call; `None` if the calls are not known, and in a `NativeGame`, which has `stage_of`.
        coverage: how the player is covered, or the reason why it is open-loop.
        shapes: of the tensors its cotangents belong to, without the batch axis, one per call.
        weighing: how the gradient of the weighted loss is had: `COTANGENTS` or `BACKWARD`.
        null: whether the variables have no effect on the outputs.
        within: of an open-loop player with `COTANGENTS`: the layer whose noted outputs lead to its gradient.

    Example:
        >>> model = btf.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="only")])
        >>> [player] = model.game.players
        >>> player.name, player.kind, player.parameters, player.covered
        ('only', 'dense', 16, True)
    """

    index: int
    name: str
    layers: tuple[keras.Layer, ...]
    variables: tuple[keras.Variable, ...]
    calls: tuple[Call, ...]
    stage: int | None
    coverage: Coverage | str
    shapes: tuple[Shape, ...] = ()
    weighing: str = COTANGENTS
    null: bool = False
    within: keras.Layer | None = None

    @property
    def covering(self) -> Coverage:
        """`coverage`, of a covered player.

        Raises:
            ValueError: if the player is open-loop.
        """
        if isinstance(self.coverage, str):
            raise _checks.error("player", "have a Gram form", f"{self.name}: {self.coverage}")
        return self.coverage

    @property
    def place(self) -> int:
        """`stage`, of a player whose place is known.

        Raises:
            ValueError: if it is not.
        """
        return _checks.given(f"stage of {self.name}", self.stage)

    @property
    def covered(self) -> bool:
        """Whether the player has a Gram form."""
        return isinstance(self.coverage, Coverage)

    @property
    def kind(self) -> str:
        """Layer family, "open-loop", or "no effect"."""
        if self.covered:
            return self.covering.kind
        return "no effect" if self.null else "open-loop"

    @property
    def gram(self) -> str:
        """Form of the Gram matrix under `gram="auto"` and the identity metric; "none" if open-loop."""
        return self.gram_plan().words

    @property
    def gram_cost(self) -> int | None:
        """Multiplications per sample of that form, `None` if a size is not static."""
        return self.gram_plan().cost

    def gram_plan(
        self,
        kind: MetricKind = IDENTITY,
        form: GramForm = "auto",
        group_size: int | None = None,
        limits: GramLimits = LIMITS,
    ) -> Plan:
        """How the player's Gram matrix is formed, for one cotangent per sample.

        Args:
            kind: of the player's metric.
            form: the `gram` option.
            group_size: samples per group; `None` is the whole batch.
            limits: sizes from which on a form is approximated, or its matrix formed in blocks.

        Returns:
            What the step does.
        """
        if not self.covered:
            return Plan("none", 0, "none")
        itemsize = 8 if state_dtype(self.variables) == "float64" else 4
        return plan(self.extent, kind, form, group_size, limits, itemsize)

    @property
    def extent(self) -> Extent:
        """Static sizes of all calls together, for one cotangent per sample; of a covered player."""
        return joined_extent([self.covering.extent((None, *shape)) for shape in self.shapes])

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(math.prod(v.shape) for v in self.variables)


class Stage(tuple[Player, ...]):
    """One stage of the game: the tuple of players that act here for the first time (a shared layer acts once).

    Attributes:
        before: calls without parameters that lead up to the cut before this stage.
        state: slots crossing the cut.
        calls: calls of players at this stage, in graph order.

    Example:
        >>> model = btf.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2)])
        >>> [len(stage) for stage in model.game.stages]
        [1, 1]
    """

    before: tuple[Call, ...]
    state: tuple[Slot, ...]
    calls: tuple[Call, ...]

    def __new__(
        cls, players: tuple[Player, ...], before: tuple[Call, ...], state: tuple[Slot, ...], calls: tuple[Call, ...]
    ) -> "Stage":
        """Makes the tuple and attaches what lies around it."""
        stage = super().__new__(cls, players)
        stage.before, stage.state, stage.calls = before, state, calls
        return stage

    @property
    def players(self) -> tuple[Player, ...]:
        """The players, as a plain tuple."""
        return tuple(self)


class Players:
    """What all games share.

    Attributes:
        players: every player, in order; then those whose place is not known.
        stages: tuples of players that act at the same time.
        reason: why the network's layers cannot be told apart; empty if they can.
        written: Keras variables that the model writes while it runs, as far as that is known.
    """

    players: list[Player]
    stages: list[Stage]
    reason: str = ""
    written: tuple[keras.Variable, ...] = ()

    @property
    def open_loop_players(self) -> list[Player]:
        """Players without a Gram form; those without effect are left out."""
        return [player for player in self.players if not player.covered and not player.null]

    def stage_of(self, player: Player) -> int | None:
        """Stage of a player, `None` if that is not known.

        Args:
            player: of this game.

        Returns:
            The number of the stage.

        Example:
            >>> game = btf.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2)]).game
            >>> [game.stage_of(player) for player in game.players]
            [0, 1]
        """
        return player.stage

    @property
    def coverage(self) -> float:
        """Share of the trainable parameters that have a Gram form, those without effect left out.

        Example:
            >>> btf.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).game.coverage
            1.0
        """
        total = sum(player.parameters for player in self.players if not player.null)
        covered = sum(player.parameters for player in self.players if player.covered)
        return covered / total if total else 1.0


class Placements(Protocol):
    """What is read of `bellman_tf.game.alignments.Alignments`."""

    @property
    def count(self) -> int:
        """Number of placements."""
        ...


class Program(Players, abc.ABC):
    """A game whose network is known call by call.

    Attributes:
        graph: the model as a flat program, or `None` if it cannot be traced.
        after: calls without parameters behind the last stage.
        player_of: player of each call that has one, by `id` of the call.
        when: stage of each of these calls, by `id` of the call.
    """

    graph: Graph | None
    after: tuple[Call, ...]
    player_of: dict[int, Player]
    when: dict[int, int]

    @property
    def traced(self) -> Graph:
        """`graph`, of a model that can be traced.

        Raises:
            ValueError: if it cannot.
        """
        if self.graph is None:
            raise _checks.error("model", "be one whose layers can be listed", self.reason)
        return self.graph

    @property
    @abc.abstractmethod
    def alignments(self) -> Placements:
        """The placements of players off the longest path."""

    @property
    @abc.abstractmethod
    def ranges(self) -> dict[int, tuple[int, int]]:
        """Earliest and latest stage of every player whose place is known, by index."""

    @property
    def loose_players(self) -> list[Player]:
        """Players whose place in the network is not known."""
        return [player for player in self.players if player.stage is None]
