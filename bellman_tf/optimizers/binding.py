"""What ties an optimizer to a model: its players and their curvature state."""

import warnings
import weakref
from typing import Any

import keras
import tensorflow as tf

from bellman_tf import _checks
from bellman_tf.curvature.block import Block, state_dtype
from bellman_tf.curvature.config import Config
from bellman_tf.curvature.coupling.base import Coupling
from bellman_tf.curvature.inner import InnerMetric, make_inner_block
from bellman_tf.curvature.registry import player_layout
from bellman_tf.curvature.stacks import StateStore
from bellman_tf.game.players import Player, Players
from bellman_tf.keras_optimizers import accumulators_of, counter_of, trained_variables
from bellman_tf.optimizers.large_states import warn_large
from bellman_tf.optimizers.metrics import couplings_of, curvature_block
from bellman_tf.optimizers.refusals import (
    check_dtypes,
    check_moved,
    check_replay,
    check_replicas,
    check_scope,
    needs_model,
    other_players,
    takes_whole_step,
)
from bellman_tf.optimizers.saving import SavingMixin
from bellman_tf.training.momentum import Momentum
from bellman_tf.training.settings import GameOptions
from bellman_tf.training.step_control import LevenbergMarquardt

_LATER = (
    "{name} is in a plain Keras model, as a loaded or cloned one may be: it can evaluate and predict, and its training "
    "state is left out. To train, `model = bellman_tf.as_game(model)`, then `compile` it again."
)


class ModelBound(SavingMixin, keras.optimizers.Optimizer):
    """An optimizer that belongs to one model and keeps curvature state for each of its players.

    Attributes:
        options: of the game.
        curvature: config object that every player's block is made of; `None` with another optimizer inside.
        inner_metric: what the metric is, with another optimizer inside: "rate" or "gain".
        whole_states: whether every step replays the model's trace, on states of the whole batch whatever their rows.
        blocks: curvature of every player.
        players: of the game that the blocks were made for.
        couplings: joint curvature of players of one stage.
        step_control: rule for the damping, or `None`.
        velocities: of every player's variables; empty without momentum.
    """

    options: GameOptions
    step_control: LevenbergMarquardt | None = None
    control_state: keras.Variable
    rejected_in_a_row: keras.Variable
    refused_steps: keras.Variable
    curvature: Config | None
    whole_states = False
    inner_metric: InnerMetric = "gain"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.blocks: list[Block] = []
        self.players: list[Player] = []
        self.couplings: list[Coupling] = []
        self._store = StateStore([], self.add_variable)
        self.velocities: list[list[keras.Variable]] = []
        self._model: weakref.ref | None = None
        self._game: weakref.ref | None = None

    @property
    def momentum(self) -> Momentum:
        """Momentum of the steps of our own curvatures, chosen in the constructor: sample weights depend on it."""
        return self.__dict__.get("_momentum", Momentum())

    @momentum.setter
    def momentum(self, value: Momentum) -> None:
        if not isinstance(value, Momentum):
            raise _checks.error(
                "momentum", "be given to the constructor", value,
                f"Compile the model with a new {type(self).__name__}(momentum=...).",
            )  # fmt: skip
        self.__dict__["_momentum"] = value

    @property
    def accumulators(self) -> list[list[keras.Variable]]:
        """Sums of the gradients of every player's variables; empty without accumulation of our own."""
        if self.inner is not None or self.options.micro_batches == 1:
            return []
        variables = trained_variables(self)
        known = {id(v): s for v, s in zip(variables, accumulators_of(self), strict=True)}
        return [[known[id(v)] for v in player.variables] for player in self.players]

    @property
    def state(self) -> list[list[tf.Tensor]]:
        """Values of the state of every block, then of every coupling."""
        return self._store.read()

    def bind(self, model: keras.Model) -> None:
        """Ties the optimizer to a model; called by `compile`.

        Args:
            model: a model of this package.

        Raises:
            ValueError: if the optimizer already holds the state of another model.
        """
        if self.built and not self._holds(model):
            raise _checks.error(
                "optimizer", "be new, or have been built for this model", self.name,
                f"Create another {type(self).__name__} for the model '{model.name}'.",
            )  # fmt: skip
        if model.distribute_strategy.num_replicas_in_sync > 1:
            check_scope(self.name, [self.rejected_in_a_row, *([] if self.inner is None else [counter_of(self.inner)])])
            whole_batch = None if self.solver is None else type(self).__name__
            check_replicas(model, self.options, self.step_control, whole_batch, self.inner is not None)
        self._model = weakref.ref(model)

    def _holds(self, model: keras.Model) -> bool:
        """Whether the optimizer was built for the model's trainable variables."""
        return [id(v) for v in model.trainable_variables] == [id(v) for v in trained_variables(self)]

    def _bound_model(self) -> keras.Model:
        model = None if self._model is None else self._model()
        if model is None:
            raise needs_model(type(self).__name__, self.name)
        return model

    def build(self, variables: list[keras.Variable]) -> None:
        """Creates the curvature state of every player, in the order of the game.

        In a plain Keras model, where there is no game, it warns and creates nothing.

        Args:
            variables: the model's trainable variables.

        Raises:
            ValueError: if the nonlinear roll-out would replay a model that its trace does not describe, a player does
                not suit the curvature, variables in float64 stand beside others, a variable is to be overwritten with
                its gradient, or the state of a copied optimizer does not fit the model.
        """
        if self.built:
            return
        if self._model is None:  # Keras builds what it has loaded or cloned; `scale_loss` refuses to train it
            warnings.warn(_LATER.format(name=type(self).__name__), stacklevel=2)
            return
        model = self._bound_model()
        variables, game = model.trainable_variables, model.game  # loading a legacy file, Keras passes too few
        check_moved(variables)
        blocks = [self.make_block(player) for player in game.players]
        check_replay(model.name, game, blocks, self.options, self.whole_states)
        check_dtypes(variables, blocks, self.options)
        warn_large(type(self).__name__, game.players, blocks)
        super().build(variables)
        self.build_inner(variables)
        owners = [
            (f"player_{player.index}", block.state_specs(), state_dtype(player.variables))
            for player, block in zip(game.players, blocks, strict=True)
        ]
        couplings, _ = couplings_of(game, blocks, self.options)
        for number, coupling in enumerate(couplings):
            dtype = state_dtype(game.players[coupling.players[0]].variables)
            owners.append((f"coupling_{number}", coupling.state_specs(), dtype))
        self.blocks, self.couplings, self.players = blocks, couplings, list(game.players)
        self._store = StateStore(owners, self.add_variable)
        if self.momentum.beta:
            self.velocities = [
                [self.add_variable_from_reference(v, "velocity") for v in player.variables] for player in game.players
            ]
        self._game, self._needs = weakref.ref(game), _needs(game, blocks, couplings)
        self.make_more_state(game)
        self.restore()

    def _follow(self, game: Players) -> None:
        """Takes over a game that was read anew, if it has the players that the state was made for."""
        known = self._game is not None and self._game() is game
        blocks = self.blocks if known else [self.make_block(player) for player in game.players]
        check_replay(self._bound_model().name, game, blocks, self.options, self.whole_states)
        if known:
            return
        couplings, _ = couplings_of(game, blocks, self.options)
        if _needs(game, blocks, couplings) != self._needs:
            raise other_players(type(self).__name__, game)
        self.blocks, self.couplings, self.players = blocks, couplings, list(game.players)
        self._game = weakref.ref(game)

    def make_more_state(self, game: Players) -> None:
        """Creates state besides that of the players; for subclasses.

        Args:
            game: the model's game.
        """

    def make_block(self, player: Player) -> Block:
        """The curvature block that a player gets.

        Args:
            player: of the model's game.

        Returns:
            The block.
        """
        if self.inner is None:
            return curvature_block(_checks.given("curvature", self.curvature), player, self.options)
        variables = player.covering.variables if player.covered else player.variables
        layout = player_layout(player.name, tuple(tuple(v.shape) for v in variables), player.coverage)
        return make_inner_block(layout, self.inner, variables, self.inner_metric)

    # ---- training loops that are not ours

    def scale_loss(self, loss: Any) -> Any:
        """Refuses: only a `train_step` that is not ours calls this."""
        raise takes_whole_step(type(self).__name__, self._bound_model())

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Refuses: gradients alone are not enough."""
        raise takes_whole_step(type(self).__name__, self._bound_model())


def _needs(
    game: Players, blocks: list[Block], couplings: list[Coupling]
) -> tuple[list[tuple[int, ...]], list[list[tuple[int, ...]]]]:
    """Whose variables the state belongs to, and its shapes, in order."""
    owners = [tuple(id(v) for v in player.variables) for player in game.players]
    return owners, [[tuple(spec.shape) for spec in part.state_specs()] for part in (*blocks, *couplings)]
