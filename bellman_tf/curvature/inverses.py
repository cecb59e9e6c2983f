"""Damped inverses of many matrices at once, those of nearly one size factorised together."""

import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.curvature.damping import factor_damping
from bellman_tf.linalg import factor_spd, whiten
from bellman_tf.linalg.blocked import whiteners_in_blocks
from bellman_tf.linalg.symmetric import padded, symmetrize

_NEARLY = 1.1  # a matrix is padded to at most so many times its rows
_TINY = 32  # up to so many rows in any case


def damped_inverses(stacks: list[tuple[tf.Tensor, ...]], compiled: bool = False) -> list[Tensors]:
    """`(A + damping I)^{-1}` of stacks, for `CachedBlock.factorise`.

    Stacks of nearly one size are factorised as one, padded by the identity, which leaves the inverses what they are:
    every size costs XLA half a second to compile, a padded row costs next to nothing.

    Args:
        stacks: matrices `[S, n, n]`, positive semidefinite, and dampings `[S]`, raised to what the precision needs.
        compiled: whether XLA compiles it, whose own factorisation takes five times as long as one in blocks.

    Returns:
        For every stack the inverses `[S, n, n]`, the dampings in them, and lower triangular W with `W' W` the inverse.
    """
    dampings = [factor_damping(matrices, damping) for matrices, damping in stacks]
    groups = _of_nearly_one_size([matrices.shape[-1] for matrices, _ in stacks])
    wholes, damping = [], []
    for places in groups:
        size = stacks[places[0]][0].shape[-1]
        parts = [padded(stacks[place][0], size) for place in places], [dampings[place] for place in places]
        whole, own = (part[0] if len(part) == 1 else tf.concat(part, axis=0) for part in parts)
        wholes.append(whole)
        damping.append(own)
    if compiled:
        made = whiteners_in_blocks(wholes, damping)
    else:
        made = [
            whiten(factor_spd(A, own), tf.eye(A.shape[-1], A.shape[-1], [A.shape[0]], A.dtype))
            for A, own in zip(wholes, damping, strict=True)
        ]
    found: dict[int, Tensors] = {}
    for places, W in zip(groups, made, strict=True):
        alike = [stacks[k][0].shape[0] for k in places]
        inverses = symmetrize(tf.matmul(W, W, transpose_a=True))
        for place, *parts in zip(places, tf.split(inverses, alike), tf.split(W, alike), strict=True):
            kept = stacks[place][0].shape[-1]
            X, whitener = (part if kept == part.shape[-1] else part[:, :kept, :kept] for part in parts)
            found[place] = [X, dampings[place], whitener]
    return [found[place] for place in range(len(stacks))]


def _of_nearly_one_size(sizes: list[int]) -> list[list[int]]:
    """Places in `sizes` that are padded to one size, that of the first of them."""
    groups: list[list[int]] = []
    for place in sorted(range(len(sizes)), key=lambda k: -sizes[k]):
        largest = sizes[groups[-1][0]] if groups else 0
        if largest <= max(_TINY, _NEARLY * sizes[place]) and groups:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups
