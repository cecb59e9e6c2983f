"""Players with losses of their own: which outputs' losses a player feels, and what it minimises then.

    L_n = phi_n(x_T) + sum_t l_{t,n}        phi_n the losses of some outputs of the model

Players that feel the same losses have one objective. Each objective has a gradient and a factor of its terminal Hessian
per sample, and so its own columns; see `own_policy.py` for what becomes of them. A loss that a model's layers add in
`call` belongs to no output, and every player feels it. Source: DGN Eq. 3 and footnote 1.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Tensors
from bellman_tf.game.players import Player
from bellman_tf.layers.capture import weigh_each
from bellman_tf.layers.tensors import with_sizes
from bellman_tf.losses import (
    LossRecord,
    Observation,
    Signs,
    TerminalCost,
    TerminalHessian,
    exclude_losses,
    keras_computes_loss,
    named_losses,
    terminal_cost,
    terminal_curvature,
)
from bellman_tf.training.round import Round

Rules = tuple[tuple[str, tuple[str, ...]], ...]
Sources = TypeVar("Sources")  # tensors in dicts, lists and tuples


def rules_of(player_losses: Any) -> Rules:
    """Checks the option `player_losses`.

    Args:
        player_losses: maps names of players, or patterns of them, to the names of outputs; `None` is no rule.

    Returns:
        The rules, as pairs.

    Raises:
        ValueError: if it is no such mapping.
    """
    if player_losses is None:
        return ()
    rule = "map names of players, or patterns of them, to the names of the outputs whose losses they feel"
    hint = "For example {'trunk_*': ['value', 'policy'], 'aux_head': ['aux']}; players not named feel every loss."
    if not isinstance(player_losses, Mapping) or not player_losses:
        raise _checks.error("player_losses", rule, player_losses, hint)
    for pattern, outputs in player_losses.items():
        listed = isinstance(outputs, list | tuple) and outputs and all(isinstance(name, str) for name in outputs)
        if not isinstance(pattern, str) or not listed:
            raise _checks.error("player_losses", rule, player_losses, hint)
    return tuple((pattern, tuple(sorted(set(outputs)))) for pattern, outputs in player_losses.items())


def ruled(players: Sequence[Player], rules: Rules) -> dict[int, tuple[str, ...]]:
    """The rule of each player that has one.

    Args:
        players: of the game.
        rules: of `rules_of`.

    Returns:
        Names of outputs by the player's index.

    Raises:
        ValueError: if a rule names a player that is not there, or two rules name one player.
    """
    found: dict[int, tuple[str, ...]] = {}
    for pattern, names in rules:
        named = [player for player in players if fnmatch.fnmatchcase(player.name, pattern)]
        if not named:
            raise _checks.error(
                "player_losses", f"name players of the game, among {[player.name for player in players]}", pattern,
                "`model.game_summary()` shows the players.",
            )  # fmt: skip
        for player in named:
            if player.index in found:
                raise _checks.error(
                    "player_losses", "have one rule per player", [player.name, pattern],
                    "Make the patterns apart, or write the player's name out in one of them.",
                )  # fmt: skip
            found[player.index] = names
    return found


def felt_by(players: Sequence[Player], rules: Rules, outputs: Sequence[str]) -> list[tuple[str, ...]]:
    """The outputs whose losses each player feels.

    Args:
        players: of the game.
        rules: of `rules_of`.
        outputs: those with a loss, in order.

    Returns:
        Names per player, in the order of `outputs`.

    Raises:
        ValueError: if a rule names a player or an output that is not there, or two rules name one player.
    """
    unknown = sorted({name for _, names in rules for name in names} - set(outputs))
    if unknown:
        raise _checks.error(
            "player_losses", f"name outputs that have a loss, among {list(outputs)}", unknown,
            "Name the output layers, and give `compile` a loss for each.",
        )  # fmt: skip
    own = ruled(players, rules)
    return [tuple(name for name in outputs if name in own.get(player.index, outputs)) for player in players]


class Objective:
    """What some players minimise: J, or J without the losses of some outputs.

    Attributes:
        number: among the objectives of the step.
        players: those whose objective it is.
        cost: of the samples at the end of the network.
        columns: m lists of cotangents at the noted tensors of each layer, by `id`: the gradient, then the factor.
        columns_at_z: the same at `cost.z`.
        beta_squared: `[R]`, curvature along the gradient, or `None`.
        at_values: R times the objective's derivatives in `cost.values`, where they have been asked for.
    """

    cost: TerminalCost
    beta_squared: tf.Tensor | None = None
    at_values: Tensors

    def __init__(
        self,
        number: int,
        players: Sequence[Player],
        loss: tf.Tensor,
        left_out: Sequence[Observation],
        tape: tf.GradientTape,
    ) -> None:
        self.number, self.players, self._tape = number, players, tape
        self._loss, self._left_out = loss, left_out
        self.columns: list[dict[int, Tensors]] = []
        self.columns_at_z: list[Tensors] = []

    def end(self, record: LossRecord, scale: tf.Tensor, closed: bool) -> None:
        """Finds what the samples cost at the end of the network.

        Args:
            record: of the losses.
            scale: R, rows of the loss.
            closed: whether Keras computes J.
        """
        apart = exclude_losses(self._left_out, self._loss, scale, self._tape)
        self.cost = terminal_cost(record, self._loss, scale, closed, apart)

    def gradient(
        self, sources: Sources, scale: tf.Tensor, also: Tensors | None = None, seeds: Tensors | None = None
    ) -> Sources:
        """Gradient of the objective, and of more.

        Args:
            sources: nested tensors.
            scale: what the objective is multiplied by.
            also: further tensors whose products with `seeds` are added.
            seeds: in their shapes.

        Returns:
            In the structure of `sources`, zeros where nothing connects.
        """
        less = exclude_losses(self._left_out, self._loss, scale, self._tape).less
        targets = [self._loss, *(values for values, _ in less), *(also or [])]
        return gradient_of(self._tape, targets, sources, [scale, *(-slopes for _, slopes in less), *(seeds or [])])

    def differentiate(
        self,
        sites: dict[int, Tensors],
        variables: list[Tensors],
        scale: tf.Tensor,
        terminal_hessian: TerminalHessian | None,
        dtype: tf.DType,
        draws: bool = False,
    ) -> list[Tensors]:
        """Takes the columns of the value at the end of the network back to the noted tensors.

        Args:
            sites: noted tensors of each layer, by `id`.
            variables: of players whose plain gradient is wanted as well.
            scale: R in the dtype of the loss.
            terminal_hessian: of the options; `None` for the gradient's column alone.
            dtype: of the recursion.
            draws: whether `drawn` will be called.

        Returns:
            Gradient of R times the objective in `variables`.
        """
        z, values = (self.cost.z, self.cost.values) if draws or terminal_hessian is not None else ([], [])
        at_sites, at_z, at_values, at_variables = self.gradient((sites, z, values, variables), scale)
        self.columns, self.columns_at_z, self.at_values = [at_sites], [at_z], at_values
        if terminal_hessian is None:
            return at_variables
        curvature = terminal_curvature(self.cost, at_z, at_values, terminal_hessian)
        if curvature.beta_squared is not None:
            self.beta_squared = tf.cast(curvature.beta_squared, dtype)
        for seeds in curvature.columns or ():
            self.columns.append(gradient_of(self._tape, self.cost.z, sites, seeds))
            self.columns_at_z.append(seeds)
        return at_variables

    def drawn(self, sites: dict[int, Tensors], signs: Signs) -> dict[int, Tensors]:
        """Cotangents whose second moment, sample by sample, is the terminal Hessian; one more backward pass.

        Args:
            sites: noted tensors of each layer, by `id`.
            signs: of the draw.

        Returns:
            In the structure of `sites`.
        """
        return gradient_of(self._tape, self.cost.z, sites, self.cost.draw(self.at_values, signs))

    def weighed(self, sources: Sources, weights: tf.Tensor, total: tf.Tensor) -> Sources:
        """One more backward pass, of the objective plus `sum_ij (w_ij - delta_j0 / R) c_ij`, regularizers included.

        Args:
            sources: nested tensors.
            weights: `[R, m]`.
            total: R.

        Returns:
            The gradient, in the structure of `sources`.
        """
        plain = tf.one_hot(0, weights.shape[1], dtype=weights.dtype) / tf.cast(total, weights.dtype)
        seeds = weigh_each(self.cost.z, self.columns_at_z, weights - plain)
        return self.gradient(sources, tf.ones_like(self._loss), self.cost.z, seeds)


def objectives_of(step: Round, record: LossRecord, tape: tf.GradientTape) -> list[Objective]:
    """The objectives of a step: J alone, or one for each set of losses that players feel.

    Args:
        step: the step, J computed.
        record: of its losses.
        tape: persistent, has recorded J and watched the losses' values.

    Returns:
        At least one.

    Raises:
        ValueError: if players have losses of their own and J, or its rows, does not allow it.
    """
    players, rules = step.game.players, step.settings.options.player_losses
    if not rules:
        return [Objective(0, players, step.loss, (), tape)]
    if not keras_computes_loss(step.model):
        raise _checks.error(
            "player_losses", "be None for a model with a `compute_loss` of its own: its losses belong to no output",
            step.model.name, "Pass `loss=` to `compile`, one per output, and leave `compute_loss` to Keras.",
        )  # fmt: skip
    losses = named_losses(step.model, step.y_pred, record.observed)
    felt = felt_by(players, rules, list(losses))
    found = []
    for number, names in enumerate(dict.fromkeys(felt)):
        left_out = [o for name, some in losses.items() if name not in names for o in some]
        some = [player for player, own in zip(players, felt, strict=True) if own == names]
        found.append(Objective(number, some, step.loss, left_out, tape))
    return found


def gradient_of(tape: tf.GradientTape, targets: Tensors, sources: Sources, seeds: Tensors) -> Sources:
    """`tape.gradient` in the nested structure of `sources`, zeros where nothing connects.

    Args:
        tape: persistent.
        targets: tensors.
        sources: nested tensors.
        seeds: in the structure of `targets`.

    Returns:
        The gradient.
    """
    flat = tf.nest.flatten(sources)
    found = tape.gradient(targets, flat, output_gradients=seeds, unconnected_gradients="zero")
    # A backward pass may know less of the shape than the tensor itself.
    shaped = [with_sizes(tf.convert_to_tensor(g), source.shape) for g, source in zip(found, flat, strict=True)]
    return tf.nest.pack_sequence_as(sources, shaped)
