"""What a step has in hand while it is traced: the batch, the model and its loss, the players' moves."""

import contextlib
from collections.abc import Callable, Generator, Iterable
from typing import Any

import keras
import tensorflow as tf

from bellman_tf import _checks, keras_access, replicas
from bellman_tf._typing import Nested, StateMapping, Tensors
from bellman_tf.game.execution import recorded
from bellman_tf.game.held import variables_in, written_by
from bellman_tf.game.native import NativeGame
from bellman_tf.game.players import Player, Players
from bellman_tf.game.raw_variables import raw_variables
from bellman_tf.game.replay_check import kept_variables
from bellman_tf.game.signatures import with_declared_sizes
from bellman_tf.game.stages import TracedGame
from bellman_tf.layers.capture import Capture
from bellman_tf.layers.input_sizes import as_computed
from bellman_tf.losses import keras_computes_loss
from bellman_tf.training.context import Outcome, StepContext, recursion_dtype
from bellman_tf.training.moves import Moves
from bellman_tf.training.passes import Forward, capture_forward, first_tensor
from bellman_tf.training.settings import StepSettings
from bellman_tf.training.step_control import measures


class Round(Moves):
    """One step while it is traced.

    Attributes:
        batch_size: samples.
        total: B as a scalar in `dtype`: the samples, of several replicas as `counted` counts them.
        frozen: (variable, value before the step) of every variable that is not trained and may be written to.
        raw: the same of TensorFlow's own variables, which Keras's scopes do not hold.
        clamped: clamps of the papers' recursion.
        witnesses: tensors that must be finite, besides the new values, for the batch to be accepted.
        outcome: predicted and actual decrease of J, `None` where the step does not need it.
        telemetry: numbers about the sample weights, by name, where the step is watched.
        searched: the step length that a line search took, or `None`.
        gradients: of the re-weighted loss, by player, where another optimizer moves the variables.
        outcome_of: gives the outcome for new values, where another optimizer makes them and it is read.
        sums: of the micro-batches' gradients, this one's in them, by player; empty without accumulation.
        completes: whether this micro-batch completes an update, or `None`.
        direct: variables that the loss reads itself, by `id`.
        left_out: variables with a regularizer that the loss does not hold.
    """

    def __init__(
        self, model: keras.Model, game: Players, settings: StepSettings, context: StepContext, data: Any
    ) -> None:
        self.model, self.game, self.data = model, game, data
        x, self.y, self.sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self.x = with_declared_sizes(model, x)
        first = next((leaf for leaf in keras.tree.flatten(self.x) if leaf is not None), None)
        if first is None:
            raise _checks.error("x", "hold a tensor, one row per sample", self.x)
        size = first.shape[0] if first.shape[0] is not None else tf.shape(first)[0]
        super().__init__(game.players, settings, context, recursion_dtype(model.trainable_variables), size)
        self.total = self.counted(size)
        written = game.written if isinstance(game, NativeGame) else kept_variables(model)
        held = _of_losses(model)
        self.frozen = _before([*written, *(v for v in held if isinstance(v, keras.Variable))])
        raw = [*raw_variables(model), *(v for v in held if isinstance(v, tf.Variable))]
        self.raw = [(v, tf.identity(v)) for v in raw]
        self.clamped = tf.zeros([], tf.int32)
        self.witnesses: Tensors = []
        self.outcome: Outcome | None = None
        self.telemetry: dict[str, tf.Tensor] = {}
        self.searched: tf.Tensor | None = None
        self.gradients: list[Tensors] | None = None
        self.outcome_of: Callable[[dict[int, tf.Tensor]], Outcome] | None = None
        self.sums: list[Tensors] = []
        self.completes: tf.Tensor | None = None
        self.direct: dict[int, keras.Variable] = {}
        self.left_out: list[keras.Variable] = []

    def counted(self, rows: int | tf.Tensor) -> tf.Tensor:
        """B, with which `phi_i = B J_i` is a sample's own cost and 1/B its weight in the mean.

        Keras divides the mean over a replica's samples by the number of replicas n, so that J is the sum of what the
        replicas compute. Where they hold equally many samples B is that of the whole batch; a sample of a replica with
        fewer ones counts for more, as it does in Keras.

        Args:
            rows: of this replica.

        Returns:
            Scalar; n for a replica without samples.
        """
        size, count = tf.cast(rows, self.dtype), replicas.count()
        return size if count == 1 else count * tf.maximum(size, 1)

    @property
    def program(self) -> TracedGame:
        """The game, of a step that replays the model's trace.

        Raises:
            ValueError: if the game is that of a running model.
        """
        if not isinstance(self.game, TracedGame):
            raise _checks.error(
                "rollout", "be 'nonlinear' for a step that replays the model's trace", self.settings.options.rollout
            )
        return self.game

    # ---- the model

    def call_model(self, recorder: Callable[[Nested], Nested] | None = None) -> Nested:
        """Calls the model in training mode; with a recorder, that takes the place of the model's own `call`."""
        keywords = {"training": True} if keras_access.takes_training(self.model) else {}
        if recorder is None:
            return self.model(self.x, **keywords)
        with recorded(self.model, recorder):
            return self.model(self.x, **keywords)

    def forward(self, tape: tf.GradientTape, cuts: bool) -> Forward:
        """Pass 1 inside the model's own `__call__`; the outputs stay in `y_pred`."""
        kept: list[Forward] = []

        def recorder(inputs: Nested) -> Nested:
            outputs, forward = capture_forward(self.program, keras_access.flat_inputs(self.model, inputs), tape, cuts)
            kept.append(forward)
            return outputs

        self.y_pred = self.call_model(recorder)
        return kept[0]

    def loss_of(self, y_pred: Nested) -> tf.Tensor:
        """J for given outputs: of a loss that is not reduced the sum, whose gradient is the one that Keras takes."""
        return tf.reduce_sum(self._loss_as_it_is(y_pred))

    def _loss_as_it_is(self, y_pred: Nested) -> tf.Tensor:
        loss: Any = self.model.compute_loss(
            x=self.x, y=self.y, y_pred=y_pred, sample_weight=self.sample_weight, training=True
        )
        return loss

    def loss_with(self, new: dict[int, tf.Tensor]) -> tf.Tensor:
        """J of the same batch under new values of the trained variables; what this pass writes is discarded.

        Args:
            new: values by `id` of the variable.

        Returns:
            Scalar.
        """
        trained = [(v, new[id(v)]) for player in self.players for v in player.variables]
        mapping = [*self.frozen, *trained]
        raw = [(v, tf.identity(v)) for v, _ in self.raw]  # no scope of Keras's holds these
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True, initialize_variables=False):
            loss = self.loss_of(self.call_model())
        for variable, value in raw:
            variable.assign(value)
        return loss

    def loss_after(self, new: dict[int, tf.Tensor]) -> tf.Tensor:
        """J of the same batch under new values, in `dtype`; NaN in a step where nothing reads it.

        Args:
            new: values by `id` of the variable.

        Returns:
            Scalar.
        """
        control = self.settings.control
        if self.settings.always_measured or control is None or control.every == 1:
            return tf.cast(self.loss_with(new), self.dtype)
        return tf.cond(
            measures(control, self.context.iteration),
            lambda: tf.cast(self.loss_with(new), self.dtype),
            lambda: tf.constant(float("nan"), self.dtype),
        )

    def compute_loss(self) -> None:
        """J of `y_pred`, kept in `loss`, and the number that Keras shows for it, in `shown`."""
        loss = self._loss_as_it_is(self.y_pred)
        self.loss, self.shown = tf.reduce_sum(loss), tf.reduce_mean(loss)

    @contextlib.contextmanager
    def direct_use(self) -> Generator[None, None, None]:
        """Finds the variables that the loss inside the context reads itself, past the model's own run: `direct`.

        A penalty on weights or a second call of the model in `compute_loss` does. Keras adds the penalty of a
        variable's `regularizer` to the loss; that is the player's own cost, which the step adds on its own. A model's
        own `compute_loss` may leave it out, so there such a variable counts as read.

        Yields:
            Nothing.
        """
        ordinary = keras_computes_loss(self.model)
        variables = [v for player in self.players for v in player.variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([v.value for v in variables])
            yield
        found = tape.gradient(self.loss, [v.value for v in variables])
        read = {id(v) for v, gradient in zip(variables, found, strict=True) if gradient is not None}
        own = [v for v in variables if v.regularizer is not None]
        self.direct = {id(v): v for v in variables if id(v) in read and v.regularizer is None}
        self.direct |= {} if ordinary else {id(v): v for v in own}
        self.left_out = [v for v in own if id(v) not in read]

    def seed(self) -> tf.Tensor:
        """Starts back-propagation with B in place of 1, so that cotangents belong to phi_i = B J_i."""
        return tf.cast(self.total, self.loss.dtype)

    def capture(self, player: Player, forward: Forward, cotangents: Tensors) -> Capture:
        """The capture of a covered player."""
        layer = player.layers[0]
        inputs = first_tensor(forward.arguments[id(player.calls[0])])
        return player.covering.capture(layer, as_computed(layer, inputs), [tf.convert_to_tensor(c) for c in cotangents])


def _of_losses(model: keras.Model) -> list[keras.Variable | tf.Variable]:
    """What the computation of J may write: state of compiled losses, and of a model's own `compute_loss`."""
    trained = {id(v) for v in model.trainable_variables}
    found = variables_in(model.loss, (keras.losses.Loss, keras.metrics.Metric))
    found += [] if keras_computes_loss(model) else written_by(model)
    return [v for v in found if id(v) not in trained]  # a loss may hold those too, and the step moves them


def _before(variables: Iterable[keras.Variable]) -> StateMapping:
    """(variable, value) of some variables before the step, each once."""
    return [(variable, tf.identity(variable.value)) for variable in {id(v): v for v in variables}.values()]


def rows_of(outputs: Tensors) -> int | tf.Tensor | None:
    """Counts the samples of a loss.

    Args:
        outputs: what the loss reads.

    Returns:
        Their first axis, `None` if they disagree about it.
    """
    sizes = {output.shape[0] if output.shape.rank else 0 for output in outputs}
    if len(sizes) != 1 or sizes == {0}:
        return None
    return outputs[0].shape[0] or tf.shape(outputs[0])[0]
