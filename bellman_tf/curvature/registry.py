"""The curvature block of a player, by the user's choice and the layer's structure."""

from collections.abc import Callable

from bellman_tf import _checks
from bellman_tf.curvature import config as options
from bellman_tf.curvature.adam import AdamBlock
from bellman_tf.curvature.block import Block, PlayerLayout
from bellman_tf.curvature.ekfac import EKFACBlock, KFACEigenBlock
from bellman_tf.curvature.fisher_diagonal import DiagonalFisherBlock
from bellman_tf.curvature.full import FullBlock
from bellman_tf.curvature.grouped_kfac import GroupedKFACBlock
from bellman_tf.curvature.identity import IdentityBlock
from bellman_tf.curvature.kfac import KFACBlock
from bellman_tf.curvature.rmsprop import RMSpropBlock
from bellman_tf.layers.coverage import Coverage


def _any(layout: PlayerLayout) -> bool:
    return True


def _covered(layout: PlayerLayout) -> bool:
    return layout.covered


def _one_matrix(layout: PlayerLayout) -> bool:
    return layout.matrix is not None and layout.matrix.groups == 1


def _matrix_per_group(layout: PlayerLayout) -> bool:
    return layout.matrix is not None and layout.matrix.groups > 1


def _kfac(layout: PlayerLayout, config: options.KFAC) -> Block:
    return KFACEigenBlock(layout, config) if config.cooperative == "rescale" else KFACBlock(layout, config)


# A config class, which players its block suits, and the block; the first line that fits counts, and a player that no
# line fits gets the diagonal Fisher matrix.
BLOCKS: tuple[tuple[type, Callable[[PlayerLayout], bool], Callable[..., Block]], ...] = (
    (options.Identity, _any, lambda layout, config: IdentityBlock(layout)),
    (options.RMSprop, _any, RMSpropBlock),
    (options.Adam, _any, AdamBlock),
    (options.Full, _covered, FullBlock),
    (options.EKFAC, _one_matrix, EKFACBlock),
    (options.KFAC, _one_matrix, _kfac),
    (options.KFAC, _matrix_per_group, GroupedKFACBlock),
)


def player_layout(name: str, shapes: tuple[tuple[int, ...], ...], found: Coverage | str) -> PlayerLayout:
    """What a block needs to know about a player.

    Args:
        name: the player's name.
        shapes: shapes of its variables.
        found: what `coverage` said.

    Returns:
        The layout.
    """
    if isinstance(found, str):
        return PlayerLayout(name, shapes, covered=False)
    return PlayerLayout(name, shapes, found.matrix, found.convolution, found.taps)


def make_block(config: options.Config, layout: PlayerLayout) -> Block:
    """The curvature block of a player.

    Args:
        config: the user's choice.
        layout: the player.

    Returns:
        The block; players without the structure a metric needs get the diagonal Fisher matrix, as `describe` says.

    Raises:
        ValueError: if `curvature="full"` and the player is too large.
    """
    block = _block(config, layout)
    block.draws = config.draws if layout.covered else 0
    return block


def _block(config: options.Config, layout: PlayerLayout) -> Block:
    for kind, suits, make in BLOCKS:
        if isinstance(config, kind) and suits(layout):
            return make(layout, config)
    if isinstance(config, options.KFAC | options.Full):
        return DiagonalFisherBlock(layout, config.damping, config.decay)
    raise _checks.error("curvature", "be one of bellman_tf.curvature", config)
