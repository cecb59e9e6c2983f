"""One step under one of several alignments, chosen while training: one compiled step with a branch for each.

Every branch is a whole step of the game with its own stages. It returns its results as tensors in a fixed order, from
which the outer step takes its own.
"""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.game.players import Players
from bellman_tf.keras_access import mask_of, set_mask
from bellman_tf.training.context import Outcome
from bellman_tf.training.round import Round


def switched(batch: Round, games: Sequence[Players], branch: tf.Tensor, solve: Callable[[Round], None]) -> None:
    """Solves the batch in the game with number `branch`; only that branch runs.

    Args:
        batch: the step; its new values are queued.
        games: the same players in different stages.
        branch: integer scalar.
        solve: queues the new values of a step.
    """
    exports: list[_Export] = []

    def run(game: Players) -> Callable[[], Tensors]:
        def step() -> Tensors:
            inner = Round(batch.model, game, batch.settings, batch.context, batch.data)
            solve(inner)
            exports.append(_Export(inner))
            return exports[-1].tensors

        return step

    tensors = tf.switch_case(branch, [run(game) for game in games])
    exports[0].adopt(batch, tensors)


class _Export:
    """The results of a step as a flat list of tensors, and how to read such a list."""

    def __init__(self, inner: Round) -> None:
        place = {id(v): k for k, v in enumerate(inner.model.trainable_variables)}
        values = inner.assignments.by_variable()
        self._variables = sorted(values, key=place.__getitem__)
        self._changed = inner.changed_state()
        leaves = keras.tree.flatten(inner.y_pred)
        self._masked = [mask_of(leaf) is not None for leaf in leaves]
        masks = [mask_of(leaf) for leaf, masked in zip(leaves, self._masked, strict=True) if masked]
        self._outputs = inner.y_pred
        self._structure = [
            [inner.loss, inner.shown, inner.clamped],
            leaves,
            masks,
            list(inner.witnesses),
            [values[key] for key in self._variables],
            list(self._changed.values()),
            [] if inner.outcome is None else list(inner.outcome),
            [inner.telemetry[name] for name in sorted(inner.telemetry)],
        ]
        self._names = sorted(inner.telemetry)
        self.tensors = [tf.convert_to_tensor(t) for t in tf.nest.flatten(self._structure)]

    def adopt(self, batch: Round, tensors: Tensors) -> None:
        """Puts the results into a batch outside the branches."""
        parts = tf.nest.pack_sequence_as(self._structure, tensors)
        (batch.loss, batch.shown, batch.clamped), leaves, masks, witnesses, values, changed, outcome, told = parts
        remaining = iter(masks)
        for leaf, masked in zip(leaves, self._masked, strict=True):
            if masked:
                set_mask(leaf, next(remaining))
        batch.y_pred = keras.tree.pack_sequence_as(self._outputs, leaves)
        batch.witnesses.extend(witnesses)
        by_id = {id(v): v for v in batch.model.trainable_variables}
        for key, value in zip(self._variables, values, strict=True):
            batch.assignments.add(by_id[key], value)
        batch.adopt_state(dict(zip(self._changed, changed, strict=True)))
        batch.outcome = Outcome(*outcome) if outcome else None
        batch.telemetry = dict(zip(self._names, told, strict=True))
