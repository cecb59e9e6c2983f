"""Which family of metrics an optimizer belongs to: by the update rule that it runs, not by its name."""

from collections.abc import Sequence

import keras

from bellman_tf import keras_optimizers
from bellman_tf.curvature.block import PlayerLayout
from bellman_tf.curvature.inner.adam import AdamInnerBlock, NadamInnerBlock
from bellman_tf.curvature.inner.base import InnerBlock, InnerMetric
from bellman_tf.curvature.inner.rmsprop import RMSpropInnerBlock
from bellman_tf.curvature.inner.scaled import ScaledBlock
from bellman_tf.curvature.inner.sgd import SGDBlock

# A Keras optimizer and the block of every optimizer that runs its `update_step`, as AdamW runs Adam's. What no line
# fits gets `ScaledBlock`.
FAMILIES: tuple[tuple[type, type[InnerBlock]], ...] = (
    (keras.optimizers.SGD, SGDBlock),
    (keras.optimizers.RMSprop, RMSpropInnerBlock),
    (keras.optimizers.Adam, AdamInnerBlock),
    (keras.optimizers.Nadam, NadamInnerBlock),
)


def make_inner_block(
    layout: PlayerLayout,
    optimizer: keras.optimizers.Optimizer,
    variables: Sequence[keras.Variable],
    metric: InnerMetric,
) -> InnerBlock:
    """The block of a player that another optimizer moves.

    Args:
        layout: the player.
        optimizer: the one that the user has passed.
        variables: the player's, in the order of the layout's shapes.
        metric: one of `METRICS`.

    Returns:
        The block; `ScaledBlock` too where a `MultiOptimizer` moves the variables of one player by several optimizers.
    """
    movers = {id(mover): mover for mover in (keras_optimizers.mover_of(optimizer, v) for v in variables)}
    if len(movers) == 1:
        [mover] = movers.values()
        for family, make in FAMILIES:
            if keras_optimizers.updates_as(mover, family):
                return make(layout, optimizer, variables, metric)
    return ScaledBlock(layout, optimizer, variables, metric)
