"""The papers' recursion without the outer product: a small matrix per sample, the metric in place of Q_uu.

Let the terminal Hessian of sample i be Z Z' and let C hold its columns [g | Z | E], E where a Tikhonov term was added,
carried back by vector-Jacobian products. With linear dynamics and samples uncoupled the value stays

    B V_x = C a,    B V_xx = C S C',    S = L L'.

With Q the sample's parameter gradients of the columns, G = Q' M^{-1} Q and k the open-loop gain of the stage,

    a <- a + S Q' k,    S <- S - c S G S,    du = -M^{-1} (l_u + mean_i Q (a + S d)),    d = C' (new state - old state).

M is not the curvature of the model, so S - c S G S can be indefinite. With L' G L = V diag(s) V' it is
L V diag(1 - c s) V' L', and the negative factors are set to zero: `outer_product`'s clamp, for one column.
"""

from typing import NamedTuple

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Batch, Cube, Matrix, Number, Size, Vector
from bellman_tf.linalg import eigh, symmetrize
from bellman_tf.linalg.products import matmul, matvec

__all__ = ["MatrixValue", "backward", "damped", "init", "weights"]


class MatrixValue(NamedTuple):
    """Value of each sample in its columns: B V_x = C a, B V_xx = C L L' C'.

    Attributes:
        a: `[..., B, m]`, linear term.
        L: `[..., B, m, k]`, a factor of S.

    Example:
        >>> value = init(2, rank=3)  # of two samples with the columns [g | Z], Z three
        >>> value.a.shape.as_list(), value.L.shape.as_list()
        ([2, 4], [2, 4, 3])
    """

    a: tf.Tensor
    L: tf.Tensor


def init(
    batch_size: Size, *, beta_squared: Vector | None = None, rank: int = 0, units: int = 0, dtype: tf.DType = tf.float32
) -> MatrixValue:
    """Value at the end of the network: a is 1 at the gradient, S the terminal Hessian, units zero.

    Args:
        batch_size: B, an integer or a scalar tensor.
        beta_squared: `[B]`, curvature along the gradient; for `rank=0` only.
        rank: columns r of Z.
        units: columns that `damped` will fill.
        dtype: float32 or float64; with `beta_squared`, its dtype is used.

    Returns:
        `MatrixValue` with a `[B, m]` and L `[B, m, max(r, 1) + units]`, m = 1 + r + units.

    Raises:
        ValueError: if `rank` or `units` is no integer >= 0, or `beta_squared` is not given exactly when `rank` is 0.

    Source: DDPN Alg. 3, DDP1 Eq. 34.
    Checked against: `verification/references/published.py`.

    Example:
        >>> init(1, rank=1).L.numpy().tolist()
        [[[0.0], [1.0]]]
    """
    _checks.check_integer("rank", rank, least=0)
    _checks.check_integer("units", units, least=0)
    if (beta_squared is None) != (rank > 0):
        raise _checks.error("beta_squared", "be given exactly when `rank` is 0", beta_squared, f"Here rank={rank}.")
    dtype = tf.as_dtype(dtype if beta_squared is None else beta_squared.dtype)
    m = 1 + rank + units
    a = tf.broadcast_to(tf.one_hot(0, m, dtype=dtype), [batch_size, m])
    if rank:
        L = tf.broadcast_to(tf.pad(tf.eye(rank, dtype=dtype), [[1, units], [0, units]]), [batch_size, m, rank + units])
    else:
        beta = tf.sqrt(tf.maximum(beta_squared, 0))[:, None, None]
        L = beta * tf.pad(tf.ones([1, 1], dtype), [[0, units], [0, units]])
    return MatrixValue(a, L)


def backward(
    value: MatrixValue, inner_k: Matrix, gram: Cube, *, batch_factor: Number = 1.0
) -> tuple[MatrixValue, Batch]:
    """One stage backwards.

    Args:
        value: `MatrixValue` after the stage.
        inner_k: `[..., B, m]`, `<q_ij, k>`, k the open-loop gain of the stage, made with `value.a`.
        gram: `[..., B, m, m]`, `q_ij' M^{-1} q_ik` of each sample.
        batch_factor: c, 1 as published or 1 / B as the batch form gives.

    Returns:
        The `MatrixValue` before the stage, and the number of clamped samples `[...]`, int32.

    Raises:
        ValueError: if `inner_k` or `gram` does not have the columns of the value.

    Numerics: S stays positive semi-definite. The root of I - c L' G L is the symmetric one, so that columns of L that
        are zero stay zero to rounding.
    Source: DDPN Alg. 3 with Eqs. 4, 9; claims OURS-4.
    Checked against: `verification/references/published.py`.

    Example:
        >>> value = init(1, rank=1)
        >>> value, clamped = backward(value, tf.constant([[-1.0, -0.5]]), tf.constant([[[1.0, 0.5], [0.5, 0.75]]]))
        >>> value.a.numpy().tolist(), value.L.numpy().tolist(), int(clamped)
        ([[1.0, -0.5]], [[[0.0], [0.5]]], 0)
    """
    inner_k, gram = map(tf.convert_to_tensor, (inner_k, gram))
    m = value.a.shape[-1]
    for argument, tensor, tail in (("inner_k", inner_k, [m]), ("gram", gram, [m, m])):
        if not tensor.shape[-len(tail) :].is_compatible_with(tail):
            received = {f"{argument}.shape": tensor.shape, "value.a.shape": value.a.shape}
            raise _checks.misfit(f"{argument}.shape", "end in the columns of the value", received)
    a, L = value
    a = a + matvec(L, matvec(L, inner_k, transpose_a=True))
    s, V = eigh(symmetrize(matmul(L, matmul(gram, L), transpose_a=True)))
    bracket = 1 - batch_factor * s
    clamped = tf.reduce_sum(tf.cast(tf.reduce_any(bracket < 0, axis=-1), tf.int32), axis=-1)
    scaled = V * tf.sqrt(tf.maximum(bracket, 0))[..., None, :]
    return MatrixValue(a, matmul(matmul(L, scaled), V, transpose_b=True)), clamped


def damped(value: MatrixValue, first: int, count: int, amount: Number) -> MatrixValue:
    """Adds `amount` times the identity of the state to B V_xx, along columns that are the unit vectors of that state.

    Args:
        value: `MatrixValue` before a stage.
        first: number of the first of these columns; its entries of S are still zero.
        count: size of the state.
        amount: not negative, a number or a scalar tensor of the value's dtype.

    Returns:
        The `MatrixValue` with the term.

    Source: DDPN Alg. 3, `V_xx + eps_V I`.

    Example:
        >>> damped(init(1, rank=1, units=1), 2, 1, 4.0).L.numpy().tolist()
        [[[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]]
    """
    m, k = value.L.shape[-2:]
    slot = first - (m - k)  # `init` puts column j of the units into column j - (m - k) of L
    unit = tf.pad(tf.eye(count, dtype=value.L.dtype), [[first, m - first - count], [slot, k - slot - count]])
    return MatrixValue(value.a, value.L + tf.sqrt(tf.convert_to_tensor(amount, value.L.dtype)) * unit)


def weights(value: MatrixValue, deviation: Matrix | None = None) -> Matrix:
    """Weight of each column in the update -M^{-1} (l_u + mean_i sum_j w_ij q_ij); takes the value behind the stage.

    Args:
        value: `MatrixValue` after the stage.
        deviation: `[..., B, m]`, d; `None` is the open-loop update.

    Returns:
        `[..., B, m]`, a + S d.

    Example:
        >>> weights(init(1, rank=1), tf.constant([[0.5, -1.0]])).numpy().tolist()
        [[1.0, -1.0]]
    """
    a, L = value
    return a if deviation is None else a + matvec(L, matvec(L, deviation, transpose_a=True))
