"""What a step should do to J when its moves are not those that minimise the recursion's quadratic model.

Momentum and an optimizer inside move the variables by some du of their own. With a and S = L L' the slope and the
curvature at the end of the network, d_i = <q_i, du> the displacement there and l_u the gradient of a player's own cost,
J falls by

    -(a' d + |L' d|^2 / 2 + l_u' du)

The metric has no part in it, whereas the decrease predicted of our own steps holds du' M du / 2 and is half of <g, du>
for small ones. Players without a Gram form count with <g, du>.
"""

import tensorflow as tf

from bellman_tf import replicas
from bellman_tf._typing import Tensors
from bellman_tf.layers.capture import Capture
from bellman_tf.training.linear_policy import LinearPolicy
from bellman_tf.training.round import Round


def decrease_of(
    step: Round,
    policy: LinearPolicy | None,
    captures: dict[int, Capture],
    gradients: list[Tensors],
    new: dict[int, tf.Tensor],
) -> tf.Tensor:
    """Decrease of J that slope and curvature at the end of the network make of the moves that were made.

    Args:
        step: the step; its values are those before the moves.
        policy: the weights of all samples, `None` where no player has a Gram form in this step.
        captures: of the players with one, by index.
        gradients: of the re-weighted loss, by player.
        new: values after the step, by `id` of the variable.

    Returns:
        Scalar, of this replica's samples at the end of the network and of all of them elsewhere; exact for any groups
        of samples, up to the second order of own costs.
    """
    moved, straight = _moved(step, policy, captures, gradients, new)
    if moved is None or policy is None:
        return -straight
    [at_end] = replicas.total([policy.decrease_at(moved)])
    return at_end - straight


def outcome_of_replicas(
    step: Round,
    policy: LinearPolicy | None,
    captures: dict[int, Capture],
    gradients: list[Tensors],
    new: dict[int, tf.Tensor],
) -> tuple[tf.Tensor, tf.Tensor]:
    """Change of J by the steps of several replicas together, each computed from its own samples.

    The quadratic model is that of the recursion, metrics included, over the samples of all replicas, at the moves du
    that are made. With g the gradient of the re-weighted loss, `du = -M^{-1} g`, it is

        -(a' d + |L' d|^2 / 2) - l_u' du + g' du / 2.

    A sample that is left out of its replica's game is still moved by the other replicas: see `held_out_model`.

    Args:
        step: the step; its values are those before the moves.
        policy: the weights of this replica's samples, `None` where no player has a Gram form in this step.
        captures: of the players with one, by index.
        gradients: of the re-weighted loss of all replicas, by player.
        new: values after the step, by `id` of the variable; weight decay counts as part of the step.

    Returns:
        The decrease of J in the model, and `Outcome.held_out`.
    """
    moved, straight = _moved(step, policy, captures, gradients, new)
    metric = [
        tf.reduce_sum(g * tf.cast(before - new[id(v)], g.dtype))
        for player, gradient in zip(step.players, gradients, strict=True)
        for g, v, before in zip(gradient, player.variables, step.values[player.index], strict=True)
    ]
    straight += tf.add_n(metric) / 2
    if moved is None or policy is None:
        return -straight, tf.zeros([3], step.dtype)
    elsewhere = -tf.reshape(moved, [-1]) - policy.moved()
    at_end, held_out = replicas.total([policy.decrease_at(moved), policy.held_out_model(elsewhere)])
    return at_end - straight, held_out


def _moved(
    step: Round,
    policy: LinearPolicy | None,
    captures: dict[int, Capture],
    gradients: list[Tensors],
    new: dict[int, tf.Tensor],
) -> tuple[tf.Tensor | None, tf.Tensor]:
    """Displacement d `[B, m]` of this replica's samples, and the slope of all that does not pass through the end."""
    at_end, straight = [], []
    for player, gradient in zip(step.players, gradients, strict=True):
        pairs = zip(player.variables, step.values[player.index], strict=True)
        move = [tf.cast(new[id(v)] - before, step.dtype) for v, before in pairs]
        known = policy is not None and player.index in captures
        if known:
            at_end.append(tf.cast(captures[player.index].inner(move), step.dtype))
        slopes = step.own_cost(player) if known else gradient
        straight += [tf.reduce_sum(slope * du) for slope, du in zip(slopes, move, strict=True)]
    return tf.add_n(at_end) if at_end else None, tf.add_n(straight)
