"""What a step should do to J when its moves are not those that minimise the recursion's quadratic model.

Momentum and an optimizer inside move the variables by some du of their own. With a and S = L L' the slope and the
curvature at the end of the network, d_i = <q_i, du> the displacement there and l_u the gradient of a player's own cost,
J falls by

    -(a' d + |L' d|^2 / 2 + l_u' du)

The metric has no part in it, whereas the decrease predicted of our own steps holds du' M du / 2 and is half of <g, du>
for small ones. Players without a Gram form count with <g, du>.
"""

import tensorflow as tf

from bellman_tf.layers.capture import Capture
from bellman_tf.layers.tensors import Tensors
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
        Scalar; exact for one group of samples, up to the second order of own costs.
    """
    at_end, straight = [], []
    for player, gradient in zip(step.players, gradients, strict=True):
        pairs = zip(player.variables, step.values[player.index], strict=True)
        move = [tf.cast(new[id(v)] - before, step.dtype) for v, before in pairs]
        known = policy is not None and player.index in captures
        if known:
            at_end.append(tf.cast(captures[player.index].inner(move), step.dtype))
        slopes = step.own_cost(player) if known else gradient
        straight += [tf.reduce_sum(slope * du) for slope, du in zip(slopes, move, strict=True)]
    decrease = -tf.add_n(straight)
    return decrease + policy.decrease_at(tf.add_n(at_end)) if at_end else decrease
