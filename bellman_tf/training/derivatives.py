"""Pass 1 and the backward pass of the nonlinear step: cotangents of players and state, by call and by cut."""

import dataclasses
import math
from collections.abc import Generator
from typing import NamedTuple

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Tensors
from bellman_tf.game.graph import Call, Slot
from bellman_tf.game.stages import Player
from bellman_tf.layers.capture import Capture, weigh
from bellman_tf.layers.normalization import normalised_input, scaled
from bellman_tf.layers.tensors import delayed, to_work
from bellman_tf.training.passes import Forward, unflatten
from bellman_tf.training.round import Round
from bellman_tf.training.terminal import Terminal, record_terminal

MOST_UNITS = 512  # one backward pass each: more would make a step of minutes


class Units(NamedTuple):
    """Columns that are the unit vectors of a sample's state at one cut.

    Attributes:
        first: number of the first of them.
        count: size of the state.
    """

    first: int
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]  # hides tuple.count, which no one asks of units


@dataclasses.dataclass(frozen=True)
class Derivatives:
    """Where the recursion starts. A column is one cotangent per sample of everything; none is divided by B.

    Attributes:
        forward: what pass 1 captured.
        columns: m, columns per sample: the gradient, the factor of the terminal Hessian where it is not collinear, and
            the unit vectors of the state where V_xx has a Tikhonov term.
        beta_squared: `[B]`, curvature of a collinear terminal Hessian along the gradient, else `None`.
        captures: each player's capture, `None` for open-loop players.
        by_call: cotangents of a call's sites, column by column, by `id` of the call.
        at_cuts: for each stage, gradients of the state before it, one tensor per column, by slot.
        loose: mean gradients of the players whose place in the network is not known, by index.
        units: of the cut before a stage, by its number.
    """

    forward: Forward
    columns: int
    beta_squared: tf.Tensor | None
    captures: list[Capture | None]
    by_call: dict[int, list[Tensors]]
    at_cuts: list[dict[Slot, Tensors]]
    loose: dict[int, Tensors]
    units: dict[int, Units]

    def mean_weights(self, batch: Round) -> tf.Tensor:
        """Weights of the mean gradient.

        Args:
            batch: the step.

        Returns:
            `[B, m]`: 1/B in column 0.
        """
        ones = tf.ones([batch.batch_size, 1], batch.dtype) / batch.total
        return tf.pad(ones, [[0, 0], [0, self.columns - 1]])


def differentiate(batch: Round, feedback: bool) -> Derivatives:
    """Runs pass 1 inside the model and differentiates the loss, once per column.

    Args:
        batch: the step; its outputs and loss are kept in it.
        feedback: whether gradients of the state are wanted.

    Returns:
        The derivatives.

    Raises:
        ValueError: if the loss reads variables itself: their gradient is not that of the players' calls; or if the
            state is too large for a Tikhonov term on V_xx.
    """
    game, options = batch.program, batch.settings.options
    loose = [v.value for player in game.loose_players for v in player.variables]
    collinear, damped = options.columns == 0, bool(options.value_damping)
    with tf.GradientTape(watch_accessed_variables=False, persistent=not collinear or damped) as tape:
        tape.watch(loose)
        forward = batch.forward(tape, cuts=feedback or damped)
        with batch.direct_use(), record_terminal(forward, tape) as record:
            batch.compute_loss()
    _check_loss(batch)
    terminal = Terminal(record, batch.loss, batch.total, batch.model)
    calls = [call for stage in game.stages for call in stage.calls]
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
    units = _units(forward, len(site_columns)) if damped else {}
    for t in units:
        for target, seed in _unit_seeds(forward.cuts[t]):
            parts = tape.gradient(target, [*sites, *cuts], output_gradients=seed, unconnected_gradients="zero")
            site_columns.append(parts[: len(sites)])
            cut_columns.append(parts[len(sites) :])
    by_call = _by_call(calls, forward, site_columns)
    captures = [
        batch.capture(player, forward, [column[0] for column in by_call[id(player.calls[0])]])
        if player.covered
        else None
        for player in game.players
    ]
    own = iter(at_loose)
    means = {
        player.index: [tf.cast(next(own), batch.dtype) / batch.total for _ in player.variables]
        for player in game.loose_players
    }
    columns = len(site_columns)
    return Derivatives(forward, columns, beta_squared, captures, by_call, _by_cut(forward, cut_columns), means, units)


def through_normalisation(
    batch: Round, derivatives: Derivatives, player: Player, weights: tf.Tensor
) -> tuple[Capture, tf.Tensor]:
    """Weighs behind the BatchNormalization that follows a layer, and takes the cotangent back through it.

    The normalisation couples samples: slices of one backward pass before it are not the samples' gradients, and
    weighing them breaks the invariance of the network under a change of the weights' scale. Behind it they are
    the samples' own (up to the next normalisation).

    Args:
        batch: the step.
        derivatives: of the batch.
        player: a player in `TracedGame.normalised_by`.
        weights: `[B, m]`.

    Returns:
        A capture whose cotangent holds the weights already, and weights of one for it.
    """
    call = batch.program.normalised_by[player.index]
    [layer] = batch.program.player_of[id(call)].layers
    weighted = weigh([to_work(column[0]) for column in derivatives.by_call[id(call)]], weights)
    h = delayed(to_work(derivatives.forward.sites[id(player.calls[0])][0]), weights)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(h)
        output = scaled(layer, normalised_input(layer, h))
    back = tape.gradient(output, h, output_gradients=weighted)
    ones = tf.ones([batch.batch_size, 1], batch.dtype)
    return batch.capture(player, derivatives.forward, [back]), ones


def _units(forward: Forward, first: int) -> dict[int, Units]:
    """Columns of unit vectors for every state but the data, which does not deviate, from the number `first` on."""
    units, total = {}, 0
    for t, cut in enumerate(forward.cuts[1:], start=1):
        count = sum(math.prod(state.shape[1:]) for state in cut.values())
        units[t] = Units(first + total, count)
        total += count
    if total > MOST_UNITS:
        raise _checks.error(
            "value_damping", f"be 0 for networks with states of more than {MOST_UNITS} numbers in all: V_xx + eps_V I "
            "needs a backward pass for each", total, "The papers call this term optional.",
        )  # fmt: skip
    return units


def _unit_seeds(cut: dict[Slot, tf.Tensor]) -> Generator[tuple[tf.Tensor, tf.Tensor], None, None]:
    """The unit vectors of the state at a cut: the tensor and the cotangent of it, one by one."""
    for state in cut.values():
        shape = state.shape[1:]
        for k in range(math.prod(shape)):
            unit = tf.reshape(tf.one_hot(k, math.prod(shape), dtype=state.dtype), shape)
            yield state, tf.broadcast_to(unit, tf.shape(state))


def _check_loss(batch: Round) -> None:
    loose = {id(v) for player in batch.program.loose_players for v in player.variables}
    read = [v.path for key, v in batch.direct.items() if key not in loose and v.regularizer is None]
    what = f"its loss reads {', '.join(read[:3])} itself"
    if batch.left_out:
        what = f"its `compute_loss` leaves the regularizer of {batch.left_out[0].path} out"
    if read or batch.left_out:
        raise _checks.error(
            "rollout", f"be 'linear' for the model '{batch.model.name}': {what}",
            "nonlinear", "Pass rollout='linear', or leave penalties on weights to the layers' `regularizer`.",
        )  # fmt: skip


def _by_call(calls: list[Call], forward: Forward, columns: list[Tensors]) -> dict[int, list[Tensors]]:
    """Flat columns over all sites, cut to the calls."""
    found = {}
    for call in calls:
        count = len(forward.sites[id(call)])
        found[id(call)] = [column[:count] for column in columns]
        columns = [column[count:] for column in columns]
    return found


def _by_cut(forward: Forward, columns: list[Tensors]) -> list[dict[Slot, Tensors]]:
    """Flat columns over the state at all cuts, cut to the stages."""
    found = []
    for cut in forward.cuts:
        found.append({slot: [column[k] for column in columns] for k, slot in enumerate(cut)})
        columns = [column[len(cut) :] for column in columns]
    return found
