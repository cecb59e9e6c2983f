"""The curvature block of a player, by the user's choice and the layer's structure."""

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


def player_layout(name: str, shapes: tuple[tuple, ...], found: Coverage | str) -> PlayerLayout:
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
    kronecker = layout.matrix is not None and layout.matrix.groups == 1
    if isinstance(config, options.Identity):
        return IdentityBlock(layout)
    if isinstance(config, options.RMSprop):
        return RMSpropBlock(layout, config)
    if isinstance(config, options.Adam):
        return AdamBlock(layout, config)
    if isinstance(config, options.Full) and layout.covered:
        return FullBlock(layout, config)
    if isinstance(config, options.EKFAC) and kronecker:
        return EKFACBlock(layout, config)
    if isinstance(config, options.KFAC) and kronecker:
        return KFACEigenBlock(layout, config) if config.cooperative == "rescale" else KFACBlock(layout, config)
    if isinstance(config, options.KFAC) and layout.matrix is not None:
        return GroupedKFACBlock(layout, config)
    return DiagonalFisherBlock(layout, config.damping, config.decay)
