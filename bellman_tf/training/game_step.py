"""The nonlinear step of the game: backward pass, recursion over stages, forward pass that applies the policy."""

import functools
from collections.abc import Sequence

import tensorflow as tf

from bellman_tf import keras_access
from bellman_tf._typing import Arguments, Nested, Tensors
from bellman_tf.bellman import SampleValue, sample_space, to_groups
from bellman_tf.game.graph import Slot
from bellman_tf.game.stages import Player
from bellman_tf.keras_access import flat_inputs
from bellman_tf.layers.capture import Capture, weigh
from bellman_tf.layers.tensors import to_work
from bellman_tf.losses import Signs
from bellman_tf.training.context import Outcome
from bellman_tf.training.contributions import Contributions
from bellman_tf.training.derivatives import differentiate, through_normalisation
from bellman_tf.training.information import INFORMATION
from bellman_tf.training.monitor import feedback_ratio, leverage, predicts, spread
from bellman_tf.training.moves import BatchOnly
from bellman_tf.training.passes import AppliedPolicy, first_tensor, policy_forward, replay_gradient
from bellman_tf.training.policy import SamplePolicy
from bellman_tf.training.published import PublishedPolicy, batch_factor, terminal_value
from bellman_tf.training.round import Round


def game_step(batch: Round) -> None:
    """Solves the game on one batch.

    Args:
        batch: the step; its new values are queued.
    """
    GameStep(batch).run()


class GameStep:
    """One step of the game while it is traced.

    Attributes:
        derivatives: of pass 1 and the backward pass, once `differentiate` has run.
    """

    def __init__(self, batch: Round) -> None:
        self.batch, self.game = batch, batch.program
        self.options = batch.settings.options
        self.information = INFORMATION[self.options.information]
        self._open_drop: Tensors = []  # <g, decrease> of the open-loop players

    def run(self) -> None:
        """Passes, recursion, new values."""
        self.differentiate()
        if self.options.published:
            policy: SamplePolicy | PublishedPolicy = self._published_backward()
        else:
            policy = self._sample_backward()
        self._apply(policy)

    def stage_values(self) -> list[SampleValue]:
        """Runs the step without its second pass: nothing is queued; needs `value_hessian="batch"` without groups.

        Returns:
            The value before every stage, a `[B m, 1]`, L `[B m, k]`.
        """
        self.differentiate()
        return self._sample_backward().values

    def differentiate(self) -> None:
        """Pass 1 and the backward pass, into `derivatives`."""
        self.derivatives = differentiate(self.batch, self.information.feedback)
        captures = {k: capture for k, capture in enumerate(self.derivatives.captures) if capture is not None}
        self.contributions = Contributions(self.batch, captures, self.batch.metric_of)

    def _capture(self, player: Player) -> Capture | None:
        return self.contributions.captures.get(player.index)

    # ---- recursion

    def _measure(self, players: Sequence[Player], slopes: Tensors | None = None) -> None:
        """Metrics, from the plain gradient or, in the papers' form, from the slope `[B, m]` of each player's value."""
        batch, seen = self.batch, []
        for k, player in enumerate(players):
            slope, block, gradient = (slopes[k] if slopes else None), batch.settings.blocks[player.index], None
            if block.needs_gradient:
                weights = self.derivatives.mean_weights(batch) if slope is None else slope / batch.total
                gradient = batch.complete(player, self._gradient(player, weights))
            capture = self._capture(player)
            if capture is not None and slope is not None and block.needs_capture:
                capture = capture.scaled(slope)
            if capture is not None and block.draws:
                capture = capture.scaled(self._signs)
            seen.append((player, BatchOnly(batch.batch_size) if capture is None else capture, gradient))
        batch.update_metrics(seen)
        batch.couple()

    @functools.cached_property
    def _signs(self) -> tf.Tensor:
        """A sign for every column of the whole terminal Hessian, `[B, m]`, 0 for the gradient's.

        Together the columns are the drawn cotangent of a metric that reads one; `btf.analysis` alone takes steps of
        this kind with such a metric.
        """
        batch = self.batch
        signs = Signs(tf.stack([tf.cast(batch.context.iteration, tf.int32), 0]))
        drawn = signs(tf.ones([batch.batch_size, self.derivatives.columns - 1], batch.dtype))
        return tf.pad(drawn, [[0, 0], [1, 0]])

    def _gradient(self, player: Player, weights: tf.Tensor, inputs: tf.Tensor | None = None) -> Tensors:
        """`sum_ij w_ij q_ij` of any player; with `inputs`, formed with the layer's new input."""
        capture = self._capture(player)
        if capture is None:
            cotangents = {
                id(call): [weigh(columns, weights) for columns in zip(*self.derivatives.by_call[id(call)], strict=True)]
                for call in player.calls
            }
            return replay_gradient(player, self.derivatives.forward, cotangents)
        if player.index in self.game.normalised_by:
            capture, weights = through_normalisation(self.batch, self.derivatives, player, weights)
        if inputs is not None:
            capture = capture.with_inputs(inputs)
        return capture.gradient(weights)

    def _gram(self, player: Player, group_size: int | None) -> tf.Tensor | None:
        """The Gram matrix that a player brings, if it does."""
        return self.contributions.gram(player, group_size) if self.contributions.come_from(player) else None

    def _pull(self, player: Player) -> tf.Tensor | None:
        """`<q_ij, M^{-1} l_u>`, `[B, m]`, if the player brings it."""
        return self.contributions.pull(player) if self.contributions.come_from(player) else None

    def _sample_backward(self) -> SamplePolicy:
        """Metrics and Gram matrices of all players, then all stages at once."""
        batch, group_size = self.batch, self.options.coupled(self.batch.batch_size)
        value = sample_space.init(
            batch.batch_size,
            beta_squared=self.derivatives.beta_squared,
            rank=self.derivatives.columns - 1,
            group_size=group_size,
            dtype=batch.dtype,
        )
        policy = SamplePolicy(value, group_size, self.information.joint, self.derivatives.columns, batch.batch_size)
        self._measure([player for stage in self.game.stages for player in stage.players])
        grams, pulls = [], []
        for stage in self.game.stages:
            grams.append([])
            pulls.append([])
            for player in stage.players:
                grams[-1].append(self._gram(player, group_size))
                pull = self._pull(player)
                pulls[-1].append(None if pull is None else to_groups(tf.cast(pull, batch.dtype), group_size))
        policy.solve(grams, pulls if any(pull is not None for stage in pulls for pull in stage) else None)
        return policy

    def _published_backward(self) -> PublishedPolicy:
        """The papers' recursion, stage by stage, because statistics use the value's slope."""
        batch, units = self.batch, self.derivatives.units
        agents = max((len(stage.players) for stage in self.game.stages), default=1)
        value = terminal_value(self.options, self.derivatives, batch.batch_size, batch.total)
        factor = batch_factor(self.options, batch.total)
        policy = PublishedPolicy(value, self.information.joint, agents, batch.total, factor)
        for t in range(len(self.game.stages) - 1, -1, -1):
            players = self.game.stages[t].players
            self._measure(players, [policy.slopes(agent) for agent in range(len(players))])
            pairs = [self._seen_by(policy, player, agent) for agent, player in enumerate(players)]
            policy.visit(
                t, [inner for inner, _ in pairs], [gram for _, gram in pairs], units.get(t), self.options.value_damping
            )
        batch.clamped += policy.clamped
        return policy

    def _seen_by(
        self, policy: PublishedPolicy, player: Player, agent: int
    ) -> tuple[tf.Tensor, tf.Tensor] | tuple[None, None]:
        """`<q_ij, k>` `[B, m]` and the samples' Gram matrices `[B, m, m]`; `None` twice for open-loop players."""
        gram = self._gram(player, 1)
        if gram is None:
            return None, None
        if self.options.outer_gain == "own":
            return policy.own_gain(agent, gram, self._pull(player)), gram
        return self._inner_gain(player, policy.slopes(agent)), gram

    def _inner_gain(self, player: Player, slopes: tf.Tensor) -> tf.Tensor:
        """`<q_ij, k>`, `[B, m]`, summed over those that share the player's metric."""
        batch, contributions = self.batch, self.contributions
        gradients = [
            batch.complete(member, contributions.captures[member.index].gradient(slopes / batch.total))
            for member in batch.members(player)
        ]
        gains = [[-part for part in parts] for parts in contributions.solve(player, gradients)]
        return tf.cast(contributions.inner(player, gains), batch.dtype)

    # ---- pass 2

    def _deviation(self, t: int, values: dict[Slot, tf.Tensor]) -> tf.Tensor | None:
        """`d_ij = <g_ij, new state - old state>` at the cut before stage t, `[B, m]`; `None` without feedback."""
        self._values = values
        if not self.information.feedback:
            return None
        terms = []
        for slot, gradients in self.derivatives.at_cuts[t].items():
            moved = to_work(values[slot]) - to_work(self.derivatives.forward.cuts[t][slot])
            axes = list(range(1, len(moved.shape)))
            dots = [tf.reduce_sum(to_work(g) * moved, axis=axes, keepdims=True) for g in gradients]
            columns = [dot if len(axes) == 1 else tf.reshape(dot, [-1, 1]) for dot in dots]
            terms.append(columns[0] if len(columns) == 1 else tf.concat(columns, axis=1))
        if not terms:
            return None  # the first stage's state is the data
        return tf.cast(tf.add_n(terms), self.batch.dtype)

    def _apply(self, policy: SamplePolicy | PublishedPolicy) -> None:
        """Pass 2 inside the model's own `__call__`: stage by stage, new values from weights of the new state."""
        batch = self.batch
        moved: dict[int, Tensors] = {}

        def gradient_of(player: Player, t: int, deviation: tf.Tensor | None, arguments: Arguments) -> Tensors:
            agent = self.game.stages[t].players.index(player)
            weights = policy.weights(t, agent, deviation)
            if batch.settings.watched:
                self._add_telemetry(policy, t, agent, weights)
            inputs = first_tensor(arguments) if self.options.bilinear else None
            return batch.complete(player, self._gradient(player, weights, inputs))

        def update(player: Player, t: int, deviation: tf.Tensor | None, arguments: Arguments) -> Tensors:
            together = batch.together.get(player.index)
            if together is None:
                return self._move(player, gradient_of(player, t, deviation, arguments))
            if player.index not in moved:  # the first of them moves all
                gradients = [gradient_of(member, t, deviation, self._arguments(member)) for member in together.players]
                values = batch.move_together(together, gradients)
                moved.update({member.index: new for member, new in zip(together.players, values, strict=True)})
            return moved[player.index]

        start = []
        loose = [(player, batch.clip(self.derivatives.loose[player.index])) for player in self.game.loose_players]
        batch.update_metrics([(player, BatchOnly(batch.batch_size), gradient) for player, gradient in loose])
        for player, gradient in loose:
            start.extend(zip(player.variables, self._move(player, gradient), strict=True))
        left: list[AppliedPolicy | None] = []

        def recorder(inputs: Nested) -> Nested:
            flat = flat_inputs(batch.model, inputs)
            finish = batch.settings.wants_outcome
            left.append(policy_forward(self.game, flat, batch.frozen, self._deviation, update, start, finish))
            return batch.y_pred

        batch.call_model(recorder)
        [applied] = left
        if applied is not None:
            loss_after = tf.cast(applied.cost(batch.loss_of), batch.dtype)
            batch.outcome = self._outcome(policy, tf.cast(batch.loss, batch.dtype) - loss_after)

    def _arguments(self, player: Player) -> Arguments:
        """(args, kwargs) of a player's call in the state that pass 2 has reached, before its turn."""
        call = player.calls[0]
        return keras_access.mapped(
            lambda leaf: self._values[leaf] if isinstance(leaf, Slot) else leaf, (call.args, call.kwargs)
        )

    def _outcome(self, policy: SamplePolicy | PublishedPolicy, actual: tf.Tensor) -> Outcome:
        """What the step does to J; without a prediction where the model is not that of the whole batch."""
        if isinstance(policy, SamplePolicy) and predicts(self.options):
            return Outcome(self._predicted(policy), actual, policy.held_out_model())
        return Outcome(tf.constant(float("nan"), actual.dtype), actual, tf.zeros([3], actual.dtype))

    def _add_telemetry(self, policy: SamplePolicy | PublishedPolicy, t: int, agent: int, weights: tf.Tensor) -> None:
        """Adds leverage, feedback and spread of the sample weights to the telemetry; a stage's first player's only."""
        if agent:
            return
        plain, telemetry = policy.weights(t, agent, None), self.batch.telemetry
        if t == 0:
            telemetry["leverage"] = leverage(plain)
        elif self.information.feedback:
            telemetry[f"feedback_ratio/stage_{t}"] = feedback_ratio(weights, plain)
        telemetry["weight_spread"] = spread(weights)

    def _move(self, player: Player, gradient: Tensors) -> Tensors:
        """The player's new values; adds <g, decrease> of an open-loop player to the predicted decrease."""
        values = self.batch.move(player, gradient)
        if self.batch.settings.wants_outcome and self._capture(player) is None:
            old = self.batch.values[player.index]
            self._open_drop += [
                tf.reduce_sum(g * tf.cast(a - b, self.batch.dtype))
                for g, a, b in zip(gradient, old, values, strict=True)
            ]
        return values

    def _predicted(self, policy: SamplePolicy) -> tf.Tensor:
        """Decrease of the quadratic model: the recursion's, and half of <g, step> of every open-loop player."""
        decrease = policy.predicted_reduction(self.contributions.own_drop())
        return decrease + tf.add_n(self._open_drop) / 2 if self._open_drop else decrease
