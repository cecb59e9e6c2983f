"""The Bellman recursion in the space of samples: exact batch DDP with small matrices. This is what training runs.

Let the terminal Hessian of sample i be Z Z' and let C_t hold, block-diagonally over samples, the columns [g | Z]
carried back to the cut before stage t by ordinary vector-Jacobian products. Then at every stage, exactly,

    V_X = C_t a_t,    V_XX = C_t S_t C_t',    S_t = L_t L_t'

and the whole recursion happens in (a, S). Column index `i * m + j` is column j of sample i, j = 0 the gradient g.
With Qc_p the parameter gradients of the columns and M_p the metric of player p, a stage brings one Gram matrix
G = sum_p Qc_p' M_p^{-1} Qc_p (cooperation is addition of Gram matrices) and, under weight decay, the vector
l = sum_p Qc_p' M_p^{-1} l_p, l_p the gradient of the player's own cost:

    R = (I + S G)^{-1},    a <- R (a - S l),    S <- R S,    du_p = -M_p^{-1} (l_p + Qc_p w),    w = a + S d

where w uses the value after the stage and d = C_t' (new state - old state).

Why the numerics hold: with N N' = I + L' G L, push-through gives R = I - L (N N')^{-1} L' G, hence

    S <- L (N N')^{-1} L',  i.e.  L <- L N^{-T},        a <- a - S (G a + l)    (S the new one),

so S is never inverted, I + L' G L is positive definite whatever the data, and nothing needs a clamp.

Why all stages are one step: write Gamma_t = sum_{s >= t} G_s, lambda_t = sum_{s >= t} l_s, and let primes mark stage
t + 1. If S' = (I + S_T Gamma')^{-1} S_T, then

    I + S_T Gamma_t = (I + S_T Gamma') + S_T G_t = (I + S_T Gamma') (I + S' G_t),

so the inverses multiply, S_t = (I + S_T Gamma_t)^{-1} S_T and, by the same factorisation,
a_t = (I + S_T Gamma_t)^{-1} (a_T - S_T lambda_t). A stage is therefore `backward` from the terminal value with the
*summed* Gram matrix, and every stage can be had from one batched Cholesky factorisation (`backward_all`).
"""

import functools
from typing import NamedTuple

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Batch, Matrix, Size, Square, Stack, Tensors, Vector
from bellman_tf.bellman.groups import size_of_groups, to_groups
from bellman_tf.linalg import Factor, factor_gram, whiten
from bellman_tf.linalg.constants import constant, expand_dims, number
from bellman_tf.linalg.products import diag, diag_part, matmul, matvec

__all__ = [
    "SampleValue",
    "backward",
    "backward_all",
    "init",
    "predicted_reduction",
    "weights",
]


class SampleValue(NamedTuple):
    """Value function in sample coordinates: V_X = C a and V_XX = C L L' C'.

    Attributes:
        a: `[..., n]`, linear term, n = group size times columns per sample.
        L: `[..., n, k]`, a factor of S.

    Example:
        >>> value = init(2, beta_squared=tf.constant([2.0, 8.0]))
        >>> value.a.numpy().tolist(), value.L.numpy().tolist()
        ([[0.5, 0.5]], [[[1.0, 0.0], [0.0, 2.0]]])
    """

    a: tf.Tensor
    L: tf.Tensor


def init(
    batch_size: Size,
    *,
    beta_squared: Vector | None = None,
    rank: int = 0,
    group_size: int | None = None,
    dtype: tf.DType = tf.float32,
) -> SampleValue:
    """Value at the end of the network, for the mean of the samples' losses.

    `rank=0` is the collinear form, terminal Hessian beta^2 g g' with the single column g per sample:
    a = 1 / B, L = diag(beta / sqrt(B)). `rank=r` has the 1 + r columns [g | Z], terminal Hessian Z Z':
    a is 1 / B at each g and L has 1 / sqrt(B) from each column of Z, so L is `[G, b (1 + r), b r]`.

    Args:
        batch_size: B, an integer or a scalar tensor.
        beta_squared: `[B]`, curvature along the gradient; for `rank=0` only. What rounding makes negative counts
            as zero.
        rank: columns r of Z.
        group_size: couple samples only inside groups of this size, b; `None` couples the whole batch.
        dtype: float32 or float64; with `beta_squared`, its dtype is used.

    Returns:
        `SampleValue` with a `[G, b m]` and L `[G, b m, k]`, G = ceil(B / b); zero where a group is padded.

    Raises:
        ValueError: if `rank` is not an integer >= 0, `beta_squared` is not given exactly when `rank` is 0, or
            `group_size` is not a positive integer.

    Source: GTDDP Sec. 4.2 (collinear, beta = 1), DGN Sec. 4.2 (rank r).
    Checked against: `verification/references/sample_space.py`.

    Example:
        >>> init(4, beta_squared=tf.ones([4])).a.numpy().tolist()
        [[0.25, 0.25, 0.25, 0.25]]
    """
    _checks.check_integer("rank", rank, least=0)
    if (beta_squared is None) != (rank > 0):
        shown = None if beta_squared is None else tf.convert_to_tensor(beta_squared).shape
        raise _checks.error("beta_squared", "be given exactly when `rank` is 0", shown, f"Here rank={rank}.")
    if beta_squared is not None:
        beta = tf.convert_to_tensor(beta_squared, dtype=None if tf.is_tensor(beta_squared) else dtype)
        _checks.check_float_dtype("beta_squared", beta)
        B = number(batch_size, beta.dtype)
        shape = constant([batch_size]) if isinstance(batch_size, int) else [batch_size]
        a = to_groups(tf.fill(shape, number(1, B.dtype) / B), group_size)
        root = tf.sqrt(tf.maximum(beta, number(0, B.dtype)) / B)
        return SampleValue(a, diag(to_groups(root, group_size)))
    B = number(batch_size, tf.as_dtype(dtype))
    m = 1 + rank
    is_gradient = tf.one_hot(0, m, dtype=dtype)
    a = to_groups(tf.ones([batch_size, 1], dtype) * is_gradient / B, group_size)
    present = to_groups(tf.ones([batch_size, m], dtype), group_size)
    size = size_of_groups(batch_size, group_size)
    E_Z = tf.pad(tf.eye(rank, dtype=dtype), [[1, 0], [0, 0]])  # [m, r], from Z to [g | Z]
    E_Z = tf.reshape(tf.einsum("ij,pq->ipjq", tf.eye(size, dtype=dtype), E_Z), [size * m, size * rank])
    return SampleValue(a, present[..., None] * E_Z / tf.sqrt(B))


# Leading axes are made equal here and not left to the products: with several threads, TensorFlow 2.21's oneDNN kernel
# for float32 writes out of bounds in a product such as [3, 1, n, n] @ [1, n, k]. What is equal already costs nothing.
def broadcast_leading(*tensors_and_axes: tuple[tf.Tensor, int]) -> Tensors:
    """Makes the leading axes of tensors equal; each comes with the number of its trailing axes."""
    tensors = [(tf.convert_to_tensor(x), axes) for x, axes in tensors_and_axes]
    leads = [x.shape[:-axes] for x, axes in tensors]
    static = functools.reduce(tf.broadcast_static_shape, leads)
    if all(lead.is_fully_defined() and lead == static for lead in leads):
        return [x for x, _ in tensors]
    if static.is_fully_defined():
        lead = tf.constant(static.as_list(), tf.int32)
    else:
        lead = functools.reduce(tf.broadcast_dynamic_shape, [tf.shape(x)[:-axes] for x, axes in tensors])
    spread = [(x, axes, tf.broadcast_to(x, tf.concat([lead, tf.shape(x)[-axes:]], 0))) for x, axes in tensors]
    return [tf.ensure_shape(y, static.concatenate(x.shape[-axes:])) for x, axes, y in spread]


def check_stage(argument: str, gram: Square, L: Matrix, diagonal: bool = False, owner: str = "value") -> None:
    """Checks that Gram matrices fit the factor of the value `owner`, and that a factor called diagonal is square."""
    n = L.shape[-2]
    if gram.shape.rank is not None and gram.shape.rank < 2:
        raise _checks.error(argument, "be a matrix or a batch of matrices", gram.shape)
    if not gram.shape[-2:].is_compatible_with([n, n]):
        rule, hint = (
            f"end in [n, n] with n the rows of `{owner}.L`",
            "Bring a stage's columns to groups with `to_groups`.",
        )
        received = {f"{argument}.shape": gram.shape, f"{owner}.L.shape": L.shape}
        raise _checks.misfit(f"{argument}.shape", rule, received, hint)
    if gram.dtype != L.dtype:
        raise _checks.error(f"{argument}.dtype", f"be that of the value, {L.dtype.name}", gram.dtype.name)
    if diagonal and L.shape[-1] != n:
        raise _checks.error(f"{owner}.L", "be square when `diagonal=True`", L.shape, "Pass `diagonal=False`.")


def backward(value: SampleValue, gram: Square, linear: Vector | None = None, *, diagonal: bool = False) -> SampleValue:
    """One stage backwards: a <- R (a - S l), S <- R S with R = (I + S G)^{-1}.

    Leading axes broadcast, so one value can be taken back by many Gram matrices at once.

    Args:
        value: `SampleValue` after the stage, a `[..., n]`, L `[..., n, k]`.
        gram: `[..., n, n]`, G, symmetric positive semi-definite up to rounding.
        linear: `[..., n]`, l; `None` is zero.
        diagonal: whether `value.L` is known to be diagonal, as `init` makes it for `rank=0`; then two of the products
            are scalings.

    Returns:
        `SampleValue` before the stage, same trailing shapes.

    Raises:
        ValueError: if shapes or dtypes do not fit, or `diagonal` is asked of an L that is not square.

    Numerics: finite for every finite input whose products do not overflow. S shrinks in the Loewner order. The
        absolute error of a is of order eps |a|, not relative to what R leaves of it.
    Source: DDP1 Eqs. 29-37 (corrected), in the coordinates of claims OURS-2, OURS-4.
    Checked against: `verification/references/sample_space.py`.

    Example:
        >>> value = backward(init(1, beta_squared=tf.ones([1])), tf.constant([[[3.0]]]))
        >>> value.a.numpy().tolist(), value.L.numpy().tolist()
        ([[0.25]], [[[0.5]]])
    """
    a, L, gram = map(tf.convert_to_tensor, (*value, gram))
    check_stage("gram", gram, L, diagonal)
    if L.shape[-2:] == [1, 1]:
        return backward_scalar(a, L, gram, linear)
    a, L, gram = broadcast_leading((a, 1), (L, 2), (gram, 2))
    N = factor_stage(L, gram, diagonal)
    L = tf.linalg.matrix_transpose(whiten(N, L if diagonal else tf.linalg.matrix_transpose(L)))
    pull = matvec(gram, a) if linear is None else matvec(gram, a) + linear
    return SampleValue(weights(SampleValue(a, L), -pull), L)


def factor_stage(L: Matrix, gram: Square, diagonal: bool) -> Factor:
    """Cholesky factor N of I + L' G L."""
    if diagonal:
        s = diag_part(L)
        return factor_gram(expand_dims(s, -1) * gram * expand_dims(s, -2))
    return factor_gram(matmul(L, matmul(gram, L), transpose_a=True), scale=_rounding_scale(L, gram))


# What the rounding of L' G L is relative to: its terms are below y_p y_q with y = |L|' sqrt(diag G), however much they
# cancel. Equal to its trace where each column of L has one entry, as at the end of the network.
def _rounding_scale(L: Matrix, gram: Square) -> Batch:
    y = matvec(tf.abs(L), tf.sqrt(tf.abs(diag_part(gram))), transpose_a=True)
    return tf.reduce_sum(tf.square(y), axis=-1)


def backward_scalar(a: Vector, L: Matrix, gram: Square, linear: Vector | None) -> SampleValue:
    """`backward` where n = k = 1 and the matrices are numbers."""
    g, s = gram[..., 0], L[..., 0]
    R = 1 / (1 + s * tf.maximum(g, 0) * s)
    a = R * (a if linear is None else a - s * (s * linear))
    return SampleValue(a, (tf.sqrt(R) * s)[..., None])


def backward_all(
    value: SampleValue, grams: Stack, linear: Stack | None = None, *, diagonal: bool = False
) -> SampleValue:
    """The values before every stage, from one batched factorisation.

    Because I + S_T Gamma_t = (I + S_T Gamma_{t+1}) (I + S_{t+1} G_t), stage t equals one `backward` from the
    terminal value with the sums Gamma_t, lambda_t over the stages s >= t (see the head of this file).

    Args:
        value: terminal `SampleValue`, a `[..., n]`, L `[..., n, k]`.
        grams: `[T, ..., n, n]`, one Gram matrix per stage, first stage first.
        linear: `[T, ..., n]`, or `None` for zero.
        diagonal: whether `value.L` is known to be diagonal; see `backward`.

    Returns:
        `SampleValue` with a leading stage axis: entry t is the value before stage t, so the samples' weights at
        stage t are `weights` of entry t. The terminal value is not repeated.

    Raises:
        ValueError: as `backward`.

    Numerics: agrees with T calls of `backward` to rounding, L included (Cholesky factors multiply).
    Source: claims OURS-2 (b), for any metric and with a linear term.
    Checked against: `verification/references/sample_space.py`.

    Example:
        >>> backward_all(init(1, beta_squared=tf.ones([1])), tf.ones([3, 1, 1, 1])).a.numpy().ravel().tolist()
        [0.25, 0.3333333432674408, 0.5]
    """
    grams = tf.convert_to_tensor(grams)
    check_stage("grams", grams, value.L)
    summed = tf.cumsum(grams, axis=0, reverse=True)
    if linear is not None:
        linear = tf.cumsum(linear, axis=0, reverse=True)
    return backward(value, summed, linear, diagonal=diagonal)


def weights(value: SampleValue, deviation: Vector | None = None) -> Vector:
    """Weight of each column in the parameter update, w(d) = a + S d.

    With the value *before* the stage (after its `backward`) the policy R (a + S d - S l) of the value behind the
    stage is simply a + S d, because both R (a - S l) and R S are what `backward` returned. The update is
    -M^{-1} (l_u + Qc w): a re-weighted gradient.

    Args:
        value: `SampleValue` before the stage.
        deviation: `[..., n]`, d = C' (new state - old state); `None` is the open-loop update.

    Returns:
        `[..., n]`, the weights w.

    Example:
        >>> weights(SampleValue(tf.constant([1.0]), tf.constant([[2.0]])), tf.constant([0.5])).numpy().tolist()
        [3.0]
    """
    if deviation is None:
        return value.a
    a, L, deviation = broadcast_leading((value.a, 1), (value.L, 2), (deviation, 1))
    return a + matvec(L, matvec(L, deviation, transpose_a=True))


def predicted_reduction(
    terminal: SampleValue, initial: SampleValue, grams: Stack, linear: Stack | None = None, own: Batch | None = None
) -> Batch:
    """Decrease of the quadratic model when every stage follows its policy, sum_t 1/2 Q_u' Q_uu^{-1} Q_u.

    Summed over the stages it telescopes like the recursion itself: with Gamma, lambda the sums over all stages and
    c the sum of l_u' M^{-1} l_u, twice the decrease is c + lambda' a_T + (Gamma a_T + lambda)' a_0.

    Args:
        terminal: `SampleValue` at the end of the network, a_T.
        initial: `SampleValue` before the first stage, a_0.
        grams: `[T, ..., n, n]`.
        linear: `[T, ..., n]`, or `None` for zero.
        own: `[...]`, c; `None` is zero.

    Returns:
        `[...]`, one number per group: the decrease is positive. Exact when one group holds the batch.

    Source: GTDDP Eq. 4 inserted in the model; claims OURS-2 (c).
    Checked against: `verification/references/sample_space.py`.

    Example:
        >>> start = init(1, beta_squared=tf.ones([1]))
        >>> predicted_reduction(start, backward(start, tf.ones([1, 1, 1])), tf.ones([1, 1, 1, 1])).numpy().tolist()
        [0.25]
    """
    gram, a = broadcast_leading((tf.reduce_sum(grams, axis=0), 2), (terminal.a, 1))
    pull = matvec(gram, a)
    if linear is None:
        return tf.reduce_sum(pull * initial.a, axis=-1) / 2
    summed = tf.reduce_sum(linear, axis=0)
    twice = tf.reduce_sum(summed * terminal.a + (pull + summed) * initial.a, axis=-1)
    return (twice if own is None else twice + own) / 2
