"""One run of a model as it is, under a tape, and its backward pass: cotangents of noted tensors, captures of players.

Covered layers are noted while Keras runs the model and its loss (`game/instrument.py`); one backward pass per objective
gives the cotangents of all of them. Where a metric is made of the model's own Fisher matrix a second one takes random
cotangents of the outputs back.
"""

import keras
import tensorflow as tf

from bellman_tf import replicas
from bellman_tf._typing import Tensors
from bellman_tf.curvature.periods import when
from bellman_tf.game.instrument import Notes, noting
from bellman_tf.game.players import Player
from bellman_tf.layers.calls import join_calls
from bellman_tf.layers.capture import Capture
from bellman_tf.layers.coverage import PREACTIVATION
from bellman_tf.layers.input_sizes import as_computed
from bellman_tf.layers.tensors import with_sizes
from bellman_tf.losses import Signs, find_ends, keras_computes_loss, record_loss
from bellman_tf.training.information import INFORMATION
from bellman_tf.training.own_losses import Objective, objectives_of
from bellman_tf.training.round import Round, rows_of

_DRAWS = 2**10  # outputs of a model whose draws are told apart


class NativePass:
    """Forward and backward pass of one native step while it is traced.

    Attributes:
        captures: the columns of the player's own objective, by index.
        wholes: the columns of all objectives.
        seen: what the players' metrics read, by index.
        plain: mean gradients of the players that have no part in the recursion, by index.
        covered: players whose layer was called where it could be noted.
        rows: the number of samples of the loss, `None` where it has none.
    """

    def __init__(self, step: Round) -> None:
        self.step, self.game = step, step.game
        self.options, self.blocks = step.settings.options, step.settings.blocks
        self.information = INFORMATION[self.options.information]
        self.captures: dict[int, Capture] = {}
        self.wholes: dict[int, Capture] = {}
        self.seen: dict[int, Capture] = {}

    def _noted(self) -> list[Player]:
        """Players whose calls are noted: all that are covered, or those whose metric reads them."""
        covered = [player for player in self.game.players if player.covered]
        return covered if self.information.curved else [p for p in covered if self.blocks[p.index].needs_capture]

    def run_forward(self) -> None:
        """Runs the model and its loss under a tape, and says which players' calls were noted."""
        step, noted = self.step, self._noted()
        layers: dict[bool, list[keras.Layer]] = {True: [], False: []}
        for player in noted:
            layers[player.covering.site == PREACTIVATION].append(player.layers[0])
        if self.information.curved:
            layers[False] += list({id(p.within): p.within for p in self.game.players if p.within is not None}.values())
        self.tape = tf.GradientTape(persistent=True, watch_accessed_variables=False)
        self.notes = Notes(layers[True], layers[False], self.tape.watch)
        with self.tape:
            self.tape.watch([v.value for player in self.game.players for v in player.variables])
            with noting(self.notes):
                step.y_pred = step.call_model()
            with step.direct_use(), record_loss(find_ends(step.y_pred), self.tape) as record:
                step.compute_loss()
        step.read_again(self.game.written)
        self.rows = rows_of([end.output for end in record.ends])
        if self.rows is not None:
            step.batch_size, step.total = self.rows, step.counted(self.rows)
        self.objectives = objectives_of(step, record, self.tape)
        self.objective = {player.index: o for o in self.objectives for player in o.players}
        if self.rows is not None:
            for objective in self.objectives:
                objective.end(record, step.total, keras_computes_loss(step.model))
        calls = self.notes.calls.items()
        self.sites = {key: [n.site for n in some] for key, some in calls if key not in self.notes.hidden}
        # A layer that this call of the model did not reach, or only inside a loop, is open-loop in this step.
        self.covered = [p for p in noted if id(p.layers[0]) in self.sites]

    def curved(self) -> bool:
        """Whether the value's curvature is used: some player has a Gram form, and the loss has samples."""
        return self.information.curved and bool(self.covered) and self.rows is not None

    def run_backward(self, curved: bool) -> None:
        """Cotangents of phi_i = R J_i at every noted tensor, R the rows of the loss, for every objective."""
        step, hessian = self.step, self.options.terminal_hessian if curved else None
        self.plain: dict[int, Tensors] = {}
        drawing = {p.index for p in self.covered if self.blocks[p.index].draws}
        for objective in self.objectives:
            players = [] if curved else objective.players
            variables = [[v.value for v in player.variables] for player in players]
            if self.covered:
                found = objective.differentiate(self.sites, variables, step.seed(), hessian, step.dtype, bool(drawing))
                found = [[tf.cast(g, step.dtype) / step.total for g in parts] for parts in found]
            else:  # no cotangents: the gradient as Keras takes it, to the last bit
                found = objective.gradient(variables, tf.ones_like(step.loss))
                found = [[tf.cast(g, step.dtype) for g in parts] for parts in found]
            self.plain |= {player.index: parts for player, parts in zip(players, found, strict=True)}
        self.captures = {p.index: self._capture(p, self.objective[p.index].columns) for p in self.covered}
        self.wholes = self.captures
        if len(self.objectives) > 1:
            columns = [column for objective in self.objectives for column in objective.columns]
            self.wholes = {p.index: self._capture(p, columns) for p in self.covered}
        self.seen = self.captures | self._drawn(drawing)

    def _drawn(self, drawing: set[int]) -> dict[int, Capture]:
        """Captures of the players whose metrics read drawn cotangents, by index; zeros where none does in this step."""
        found: dict[int, Capture] = {}
        for objective in self.objectives:
            players = [p for p in self.covered if p.index in drawing and self.objective[p.index] is objective]
            if not players:
                continue
            sites = {key: self.sites[key] for key in dict.fromkeys(id(p.layers[0]) for p in players)}
            column = self._where_due({self.blocks[p.index].draws for p in players}, objective, sites)
            found |= {p.index: self._capture(p, [column]) for p in players}
        return found

    def _signs(self, objective: Objective) -> Signs:
        """Signs that are those of the batch's number, of the replica and of the objective."""
        context, batches = self.step.context, self.options.micro_batches
        number = context.iteration if batches == 1 else batches * context.iteration + context.micro_batch
        place = (objective.number + len(self.objectives) * replicas.own_number()) * _DRAWS
        return Signs(tf.stack([tf.cast(number, tf.int32), place]))

    def _where_due(self, periods: set[int], objective: Objective, sites: dict[int, Tensors]) -> dict[int, Tensors]:
        """Drawn cotangents in steps that are divisible by one of the periods; zeros in the others."""
        signs = self._signs(objective)
        due = [when(period, self.step.context.iteration) for period in sorted(periods)]
        if None in due or replicas.count() > 1:  # whose sums cannot be exchanged inside a branch
            return objective.drawn(sites, signs)
        flat = tf.nest.flatten(sites)
        drawn = tf.cond(
            tf.reduce_any(tf.stack(due)),
            lambda: tf.nest.flatten(objective.drawn(sites, signs)),
            lambda: [tf.zeros_like(site) for site in flat],
        )
        # A size that one of the branches does not know is lost behind them.
        shaped = [with_sizes(c, site.shape) for c, site in zip(drawn, flat, strict=True)]
        return tf.nest.pack_sequence_as(sites, shaped)

    def _capture(self, player: Player, columns: list[dict[int, Tensors]]) -> Capture:
        layer, capture = player.layers[0], player.covering.capture
        cotangents = zip(*(column[id(layer)] for column in columns), strict=True)
        parts = [
            capture(layer, as_computed(layer, note.inputs), list(c))
            for note, c in zip(self.notes.calls[id(layer)], cotangents, strict=True)
        ]
        return join_calls(parts)
