"""What ties an optimizer to a model: its players, their curvature state, and the models and loops it refuses."""

import warnings
import weakref
from typing import Any

import keras
import tensorflow as tf

from bellman_tf import _checks, keras_access, keras_optimizers
from bellman_tf.curvature.block import Block, state_dtype
from bellman_tf.curvature.config import Config
from bellman_tf.curvature.coupling.base import Coupling
from bellman_tf.curvature.identity import IdentityBlock
from bellman_tf.curvature.inner import InnerBlock, InnerMetric, make_inner_block
from bellman_tf.curvature.registry import player_layout
from bellman_tf.curvature.stacks import StateStore
from bellman_tf.game.players import Player, Players
from bellman_tf.game.stages import Game
from bellman_tf.optimizers.large_states import warn_large
from bellman_tf.optimizers.metrics import couplings_of, curvature_block, gram_forms
from bellman_tf.optimizers.saving import SavingMixin
from bellman_tf.training.information import INFORMATION
from bellman_tf.training.momentum import Momentum
from bellman_tf.training.own_losses import ruled
from bellman_tf.training.settings import GameOptions
from bellman_tf.training.step_control import LevenbergMarquardt

_NEEDS_MODEL = (
    "{name} needs the layers of the network, not only its gradients. Received: a plain Keras model or training loop. "
    "Change one line: `model = bellman_tf.as_game(model)` before `compile` (or derive the class of a subclassed model "
    "from `bellman_tf.Model`), and train with `fit` or `train_on_batch`; what a loop of your own adds to the loss goes "
    "into `compute_loss`."
)
_OWN_LOOP = (
    "{name} takes the whole training step: gradients alone, handed to `apply`, `apply_gradients` or `scale_loss`, are "
    "not enough. Received: a `train_step` or training loop of your own around the model '{model}'. Leave `train_step` "
    "to bellman_tf.Model and say what is special in the loss: override `compute_loss(x, y, y_pred, sample_weight)`, "
    "call `self.add_loss(...)` in `call`, or pass `loss=` to `compile`; a loop calls `model.train_on_batch(x, y)`."
)
_LATER = (
    "{name} is in a plain Keras model, as a loaded or cloned one may be: it can evaluate and predict, and its training "
    "state is left out. To train, `model = bellman_tf.as_game(model)`, then `compile` it again."
)
_WAY_OUT = (
    "Pass rollout='linear', which runs the model's own `call`. What only a second pass has (alignments, bilinear=True, "
    "value_hessian='outer_product') cannot be had for this model."
)
_WHOLE_WAY_OUT = "Use GTDDP, whose default rollout='linear' runs the model's own `call`."


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
        variables = keras_optimizers.trained_variables(self)
        known = {id(v): s for v, s in zip(variables, keras_optimizers.accumulators_of(self), strict=True)}
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
            self._check_replicas(model)
        self._model = weakref.ref(model)

    def _check_replicas(self, model: keras.Model) -> None:
        """Refuses what does not work on several replicas, each of which sees its own samples only."""
        synchronised = any(getattr(layer, "synchronized", False) for layer in keras_access.layers_of(model))
        counters = [self.rejected_in_a_row, *([] if self.inner is None else [keras_optimizers.counter_of(self.inner)])]
        if not all(isinstance(counter.value, tf.distribute.DistributedValues) for counter in counters):
            raise _checks.error(
                "optimizer", "be made inside the scope of the model's strategy: every replica would count its steps",
                self.name, "Make model and optimizer, the inner one too, under `with strategy.scope():`.",
            )  # fmt: skip
        if self.solver is not None:
            reason = f"{type(self).__name__} computes one step from all samples of the batch"
            hint = "Use GTDDP, or build the model outside the strategy's scope."
        elif self.options.rollout == "nonlinear":
            reason = "with rollout='nonlinear' a stage moves before the replicas' later gradients are known"
            hint = "Pass rollout='linear', or build the model outside the strategy's scope."
        elif model.jit_compile:
            raise _checks.error(
                "jit_compile", "be False on several replicas: XLA compiles a function for one device and reads no "
                "variable of another, under Keras's own optimizers neither (tensorflow/tensorflow#56423)", True,
                "Leave it out; what runs on a single replica may be compiled.",
            )  # fmt: skip
        elif self.step_control is not None and self.step_control.every > 1 and synchronised:
            raise _checks.error(
                "step_control.every", "be 1 with a synchronised BatchNormalization on several replicas, which exchange "
                "nothing inside a branch of the graph", self.step_control.every,
            )  # fmt: skip
        elif self.inner is not None and self.options.micro_batches > 1:
            reason = "Keras's optimizers cannot accumulate gradients on several replicas"
            hint = "Use a `curvature` of ours with gradient_accumulation_steps, or build the model outside the scope."
        else:
            return
        raise _checks.error("model", f"run on one replica: {reason}", model.name, hint)

    def _holds(self, model: keras.Model) -> bool:
        """Whether the optimizer was built for the model's trainable variables."""
        return [id(v) for v in model.trainable_variables] == [id(v) for v in keras_optimizers.trained_variables(self)]

    def _bound_model(self) -> keras.Model:
        model = None if self._model is None else self._model()
        if model is None:
            raise ValueError(_NEEDS_MODEL.format(name=type(self).__name__))
        return model

    def build(self, variables: list[keras.Variable]) -> None:
        """Creates the curvature state of every player, in the order of the game.

        In a plain Keras model, where there is no game, it warns and creates nothing.

        Args:
            variables: the model's trainable variables.

        Raises:
            ValueError: if the nonlinear roll-out would replay a model that its trace does not describe, a player does
                not suit the curvature, variables in float64 stand beside others, or the state of a copied optimizer
                does not fit the model.
        """
        if self.built:
            return
        if self._model is None:  # Keras builds what it has loaded or cloned; `scale_loss` refuses to train it
            warnings.warn(_LATER.format(name=type(self).__name__), stacklevel=2)
            return
        model = self._bound_model()
        variables, game = model.trainable_variables, model.game  # loading a legacy file, Keras passes too few
        blocks = [self.make_block(player) for player in game.players]
        self._check_replay(game, blocks)
        self._check_dtypes(variables, blocks)
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
        if self._game is not None and self._game() is game:
            self._check_replay(game, self.blocks)
            return
        blocks = [self.make_block(player) for player in game.players]
        self._check_replay(game, blocks)
        couplings, _ = couplings_of(game, blocks, self.options)
        if _needs(game, blocks, couplings) != self._needs:
            raise _checks.error(
                "optimizer", "be new, or have been built for these players", [player.name for player in game.players],
                self._why_others(game),
            )  # fmt: skip
        self.blocks, self.couplings, self.players = blocks, couplings, list(game.players)
        self._game = weakref.ref(game)

    def _why_others(self, game: Players) -> str:
        """Why a game that was read anew has other players than the state, and what to do about it."""
        new = f"compile it with another {type(self).__name__}."
        if not game.reason:
            return f"The model's `call` has changed: {new}"
        reason = game.reason.removesuffix(".")
        return f"The model could not be looked at: {reason}. Let its `call` run on other samples too, or {new}"

    def make_more_state(self, game: Players) -> None:
        """Creates state besides that of the players; for subclasses.

        Args:
            game: the model's game.
        """

    def _check_replay(self, game: Players, blocks: list[Block]) -> None:
        """Refuses to replay a trace that is not the model; a plain open-loop step replays nothing."""
        captured = any(block.needs_capture and p.covered for p, block in zip(game.players, blocks, strict=True))
        replays = self.whole_states or captured or INFORMATION[self.options.information].curved
        if not isinstance(game, Game) or not replays:
            return
        name, stale = self._bound_model().name, game.stale
        if stale:
            raise _checks.error(
                "model", f"be compiled again: the `call` of '{name}' has changed since it was read; {stale}", name,
                "Or pass rollout='linear', which runs the model's own `call`.",
            )  # fmt: skip
        reason = game.verdict.unlike if self.whole_states else game.refusal
        if reason:
            raise _checks.error(
                "rollout", f"be 'linear' for the model '{name}': {reason}", self.options.rollout,
                _WHOLE_WAY_OUT if self.whole_states else _WAY_OUT,
            )  # fmt: skip

    def _check_dtypes(self, variables: list[keras.Variable], blocks: list[Block]) -> None:
        """Statistics and sample weights have one dtype; the plain open-loop step needs neither."""
        dtypes = sorted({v.dtype for v in variables})
        plain = self.options.information == "open" and all(isinstance(b, IdentityBlock | InnerBlock) for b in blocks)
        if "float64" in dtypes and len(dtypes) > 1 and not plain:
            raise _checks.error(
                "model", "have trainable variables of one dtype", dtypes, "Give every layer the same `dtype`."
            )

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

    # ---- what a reader of `game_summary` is shown

    def describe(self, game: Players) -> list[str]:
        """Each player's curvature in a word or two.

        Args:
            game: the model's game.

        Returns:
            One description per player.
        """
        blocks = self._blocks_of(game)
        _, notes = couplings_of(game, blocks, self.options)
        drawn = [" of the model" if block.draws else "" for block in blocks]
        return [block.describe() + whose + note for block, whose, note in zip(blocks, drawn, notes, strict=True)]

    def _blocks_of(self, game: Players) -> list[Block]:
        """The blocks in use, if they are of the variables of these players; else what the players would get."""
        used, asked = ([[id(v) for v in p.variables] for p in players] for players in (self.players, game.players))
        return self.blocks if used == asked else [self.make_block(player) for player in game.players]

    def describe_grams(self, game: Players) -> list[str]:
        """The form of each player's Gram matrix.

        Args:
            game: the model's game.

        Returns:
            One form per player; "none" where no Gram matrix is formed.
        """
        return gram_forms(self.options, game, self._blocks_of(game))

    def describe_losses(self, game: Players) -> list[str] | None:
        """The outputs whose losses each player minimises.

        Args:
            game: the model's game.

        Returns:
            Names per player, "all" for players without a rule; `None` without `player_losses`.
        """
        own = ruled(game.players, self.options.player_losses)
        return [", ".join(own.get(player.index, ("all",))) for player in game.players] if own else None

    # ---- training loops that are not ours

    def scale_loss(self, loss: Any) -> Any:
        """Refuses: only a `train_step` that is not ours calls this."""
        raise self._refusal()

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Refuses: gradients alone are not enough."""
        raise self._refusal()

    def _refusal(self) -> ValueError:
        model = None if self._model is None else self._model()
        if model is None:
            return ValueError(_NEEDS_MODEL.format(name=type(self).__name__))
        return ValueError(_OWN_LOOP.format(name=type(self).__name__, model=model.name))


def _needs(
    game: Players, blocks: list[Block], couplings: list[Coupling]
) -> tuple[list[tuple[int, ...]], list[list[tuple[int, ...]]]]:
    """Whose variables the state belongs to, and its shapes, in order."""
    owners = [tuple(id(v) for v in player.variables) for player in game.players]
    return owners, [[tuple(spec.shape) for spec in part.state_specs()] for part in (*blocks, *couplings)]
