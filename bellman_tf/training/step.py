"""One training step: capture, curvature, recursion, policy, new weights.

    pass 1        outputs, loss, watched tensors                     (passes.py)
    backward      one gradient call gives cotangents of all players and of the state at every cut
    curvature     each player's metric from its capture              (curvature/)
    recursion     Gram matrices to sample weights, all stages        (policy.py)
    pass 2        stage by stage: deviation, weights, new parameters (passes.py)
    update        assigned if everything is finite                   (update.py)

`information="open"` needs none of the last three beyond the metric: it is the baseline's own step.
"""

import keras
import tensorflow as tf

from bellman_tf.bellman import outer_product, sample_space
from bellman_tf.curvature.block import Metric, Step
from bellman_tf.curvature.capture import Capture, Tensors, to_work, weigh
from bellman_tf.curvature.gram import gram
from bellman_tf.game.stages import Game, Player
from bellman_tf.losses import observe_losses
from bellman_tf.training.execution import recorded
from bellman_tf.training.passes import Forward, capture_forward, policy_forward, replay_gradient
from bellman_tf.training.policy import INFORMATION, OpenPolicy, OuterPolicy, SamplePolicy
from bellman_tf.training.terminal import Terminal, structure_with
from bellman_tf.training.update import Assignments, add_own_cost, all_finite, clip, move, own_cost_gradient


def train_step(model: keras.Model, optimizer: object, data: object) -> dict:
    """Trains `model` on one batch.

    Args:
        model: a built model of this package, compiled.
        optimizer: its optimizer, a `GTDDP`.
        data: what Keras hands to `train_step`.

    Returns:
        The metrics' results, as Keras's `train_step`.
    """
    return _TrainStep(model, optimizer, data).run()


class _TrainStep:
    """The state of one step while it is traced."""

    def __init__(self, model: keras.Model, optimizer: object, data: object) -> None:
        self.model, self.optimizer = model, optimizer
        self.x, self.y, self.sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self.game: Game = model.game
        self.options = optimizer.options
        self.information = INFORMATION[self.options.information]
        self.blocks = optimizer.blocks
        self.state = [[tf.convert_to_tensor(v) for v in variables] for variables in optimizer.state]
        first = next(leaf for leaf in keras.tree.flatten(self.x) if leaf is not None)
        self.batch_size = first.shape[0] if first.shape[0] is not None else tf.shape(first)[0]
        dtypes = {v.dtype for v in model.trainable_variables}
        self.dtype = tf.float64 if "float64" in dtypes else tf.float32
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        self.total = tf.cast(self.batch_size, self.dtype) * replicas  # B of the whole batch
        self.frozen = _frozen(model)
        self.assignments = Assignments()
        self.metrics: list[Metric | None] = [None] * len(self.game.players)
        self.captures: list[Capture | None] = [None] * len(self.game.players)
        self.own: list[list] = [own_cost_gradient(player.variables) for player in self.game.players]
        self._loose_gradients: dict[int, Tensors] = {}
        self.new_state: list[Tensors] = [list(state) for state in self.state]

    def run(self) -> dict:
        rate = tf.cast(self.optimizer.learning_rate, self.dtype)
        self.step = Step(tf.convert_to_tensor(self.optimizer.iterations), rate)
        self.decay = None if self.optimizer.weight_decay is None else self.optimizer.weight_decay * rate
        self.clamped = tf.zeros([], tf.int32)
        curved = self.information.curved and self.game.graph is not None and self.game.stages
        self._open_step() if not curved else self._game_step()
        return self._finish()

    # ---- open: the baseline's own step -------------------------------------------------------------------------

    def _open_step(self) -> None:
        """Plain gradients from one tape; metrics from captures where a metric reads them."""
        players = self.game.players
        wants_capture = [
            block.needs_capture and player.covered for block, player in zip(self.blocks, players, strict=True)
        ]
        variables = [v.value for player in players for v in player.variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            if any(wants_capture):
                forward = self._forward(tape, cuts=False)
            else:
                forward = Forward()
                self.y_pred = self._call_model()
            self._compute_loss()
        sources: list = list(variables)
        captured = [player for player, wanted in zip(players, wants_capture, strict=True) if wanted]
        sources += [forward.sites[id(player.calls[0])][0] for player in captured]
        derivatives = tape.gradient(self.loss, sources, output_gradients=self._seed(), unconnected_gradients="zero")
        gradients = iter(derivatives[: len(variables)])
        for player, cotangent in zip(captured, derivatives[len(variables) :], strict=True):
            self.captures[player.index] = self._capture(player, forward, [cotangent])
        flat = [tf.cast(tf.convert_to_tensor(g), self.dtype) / self.total for g in gradients]
        if self.optimizer.global_clipnorm is not None:
            flat, _ = tf.clip_by_global_norm(flat, self.optimizer.global_clipnorm)
        remaining = iter(flat)
        for player in players:
            gradient = self._clip([next(remaining) for _ in player.variables])
            capture = self.captures[player.index] or _BatchOnly(self.batch_size)
            self._update_metric(player, capture, gradient)
            self._queue(player, gradient)

    # ---- feedback: passes, recursion, policy -------------------------------------------------------------------

    def _game_step(self) -> None:
        options, information = self.options, self.information
        columns = options.columns
        loose = [v.value for player in self.game.loose_players for v in player.variables]
        with (
            tf.GradientTape(watch_accessed_variables=False, persistent=columns != 0) as tape,
            observe_losses(tape) as observed,
        ):
            tape.watch(loose)
            forward = self._forward(tape, cuts=information.feedback)
            self._compute_loss()
        terminal = Terminal(forward, observed, self._cost)
        calls = [call for stage in self.game.stages for call in stage.calls]
        sources = [tensor for call in calls for tensor in forward.sites[id(call)]]
        cut_sources = [tensor for cut in forward.cuts for tensor in cut.values()]
        counts = (len(sources), len(cut_sources), len(terminal.z), len(terminal.values), len(loose))
        derivatives = tape.gradient(
            self.loss, [*sources, *cut_sources, *terminal.z, *terminal.values, *loose],
            output_gradients=self._seed(), unconnected_gradients="zero",
        )  # fmt: skip
        derivatives = [tf.convert_to_tensor(d) for d in derivatives]
        at_sites, at_cuts, at_z, at_values, at_loose = tf.nest.pack_sequence_as(
            [[0] * count for count in counts], derivatives
        )
        terminal.resolve(at_values)
        site_columns, cut_columns = [at_sites], [at_cuts]
        beta_squared = None
        if columns == 0:
            if options.terminal_hessian == "matched":
                beta_squared = tf.cast(terminal.matched_coefficient(at_z), self.dtype)
            else:
                beta_squared = tf.ones([self.batch_size], self.dtype)
        else:
            for seeds in terminal.factor_columns(None if options.terminal_hessian == "full" else columns):
                parts = tape.gradient(
                    terminal.z, [*sources, *cut_sources], output_gradients=seeds, unconnected_gradients="zero"
                )
                site_columns.append(parts[: len(sources)])
                cut_columns.append(parts[len(sources) :])
        remaining = iter(at_loose)
        for player in self.game.loose_players:
            gradient = [tf.cast(next(remaining), self.dtype) / self.total for _ in player.variables]
            self._loose_gradients[player.index] = self._clip(gradient)
        self._game_policy(forward, calls, site_columns, cut_columns, beta_squared)

    def _game_policy(
        self,
        forward: Forward,
        calls: list,
        site_columns: list[Tensors],
        cut_columns: list[Tensors],
        beta_squared: object,
    ) -> None:
        m = self.columns = len(site_columns)
        by_call: dict[int, list[Tensors]] = {}
        position = 0
        for call in calls:
            count = len(forward.sites[id(call)])
            by_call[id(call)] = [column[position : position + count] for column in site_columns]
            position += count
        for player in self.game.players:
            if player.covered:
                cotangents = [column[0] for column in by_call[id(player.calls[0])]]
                self.captures[player.index] = self._capture(player, forward, cotangents)
        if self.options.value_hessian == "outer_product":
            policy: object = self._outer_backward(forward, by_call, beta_squared)
        else:
            policy = self._sample_backward(forward, by_call, beta_squared, m)
        cut_gradients: list[dict] = []
        position = 0
        for cut in forward.cuts:
            cut_gradients.append({slot: [column[position + k] for column in cut_columns] for k, slot in enumerate(cut)})
            position += len(cut)

        def deviate(t: int, values: dict) -> tf.Tensor | None:
            if not self.information.feedback:
                return None
            terms = []
            for slot, gradients in cut_gradients[t].items():
                moved = to_work(values[slot]) - to_work(forward.cuts[t][slot])
                flat = tf.reshape(moved, [self.batch_size, -1])
                terms.append(
                    tf.stack([_rowwise_dot(tf.reshape(to_work(g), tf.shape(flat)), flat) for g in gradients], axis=1)
                )
            if not terms:
                return tf.zeros([self.batch_size, m], self.dtype)
            return tf.cast(tf.add_n(terms), self.dtype)

        def update(player: Player, t: int, deviation: tf.Tensor | None, arguments: tuple) -> Tensors:
            agent = self.game.stages[t].players.index(player)
            weights = policy.weights(t, agent, deviation, self.batch_size)
            capture = self.captures[player.index]
            if capture is None:
                gradient = self._replay(player, forward, by_call, weights)
            else:
                if self.options.bilinear:
                    capture = capture.with_inputs(_first_tensor(arguments))
                gradient = capture.gradient(weights)
            return self._queue(player, self._finish_gradient(player, gradient))

        start = []
        for player in self.game.loose_players:
            gradient = self._loose_gradients[player.index]
            self._update_metric(player, _BatchOnly(self.batch_size), gradient)
            start.extend(zip(player.variables, self._queue(player, gradient), strict=True))
        recorder = lambda inputs: self._second_pass(inputs, deviate, update, start)  # noqa: E731
        with recorded(self.model, recorder):
            self._call_model()

    def _second_pass(self, inputs: object, deviate: object, update: object, start: list) -> object:
        policy_forward(self.game, _flat_inputs(self.model, inputs), self.frozen, deviate, update, start)
        return self.y_pred

    def _sample_backward(self, forward: Forward, by_call: dict, beta_squared: object, m: int) -> SamplePolicy:
        """Metrics and Gram matrices of all players, then all stages at once."""
        options = self.options
        group_size = 1 if options.value_hessian == "block_diagonal" else options.group_size
        value = sample_space.init(
            self.batch_size, beta_squared=beta_squared, rank=m - 1, group_size=group_size, dtype=self.dtype
        )
        value = _rescaled(value, tf.cast(self.batch_size, self.dtype), self.total)
        policy = SamplePolicy(value, group_size, self.information.joint, m, diagonal=m == 1)
        regularised = any(cost is not None for own in self.own for cost in own)
        grams, linear = [], []
        for stage in self.game.stages:
            grams.append([])
            linear.append([])
            for player in stage.players:
                self._measure(player, forward, by_call, None)
                capture, metric = self.captures[player.index], self.metrics[player.index]
                if capture is None:
                    grams[-1].append(None)
                    linear[-1].append(None)
                    continue
                seed = tf.stack([tf.cast(self.step.iteration, tf.int32), player.index])
                grams[-1].append(tf.cast(gram(capture, metric, group_size, options.gram, seed), self.dtype))
                own = self.own[player.index]
                if regularised and any(cost is not None for cost in own):
                    cost = [
                        tf.zeros(v.shape, self.dtype) if c is None else c
                        for v, c in zip(player.variables, own, strict=True)
                    ]
                    l = capture.inner(metric.solve(cost))
                    linear[-1].append(tf.cast(sample_space.to_groups(l, group_size), self.dtype))
                else:
                    linear[-1].append(None)
        policy.solve(grams, linear if regularised else None)
        return policy

    def _outer_backward(self, forward: Forward, by_call: dict, beta_squared: tf.Tensor) -> OuterPolicy:
        """The papers' recursion: statistics use the value's slope alpha, so stages come one by one."""
        agents = max((len(stage.players) for stage in self.game.stages), default=1)
        value = outer_product.init(self.batch_size, beta_squared)
        policy = OuterPolicy(value, self.information.joint, agents, self.total)
        for t in range(len(self.game.stages) - 1, -1, -1):
            inner, quad = [], []
            for agent, player in enumerate(self.game.stages[t].players):
                alpha = policy.alpha(agent)
                self._measure(player, forward, by_call, alpha)
                capture, metric = self.captures[player.index], self.metrics[player.index]
                if capture is None:
                    inner.append(None)
                    quad.append(None)
                    continue
                gradient = self._finish_gradient(player, capture.gradient(alpha[:, None] / self.total))
                k = [-part for part in metric.solve(gradient)]
                inner.append(tf.cast(capture.inner(k)[:, 0], self.dtype))
                seed = tf.stack([tf.cast(self.step.iteration, tf.int32), player.index])
                diagonal = gram(capture, metric, 1, self.options.gram, seed)
                quad.append(tf.cast(tf.reshape(diagonal, [-1]), self.dtype))
            policy.visit(t, inner, quad)
        self.clamped += policy.clamped
        return policy

    # ---- pieces ------------------------------------------------------------------------------------------------

    def _call_model(self) -> object:
        return self.model(self.x, training=True) if self.model._call_has_training_arg else self.model(self.x)

    def _forward(self, tape: tf.GradientTape, cuts: bool) -> Forward:
        """Pass 1 inside the model's own `__call__`."""
        kept: list[Forward] = []

        def recorder(inputs: object) -> object:
            outputs, forward = capture_forward(self.game, _flat_inputs(self.model, inputs), tape, cuts)
            kept.append(forward)
            return outputs

        with recorded(self.model, recorder):
            self.y_pred = self._call_model()
        return kept[0]

    def _compute_loss(self) -> None:
        self.loss = self.model.compute_loss(
            x=self.x, y=self.y, y_pred=self.y_pred, sample_weight=self.sample_weight, training=True
        )

    def _cost(self, values: dict) -> tf.Tensor:
        """B J as a function of output values, for losses that no Keras `Loss` object computes."""
        y_pred = structure_with(self.y_pred, self.game.graph.outputs, values)
        loss = self.model.compute_loss(
            x=self.x, y=self.y, y_pred=y_pred, sample_weight=self.sample_weight, training=True
        )
        return tf.cast(self.total, loss.dtype) * loss

    def _seed(self) -> tf.Tensor:
        """Starts back-propagation with B in place of 1, so that cotangents belong to phi_i = B J_i."""
        return tf.cast(tf.fill(tf.shape(self.loss), self.total), self.loss.dtype)

    def _capture(self, player: Player, forward: Forward, cotangents: Tensors) -> Capture:
        layer = player.layers[0]
        inputs = _first_tensor(forward.arguments[id(player.calls[0])])
        if inputs.dtype.is_floating and inputs.dtype.name != layer.compute_dtype:
            inputs = tf.cast(inputs, layer.compute_dtype)
        return player.coverage.capture(layer, inputs, [tf.convert_to_tensor(c) for c in cotangents])

    def _clip(self, gradient: Tensors) -> Tensors:
        return clip(gradient, self.optimizer.clipvalue, self.optimizer.clipnorm)

    def _finish_gradient(self, player: Player, gradient: Tensors) -> Tensors:
        gradient = [tf.cast(g, self.dtype) for g in gradient]
        return self._clip(add_own_cost(gradient, self.own[player.index]))

    def _replay(self, player: Player, forward: Forward, by_call: dict, weights: tf.Tensor) -> Tensors:
        cotangents = {
            id(call): [weigh(columns, weights) for columns in zip(*by_call[id(call)], strict=True)]
            for call in player.calls
        }
        return replay_gradient(player, forward, cotangents, self.frozen)

    def _measure(self, player: Player, forward: Forward, by_call: dict, alpha: tf.Tensor | None) -> None:
        """The player's metric, from the plain gradient or, in the papers' form, from the value's slope."""
        block, capture = self.blocks[player.index], self.captures[player.index]
        gradient = None
        if block.needs_gradient:
            mean = (
                OpenPolicy(self.total).weights(0, 0, None, self.batch_size)
                if alpha is None
                else alpha[:, None] / self.total
            )
            mean = tf.pad(mean, [[0, 0], [0, self.columns - 1]])
            gradient = self._replay(player, forward, by_call, mean) if capture is None else capture.gradient(mean)
            gradient = self._finish_gradient(player, gradient)
        seen = _BatchOnly(self.batch_size) if capture is None else capture
        if alpha is not None and capture is not None and block.needs_capture:
            seen = capture.scaled(alpha)
        self._update_metric(player, seen, gradient)

    def _update_metric(self, player: Player, capture: object, gradient: Tensors | None) -> None:
        index = player.index
        self.new_state[index], self.metrics[index] = self.blocks[index].update(
            self.state[index], capture, gradient, self.step
        )

    def _queue(self, player: Player, gradient: Tensors) -> Tensors:
        """Queues the player's new values and state; returns the new values."""
        decreases, changed = self.metrics[player.index].step(gradient)
        for k, tensor in changed.items():
            self.new_state[player.index][k] = tensor
        values = []
        for variable, decrease in zip(player.variables, decreases, strict=True):
            decays = self.decay is not None and self.optimizer._use_weight_decay(variable)
            value = move(variable, decrease, self.decay if decays else None)
            self.assignments.add(variable, value)
            values.append(value)
        return values

    def _finish(self) -> dict:
        """Assigns what is finite, counts what is not, and reports as Keras does."""
        model, optimizer = self.model, self.optimizer
        for variables, old, new in zip(optimizer.state, self.state, self.new_state, strict=True):
            for variable, before, after in zip(variables, old, new, strict=True):
                if after is not before:
                    self.assignments.add(variable, after)
        accepted = tf.math.logical_and(
            all_finite(self.assignments.values), tf.math.is_finite(tf.cast(self.loss, tf.float32))
        )
        optimizer.queue_averages(self.assignments)
        restore = [(v, value) for v, value in self.frozen if v.dtype.startswith(("float", "bfloat"))]
        self.assignments.apply(accepted, restore)
        optimizer.count(accepted, self.clamped)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        tracker = next((m for m in model.metrics if m.name == "loss"), None)
        if tracker is not None:
            loss = tf.where(accepted, self.loss * replicas, tf.zeros_like(self.loss))
            tracker.update_state(loss, sample_weight=tf.where(accepted, self.batch_size, 0))
        return model.compute_metrics(self.x, self.y, self.y_pred, sample_weight=self.sample_weight)


class _BatchOnly:
    """Stands in for a capture where only the batch size is known."""

    def __init__(self, batch_size: object) -> None:
        self.batch_size = batch_size


def _frozen(model: keras.Model) -> list[tuple]:
    """(variable, value) of every variable of the layers that is not trained, before the step."""
    seen: dict[int, tuple] = {}
    for layer in model._flatten_layers(include_self=True, recursive=True):
        for variable in layer._non_trainable_variables:
            seen[id(variable)] = (variable, tf.identity(variable.value))
    for variable in model.non_trainable_variables:
        seen.setdefault(id(variable), (variable, tf.identity(variable.value)))
    return list(seen.values())


def _flat_inputs(model: keras.Model, inputs: object) -> Tensors:
    """Inputs in the order of the model's graph."""
    source = model._functional if isinstance(model, keras.Sequential) else model
    if hasattr(source, "_standardize_inputs"):
        return source._standardize_inputs(inputs)
    return [leaf for leaf in keras.tree.flatten(inputs) if leaf is not None]


def _first_tensor(arguments: tuple) -> tf.Tensor:
    args, kwargs = arguments
    return next(leaf for leaf in keras.tree.flatten((args, kwargs)) if tf.is_tensor(leaf))


def _rowwise_dot(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """`<first_i, second_i>`, `[B]`."""
    return tf.reduce_sum(first * second, axis=1)


def _rescaled(value: sample_space.SampleValue, local: tf.Tensor, total: tf.Tensor) -> sample_space.SampleValue:
    """A value made for this replica's samples, for the mean over the samples of all replicas."""
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return value
    ratio = local / total
    return sample_space.SampleValue(value.a * ratio, value.L * tf.sqrt(ratio))
