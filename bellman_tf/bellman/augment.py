"""A batch as one stage: states of the samples stacked, Jacobians and value with an axis for the sample made dense."""

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Cube, Matrix, Square
from bellman_tf.bellman.dense import Value


def augment_batch(jacobian_state: Cube, jacobian_control: Cube) -> tuple[Square, Matrix]:
    """Jacobians of the stage that moves the stacked states of all samples with one shared control.

    Args:
        jacobian_state: `[..., B, n_next, n]`.
        jacobian_control: `[..., B, n_next, m]`.

    Returns:
        F_X `[..., B n_next, B n]`, block-diagonal, and F_u `[..., B n_next, m]`, the samples on top of each other.

    Raises:
        ValueError: if either has fewer than three axes.

    Source: DDP1 Eq. 18.
    Checked against: `verification/references/dense.py`.

    Example:
        >>> augment_batch(tf.constant([[[2.0]], [[3.0]]]), tf.ones([2, 1, 1]))[0].numpy().tolist()
        [[2.0, 0.0], [0.0, 3.0]]
    """
    for argument, jacobian in (("jacobian_state", jacobian_state), ("jacobian_control", jacobian_control)):
        if jacobian.shape.rank < 3:
            raise _checks.error(f"{argument}.shape", "end in the axes [B, n_next, size]", jacobian.shape)
    return _block_diagonal(jacobian_state), _stack(jacobian_control)


def augment_value(V_x: Matrix, V_xx: Cube) -> Value:
    """Value of the mean loss at the end of the network, V_X = [g_i / B] and V_XX = blockdiag(H_i) / B.

    Args:
        V_x: `[..., B, n]`, gradient of each sample's loss.
        V_xx: `[..., B, n, n]`, its Hessian or an approximation.

    Returns:
        `Value` of the stacked states, sizes B n.

    Source: DDP1 Eq. 34.
    Checked against: `verification/references/dense.py`.

    Example:
        >>> augment_value(tf.ones([2, 1]), tf.ones([2, 1, 1])).V_x.numpy().tolist()
        [0.5, 0.5]
    """
    B = tf.cast(tf.shape(V_x)[-2], V_x.dtype)
    return Value(_stack(V_x[..., None] / B)[..., 0], _block_diagonal(V_xx / B))


def _stack(blocks: Cube) -> Matrix:  # [..., B, n, m] to [..., B n, m]
    shape = tf.shape(blocks)
    return tf.reshape(blocks, tf.concat([shape[:-3], [shape[-3] * shape[-2]], shape[-1:]], axis=0))


def _block_diagonal(blocks: Cube) -> Matrix:  # [..., B, p, q] to [..., B p, B q]
    shape = tf.shape(blocks)
    B, p, q = shape[-3], shape[-2], shape[-1]
    spread = blocks[..., :, :, None, :] * tf.eye(B, dtype=blocks.dtype)[:, None, :, None]  # [..., B, p, B, q]
    return tf.reshape(spread, tf.concat([shape[:-3], [B * p, B * q]], axis=0))
