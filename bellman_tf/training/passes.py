"""The passes over a network: one forward with capture, one backward, one forward that applies the policy.

Forward pass 1 runs the flat program of the game and watches what the recursion needs: pre-activations (or outputs) of
the players, and a copy of every tensor at every cut, so that the gradient of a copy is the partial one at that cut.
Forward pass 2 runs it again with new weights. It sees the variables that are not trained (moving statistics, seeds) as
they were before pass 1, so dropout masks agree, and what it would write to them is discarded.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

import keras
import tensorflow as tf

from bellman_tf import keras_access
from bellman_tf._typing import Arguments, Gradient, Nested, StateMapping, Tensors
from bellman_tf.game.graph import Call, Replay, Slot
from bellman_tf.game.instrument import tapped
from bellman_tf.game.stages import Player, TracedGame
from bellman_tf.layers.coverage import PREACTIVATION


def last_activation(call: Call) -> str | None:
    """Name of the softmax or sigmoid that a call ends in, or `None`."""
    if isinstance(call.operation, keras.layers.Softmax):
        return "softmax" if call.operation.axis in {-1, (-1,)} else None
    activation = getattr(call.operation, "activation", None)
    for name in ("softmax", "sigmoid"):
        if activation is getattr(keras.activations, name):
            return name
    return None


@dataclasses.dataclass
class Forward:
    """Tensors that pass 1 captures.

    Attributes:
        arguments: (args, kwargs) of every player call, by `id` of the call.
        states: (variable, value just before the call) of what an open-loop player's layer does not train.
        sites: watched tensors of every player call: its pre-activation, or its outputs.
        cuts: for each stage, the copies of the state's tensors.
        ends: for each output slot that ends in softmax or sigmoid, the tensor before it and the activation's name.
        outputs: values of the output slots.
        values: values of all slots; of a state's tensors the last copy.
    """

    arguments: dict[int, Arguments] = dataclasses.field(default_factory=dict)
    states: dict[int, StateMapping] = dataclasses.field(default_factory=dict)
    sites: dict[int, Tensors] = dataclasses.field(default_factory=dict)
    cuts: list[dict[Slot, tf.Tensor]] = dataclasses.field(default_factory=list)
    ends: dict[Slot, tuple[tf.Tensor, str]] = dataclasses.field(default_factory=dict)
    outputs: dict[Slot, tf.Tensor] = dataclasses.field(default_factory=dict)
    values: dict[Slot, tf.Tensor] = dataclasses.field(default_factory=dict)


def copy_with_mask(tensor: tf.Tensor) -> tf.Tensor:
    """A new tensor of the same value, Keras mask included."""
    copy = tf.identity(tensor)
    keras_access.set_mask(copy, keras_access.mask_of(tensor))
    return copy


def capture_forward(game: TracedGame, inputs: Tensors, tape: tf.GradientTape, cuts: bool) -> tuple[Nested, Forward]:
    """Pass 1.

    Args:
        game: the game.
        inputs: the model's inputs, flat.
        tape: watches sites and cuts.
        cuts: whether to copy the state at every cut.

    Returns:
        The model's outputs, and what was captured.
    """
    program, forward = Replay(game.traced, inputs), Forward()
    outputs = set(keras.tree.flatten(game.traced.outputs))

    def run(call: Call) -> None:
        name = last_activation(call) if outputs & set(call.outputs) else None
        player = game.player_of.get(id(call))
        args, kwargs = program.arguments(call)
        if player is not None:
            forward.arguments[id(call)] = (args, kwargs)
            if not player.covered:
                untrained = player.layers[0].non_trainable_variables
                forward.states[id(call)] = [(v, tf.identity(v.value)) for v in untrained]
        before: Tensors = []
        fused = name is not None and hasattr(call.operation, "units")
        preactivation = player is not None and player.covered and player.covering.site == PREACTIVATION
        if isinstance(call.operation, keras.Layer) and (preactivation or fused):

            def tap(h: tf.Tensor) -> None:
                tape.watch(h)
                before.append(h)

            with tapped(call.operation, tap):
                made = program.store(call, call.operation(*args, **kwargs))
        else:
            made = program.store(call, call.operation(*args, **kwargs))
        if player is not None:
            if not player.covered:  # after the layer's own losses, which `replay_gradient` adds itself
                made = program.store(call, [copy_with_mask(t) for t in made])
            forward.sites[id(call)] = before if preactivation else [t for t in made if t.dtype.is_floating]
            for tensor in forward.sites[id(call)]:
                tape.watch(tensor)
        if name is not None:
            [slot] = call.outputs
            end = before[0] if before else keras.tree.flatten(args)[0]
            tape.watch(end)
            forward.ends[slot] = (end, name)

    for stage in game.stages:
        for call in stage.before:
            run(call)
        copies: dict[Slot, tf.Tensor] = {}
        if cuts:
            for slot in stage.state:
                value = program.values[slot]
                if value.dtype.is_floating:
                    copies[slot] = program.values[slot] = copy_with_mask(value)
                    tape.watch(copies[slot])
        forward.cuts.append(copies)
        for call in stage.calls:
            run(call)
    for call in game.after:
        run(call)
    forward.outputs = {slot: program.values[slot] for slot in outputs}
    forward.values = program.values
    return program.result(), forward


Deviation = TypeVar("Deviation")  # what a solver makes of the change of the state before a stage


@dataclasses.dataclass(frozen=True)
class AppliedPolicy:
    """The new network on the same batch, once pass 2 has run to its outputs.

    Attributes:
        outputs: the model's outputs with the new weights.
        state: (variable, value) of every variable of the model as the new weights leave it.
        losses: what layers added themselves on the way (activity regularizers, `add_loss`).
    """

    outputs: Nested
    state: StateMapping
    losses: Tensors

    def cost(self, loss: Callable[[Nested], tf.Tensor]) -> tf.Tensor:
        """J of the new weights on the same batch, regularizers included; nothing is written.

        Args:
            loss: function from the outputs to J, reading the model's variables and losses.

        Returns:
            Scalar.
        """
        with keras.StatelessScope(state_mapping=self.state, collect_losses=True, initialize_variables=False) as scope:
            scope.losses.extend(self.losses)
            return loss(self.outputs)


def policy_forward(
    game: TracedGame,
    inputs: Tensors,
    frozen: StateMapping,
    deviate: Callable[[int, dict[Slot, tf.Tensor]], Deviation],
    update: Callable[[Player, int, Deviation, Arguments], Tensors],
    start: StateMapping,
    finish: bool = False,
) -> AppliedPolicy | None:
    """Pass 2: stage by stage, measures the deviation of the state, updates the stage's players and moves on.

    Args:
        game: the game.
        inputs: the model's inputs, flat.
        frozen: (variable, value) of the variables that are not trained, as before pass 1.
        deviate: function of (stage number, new values by slot) giving the stage's deviation.
        update: function of (player, stage number, deviation, new arguments of the player's first call) giving the
            new values of the player's variables.
        start: (variable, value) of variables whose new values are known from the beginning.
        finish: whether to run on after the last player, to the outputs of the new network.

    Returns:
        The new network on the batch, `None` unless `finish`.
    """
    program = Replay(game.traced, inputs)
    state, fresh, losses = list(frozen), list(start), []
    last = max((t for t, stage in enumerate(game.stages) if stage.players), default=-1)

    def run(calls: tuple[Call, ...]) -> None:
        with keras.StatelessScope(
            state_mapping=[*state, *fresh], collect_losses=finish, initialize_variables=False
        ) as scope:
            for call in calls:
                program.run(call)
        losses.extend(scope.losses)
        # A generator that is drawn from again goes on from where it is, as in pass 1.
        state[:] = [(variable, scope.state_mapping[id(variable)]) for variable, _ in state]

    for t, stage in enumerate(game.stages if finish else game.stages[: last + 1]):
        run(stage.before)
        deviation = deviate(t, program.values)
        for player in stage.players:
            values = update(player, t, deviation, program.arguments(player.calls[0]))
            fresh.extend(zip(player.variables, values, strict=True))
        if finish or t < last:
            run(stage.calls)
    if not finish:
        return None
    run(game.after)
    return AppliedPolicy(program.result(), [*state, *fresh], losses)


def replay_gradient(player: Player, forward: Forward, cotangents: dict[int, Tensors]) -> Tensors:
    """Re-weighted gradient of an open-loop player: its recorded calls again, with weighted cotangents.

    Losses that the layer adds itself (activity regularizers, `add_loss`) enter unweighted.

    Args:
        player: the player.
        forward: what pass 1 captured.
        cotangents: weighted cotangents of the outputs, by `id` of the call.

    Returns:
        The gradient, in the shapes of the player's variables.
    """
    values = [tf.convert_to_tensor(v) for v in player.variables]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(values)
        outputs, seeds, own = [], [], []
        for call in player.calls:
            args, kwargs = forward.arguments[id(call)]
            mapping = [*forward.states[id(call)], *zip(player.variables, values, strict=True)]
            with keras.StatelessScope(state_mapping=mapping, collect_losses=True, initialize_variables=False) as scope:
                made = keras.tree.flatten(call.operation(*args, **{**kwargs, **_training(call)}))
            outputs += [t for t in made if t.dtype.is_floating]
            seeds += cotangents[id(call)]
            own += [tf.reduce_sum(loss) for loss in scope.losses]
        seeds += [tf.ones_like(loss) for loss in own]
    gradient = tape.gradient(outputs + own, values, output_gradients=seeds, unconnected_gradients="zero")
    return [tf.convert_to_tensor(g) for g in gradient]


def _training(call: Call) -> dict[str, bool]:
    return (
        {"training": True}
        if isinstance(call.operation, keras.Layer) and keras_access.takes_training(call.operation)
        else {}
    )


def first_tensor(arguments: Arguments) -> tf.Tensor:
    """The first tensor among a call's arguments: the layer's input.

    Args:
        arguments: (args, kwargs).

    Returns:
        The tensor; a sparse one with its zeros written out.
    """
    tensor = next(leaf for leaf in keras.tree.flatten(arguments) if tf.is_tensor(leaf))
    if not isinstance(tensor, tf.SparseTensor):
        return tensor
    return tf.ensure_shape(tf.sparse.to_dense(tensor), tensor.shape)


def unflatten(structure: Sequence[Sequence[object]], flat: Sequence[Gradient]) -> list[Tensors]:
    """Cuts a flat list to the lengths of `structure`.

    Args:
        structure: a list of lists.
        flat: tensors or `IndexedSlices`, as many as `structure` has entries.

    Returns:
        The tensors, in the form of `structure`.
    """
    remaining = iter(flat)
    return [[tf.convert_to_tensor(next(remaining)) for _ in part] for part in structure]
