"""GTDDP: training as a cooperative dynamic game, one Keras optimizer."""

import dataclasses
import warnings
import weakref

import keras
import tensorflow as tf

from bellman_tf import _checks, keras_access
from bellman_tf.curvature import config as curvature_config
from bellman_tf.curvature.block import Block, state_dtype
from bellman_tf.curvature.coupling.base import Coupling
from bellman_tf.curvature.identity import IdentityBlock
from bellman_tf.game.players import Player, Players
from bellman_tf.game.stages import Game
from bellman_tf.optimizers.metrics import couplings_of, curvature_block, gram_forms
from bellman_tf.optimizers.records import Records, Saved, first_control_state
from bellman_tf.optimizers.rejections import Rejections
from bellman_tf.training.context import StepContext, recursion_dtype
from bellman_tf.training.information import INFORMATION
from bellman_tf.training.report import report
from bellman_tf.training.settings import Clipping, DenseOptions, GameOptions, StepSettings
from bellman_tf.training.step import take_step
from bellman_tf.training.step_control import get as step_control_named

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
_DENSE_WAY_OUT = "Use GTDDP, whose default rollout='linear' runs the model's own `call`."


@keras.saving.register_keras_serializable("bellman_tf")
class GTDDP(Records, Rejections, Saved, keras.optimizers.Optimizer):
    """Differential dynamic programming on networks as games: layers are players, and the players of a stage cooperate.

    Every step solves a Bellman recursion over the layers, exactly, in the space of the batch's samples; the update of
    a layer is its gradient with the samples re-weighted, `-M^{-1} sum_i w_i q_i`, where the weights know how the
    layers before it have just changed the state. With `information="open"` all weights are 1/B and the optimizer is
    its curvature's baseline: SGD, RMSprop, Adam, K-FAC, EKFAC.

    Args:
        learning_rate: float, `keras.optimizers.schedules.LearningRateSchedule`, or callable.
        curvature: metric M: "identity", "rmsprop", "adam", "kfac", "ekfac", "full", or an object of
            `bellman_tf.curvature`.
        information: "open" (no value Hessian), "feedback" (every player its own value), "cooperative_open" (joint
            value, no feedback in the forward pass) or "cooperative".
        value_hessian: "batch" (samples coupled, exact), "block_diagonal" (uncoupled) or "outer_product" (the papers'
            scalar recursion, with its clamp).
        terminal_hessian: "matched" (the loss's true curvature along its gradient), "outer_product" (g g'), "full"
            (the loss's Hessian), or an integer rank of its truncation.
        group_size: couple samples in groups of this size; `None` is the whole batch.
        bilinear: form the re-weighted gradient with the layer's new input; needs the nonlinear roll-out.
        rollout: "linear" (the default: the model runs once, as it is, and the step is the gradient of a re-weighted
            loss; any model that Keras can train) or "nonlinear" (the papers' second forward pass, stage by stage, on a
            traced copy of the model; chosen where an option needs it). A model that a traced copy would train wrongly
            (constants made of variables, state written in `call`, `training=` given there, rows that are not samples,
            a call that cannot be traced) is refused at the first step, with the layer or variable.
        outer_scale: of `value_hessian="outer_product"`: "mean" (z is the gradient of the batch's mean loss, as
            automatic differentiation of a mean returns it: beta^2 starts at 1/B, c = 1/B) or "sample" (beta^2 = 1 and
            c = 1, the other reading of the papers, which diverges at rates where its baseline trains).
        gram: how Gram matrices are formed, see `bellman_tf.curvature.gram`; "auto" chooses by static shapes.
        step_control: `None`, "levenberg_marquardt" or a `bellman_tf.LevenbergMarquardt`: damping by the ratio of the
            actual to the predicted decrease on the batch, and steps that raise it refused; needs
            `value_hessian="batch"` without groups. The state is in `damping` and `refused_steps`.
        weight_decay: decoupled, as in Keras.
        clipnorm: per variable, as in Keras.
        clipvalue: per variable, as in Keras.
        global_clipnorm: as in Keras; with `rollout="nonlinear"` only for `information="open"`, because there stages
            update one after the other and there is no global gradient to clip.
        use_ema: as in Keras.
        ema_momentum: as in Keras.
        ema_overwrite_frequency: as in Keras.
        loss_scale_factor: must be `None`.
        gradient_accumulation_steps: must be `None`.
        name: as in Keras.
        **kwargs: refused by Keras.

    Raises:
        ValueError: for an option outside its range or a combination that cannot work, with the reason.

    Source: GTDDP (all), DGN Secs. 3-4, in the exact form of claims OURS-2, OURS-4.
    """

    def __init__(
        self,
        learning_rate: object = 0.03,
        *,
        curvature: object = "kfac",
        information: str = "cooperative",
        value_hessian: str = "batch",
        terminal_hessian: str | int = "matched",
        group_size: int | None = None,
        bilinear: bool = False,
        rollout: str | None = None,
        outer_scale: str = "mean",
        gram: str = "auto",
        step_control: object = None,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str | None = None,
        **kwargs: object,
    ) -> None:
        if rollout is None:
            rollout = "nonlinear" if value_hessian == "outer_product" or bilinear else "linear"
        options = GameOptions(
            information, value_hessian, terminal_hessian, group_size, bilinear, gram, rollout, outer_scale
        )
        metric = curvature_config.get(curvature)
        if getattr(metric, "cooperative", False) and information == "feedback":
            raise _checks.error(
                "cooperative", "be False with information='feedback': players with their own values do not cooperate",
                metric.cooperative,
            )  # fmt: skip
        control = step_control_named(step_control)
        if control is not None and (value_hessian != "batch" or group_size is not None or information == "open"):
            raise _checks.error(
                "step_control", "be None unless value_hessian='batch', group_size=None and information is not 'open': "
                "only then is there a second pass and a predicted decrease of the whole batch", step_control,
            )  # fmt: skip
        if isinstance(learning_rate, int) and not isinstance(learning_rate, bool):
            learning_rate = float(learning_rate)
        if isinstance(learning_rate, float):
            _checks.check_real("learning_rate", learning_rate, least=0)
        for argument, value in (
            ("weight_decay", weight_decay),
            ("clipnorm", clipnorm),
            ("clipvalue", clipvalue),
            ("global_clipnorm", global_clipnorm),
        ):
            if value is not None:
                _checks.check_real(argument, value, least=0)
        if global_clipnorm is not None and information != "open" and rollout == "nonlinear":
            raise _checks.error(
                "global_clipnorm", "be None with rollout='nonlinear': a stage moves before later gradients are known",
                global_clipnorm, "Use `clipnorm`, which clips per variable, or rollout='linear'.",
            )  # fmt: skip
        if loss_scale_factor is not None:
            raise _checks.error(
                "loss_scale_factor", "be None: curvature needs unscaled cotangents", loss_scale_factor,
                "bfloat16 needs no loss scaling.",
            )  # fmt: skip
        if gradient_accumulation_steps is not None:
            raise _checks.error(
                "gradient_accumulation_steps", "be None: the policy belongs to the batch it was computed on",
                gradient_accumulation_steps, "Use a larger batch with `group_size`.",
            )  # fmt: skip
        super().__init__(
            learning_rate,
            weight_decay=weight_decay,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            name=name,
            **kwargs,
        )
        self.options = options
        self.curvature = metric
        self.step_control = control
        self.blocks: list[Block] = []
        self.players: list[Player] = []
        self.couplings: list[Coupling] = []
        self.state: list[list[keras.Variable]] = []
        self._model: weakref.ref | None = None
        self._game: weakref.ref | None = None
        self.rejected_in_a_row = self.add_variable((), dtype="int64", name="rejected_in_a_row")
        self.rejected_batches = self.add_variable(
            (), dtype="int64", name="rejected_batches", aggregation="only_first_replica"
        )
        self.clamped_values = self.add_variable(
            (), dtype="int64", name="clamped_values", aggregation="only_first_replica"
        )
        if control is not None:
            self.control_state = self.add_variable(
                (4,), initializer=first_control_state, dtype="float32", name="control"
            )
            self.refused_steps = self.add_variable((), dtype="int64", name="refused_steps")

    @classmethod
    def as_published(cls, learning_rate: object = 0.03, **options: object) -> "GTDDP":
        """The setting that follows the paper's letter where the letter is computable.

        Terminal Hessian g g', scalar recursion with the metric in place of Q_uu, clamps counted. "kfac" and "ekfac"
        get the papers' cross blocks, `cooperative="published"`, where players share a value; an object of
        `bellman_tf.curvature` is taken as it is.

        Args:
            learning_rate: as in the constructor.
            **options: any other option.

        Returns:
            The optimizer.
        """
        options = {"value_hessian": "outer_product", "terminal_hessian": "outer_product", **options}
        optimizer = cls(learning_rate, **options)
        named = isinstance(options.get("curvature", "kfac"), str)
        joint = INFORMATION[optimizer.options.information].joint
        if named and joint and isinstance(optimizer.curvature, curvature_config.KFAC):
            optimizer.curvature = dataclasses.replace(optimizer.curvature, cooperative="published")
        return optimizer

    # ---- the model ---------------------------------------------------------------------------------------------

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
            raise _checks.error(
                "model",
                "run on one replica: gradients and statistics are not reduced across replicas yet",
                model.name,
                "Build it outside the strategy's scope.",
            )
        self._model = weakref.ref(model)

    def _holds(self, model: keras.Model) -> bool:
        """Whether the optimizer was built for the model's trainable variables."""
        return [id(v) for v in model.trainable_variables] == [id(v) for v in keras_access.trained_variables(self)]

    def _bound_model(self) -> keras.Model:
        model = None if self._model is None else self._model()
        if model is None:
            raise ValueError(_NEEDS_MODEL.format(name=type(self).__name__))
        return model

    def build(self, variables: list) -> None:
        """Creates the curvature state of every player, in the order of the game.

        In a plain Keras model, where there is no game, it warns and creates nothing.

        Args:
            variables: the model's trainable variables.

        Raises:
            ValueError: if the nonlinear roll-out would replay a model that its trace does not describe, a player does
                not suit the curvature, variables in float64 stand beside others, or the
                state of a copied optimizer does not fit the model.
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
        super().build(variables)
        state = []
        for player, block in zip(game.players, blocks, strict=True):
            specs = block.state_specs()
            dtype = state_dtype(player.variables)
            state.append([self._new_state(f"player_{player.index}_{spec.name}", spec, dtype) for spec in specs])
        couplings, _ = couplings_of(game, blocks)
        for number, coupling in enumerate(couplings):
            specs = coupling.state_specs()
            dtype = state_dtype(game.players[coupling.players[0]].variables)
            state.append([self._new_state(f"coupling_{number}_{spec.name}", spec, dtype) for spec in specs])
        self.blocks, self.couplings, self.state, self.players = blocks, couplings, state, list(game.players)
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
        couplings, _ = couplings_of(game, blocks)
        if _needs(game, blocks, couplings) != self._needs:
            raise _checks.error(
                "optimizer", "be new, or have been built for these players", [player.name for player in game.players],
                f"The model's `call` has changed: compile it with another {type(self).__name__}.",
            )  # fmt: skip
        self.blocks, self.couplings, self.players = blocks, couplings, list(game.players)
        self._game = weakref.ref(game)

    def make_more_state(self, game: Players) -> None:
        """Creates state besides that of the players; for subclasses.

        Args:
            game: the model's game.
        """

    def _check_replay(self, game: Players, blocks: list[Block]) -> None:
        """Refuses to replay a trace that is not the model; a plain open-loop step replays nothing."""
        captured = any(block.needs_capture and p.covered for p, block in zip(game.players, blocks, strict=True))
        if not isinstance(game, Game) or not (INFORMATION[self.options.information].curved or captured):
            return
        name, stale = self._bound_model().name, game.stale
        if stale:
            raise _checks.error(
                "model", f"be compiled again: the `call` of '{name}' has changed since it was read; {stale}", name,
                "Or pass rollout='linear', which runs the model's own `call`.",
            )  # fmt: skip
        reason = game.verdict.unlike if self.dense is not None else game.refusal  # dense matrices take any rows
        if reason:
            raise _checks.error(
                "rollout", f"be 'linear' for the model '{name}': {reason}", self.options.rollout,
                _DENSE_WAY_OUT if self.dense is not None else _WAY_OUT,
            )  # fmt: skip

    def _check_dtypes(self, variables: list, blocks: list[Block]) -> None:
        """Statistics and sample weights have one dtype; the plain open-loop step needs neither."""
        dtypes = sorted({v.dtype for v in variables})
        plain = self.options.information == "open" and all(isinstance(block, IdentityBlock) for block in blocks)
        if "float64" in dtypes and len(dtypes) > 1 and not plain:
            raise _checks.error(
                "model", "have trainable variables of one dtype", dtypes, "Give every layer the same `dtype`."
            )

    def make_block(self, player: object) -> Block:
        """The curvature block that a player gets.

        Args:
            player: a `Player`.

        Returns:
            The block.
        """
        return curvature_block(self.curvature, player)

    @property
    def wants_outcome(self) -> bool:
        """Whether a step must know what it does to J: the second pass then runs to the outputs."""
        return self.step_control is not None

    def describe(self, game: Players) -> list[str]:
        """Each player's curvature in a word or two.

        Args:
            game: the model's game.

        Returns:
            One description per player.
        """
        blocks = self.blocks or [self.make_block(player) for player in game.players]
        _, notes = couplings_of(game, blocks)
        return [block.describe() + note for block, note in zip(blocks, notes, strict=True)]

    def describe_grams(self, game: Players) -> list[str]:
        """The form of each player's Gram matrix.

        Args:
            game: the model's game.

        Returns:
            One form per player; "none" where no Gram matrix is formed.
        """
        blocks = self.blocks or [self.make_block(player) for player in game.players]
        return gram_forms(self.options, game, blocks)

    def _new_state(self, name: str, spec: object, dtype: str) -> keras.Variable:
        initial = keras.initializers.Identity() if spec.initial == "identity" else spec.initial
        return self.add_variable(spec.shape, initializer=initial, dtype=dtype, name=name)

    def warn_open_loop(self, game: Players) -> None:
        """One warning that names the players without feedback.

        Args:
            game: the model's game.
        """
        names = [player.name for player in game.open_loop_players]
        if not names or not INFORMATION[self.options.information].curved:
            return
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        warnings.warn(
            f"{type(self).__name__} trains these layers open-loop (their Gram matrix is not known): {shown}. "
            "`model.game_summary()` says why.",
            stacklevel=2,
        )

    # ---- the step ----------------------------------------------------------------------------------------------

    def train_step(self, model: keras.Model, data: object) -> dict:
        """One training step of a model of this package.

        Args:
            model: the model this optimizer is compiled in.
            data: as Keras hands it to `train_step`.

        Returns:
            The metrics' results.

        Raises:
            ValueError: if the model's trainable variables are not those the optimizer was built for, or the batch is
                empty.
        """
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        sizes = [leaf.shape[0] for leaf in keras.tree.flatten(x) if leaf is not None and len(leaf.shape)]
        if 0 in sizes:
            raise _checks.error("x", "hold at least one sample", sizes, "The batch is empty.")
        if any(isinstance(leaf, tf.RaggedTensor) for leaf in keras.tree.flatten(x)):
            raise _checks.error(
                "x", "be dense or sparse: the samples of a ragged batch have no tensors of one shape", sizes,
                "Pad it, `ragged.to_tensor()`, and let `Embedding(mask_zero=True)` or `Masking` mark the padding.",
            )  # fmt: skip
        if not model.built:
            model(x)
        model.warn_open_loop()
        if self._model is None or self._model() is not model:
            self.bind(model)
        if not self.built:
            self.build(model.trainable_variables)
        elif not self._holds(model):
            raise _checks.error(
                "model", "have the trainable variables that the optimizer was built for", model.name,
                "Compile the model again after freezing or adding layers.",
            )  # fmt: skip
        self.restore()
        self._follow(model.game)
        games = self.games(model.game)
        result = take_step(model, games, self.settings(), self.context(), data, lambda: self.branch(len(games)))
        self.conclude(result, games[0])
        return report(model, data, result)

    dense: DenseOptions | None = None  # of vanilla DDP

    def settings(self) -> StepSettings:
        """What a step must know of this optimizer that does not change from step to step."""
        variables = keras_access.trained_variables(self)
        undecayed = [v for v in variables if self.weight_decay is None or not keras_access.decays(self, v)]
        return StepSettings(
            options=self.options,
            blocks=tuple(self.blocks),
            couplings=tuple(self.couplings),
            clipping=Clipping(self.clipvalue, self.clipnorm, self.global_clipnorm),
            control=self.step_control,
            undecayed=frozenset(id(v) for v in undecayed),
            watched=self.watched and self.tells,
            wants_outcome=self.wants_outcome or (self.watched and self.tells),
            dense=self.dense,
        )

    def context(self) -> StepContext:
        """The tensors of this optimizer before a step."""
        dtype = recursion_dtype(keras_access.trained_variables(self))
        rate = tf.cast(self.learning_rate, dtype)
        fast = rate if self.rate_factor == 1 else rate * self.rate_factor
        controlled = self.step_control is not None
        return StepContext(
            iteration=tf.convert_to_tensor(self.iterations),
            learning_rate=fast / tf.cast(self.damping, dtype) if controlled else fast,
            decay=None if self.weight_decay is None else self.weight_decay * rate,
            state=[[tf.convert_to_tensor(v) for v in variables] for variables in self.state],
            control=tf.convert_to_tensor(self.control_state) if controlled else None,
        )

    rate_factor = 1.0  # what a subclass makes of the learning rate that metrics see

    def games(self, game: Players) -> list[Players]:
        """The placements of the players that a step may be taken in.

        Args:
            game: the model's game, every player at its earliest stage.

        Returns:
            At least one.
        """
        return [game]

    def branch(self, count: int) -> tf.Tensor:
        """Number of the placement that this step is taken in; asked only if there are several.

        Args:
            count: of placements.

        Returns:
            Integer scalar.
        """
        return tf.zeros([], tf.int32)

    # ---- Keras -------------------------------------------------------------------------------------------------

    def scale_loss(self, loss: object) -> object:
        """Refuses: only a `train_step` that is not ours calls this."""
        raise self._refusal()

    def apply(self, grads: object, trainable_variables: object = None) -> None:
        """Refuses: gradients alone are not enough."""
        raise self._refusal()

    def _refusal(self) -> ValueError:
        model = None if self._model is None else self._model()
        if model is None:
            return ValueError(_NEEDS_MODEL.format(name=type(self).__name__))
        return ValueError(_OWN_LOOP.format(name=type(self).__name__, model=model.name))

    def get_config(self) -> dict:
        """The options, for Keras serialisation."""
        config = super().get_config()
        config.pop("loss_scale_factor", None)
        config.pop("gradient_accumulation_steps", None)
        options = self.options
        config.update(
            curvature=keras.saving.serialize_keras_object(self.curvature),
            information=options.information,
            value_hessian=options.value_hessian,
            terminal_hessian=options.terminal_hessian,
            group_size=options.group_size,
            bilinear=options.bilinear,
            rollout=options.rollout,
            outer_scale=options.outer_scale,
            gram=options.gram,
            step_control=keras.saving.serialize_keras_object(self.step_control),
        )
        return config


def _needs(game: Players, blocks: list[Block], couplings: list[Coupling]) -> tuple:
    """Whose variables the state belongs to, and its shapes, in order."""
    owners = [tuple(id(v) for v in player.variables) for player in game.players]
    return owners, [[tuple(spec.shape) for spec in part.state_specs()] for part in (*blocks, *couplings)]
