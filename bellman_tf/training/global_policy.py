"""Sample weights of a game that the samples of all replicas play together, `coupling="global"`.

    exchange    weight and beta^2 of every sample, <q, M^{-1} l_u>, what its Gram matrices need of it
                (gram/across_replicas.py)
    products    the rows of this replica's samples, all players added where they share a value
    exchange    these rows: every replica has the whole matrix, to the same bits
    solve       on every replica

so that weights, and all that follows, are those of one replica that holds the whole batch. A player whose samples would
send too much stays block-diagonal over replicas: its Gram matrix counts pairs of samples of one replica only.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import tensorflow as tf

from bellman_tf import replicas
from bellman_tf._typing import SomeTensors
from bellman_tf.curvature.gram.across_replicas import Sides, joint_sides, sides
from bellman_tf.curvature.metric import Metric
from bellman_tf.game.players import Player
from bellman_tf.layers.capture import Capture, MatrixCapture
from bellman_tf.training.information import Information
from bellman_tf.training.linear_policy import LinearPolicy
from bellman_tf.training.moves import JointPlayers
from bellman_tf.training.own_losses import Objective
from bellman_tf.training.own_policy import policy_of
from bellman_tf.training.samples import AllSamples
from bellman_tf.training.settings import GameOptions

Share: TypeAlias = list[Sides] | tf.Tensor


class Part(NamedTuple):
    """What a player, or several with one metric, bring to the game.

    Attributes:
        player: the first of them.
        gram: sides whose Gram matrices are added, or the Gram matrix of this replica's samples `[1, b m, b m]`.
        pull: `<q_ij, M^{-1} l_u>` of this replica's samples, `[b, m]`, or `None`.
        ahead: as in `LinearPolicy.add`, `[b, m]`, or `None`.
    """

    player: Player
    gram: Share
    pull: tf.Tensor | None
    ahead: tf.Tensor | None


def sides_of(
    members: Sequence[tuple[Capture, Metric]], together: JointPlayers | None, options: GameOptions
) -> list[Sides] | None:
    """What the samples of this replica send of some players.

    Args:
        members: capture and metric of one player, or of those that act together.
        together: their joint metric, if they have one.
        options: of the game.

    Returns:
        Sides whose Gram matrices are added; `None` where they are too large.
    """
    if together is not None and together.metric.joint_gram:
        captures = [capture for capture, _ in members if isinstance(capture, MatrixCapture)]
        found = [joint_sides(captures, together.metric, options.gram_limits)]
    else:
        found = [sides(*member, options.gram, options.gram_limits) for member in members]
    known = [part for part in found if part is not None]
    return known if len(known) == len(found) else None


def policy_of_replicas(
    parts: Sequence[Part],
    objectives: Sequence[Objective],
    information: Information,
    batch_size: tf.Tensor | int,
    dtype: tf.DType,
    direct: float,
) -> LinearPolicy:
    """The policy of a step with every player in it, before it is solved.

    Args:
        parts: of all players with a Gram form.
        objectives: of the step, differentiated.
        information: what a player knows.
        batch_size: samples of this replica.
        dtype: of the recursion.
        direct: as in `LinearPolicy`.

    Returns:
        One value for all players, or one for each objective, over the samples of all replicas.
    """
    own = tf.fill([batch_size], tf.cast(replicas.own_number(), dtype))
    weights = replicas.share(tf.fill([batch_size], 1 / tf.maximum(tf.cast(batch_size, dtype), 1)))
    betas = [objective.beta_squared for objective in objectives]
    numbers = [part for part in (*betas, *(p.pull for p in parts), *(p.ahead for p in parts)) if part is not None]
    sent = [tensor for part in parts if isinstance(part.gram, list) for side in part.gram for tensor in side.sent]
    found = iter(replicas.gather([tf.cast(tensor, dtype) for tensor in (own, weights, *numbers, *sent)]))

    def next_of(tensors: Sequence[tf.Tensor | None]) -> SomeTensors:
        return [None if tensor is None else next(found) for tensor in tensors]

    samples = AllSamples(next(found), next(found), next_of(betas))
    pulls, aheads = next_of([p.pull for p in parts]), next_of([p.ahead for p in parts])
    policy = policy_of(objectives, information, None, samples.count, dtype, direct, samples=samples)
    for part, pull, ahead in zip(parts, pulls, aheads, strict=True):
        policy.add(part.player, _rows(part.gram, samples, found, dtype)[None], pull, ahead)
    return policy


def _rows(gram: Share, samples: AllSamples, found: Iterator[tf.Tensor], dtype: tf.DType) -> tf.Tensor:
    """`[b m, B m]`, from what has been exchanged."""
    if not isinstance(gram, list):
        return samples.apart(tf.cast(gram[0], dtype))
    return tf.add_n([tf.cast(side.rows([next(found) for _ in side.sent]), dtype) for side in gram])
