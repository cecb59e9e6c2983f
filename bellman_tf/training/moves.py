"""New values of all players: metrics from what the step has seen, directions, decay, clipping; nothing is assigned."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from bellman_tf import _checks, replicas
from bellman_tf._typing import Size, Tensors
from bellman_tf.curvature.cached import PlayerUpdate, update_all
from bellman_tf.curvature.coupling.joint import JointMetric
from bellman_tf.curvature.metric import Decrease, Metric
from bellman_tf.curvature.step_scalars import StepScalars
from bellman_tf.game.players import Player
from bellman_tf.layers.capture import Capture, MatrixCapture
from bellman_tf.layers.tensors import either
from bellman_tf.training.context import StepContext
from bellman_tf.training.settings import StepSettings
from bellman_tf.training.update import Assignments, add_own_cost, clip, constrain, move, own_cost_gradient


class BatchOnly(Capture):
    """Stands in for a capture where only the batch size is known."""

    def __init__(self, batch_size: Size) -> None:
        super().__init__([])
        self._batch_size = batch_size

    @property
    def batch_size(self) -> Size:
        """Samples in the batch."""
        return self._batch_size


class JointPlayers(NamedTuple):
    """Players of one stage whose directions are solved together.

    Attributes:
        players: in the order of their coupling.
        metric: the joint metric.
    """

    players: list[Player]
    metric: JointMetric

    def captures(self, known: Mapping[int, Capture]) -> list[MatrixCapture]:
        """The players' captures; those of players that act together are matrices.

        Args:
            known: captures by the player's index.

        Returns:
            In the order of `players`.
        """
        return matrices_of(known, [player.index for player in self.players])


def matrices_of(known: Mapping[int, Capture], players: Sequence[int]) -> list[MatrixCapture]:
    """The captures of some players that have a matrix form.

    Args:
        known: captures by the player's index.
        players: indices.

    Returns:
        The captures; fewer than players where one is missing.
    """
    found = [known.get(index) for index in players]
    return [capture for capture in found if isinstance(capture, MatrixCapture)]


class Moves:
    """The players' side of one step while it is traced.

    Attributes:
        settings: of the step.
        players: of the game, by index.
        batch_size: samples.
        present: whether this replica has samples, boolean scalar; `None` on a single one.
        dtype: of the recursion.
        values: value before the step of every player's variables, read before the model's own `__call__` casts them.
        own: gradient l_u of each player's regularizers, `None` per variable where there is none.
        metrics: each player's metric of this step, once known.
        together: the players that a player acts together with and their joint metric, by the player's index.
        step: scalars of the step.
        assignments: new values, queued.
        velocities: new ones, by player, with momentum.
        implied: places of new state, by player and position, that directions are made of entry by entry: it is finite
            where they are.
    """

    def __init__(
        self,
        players: Sequence[Player],
        settings: StepSettings,
        context: StepContext,
        dtype: tf.DType,
        batch_size: tf.Tensor | int,
    ) -> None:
        self.players, self.settings, self.context = list(players), settings, context
        self.dtype, self.batch_size = dtype, batch_size
        self.values = [[tf.convert_to_tensor(v) for v in player.variables] for player in players]
        self.own = [own_cost_gradient(player.variables) for player in players]
        self.metrics: list[Metric | None] = [None] * len(players)
        self.together: dict[int, JointPlayers] = {}
        self.present = None if replicas.count() == 1 else tf.greater(batch_size, 0)
        micro = context.micro_batch, settings.options.micro_batches
        self.step = StepScalars(context.iteration, context.learning_rate, self.present, *micro, settings.compiled)
        self.assignments = Assignments(
            {
                id(v): t
                for player, tensors in zip(players, self.values, strict=True)
                for v, t in zip(player.variables, tensors, strict=True)
            }
        )
        self.velocities: dict[int, Tensors] = {}
        self.implied: set[tuple[int, int]] = set()
        self._seen: dict[int, Capture] = {}
        self._coupled: set[int] = set()
        self._state = context.state
        self._new_state = [list(state) for state in context.state]

    def read_again(self, written: Iterable[keras.Variable]) -> None:
        """Moves start at what the model has written into its own trained variables, as a normalised kernel is.

        Args:
            written: what the model writes while it runs.
        """
        keys = {id(v) for v in written}
        for player in self.players:
            if any(id(v) in keys for v in player.variables):
                self.values[player.index] = [tf.convert_to_tensor(v) for v in player.variables]
                self.own[player.index] = own_cost_gradient(player.variables)

    def clip(self, gradient: Tensors) -> Tensors:
        """Clips per variable as the optimizer says."""
        return clip(gradient, self.settings.clipping.value, self.settings.clipping.norm)

    def clip_all(self, gradients: list[Tensors]) -> list[Tensors]:
        """Clips the gradients of all players, together and per variable, as the optimizer says."""
        largest = self.settings.clipping.global_norm
        if largest:
            flat, _ = tf.clip_by_global_norm(tf.nest.flatten(gradients), largest)
            gradients = tf.nest.pack_sequence_as(gradients, flat)
        return [self.clip(gradient) for gradient in gradients]

    def own_cost(self, player: Player) -> Tensors:
        """Gradient l_u of a player's own cost, zeros where there is none."""
        pairs = zip(player.variables, self.own[player.index], strict=True)
        return [tf.zeros(v.shape, self.dtype) if l is None else tf.cast(l, self.dtype) for v, l in pairs]

    def with_own_cost(self, player: Player, gradient: Tensors) -> Tensors:
        """Adds this replica's share of the gradient of the player's own cost."""
        own = [None if cost is None else replicas.share(cost) for cost in self.own[player.index]]
        return add_own_cost([tf.cast(g, self.dtype) for g in gradient], own)

    def complete(self, player: Player, gradient: Tensors) -> Tensors:
        """Adds the gradient of the player's own cost, then clips."""
        return self.clip(self.with_own_cost(player, gradient))

    def new_values(self) -> dict[int, tf.Tensor]:
        """New values of the variables as they will be assigned, by `id`."""
        new = self.assignments.by_variable()
        variables = [v for player in self.players for v in player.variables]
        return {id(v): constrain(v, new[id(v)]) for v in variables}

    def update_metrics(self, seen: Sequence[tuple[Player, Capture, Tensors | None]]) -> None:
        """Updates the statistics of players and keeps their metrics of this step.

        Args:
            seen: (player, capture, mean gradient where its block reads it).
        """
        blocks, state = self.settings.blocks, self._state
        players = [PlayerUpdate(blocks[p.index], state[p.index], capture, gradient) for p, capture, gradient in seen]
        for (player, capture, _), (new, metric) in zip(seen, update_all(players, self.step), strict=True):
            self._seen[player.index] = capture
            self._new_state[player.index], self.metrics[player.index] = new, metric

    def couple(self) -> None:
        """Updates the couplings whose players all have their metrics of this step, and joins those in one stage.

        In an alignment that takes the players of a coupling apart each acts under its own metric.
        """
        for number, coupling in enumerate(self.settings.couplings):
            members = [self.players[k] for k in coupling.players]
            metrics = [metric for metric in (self.metrics[k] for k in coupling.players) if metric is not None]
            if number in self._coupled or len(metrics) < len(members):
                continue
            seen = matrices_of(self._seen, coupling.players)
            if len(seen) < len(members):
                continue  # a layer that is not called in this step: each acts under its own metric
            self._coupled.add(number)
            place = len(self.players) + number
            own = [self._new_state[k] for k in coupling.players]
            self._new_state[place], joined = coupling.update(self._state[place], seen, own, metrics, self.step)
            if len({player.stage for player in members}) > 1:
                continue
            if isinstance(joined, JointMetric):
                self.together.update(dict.fromkeys(coupling.players, JointPlayers(members, joined)))
            else:
                for k, metric in zip(coupling.players, joined, strict=True):
                    self.metrics[k] = metric

    def members(self, player: Player) -> list[Player]:
        """The players that a player shares its metric with, itself included."""
        together = self.together.get(player.index)
        return [player] if together is None else together.players

    def leads(self, player: Player) -> bool:
        """Whether a player is the first of those that share its metric; what is made with it is made for that one."""
        return self.members(player)[0].index == player.index

    def metric_of(self, player: Player) -> Metric:
        """The player's metric of this step, once it is known."""
        return _checks.given(f"metric of {player.name}", self.metrics[player.index])

    def subtract(self, player: Player, gradient: Tensors) -> Tensors:
        """Queues the step of a player, without a copy of its variables where it can; returns what it was made of."""
        if self.context.decay is not None or any(v.constraint is not None for v in player.variables):
            return self.move(player, gradient)
        decrease = self._step(player, gradient)
        for variable, direction in zip(player.variables, decrease.directions, strict=True):
            self.assignments.subtract(variable, direction, decrease.scale)
        return decrease.directions

    def move(self, player: Player, gradient: Tensors) -> Tensors:
        """Queues the player's new values and returns them."""
        return self._queue(player, self._step(player, gradient).formed)

    def _step(self, player: Player, gradient: Tensors) -> Decrease:
        """The decrease of the player's variables; what changes in its state with it is kept."""
        decrease = self.metric_of(player).step(gradient)
        for k, tensor in decrease.changed.items():
            self._new_state[player.index][k] = tensor
            self.implied.add((player.index, k))
        if self.settings.momentum.beta:
            return Decrease(self._with_momentum(player, decrease.formed), None, {})
        return decrease

    def _with_momentum(self, player: Player, directions: Tensors) -> Tensors:
        """The decrease that the player's directions and velocity make; the new velocity is kept."""
        if not self.settings.momentum.beta:
            return directions
        old = self.context.velocities[player.index]
        self.velocities[player.index], decreases = self.settings.momentum.applied(old, directions)
        return decreases

    def move_together(self, together: JointPlayers, gradients: list[Tensors]) -> list[Tensors]:
        """Queues the new values of players with a joint metric and returns them, in the order of `together`."""
        decreases = together.metric.solve(gradients)
        pairs = zip(together.players, decreases, strict=True)
        return [self._queue(player, self._with_momentum(player, own)) for player, own in pairs]

    def _queue(self, player: Player, decreases: Tensors) -> Tensors:
        values = self.shifted(player, decreases)
        for variable, value in zip(player.variables, values, strict=True):
            self.assignments.add(variable, value)
        return [constrain(variable, value) for variable, value in zip(player.variables, values, strict=True)]

    def shifted(self, player: Player, decreases: Tensors) -> Tensors:
        """The player's values less `decreases` and weight decay, before constraints; nothing is queued."""
        values = []
        for variable, old, decrease in zip(player.variables, self.values[player.index], decreases, strict=True):
            decays = id(variable) not in self.settings.undecayed
            values.append(move(old, decrease, self.context.decay if decays else None))
        return values

    def move_if(self, condition: tf.Tensor, act: Callable[[], None]) -> None:
        """Runs what queues the moves of all players where a condition holds; elsewhere everything stays as it is.

        State that comes of captures is not touched by moves, so that only state made of gradients is chosen.

        Args:
            condition: boolean scalar.
            act: queues moves.
        """
        made = [k for k, block in enumerate(self.settings.blocks) if block.needs_gradient]
        variables = [v for player in self.players for v in player.variables]
        before = dict(self.assignments.before)

        def found() -> tuple[Tensors, list[Tensors], list[Tensors]]:
            values = before | self.assignments.by_variable()
            velocities = [self.velocities.get(k, old) for k, old in enumerate(self.context.velocities)]
            return [values[id(v)] for v in variables], [self._new_state[k] for k in made], velocities

        stays = found()

        def acted() -> Tensors:
            act()
            return tf.nest.flatten(found())

        kept = tf.nest.flatten(stays)
        if replicas.count() > 1:  # whose sums cannot be exchanged inside a branch
            chosen = [either(condition, new, old) for new, old in zip(acted(), kept, strict=True)]
        else:
            chosen = tf.cond(condition, acted, lambda: [tf.identity(t) for t in kept])
        values, states, velocities = tf.nest.pack_sequence_as(stays, chosen)
        self.assignments = Assignments(before)
        for variable, value in zip(variables, values, strict=True):
            self.assignments.add(variable, value)
        for k, state in zip(made, states, strict=True):
            self._new_state[k] = state
        self.velocities = dict(enumerate(velocities))

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
