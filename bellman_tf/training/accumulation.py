"""Gradient accumulation: k micro-batches, each a game of its own, make one update of the weights.

Micro-batch j has m samples with costs `phi_i = m J_i`, J its mean loss, and the update is `-M^{-1}` of the mean of k
gradients. All k m samples in one batch, in groups of m, have the mean loss of k m samples: a = 1 / (k m) for a sample's
gradient and beta^2 / (k m) for its curvature. With G_j the Gram matrix of a group and l_j = `<q, M^{-1} l_u>` the pull
of own costs, the group's weights are

    w_j = (I + S G_j)^{-1} (a - S l_j),    S = beta^2 / (k m)

and the update is M^{-1} (sum_j Q_j w_j + l_u). Put w_j = v_j / k:

    v_j = (I + S' G_j / k)^{-1} (a' - S' l_j),    a' = 1 / m,    S' = beta^2 / m

so the micro-batch plays the game of its own mean loss, with cost, slope and curvature at the end of the network as they
are, and **Gram matrices divided by k**: its samples move the weights by a k-th of `M^{-1}`. Own costs and the
displacement of momentum move them once in k micro-batches, whole, and every game sees them whole: l_j is not divided.
(Scaling the loss by 1/k, with a = 1 / (k m), is the same.) The gradient `g_j = Q_j v_j + l_u` is what Keras's
optimizers accumulate, and their mean over j is that of the grouped batch. With several stages, players or values the
same factor k runs through the recursion: S'_t = k S_t, a'_t = k a_t, and the displacements d_t are equal.

What equals what. At the same weights, before the update:

- The sums of gradients equal those of the grouped batch where the metric of every game is the one it has there:
  "identity", "rmsprop", "adam" and every inner optimizer (their metric is that of the moments before the step); and any
  metric with `information="open"`, which has no Gram matrices.
- Statistics of captures (K-FAC, EKFAC, "full", the Fisher diagonal) take up the micro-batches one by one and in the end
  are those of the grouped batch (`StepScalars.mean_rate`). Factorisations are renewed with the last micro-batch, for
  the update. A game's Gram matrices are of the metric as it stands with its own micro-batch: between two
  factorisations K-FAC equals the grouped batch exactly, where it is renewed the first k - 1 games have the inverses of
  the time before, and EKFAC's scalings and the Fisher diagonal are those of the micro-batches so far. Only the very
  first micro-batch of all renews factorisations besides the last, since before it nothing is known. EKFAC turns
  scalings into new bases as it always does (`EKFACBlock.cache`), those of the first k - 1 micro-batches too.
- Clipping, weight decay, moments, momentum and the rate belong to the update: they see the mean gradient, once. Of a
  schedule, which as in Keras counts micro-batches, the rate is that of the last one, in all k games.

On several replicas every micro-batch's gradients are summed over them first: n replicas with k micro-batches each are
n k groups.

A micro-batch whose loss or gradient is not finite is left out, and the next one takes its place. If the update that k
good ones make is not finite, all k are dropped: else it would be tried again with every further batch.

Checked against: `verification/references/accumulation.py`; the grouped batch itself.
"""

from collections.abc import Callable

import tensorflow as tf

from bellman_tf._typing import Tensors
from bellman_tf.layers.capture import Capture
from bellman_tf.layers.tensors import either
from bellman_tf.training.round import Round


def accumulate(
    step: Round, gradients: list[Tensors], captures: dict[int, Capture], move: Callable[[list[Tensors]], None]
) -> None:
    """Adds a micro-batch's gradient to the sums; with the last one, queues the update.

    Args:
        step: the step of the micro-batch.
        gradients: of the re-weighted loss, not clipped, by player.
        captures: of the players whose statistics this micro-batch has, by index.
        move: queues the players' moves for the mean gradient.
    """
    count, blocks = step.settings.options.micro_batches, step.settings.blocks
    seen = [p for p in step.players if p.index in captures and step.metrics[p.index] is None]
    seen = [p for p in seen if blocks[p.index].needs_capture and not blocks[p.index].needs_gradient]
    step.update_metrics([(p, captures[p.index], None) for p in seen])
    step.couple()
    completes = step.completes = tf.equal(step.context.micro_batch, count - 1)
    sums = [[s + g for s, g in zip(*pair, strict=True)] for pair in zip(step.context.sums, gradients, strict=True)]
    mean = [[s / count for s in parts] for parts in sums]
    step.move_if(completes, lambda: move(mean))
    step.sums = sums


def kept_sums(step: Round, good: tf.Tensor) -> list[Tensors]:
    """The sums that the next micro-batch finds: zeros after an update, taken or not; the old ones after a bad batch.

    Args:
        step: the step of the micro-batch.
        good: whether its loss and its sums are finite.

    Returns:
        One tensor per variable, by player; nothing without accumulation.
    """
    if step.completes is None:
        return []
    rest = 1 - tf.cast(step.completes, step.dtype)
    pairs = zip(step.sums, step.context.sums, strict=True)
    return [[either(good, rest * s, old) for s, old in zip(*pair, strict=True)] for pair in pairs]
