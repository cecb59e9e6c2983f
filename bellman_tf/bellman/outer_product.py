"""The papers' recursion: two numbers per sample, samples uncoupled, metric in place of Q_uu.

With the terminal Hessian g g', linear dynamics and a value Hessian kept block-diagonal over samples, the value of
sample i stays collinear with its back-propagated gradient: B V_x = alpha g, B V_xx = beta^2 g g'. With q the
per-sample parameter gradient and k = -M^{-1} (l_u + mean_i alpha_i q_i),

    alpha <- alpha + beta^2 <q, k>,    beta^2 <- beta^2 (1 - c beta^2 q' M^{-1} q),
    du = -M^{-1} (l_u + mean_i (alpha_i + beta_i^2 d_i) q_i),    d = <g, new state - old state>.

c = 1 is what the papers print, c = 1 / B the diagonal block of the batch recursion. It is the first-order expansion of
`sample_space`, and its bracket can be negative: it is clamped at zero, and the clamps are counted.
"""

from typing import NamedTuple

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Batch, Number, Size, Vector

__all__ = ["OuterValue", "backward", "init", "weights"]


class OuterValue(NamedTuple):
    """Value of each sample along its own gradient: B V_x = alpha g, B V_xx = beta^2 g g'.

    Attributes:
        alpha: `[..., B]`.
        beta_squared: `[..., B]`, never negative.

    Example:
        >>> value = OuterValue(alpha=tf.constant([1.0]), beta_squared=tf.constant([4.0]))
        >>> weights(value, tf.constant([0.5])).numpy().tolist()
        [3.0]
    """

    alpha: tf.Tensor
    beta_squared: tf.Tensor


def init(batch_size: Size, beta_squared: Number = 1.0, *, dtype: tf.DType = tf.float32) -> OuterValue:
    """Value at the end of the network: alpha = 1 and the given curvature along the gradient.

    Args:
        batch_size: B, an integer or a scalar tensor.
        beta_squared: a number or `[B]`; 1 is the terminal Hessian g g'.
        dtype: float32 or float64; ignored when `beta_squared` is a tensor.

    Returns:
        `OuterValue` with two tensors `[B]`.

    Source: GTDDP Prop. 5, Sec. 4.2.
    Checked against: `verification/references/outer_product.py`.

    Example:
        >>> init(2).alpha.numpy().tolist()
        [1.0, 1.0]
    """
    beta = tf.convert_to_tensor(beta_squared, dtype=None if tf.is_tensor(beta_squared) else dtype)
    _checks.check_float_dtype("beta_squared", beta)
    ones = tf.ones([batch_size], beta.dtype)
    return OuterValue(ones, ones * tf.maximum(beta, 0))


def backward(
    value: OuterValue, inner_k: Vector, quad: Vector, *, batch_factor: Number = 1.0
) -> tuple[OuterValue, Batch]:
    """One stage backwards.

    Args:
        value: `OuterValue` after the stage, `[..., B]`.
        inner_k: `[..., B]`, <q_i, k>, k the open-loop gain of the stage, made with `value.alpha`.
        quad: `[..., B]`, q_i' M^{-1} q_i.
        batch_factor: c, 1 as published or 1 / B as the batch form gives.

    Returns:
        The `OuterValue` before the stage, and the number of clamped samples `[...]`, int32.

    Raises:
        ValueError: if `inner_k` or `quad` does not have the samples of the value.

    Numerics: beta_squared is exact to rounding and never negative; alpha is not limited.
    Source: GTDDP Prop. 5 and 6, DDPN Prop. 4, with the sign of claims GTDDP-P5; claims OURS-1.
    Checked against: `verification/references/outer_product.py`.

    Example:
        >>> value, clamped = backward(init(2), tf.constant([-0.5, 0.0]), tf.constant([0.5, 3.0]))
        >>> value.alpha.numpy().tolist(), value.beta_squared.numpy().tolist(), int(clamped)
        ([0.5, 1.0], [0.5, 0.0], 1)
    """
    inner_k, quad = map(tf.convert_to_tensor, (inner_k, quad))
    for argument, tensor in (("inner_k", inner_k), ("quad", quad)):
        if not tensor.shape[-1:].is_compatible_with(value.alpha.shape[-1:]):
            received = {f"{argument}.shape": tensor.shape, "value.alpha.shape": value.alpha.shape}
            raise _checks.misfit(f"{argument}.shape", "have one entry per sample of the value", received)
    alpha, beta_squared = value
    bracket = 1 - batch_factor * beta_squared * quad
    clamped = tf.reduce_sum(tf.cast((bracket < 0) & (beta_squared > 0), tf.int32), axis=-1)
    return OuterValue(alpha + beta_squared * inner_k, beta_squared * tf.maximum(bracket, 0)), clamped


def weights(value: OuterValue, deviation: Vector | None = None) -> Vector:
    """Weight of each sample's gradient in the update -M^{-1} (l_u + mean_i w_i q_i).

    Unlike in `sample_space`, this takes the value *behind* the stage: M stands for Q_uu.

    Args:
        value: `OuterValue` after the stage, `[..., B]`.
        deviation: `[..., B]`, d_i = <g_i, new state - old state>; `None` is the open-loop update.

    Returns:
        `[..., B]`, alpha + beta^2 d.

    Example:
        >>> weights(init(2), tf.constant([0.5, -1.0])).numpy().tolist()
        [1.5, 0.0]
    """
    return value.alpha if deviation is None else value.alpha + value.beta_squared * deviation
