"""Factorisations that replicas share out: each renews those of some players and receives the others'.

    share     players are dealt out by their work, the same deal on every replica
    renew     in a branch of the graph, in the steps that renew
    exchange  outside of it, where alone TensorFlow exchanges tensors: of one number in the steps that keep
    unpack    in a second branch, or keep

so that every replica holds the same bits: those that the player's replica has computed.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from bellman_tf import replicas
from bellman_tf._typing import Tensors


def deal(work: Sequence[float], count: int) -> list[list[int]]:
    """Deals players out, the dearest ones first, each to the replica with the least so far.

    Args:
        work: of every player.
        count: of replicas.

    Returns:
        Places in `work` for every replica, at most 4/3 of the best deal's time for the busiest one.

    Source: Graham 1969, Bounds on multiprocessing timing anomalies, Theorem 2.
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    for place in sorted(range(len(work)), key=lambda k: -work[k]):
        min(shares, key=lambda own: sum(work[k] for k in own)).append(place)
    return shares


def renewed_in_shares(
    due: tf.Tensor | None,
    renew: Callable[[list[int]], list[Tensors]],
    keep: list[Tensors],
    work: Sequence[float],
) -> list[Tensors]:
    """Renews what is kept of all players, each of them on one replica.

    Args:
        due: whether this step renews, boolean scalar, the same on every replica; `None` for always.
        renew: gives the new tensors of the players in some places.
        keep: of every player, tensors of static shapes that stand otherwise.
        work: of every player.

    Returns:
        The new tensors, or `keep`.
    """
    shares = deal(work, replicas.count())
    order = [(place, j) for own in shares for place in own for j in range(len(keep[place]))]
    dtypes = list(dict.fromkeys(part.dtype for parts in keep for part in parts))

    def own() -> Tensors:
        def flat(places: list[int]) -> Tensors:
            made = [part for parts in renew(places) for part in parts] if places else []
            return [
                tf.concat([tf.zeros([0], dtype), *(tf.reshape(p, [-1]) for p in made if p.dtype == dtype)], 0)
                for dtype in dtypes
            ]

        return tf.switch_case(replicas.own_number(), [lambda places=places: flat(places) for places in shares])

    def unpacked(sent: Tensors) -> Tensors:
        found: dict[tuple[int, int], tf.Tensor] = {}
        for dtype, vector in zip(dtypes, sent, strict=True):
            places = [(k, j) for k, j in order if keep[k][j].dtype == dtype]
            sizes = [keep[k][j].shape.num_elements() for k, j in places]
            parts = tf.split(vector, sizes)
            found |= {(k, j): tf.reshape(part, keep[k][j].shape) for (k, j), part in zip(places, parts, strict=True)}
        return [found[k, j] for k, parts in enumerate(keep) for j in range(len(parts))]

    nothing = [tf.zeros([1], dtype) for dtype in dtypes]  # a collective gather of no number at all waits forever
    mine = own() if due is None else tf.cond(due, own, lambda: [tf.identity(part) for part in nothing])
    sent = [whole for part in mine for whole in replicas.gather([part])]
    kept = [part for parts in keep for part in parts]
    chosen = unpacked(sent) if due is None else tf.cond(
        due, lambda: unpacked(sent), lambda: [tf.identity(part) for part in kept]
    )  # fmt: skip
    remaining = iter(chosen)
    return [[next(remaining) for _ in parts] for parts in keep]
