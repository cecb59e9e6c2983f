"""Values of players with terminal costs of their own, over the columns of all of them.

Player n has the columns C_n = [g_n | Z_n] of its own cost phi_n, and V_n,X = C_n a_n, V_n,XX = C_n S_n C_n' at the end
of the network. Side by side the columns of all costs are one C, in which a_n and S_n = L_n L_n' have zeros outside
their own columns; the recursion of `sample_space` keeps them there, so every player moves along its own cost alone.
The deviation d = C' dX has entries for all columns: what one player moves, the others see in their own.
"""

from collections.abc import Sequence

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf.bellman.sample_space import SampleValue

__all__ = ["side_by_side"]


def side_by_side(values: Sequence[SampleValue], columns: Sequence[int]) -> SampleValue:
    """Puts values that have columns of their own over the columns of all of them.

    Args:
        values: of S costs, made by `sample_space.init` for the same samples: a `[G, b m_s]`, L `[G, b m_s, k_s]`.
        columns: m_s, columns per sample of each.

    Returns:
        a `[S, G, b m]` and L `[S, G, b m, k]`, m the sum of all m_s and k the largest k_s. Column j of cost s is column
        m_1 + ... + m_{s-1} + j of a sample.

    Raises:
        ValueError: if there is not one number of columns for each value.

    Source: DGN Eqs. 3, 6, 10 in the coordinates of claims OURS-2.
    Checked against: `verification/references/own_costs.py`.

    Example:
        >>> one, two = (SampleValue(tf.ones([1, 1]), x * tf.ones([1, 1, 1])) for x in (2.0, 3.0))
        >>> side_by_side([one, two], [1, 1]).L.numpy()[:, 0, :, 0].tolist()
        [[2.0, 0.0], [0.0, 3.0]]
    """
    if len(values) != len(columns) or not values:
        received = {"columns": tuple(columns), "len(values)": len(values)}
        raise _checks.misfit("columns", "be one number for each value", received)
    m, most = sum(columns), 0
    for value in values:
        most = tf.maximum(most, tf.shape(value.L)[-1])
    placed, before = [], 0
    for (a, L), own in zip(values, columns, strict=True):
        groups, k = tf.shape(L)[0], tf.shape(L)[-1]
        room = [before, m - before - own]
        a = tf.pad(tf.reshape(a, [groups, -1, own]), [[0, 0], [0, 0], room])
        L = tf.pad(tf.reshape(L, [groups, -1, own, k]), [[0, 0], [0, 0], room, [0, most - k]])
        placed.append((tf.reshape(a, [groups, -1]), tf.reshape(L, [groups, -1, most])))
        before += own
    return SampleValue(*(tf.stack(parts) for parts in zip(*placed, strict=True)))
