"""The step of the game: backward pass, recursion over stages, forward pass that applies the policy."""

import functools

import keras
import tensorflow as tf

from bellman_tf.bellman import SampleValue, outer_product, sample_space
from bellman_tf.curvature.capture import Capture, Tensors, after, to_work, weigh
from bellman_tf.curvature.gram import draw_taps, gram
from bellman_tf.curvature.scale_shift import normalised_input, scaled
from bellman_tf.game.graph import Slot
from bellman_tf.game.stages import Player
from bellman_tf.losses import observe_losses
from bellman_tf.training.batch import Batch, BatchOnly, Outcome, flat_inputs
from bellman_tf.training.monitor import feedback_ratio, leverage, predicts, spread
from bellman_tf.training.passes import Applied, first_tensor, policy_forward, replay_gradient, unflatten
from bellman_tf.training.policy import INFORMATION, OuterPolicy, SamplePolicy
from bellman_tf.training.terminal import Terminal, structure_with


def game_step(batch: Batch) -> None:
    """Solves the game on one batch.

    Args:
        batch: the step; its new values are queued.
    """
    GameStep(batch).run()


class GameStep:
    """One step of the game while it is traced.

    Attributes:
        columns: m, columns per sample: the gradient, and the factor of the terminal Hessian where it is not collinear.
        captures: each player's capture, `None` for open-loop players.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch, self.game = batch, batch.game
        self.options = batch.optimizer.options
        self.information = INFORMATION[self.options.information]
        self.captures: list[Capture | None] = [None] * len(self.game.players)
        self._taps: dict[int, tf.Tensor | None] = {}  # of a convolution's kernel that its sketch uses
        self._own_drop: Tensors = []  # l_u' M^{-1} l_u of the covered players
        self._open_drop: Tensors = []  # <g, decrease> of the open-loop players

    def run(self) -> None:
        """Passes, recursion, new values."""
        beta_squared = self._differentiate()
        if self.options.value_hessian == "outer_product":
            policy: SamplePolicy | OuterPolicy = self._outer_backward(beta_squared)
        else:
            policy = self._sample_backward(beta_squared)
        self._apply(policy)

    def look(self) -> list[SampleValue]:
        """The step without its second pass: nothing is queued; needs `value_hessian="batch"` without groups.

        Returns:
            The value before every stage, a `[B m, 1]`, L `[B m, k]`.
        """
        return self._sample_backward(self._differentiate()).values

    def cut_gradients(self, t: int) -> dict[Slot, Tensors]:
        """Gradients of the state at the cut before a stage, one tensor per column, by slot."""
        return self._cut_gradients[t]

    # ---- pass 1 and the backward pass

    def _differentiate(self) -> tf.Tensor | None:
        """Cotangents of players and state, column by column; returns beta^2 of a collinear terminal Hessian."""
        batch, options = self.batch, self.options
        loose = [v.value for player in self.game.loose_players for v in player.variables]
        collinear = options.columns == 0
        with (
            tf.GradientTape(watch_accessed_variables=False, persistent=not collinear) as tape,
            observe_losses(tape) as observed,
        ):
            tape.watch(loose)
            forward = self.forward = batch.forward(tape, cuts=self.information.feedback)
            batch.compute_loss()
        terminal = Terminal(forward, observed, self._cost)
        calls = [call for stage in self.game.stages for call in stage.calls]
        sites = [tensor for call in calls for tensor in forward.sites[id(call)]]
        cuts = [tensor for cut in forward.cuts for tensor in cut.values()]
        sources = [sites, cuts, terminal.z, terminal.values, loose]
        derivatives = tape.gradient(
            batch.loss, tf.nest.flatten(sources), output_gradients=batch.seed(), unconnected_gradients="zero"
        )
        at_sites, at_cuts, at_z, at_values, at_loose = unflatten(sources, derivatives)
        terminal.resolve(at_values)
        site_columns, cut_columns, beta_squared = [at_sites], [at_cuts], None
        if not collinear:
            for seeds in terminal.factor_columns(None if options.terminal_hessian == "full" else options.columns):
                parts = tape.gradient(terminal.z, [*sites, *cuts], output_gradients=seeds, unconnected_gradients="zero")
                site_columns.append(parts[: len(sites)])
                cut_columns.append(parts[len(sites) :])
        elif options.terminal_hessian == "matched":
            beta_squared = tf.cast(terminal.matched_coefficient(at_z), batch.dtype)
        else:
            beta_squared = tf.ones([batch.batch_size], batch.dtype)
        self.columns = len(site_columns)
        self._keep(calls, site_columns, cut_columns, at_loose)
        return beta_squared

    def _keep(self, calls: list, sites: list[Tensors], cuts: list[Tensors], loose: Tensors) -> None:
        """Sorts the cotangents by call, the state's gradients by cut, and captures the players."""
        self._by_call: dict[int, list[Tensors]] = {}
        for call in calls:
            count = len(self.forward.sites[id(call)])
            self._by_call[id(call)] = [column[:count] for column in sites]
            sites = [column[count:] for column in sites]
        self._cut_gradients: list[dict] = []
        for cut in self.forward.cuts:
            self._cut_gradients.append({slot: [column[k] for column in cuts] for k, slot in enumerate(cut)})
            cuts = [column[len(cut) :] for column in cuts]
        for player in self.game.players:
            if player.covered:
                cotangents = [column[0] for column in self._by_call[id(player.calls[0])]]
                self.captures[player.index] = self.batch.capture(player, self.forward, cotangents)
        remaining = iter(loose)
        self._loose = {
            player.index: [
                tf.cast(tf.convert_to_tensor(next(remaining)), self.batch.dtype) / self.batch.total
                for _ in player.variables
            ]
            for player in self.game.loose_players
        }

    def _cost(self, values: dict) -> tf.Tensor:
        """B J as a function of output values, for losses that no Keras `Loss` object computes."""
        loss = self.batch.loss_of(structure_with(self.batch.y_pred, self.game.graph.outputs, values))
        return tf.cast(self.batch.total, loss.dtype) * loss

    # ---- recursion

    def _measure(self, players: list[Player], alphas: Tensors | None = None) -> None:
        """Metrics and sketches, from the plain gradient or, in the papers' form, from each player's slope alpha."""
        batch, seen = self.batch, []
        for k, player in enumerate(players):
            alpha, block, gradient = alphas and alphas[k], batch.optimizer.blocks[player.index], None
            if block.needs_gradient:
                slope = tf.ones([batch.batch_size], batch.dtype) if alpha is None else alpha
                weights = tf.pad(slope[:, None] / batch.total, [[0, 0], [0, self.columns - 1]])
                gradient = batch.complete(player, self._gradient(player, weights))
            capture = self.captures[player.index]
            if capture is not None and alpha is not None and block.needs_capture:
                capture = capture.scaled(alpha)
            seen.append((player, BatchOnly(batch.batch_size) if capture is None else capture, gradient))
        batch.update_metrics(seen)
        batch.couple()
        covered = [player.index for player in players if self.captures[player.index] is not None]
        if covered:
            kept = [(self.captures[k], batch.metrics[k]) for k in covered]
            seed = [tf.cast(batch.step.iteration, tf.int32), covered[0]]
            self._taps.update(zip(covered, draw_taps(kept, self.options.gram, seed), strict=True))

    def _gradient(self, player: Player, weights: tf.Tensor, inputs: tf.Tensor | None = None) -> Tensors:
        """`sum_ij w_ij q_ij` of any player; with `inputs`, formed with the layer's new input."""
        capture = self.captures[player.index]
        if capture is None:
            cotangents = {
                id(call): [weigh(columns, weights) for columns in zip(*self._by_call[id(call)], strict=True)]
                for call in player.calls
            }
            return replay_gradient(player, self.forward, cotangents)
        if player.index in self.game.normalised_by:
            capture, weights = self._through_normalisation(player, weights)
        if inputs is not None:
            capture = capture.with_inputs(inputs)
        return capture.gradient(weights)

    def _through_normalisation(self, player: Player, weights: tf.Tensor) -> tuple[Capture, tf.Tensor]:
        """Weighs behind the BatchNormalization that follows a layer, and takes the cotangent back through it.

        The normalisation couples samples: slices of one backward pass before it are not the samples' gradients, and
        weighing them breaks the invariance of the network under a change of the weights' scale. Behind it they are
        the samples' own (up to the next normalisation).

        Args:
            player: a player in `Game.normalised_by`.
            weights: `[B, m]`.

        Returns:
            A capture whose cotangent holds the weights already, and weights of one for it.
        """
        call = self.game.normalised_by[player.index]
        weighted = weigh([to_work(column[0]) for column in self._by_call[id(call)]], weights)
        h = after(to_work(self.forward.sites[id(player.calls[0])][0]), weights)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(h)
            output = scaled(call.operation, normalised_input(call.operation, h))
        back = tape.gradient(output, h, output_gradients=weighted)
        ones = tf.ones([self.batch.batch_size, 1], self.batch.dtype)
        return self.batch.capture(player, self.forward, [back]), ones

    def _gram(self, player: Player, group_size: int | None) -> tf.Tensor | None:
        """The player's Gram matrix; that of players with a joint metric belongs to the first of them."""
        if self.captures[player.index] is None or self._follows(player):
            return None
        together = self.batch.together.get(player.index)
        if together is None:
            return self._own_gram(player, group_size)
        captures = [self.captures[member.index] for member in together.players]
        own = [functools.partial(self._own_gram, member, group_size) for member in together.players]
        return tf.cast(together.metric.gram(captures, group_size, own), self.batch.dtype)

    def _follows(self, player: Player) -> bool:
        """Whether another player speaks for this one."""
        together = self.batch.together.get(player.index)
        return together is not None and together.players[0].index != player.index

    def _own_gram(self, player: Player, group_size: int | None) -> tf.Tensor:
        capture, metric = self.captures[player.index], self.batch.metrics[player.index]
        taps = self._taps[player.index]
        return tf.cast(gram(capture, metric, group_size, self.options.gram, taps), self.batch.dtype)

    def _own_pull(self, player: Player) -> tf.Tensor | None:
        """`<q_ij, M^{-1} l_u>`, `[B, m]`, or `None` without own cost; adds `l_u' M^{-1} l_u` to the prediction."""
        if self.captures[player.index] is None or self._follows(player):
            return None
        members = self._acting(player)
        if all(cost is None for member in members for cost in self.batch.own[member.index]):
            return None
        costs = [
            [
                tf.zeros(v.shape, self.batch.dtype) if l is None else tf.cast(l, self.batch.dtype)
                for v, l in zip(member.variables, self.batch.own[member.index], strict=True)
            ]
            for member in members
        ]
        solved = self._solve(player, costs)
        for cost, answer in zip(costs, solved, strict=True):
            self._own_drop += [tf.reduce_sum(l * s) for l, s in zip(cost, answer, strict=True)]
        return _sum([self.captures[member.index].inner(s) for member, s in zip(members, solved, strict=True)])

    def _acting(self, player: Player) -> list[Player]:
        """The players that `player` speaks for, itself included."""
        together = self.batch.together.get(player.index)
        return [player] if together is None else together.players

    def _solve(self, player: Player, parts: list[Tensors]) -> list[Tensors]:
        """`M^{-1}` of the players that `player` speaks for."""
        together = self.batch.together.get(player.index)
        return [self.batch.metrics[player.index].solve(*parts)] if together is None else together.metric.solve(parts)

    def _sample_backward(self, beta_squared: tf.Tensor | None) -> SamplePolicy:
        """Metrics and Gram matrices of all players, then all stages at once."""
        batch, options = self.batch, self.options
        group_size = 1 if options.value_hessian == "block_diagonal" else options.group_size
        if group_size is not None and isinstance(batch.batch_size, int) and group_size >= batch.batch_size > 1:
            group_size = None
        value = sample_space.init(
            batch.batch_size,
            beta_squared=beta_squared,
            rank=self.columns - 1,
            group_size=group_size,
            dtype=batch.dtype,
        )
        policy = SamplePolicy(value, group_size, self.information.joint, self.columns, batch.batch_size)
        self._measure([player for stage in self.game.stages for player in stage.players])
        grams, pulls = [], []
        for stage in self.game.stages:
            grams.append([])
            pulls.append([])
            for player in stage.players:
                grams[-1].append(self._gram(player, group_size))
                pull = self._own_pull(player)
                pulls[-1].append(
                    None if pull is None else sample_space.to_groups(tf.cast(pull, batch.dtype), group_size)
                )
        policy.solve(grams, pulls if any(pull is not None for stage in pulls for pull in stage) else None)
        return policy

    def _outer_backward(self, beta_squared: tf.Tensor) -> OuterPolicy:
        """The papers' recursion: statistics use the value's slope alpha, so stages come one by one."""
        batch = self.batch
        agents = max((len(stage.players) for stage in self.game.stages), default=1)
        value = outer_product.init(batch.batch_size, beta_squared)
        policy = OuterPolicy(value, self.information.joint, agents, batch.total)
        for t in range(len(self.game.stages) - 1, -1, -1):
            inner, quad = [], []
            players = self.game.stages[t].players
            self._measure(players, [policy.alpha(agent) for agent in range(len(players))])
            for agent, player in enumerate(players):
                if self.captures[player.index] is None or self._follows(player):
                    inner.append(None)
                    quad.append(None)
                    continue
                inner.append(self._inner_gain(player, policy.alpha(agent)))
                quad.append(tf.reshape(self._gram(player, 1), [-1]))
            policy.visit(t, inner, quad)
        batch.clamped += policy.clamped
        return policy

    def _inner_gain(self, player: Player, alpha: tf.Tensor) -> tf.Tensor:
        """`<q_i, k>`, `[B]`, summed over the players that `player` speaks for."""
        batch, members = self.batch, self._acting(player)
        captures = [self.captures[member.index] for member in members]
        gradients = [
            batch.complete(member, capture.gradient(alpha[:, None] / batch.total))
            for member, capture in zip(members, captures, strict=True)
        ]
        gains = [[-part for part in parts] for parts in self._solve(player, gradients)]
        inner = [capture.inner(k)[:, 0] for capture, k in zip(captures, gains, strict=True)]
        return _sum([tf.cast(part, batch.dtype) for part in inner])

    # ---- pass 2

    def _deviation(self, t: int, values: dict) -> tf.Tensor | None:
        """`d_ij = <g_ij, new state - old state>` at the cut before stage t, `[B, m]`; `None` without feedback."""
        self._values = values
        if not self.information.feedback:
            return None
        terms = []
        for slot, gradients in self._cut_gradients[t].items():
            moved = to_work(values[slot]) - to_work(self.forward.cuts[t][slot])
            axes = list(range(1, len(moved.shape)))
            dots = [tf.reduce_sum(to_work(g) * moved, axis=axes, keepdims=True) for g in gradients]
            columns = [dot if len(axes) == 1 else tf.reshape(dot, [-1, 1]) for dot in dots]
            terms.append(columns[0] if len(columns) == 1 else tf.concat(columns, axis=1))
        if not terms:
            return None  # the first stage's state is the data
        return tf.cast(terms[0] if len(terms) == 1 else tf.add_n(terms), self.batch.dtype)

    def _apply(self, policy: SamplePolicy | OuterPolicy) -> None:
        """Pass 2 inside the model's own `__call__`: stage by stage, new values from weights of the new state."""
        batch = self.batch
        moved: dict[int, Tensors] = {}

        def gradient_of(player: Player, t: int, deviation: tf.Tensor | None, arguments: tuple) -> Tensors:
            agent = self.game.stages[t].players.index(player)
            weights = policy.weights(t, agent, deviation)
            if batch.optimizer.watched:
                self._tell(policy, t, agent, weights)
            inputs = first_tensor(arguments) if self.options.bilinear else None
            return batch.complete(player, self._gradient(player, weights, inputs))

        def update(player: Player, t: int, deviation: tf.Tensor | None, arguments: tuple) -> Tensors:
            together = batch.together.get(player.index)
            if together is None:
                return self._move(player, gradient_of(player, t, deviation, arguments))
            if player.index not in moved:  # the first of them moves all
                gradients = [gradient_of(member, t, deviation, self._arguments(member)) for member in together.players]
                values = batch.move_together(together, gradients)
                moved.update({member.index: new for member, new in zip(together.players, values, strict=True)})
            return moved[player.index]

        start = []
        loose = [(player, batch.clip(self._loose[player.index])) for player in self.game.loose_players]
        batch.update_metrics([(player, BatchOnly(batch.batch_size), gradient) for player, gradient in loose])
        for player, gradient in loose:
            start.extend(zip(player.variables, self._move(player, gradient), strict=True))
        left: list[Applied | None] = []

        def recorder(inputs: object) -> object:
            flat = flat_inputs(batch.model, inputs)
            left.append(policy_forward(self.game, flat, batch.frozen, self._deviation, update, start, self._finish))
            return batch.y_pred

        batch.call_model(recorder)
        if left[0] is not None:
            after = tf.cast(left[0].cost(batch.loss_of), batch.dtype)
            batch.outcome = self._outcome(policy, tf.cast(batch.loss, batch.dtype) - after)

    def _arguments(self, player: Player) -> tuple:
        """(args, kwargs) of a player's call in the state that pass 2 has reached, before its turn."""
        call = player.calls[0]
        return keras.tree.map_structure(
            lambda leaf: self._values[leaf] if isinstance(leaf, Slot) else leaf, (call.args, call.kwargs)
        )

    @property
    def _finish(self) -> bool:
        """Whether anyone wants to know what the step does to J."""
        return self.batch.optimizer.wants_outcome or self.batch.optimizer.watched

    def _outcome(self, policy: SamplePolicy | OuterPolicy, actual: tf.Tensor) -> Outcome:
        """What the step does to J; without a prediction where the model is not that of the whole batch."""
        if predicts(self.options):
            return Outcome(self._predicted(policy), actual, policy.held_out_model())
        return Outcome(tf.constant(float("nan"), actual.dtype), actual, tf.zeros([3], actual.dtype))

    def _tell(self, policy: SamplePolicy | OuterPolicy, t: int, agent: int, weights: tf.Tensor) -> None:
        """Notes how the sample weights look; of a stage, those of its first player."""
        if agent:
            return
        plain, telemetry = policy.weights(t, agent, None), self.batch.telemetry
        if t == 0:
            telemetry["leverage"] = leverage(plain)
        elif self.information.feedback:
            telemetry[f"feedback_ratio/stage_{t}"] = feedback_ratio(weights, plain)
        telemetry["weight_spread"] = spread(weights)

    def _move(self, player: Player, gradient: Tensors) -> Tensors:
        """The player's new values; notes what an open-loop player should gain."""
        values = self.batch.move(player, gradient)
        if self._finish and self.captures[player.index] is None:
            old = self.batch.values[player.index]
            self._open_drop += [
                tf.reduce_sum(g * tf.cast(a - b, self.batch.dtype))
                for g, a, b in zip(gradient, old, values, strict=True)
            ]
        return values

    def _predicted(self, policy: SamplePolicy) -> tf.Tensor:
        """Decrease of the quadratic model: the recursion's, and half of <g, step> of every open-loop player."""
        own = tf.add_n(self._own_drop) if self._own_drop else None
        decrease = policy.predicted_reduction(own)
        return decrease + tf.add_n(self._open_drop) / 2 if self._open_drop else decrease


def _sum(tensors: Tensors) -> tf.Tensor:
    """The sum, without an operation for a single tensor."""
    return tensors[0] if len(tensors) == 1 else tf.add_n(tensors)
