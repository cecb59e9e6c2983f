"""What both kinds of step share: the batch, the model's loss, metrics and updates of the players, the verdict."""

import dataclasses
from typing import NamedTuple

import keras
import tensorflow as tf

from bellman_tf.curvature.block import Metric, Step
from bellman_tf.curvature.cached import Seen, update_all
from bellman_tf.curvature.coupling.joint import JointMetric
from bellman_tf.curvature.identity import IdentityMetric
from bellman_tf.game.stages import Game, Player
from bellman_tf.layers.capture import Capture, Tensors
from bellman_tf.training.execution import recorded
from bellman_tf.training.passes import Forward, capture_forward, first_tensor
from bellman_tf.training.terminal import structure_with
from bellman_tf.training.update import (
    Assignments,
    add_own_cost,
    all_finite,
    clip,
    constrain,
    move,
    own_cost_gradient,
)


@dataclasses.dataclass(frozen=True)
class BatchOnly:
    """Stands in for a capture where only the batch size is known."""

    batch_size: object


class Together(NamedTuple):
    """Players of one stage whose directions are solved together.

    Attributes:
        players: in the order of their coupling.
        metric: the joint metric.
    """

    players: list[Player]
    metric: JointMetric


class Outcome(NamedTuple):
    """What the step does to J on its own batch, scalars.

    Attributes:
        predicted: decrease of the quadratic model.
        actual: decrease of J.
        held_out: `[3]`, what the plain step does to samples that had no part in it, see `SamplePolicy.held_out_model`.
    """

    predicted: tf.Tensor
    actual: tf.Tensor
    held_out: tf.Tensor


class Batch:
    """One step while it is traced.

    Attributes:
        batch_size: samples.
        total: the same as a scalar in `dtype`, B.
        dtype: of the recursion, float64 if any variable is, else float32.
        frozen: (variable, value before the step) of every variable that is not trained.
        values: value before the step of every player's variables, read before the model's own `__call__` casts them.
        own: gradient l_u of each player's regularizers, `None` per variable where there is none.
        metrics: each player's metric of this step, once known.
        together: the players that a player acts together with and their joint metric, by the player's index.
        clamped: clamps of the papers' recursion.
        witnesses: tensors that must be finite, besides the new values, for the batch to be accepted.
        outcome: predicted and actual decrease of J, `None` where the second pass does not run to its end.
        telemetry: numbers about the sample weights, by name, where the optimizer is watched.
    """

    def __init__(self, model: keras.Model, optimizer: object, data: object, game: Game | None = None) -> None:
        self.model, self.optimizer, self.data = model, optimizer, data
        self.x, self.y, self.sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self.game: Game = model.game if game is None else game
        first = next(leaf for leaf in keras.tree.flatten(self.x) if leaf is not None)
        self.batch_size = first.shape[0] if first.shape[0] is not None else tf.shape(first)[0]
        self.dtype = tf.float64 if any(v.dtype == "float64" for v in model.trainable_variables) else tf.float32
        self.total = tf.cast(self.batch_size, self.dtype)
        self.frozen = _frozen(model)
        self.values = [[tf.convert_to_tensor(v) for v in player.variables] for player in self.game.players]
        self.own = [own_cost_gradient(player.variables) for player in self.game.players]
        self.metrics: list[Metric | None] = [None] * len(self.game.players)
        self.together: dict[int, Together] = {}
        self._seen: dict[int, object] = {}
        self._coupled: set[int] = set()
        self.clamped = tf.zeros([], tf.int32)
        self.witnesses: Tensors = []
        self.outcome: Outcome | None = None
        self.telemetry: dict[str, tf.Tensor] = {}
        rate = tf.cast(optimizer.learning_rate, self.dtype)
        fast = rate if optimizer.rate_factor == 1 else rate * optimizer.rate_factor
        control = optimizer.step_control
        damped = fast if control is None else fast / tf.cast(optimizer.damping, self.dtype)
        self.step = Step(tf.convert_to_tensor(optimizer.iterations), damped)
        self._decay = None if optimizer.weight_decay is None else optimizer.weight_decay * rate
        self._state = [[tf.convert_to_tensor(v) for v in variables] for variables in optimizer.state]
        self._new_state = [list(state) for state in self._state]
        read = [*zip((p.variables for p in self.game.players), self.values, strict=True)]
        read += zip(optimizer.state, self._state, strict=True)
        self.assignments = Assignments({id(v): t for vs, ts in read for v, t in zip(vs, ts, strict=True)})

    # ---- the model

    def call_model(self, recorder: object = None) -> object:
        """Calls the model in training mode; with a recorder, that takes the place of the model's own `call`."""
        keywords = {"training": True} if self.model._call_has_training_arg else {}
        if recorder is None:
            return self.model(self.x, **keywords)
        with recorded(self.model, recorder):
            return self.model(self.x, **keywords)

    def forward(self, tape: tf.GradientTape, cuts: bool) -> Forward:
        """Pass 1 inside the model's own `__call__`; the outputs stay in `y_pred`."""
        kept: list[Forward] = []

        def recorder(inputs: object) -> object:
            outputs, forward = capture_forward(self.game, flat_inputs(self.model, inputs), tape, cuts)
            kept.append(forward)
            return outputs

        self.y_pred = self.call_model(recorder)
        return kept[0]

    def loss_of(self, y_pred: object) -> tf.Tensor:
        """J for given outputs."""
        return self.model.compute_loss(
            x=self.x, y=self.y, y_pred=y_pred, sample_weight=self.sample_weight, training=True
        )

    def cost(self, values: dict) -> tf.Tensor:
        """B J as a function of the values of the output slots."""
        loss = self.loss_of(structure_with(self.y_pred, self.game.graph.outputs, values))
        return tf.cast(self.total, loss.dtype) * loss

    def compute_loss(self) -> None:
        """J of `y_pred`, kept in `loss`."""
        self.loss = self.loss_of(self.y_pred)

    def seed(self) -> tf.Tensor:
        """Starts back-propagation with B in place of 1, so that cotangents belong to phi_i = B J_i."""
        return tf.cast(self.total, self.loss.dtype)

    def capture(self, player: Player, forward: Forward, cotangents: Tensors) -> Capture:
        """The capture of a covered player."""
        layer = player.layers[0]
        inputs = first_tensor(forward.arguments[id(player.calls[0])])
        if inputs.dtype.is_floating and inputs.dtype.name != layer.compute_dtype:
            inputs = tf.cast(inputs, layer.compute_dtype)
        return player.coverage.capture(layer, inputs, [tf.convert_to_tensor(c) for c in cotangents])

    # ---- the players

    def clip(self, gradient: Tensors) -> Tensors:
        """Clips per variable as the optimizer says."""
        return clip(gradient, self.optimizer.clipvalue, self.optimizer.clipnorm)

    def complete(self, player: Player, gradient: Tensors) -> Tensors:
        """Adds the gradient of the player's own cost, then clips."""
        gradient = [tf.cast(g, self.dtype) for g in gradient]
        return self.clip(add_own_cost(gradient, self.own[player.index]))

    def update_metrics(self, seen: list[tuple[Player, object, Tensors | None]]) -> None:
        """Updates the statistics of players and keeps their metrics of this step.

        Args:
            seen: (player, capture, mean gradient where its block reads it).
        """
        blocks, state = self.optimizer.blocks, self._state
        players = [Seen(blocks[p.index], state[p.index], capture, gradient) for p, capture, gradient in seen]
        for (player, capture, _), (new, metric) in zip(seen, update_all(players, self.step), strict=True):
            self._seen[player.index] = capture
            self._new_state[player.index], self.metrics[player.index] = new, metric

    def couple(self) -> None:
        """Updates the couplings whose players all have their metrics of this step, and joins those in one stage.

        In an alignment that takes the players of a coupling apart each acts under its own metric.
        """
        for number, coupling in enumerate(self.optimizer.couplings):
            members = [self.game.players[k] for k in coupling.players]
            metrics = [self.metrics[player.index] for player in members]
            if number in self._coupled or any(metric is None for metric in metrics):
                continue
            self._coupled.add(number)
            place = len(self.game.players) + number
            seen, own = ([kept[k] for k in coupling.players] for kept in (self._seen, self._new_state))
            self._new_state[place], joined = coupling.update(self._state[place], seen, own, metrics, self.step)
            if len({player.stage for player in members}) > 1:
                continue
            if isinstance(joined, JointMetric):
                self.together.update(dict.fromkeys(coupling.players, Together(members, joined)))
            else:
                for k, metric in zip(coupling.players, joined, strict=True):
                    self.metrics[k] = metric

    def subtract(self, player: Player, gradient: Tensors) -> None:
        """Queues the plain step of a player whose new values nobody needs."""
        metric = self.metrics[player.index]
        plain = self._decay is None and all(v.constraint is None for v in player.variables)
        if not plain or not isinstance(metric, IdentityMetric):
            self.move(player, gradient)
            return
        for variable, direction in zip(player.variables, gradient, strict=True):
            self.assignments.subtract(variable, direction, metric.scale)

    def move(self, player: Player, gradient: Tensors) -> Tensors:
        """Queues the player's new values and returns them."""
        decreases, changed = self.metrics[player.index].step(gradient)
        for k, tensor in changed.items():
            self._new_state[player.index][k] = tensor
        return self._queue(player, decreases)

    def move_together(self, together: Together, gradients: list[Tensors]) -> list[Tensors]:
        """Queues the new values of players with a joint metric and returns them, in the order of `together`."""
        decreases = together.metric.solve(gradients)
        return [self._queue(player, own) for player, own in zip(together.players, decreases, strict=True)]

    def _queue(self, player: Player, decreases: Tensors) -> Tensors:
        values = self.shifted(player, decreases)
        for variable, value in zip(player.variables, values, strict=True):
            self.assignments.add(variable, value)
        return [constrain(variable, value) for variable, value in zip(player.variables, values, strict=True)]

    def shifted(self, player: Player, decreases: Tensors) -> Tensors:
        """The player's values less `decreases` and weight decay, before constraints; nothing is queued."""
        values = []
        for variable, old, decrease in zip(player.variables, self.values[player.index], decreases, strict=True):
            decays = self._decay is not None and self.optimizer._use_weight_decay(variable)
            values.append(move(old, decrease, self._decay if decays else None))
        return values

    # ---- what a branch hands on

    def changed_state(self) -> dict[tuple[int, int], tf.Tensor]:
        """New curvature state, by player and position, where it is not the old one."""
        pairs = zip(self._state, self._new_state, strict=True)
        return {
            (k, j): new
            for k, (before, after) in enumerate(pairs)
            for j, (old, new) in enumerate(zip(before, after, strict=True))
            if new is not old
        }

    def adopt_state(self, changed: dict[tuple[int, int], tf.Tensor]) -> None:
        """Takes over what `changed_state` of another batch said."""
        for (k, j), tensor in changed.items():
            self._new_state[k][j] = tensor

    # ---- the verdict

    def finish(self) -> dict:
        """Assigns what is finite, counts what is not, and reports as Keras does."""
        model, optimizer = self.model, self.optimizer
        for (k, j), tensor in self.changed_state().items():
            self.assignments.add(optimizer.state[k][j], tensor)
        accepted, taken = self._judge()
        if self.outcome is not None:
            optimizer.observe(self.outcome, accepted)
        if optimizer.watched:
            optimizer.tell(self.game, self.outcome, self.telemetry, accepted)
        optimizer.queue_averages(self.assignments)
        restore = [(v, value) for v, value in self.frozen if v.dtype.startswith(("float", "bfloat"))]
        self.assignments.apply(optimizer, taken, restore)
        optimizer.count(accepted, taken, self.clamped)
        tracker = next((m for m in model.metrics if m.name == "loss"), None)
        if tracker is not None:
            counted = tf.cast(accepted, tracker.dtype)
            loss = tf.math.multiply_no_nan(tf.cast(self.loss, tracker.dtype), counted)
            tracker.update_state(loss, sample_weight=counted * tf.cast(self.batch_size, tracker.dtype))
        return self._metrics(accepted)

    def _judge(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Whether the batch is good, and whether its step is taken; both are one without step control."""
        values = all_finite(self.assignments.values)
        accepted = all_finite([self.loss, *self.witnesses])
        if self.optimizer.step_control is None:
            return accepted & values, accepted & values
        accepted &= tf.math.is_finite(self.outcome.predicted)
        taken = accepted & values & self.optimizer.control_step(self.outcome, accepted)
        return accepted, taken

    def _metrics(self, accepted: tf.Tensor) -> dict:
        """Updates the metrics with an accepted batch only: one NaN would stay in them until the epoch ends."""
        model = self.model

        def update() -> dict:
            return model.compute_metrics(self.x, self.y, self.y_pred, sample_weight=self.sample_weight)

        own = type(model).compute_metrics is not keras.Model.compute_metrics
        if own or len(model.metrics) <= 1:  # a user's own may report more than `get_metrics_result` knows
            return update()
        return tf.cond(accepted, update, model.get_metrics_result)


def _frozen(model: keras.Model) -> list[tuple]:
    """(variable, value) of every variable of the layers that is not trained, before the step."""
    seen: dict[int, tuple] = {}
    for layer in model._flatten_layers(include_self=True, recursive=True):
        for variable in layer._non_trainable_variables:
            seen[id(variable)] = (variable, tf.identity(variable.value))
    for variable in model.non_trainable_variables:
        if id(variable) not in seen:
            seen[id(variable)] = (variable, tf.identity(variable.value))
    return list(seen.values())


def flat_inputs(model: keras.Model, inputs: object) -> Tensors:
    """Inputs in the order of the model's graph.

    Args:
        model: the model.
        inputs: as the model's `call` gets them.

    Returns:
        The flat list.
    """
    source = model._functional if isinstance(model, keras.Sequential) else model
    if hasattr(source, "_standardize_inputs"):
        return source._standardize_inputs(inputs)
    return [leaf for leaf in keras.tree.flatten(inputs) if leaf is not None]
