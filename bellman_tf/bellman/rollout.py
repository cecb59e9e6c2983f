"""The linear roll-out: the samples' weights in a step of every information structure, from Gram matrices alone.

Let dX_t be the change of the stacked state before stage t and d_t = C_t' dX_t, in the letters of `sample_space`. On
the linearised dynamics dX_{t+1} = F_X dX_t + sum_p F_u,p du_p. Since C_t = F_X' C_{t+1}, Qc_p = F_u,p' C_{t+1} and
du_p = -M_p^{-1} (l_u,p + Qc_p w_p), a stage moves the deviation by

    d_{t+1} = d_t - sum_p (l_p + G_p w_p),    d_0 = 0,    w_t = a_t + S_t d_t

with G_p = Qc_p' M_p^{-1} Qc_p and l_p = Qc_p' M_p^{-1} l_u,p. No state, layer or second forward pass appears.

Why one value for all players needs one solve: with Gamma_t, lambda_t the sums over the stages s >= t and
a_t = (I + S_T Gamma_t)^{-1} (a_T - S_T lambda_t), S_t = (I + S_T Gamma_t)^{-1} S_T (see `sample_space`),

    (I + S_T Gamma_t) w_t = a_T - S_T (lambda_t - d_t).

If the stages before t all had the weights w, then -d_t = lambda_0 - lambda_t + (Gamma_0 - Gamma_t) w and the right
side is a_T - S_T lambda_0 - S_T (Gamma_0 - Gamma_t) w, which w_t = w solves if (I + S_T Gamma_0) w = a_T - S_T
lambda_0. So every stage has the same weights, in whatever order the stages come, and the update is the gradient of the
re-weighted loss sum_i w_i phi_i, through the metric.

Where S is block-diagonal over groups of samples, each group plays the game of its own samples: its deviation is what
its own weights move, and the moves of the other groups are not in it.
"""

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Matrix, Stack
from bellman_tf.bellman import sample_space
from bellman_tf.bellman.sample_space import SampleValue, broadcast_leading
from bellman_tf.linalg import Factor, solve_spd
from bellman_tf.linalg.constants import expand_dims
from bellman_tf.linalg.products import diag_part, matvec

__all__ = ["cooperative_weights", "predicted_reduction", "roll_out"]


def cooperative_weights(
    terminal: SampleValue, gram: tf.Tensor, linear: tf.Tensor | None = None, *, diagonal: bool = False
) -> tf.Tensor:
    """Weights of a whole cooperative step, w = (I + S Gamma)^{-1} (a - S lambda), by one factorisation and one solve.

    With N N' = I + L' Gamma L it is w = a - L (N N')^{-1} L' (Gamma a + lambda). A displacement d = C' dX of the end of
    the network that is known before the step enters as `linear - d`: then w = (I + S Gamma)^{-1} (a - S lambda + S d).

    Args:
        terminal: `SampleValue` at the end of the network, a `[..., n]`, L `[..., n, k]`.
        gram: `[..., n, n]`, Gamma, the sum over all players of all stages.
        linear: `[..., n]`, lambda, the sum of their linear terms; `None` is zero.
        diagonal: whether `terminal.L` is known to be diagonal; see `sample_space.backward`.

    Returns:
        `[..., n]`; leading axes broadcast.

    Raises:
        ValueError: if shapes or dtypes do not fit, or `diagonal` is asked of an L that is not square.

    Numerics: as `sample_space.backward`: finite for every finite input whose products do not overflow, absolute error
        of order eps |a|.
    Source: claims OURS-2e.
    Checked against: `verification/references/rollout.py`.

    Example:
        >>> terminal = sample_space.init(1, beta_squared=tf.ones([1]))
        >>> cooperative_weights(terminal, tf.constant([[[3.0]]])).numpy().tolist()
        [[0.25]]
    """
    a, L, gram = map(tf.convert_to_tensor, (*terminal, gram))
    sample_space.check_stage("gram", gram, L, diagonal, owner="terminal")
    if linear is not None:
        linear = _as_linear(linear, gram)
    if L.shape[-2:] == [1, 1]:
        return sample_space.backward_scalar(a, L, gram, linear).a
    term = [] if linear is None else [(linear, 1)]
    a, L, gram, *term = broadcast_leading((a, 1), (L, 2), (gram, 2), *term)
    pull = sum(term, matvec(gram, a))
    N = sample_space.factor_stage(L, gram, diagonal)
    if diagonal:
        s = diag_part(L)
        return a - s * _solve(N, s * pull)
    return a - matvec(L, _solve(N, matvec(L, pull, transpose_a=True)))


def _solve(N: Factor, x: tf.Tensor) -> tf.Tensor:
    """`(N N')^{-1} x` of a vector."""
    return tf.squeeze(solve_spd(N, expand_dims(x, -1)), -1)


def roll_out(
    terminal: SampleValue,
    grams: tf.Tensor,
    linear: tf.Tensor | None = None,
    *,
    joint: bool,
    feedback: bool,
    diagonal: bool = False,
    own: bool = False,
) -> tf.Tensor:
    """Weights at every stage when the policy runs on the linearised dynamics.

    | `joint` | `feedback` | information structure | cost |
    |---|---|---|---|
    | True | True | cooperative | one solve, the same weights at every stage |
    | True | False | cooperative, open-loop | one batched solve |
    | False | True | feedback Nash (FNE) | one batched solve, then stage after stage |
    | False | False | every player alone, open-loop | one batched solve |

    Args:
        terminal: `SampleValue` at the end of the network, a `[..., n]`, L `[..., n, k]`; it is every player's. For
            players with costs of their own, where each is alone with feedback, a `[N, ..., n]` and L `[N, ..., n, k]`.
        grams: `[T, ..., n, n]` if `joint`, the sum over the players of a stage; else `[T, N, ..., n, n]`, one matrix
            per player, zero where it does not act. T is static.
        linear: `[T, ..., n]` or `[T, N, ..., n]`; `None` is zero.
        joint: one value for all players of a stage; else each has its own and leaves the others out of it.
        feedback: policies see the deviation that the stages before them have caused; else d = 0.
        diagonal: whether `terminal.L` is known to be diagonal; see `sample_space.backward`.
        own: whether `terminal` holds a value per player, `[N, ...]`.

    Returns:
        `[T, ..., n]` or `[T, N, ..., n]`.

    Raises:
        ValueError: if shapes or dtypes do not fit, T is not known, a flag is not a bool, `diagonal` is asked of an L
            that is not square, or `own` of players that share a value or see nothing.

    Numerics: as `sample_space.backward_all`. The deviation is a sum over the stages; nothing is inverted.
    Source: claims OURS-2e, OURS-2f.
    Checked against: `verification/references/rollout.py`.

    Example:
        >>> terminal, grams = sample_space.init(1, beta_squared=tf.ones([1])), tf.ones([3, 1, 1, 1])
        >>> roll_out(terminal, grams, joint=True, feedback=True).numpy().ravel().tolist()
        [0.25, 0.25, 0.25]
    """
    _checks.check_flag("joint", joint)
    _checks.check_flag("feedback", feedback)
    _checks.check_flag("own", own)
    if own and (joint or not feedback):
        raise _checks.error("own", "be False unless every player has its own value and feedback", own)
    grams, linear = _as_stages(terminal, grams, linear, axes=1 if joint or own else 2)
    if own and terminal.L.shape[0] != grams.shape[1]:
        received = {"terminal.L.shape": terminal.L.shape, "grams.shape": grams.shape}
        raise _checks.misfit("terminal", "hold one value per player", received)
    if not feedback:
        later = None if linear is None else tf.cumsum(linear, axis=0, reverse=True)
        return cooperative_weights(terminal, tf.cumsum(grams, axis=0, reverse=True), later, diagonal=diagonal)
    if joint:
        summed = None if linear is None else tf.reduce_sum(linear, axis=0)
        w = cooperative_weights(terminal, tf.reduce_sum(grams, axis=0), summed, diagonal=diagonal)
        return tf.tile(w[None], [grams.shape[0]] + [1] * w.shape.rank)
    if grams.shape[1] == 1 and not own:  # one player: its own value is the joint one
        alone = None if linear is None else linear[:, 0]
        return roll_out(terminal, grams[:, 0], alone, joint=True, feedback=True, diagonal=diagonal)[:, None]
    return _closed_loop(terminal, grams, linear, diagonal)


def _closed_loop(terminal: SampleValue, grams: Stack, linear: Stack | None, diagonal: bool) -> Stack:
    values = sample_space.backward_all(terminal, grams, linear, diagonal=diagonal)
    stages = zip(*(tf.unstack(x) for x in (*values, grams)), strict=True)
    linears = [None] * grams.shape[0] if linear is None else tf.unstack(linear)
    weights, deviation = [], None
    for (a, L, gram), l in zip(stages, linears, strict=True):
        weights.append(sample_space.weights(SampleValue(a, L), deviation))
        deviation = advance(deviation, gram, weights[-1], l, joint=False)
    return tf.stack(weights)


def advance(
    deviation: tf.Tensor | None,
    gram: tf.Tensor,
    weights: tf.Tensor,
    linear: tf.Tensor | None = None,
    *,
    joint: bool = True,
) -> tf.Tensor:
    """Deviation behind a stage, d - sum_p (l_p + G_p w_p).

    Args:
        deviation: `[..., n]`, d before the stage; `None` is zero.
        gram: `[..., n, n]`, or `[N, ..., n, n]` unless `joint`.
        weights: `[..., n]` or `[N, ..., n]`, of the stage.
        linear: `[..., n]` or `[N, ..., n]`; `None` is zero.
        joint: whether the players are added already.

    Returns:
        `[..., n]`.

    Source: claims OURS-2f.
    Checked against: `verification/references/rollout.py`.

    Example:
        >>> advance(None, tf.constant([[2.0]]), tf.constant([3.0]), tf.constant([1.0])).numpy().tolist()
        [-7.0]
    """
    moved = matvec(gram, weights)
    if linear is not None:
        moved += linear
    if not joint:
        moved = tf.reduce_sum(moved, axis=0)
    return -moved if deviation is None else deviation - moved


def predicted_reduction(
    terminal: SampleValue,
    grams: tf.Tensor,
    weights: tf.Tensor,
    linear: tf.Tensor | None = None,
    own: tf.Tensor | None = None,
    *,
    joint: bool = True,
) -> tf.Tensor:
    """Decrease of the quadratic model of J when all players move by given weights, whatever gave the weights.

    The model is that of `sample_space.predicted_reduction`, own costs and metrics included:
    sum_p (l_u' du + du' M du / 2) + V_X' dX_T + dX_T' V_XX dX_T / 2 at the end of the linearised network. With
    du = -M^{-1} (l_u + Qc w) the players' terms are (w' G w - c) / 2, c = l_u' M^{-1} l_u, and the end of the network
    moves by d_T = -p, p = sum (l + G w) over all players and stages. So the decrease is

        a' p + (c - sum w' G w - |L' p|^2) / 2,

    for the cooperative weights equal to `sample_space.predicted_reduction`, and less for any others.

    Args:
        terminal: `SampleValue` at the end of the network.
        grams: `[T, ..., n, n]`, or `[T, N, ..., n, n]` unless `joint`. Stages with equal weights may be given as their
            sum, T = 1.
        weights: `[T, ..., n]` or `[T, N, ..., n]`.
        linear: of the shape of `weights`; `None` is zero.
        own: `[...]`, c summed over all players and stages; `None` is zero.
        joint: whether the players of a stage are added already.

    Returns:
        `[...]`, one number per group; negative where the model says that J rises. Exact when one group holds the batch.

    Raises:
        ValueError: if shapes or dtypes do not fit.

    Source: the sample-space recursion inserted in the model; claims OURS-14a.
    Checked against: `verification/references/rollout.py`.

    Example:
        >>> terminal = sample_space.init(1, beta_squared=tf.ones([1]))
        >>> predicted_reduction(terminal, tf.ones([1, 1, 1, 1]), tf.constant([[[0.5]]])).numpy().tolist()
        [0.25]
    """
    axes = 1 if joint else 2
    grams, linear = _as_stages(terminal, grams, linear, axes)
    weights = _as_linear(weights, grams, "weights", per_stage=True)
    moved = matvec(grams, weights)
    quadratic = tf.reduce_sum(weights * moved, axis=[*range(axes), -1])
    moved = moved if linear is None else moved + linear
    a, L, p = broadcast_leading((terminal.a, 1), (terminal.L, 2), (tf.reduce_sum(moved, axis=[*range(axes)]), 1))
    curved = quadratic + tf.reduce_sum(tf.square(matvec(L, p, transpose_a=True)), axis=-1)
    return tf.reduce_sum(a * p, axis=-1) + ((0.0 if own is None else own) - curved) / 2


def _as_linear(linear: tf.Tensor, gram: Matrix, argument: str = "linear", *, per_stage: bool = False) -> tf.Tensor:
    linear = tf.convert_to_tensor(linear)
    if linear.dtype != gram.dtype:
        raise _checks.error(f"{argument}.dtype", f"be that of the Gram matrices, {gram.dtype.name}", linear.dtype.name)
    shapes = {f"{argument}.shape": linear.shape, ("grams.shape" if per_stage else "gram.shape"): gram.shape}
    if not linear.shape[-1:].is_compatible_with(gram.shape[-1:]):
        raise _checks.misfit(f"{argument}.shape", "end in [n] with n as in the Gram matrices", shapes)
    if per_stage and linear.shape.rank != gram.shape.rank - 1:
        raise _checks.misfit(f"{argument}.shape", "have the axes of the Gram matrices but the last", shapes)
    return linear


def _as_stages(terminal: SampleValue, grams: Stack, linear: Stack | None, axes: int) -> tuple[Stack, Stack | None]:
    grams = tf.convert_to_tensor(grams)
    L = tf.convert_to_tensor(terminal.L)
    if grams.shape.rank is None or grams.shape.rank < L.shape.rank + axes:
        lead = "[T]" if axes == 1 else "[T, N]"
        received = {"grams.shape": grams.shape, "terminal.L.shape": L.shape}
        raise _checks.misfit("grams.shape", f"be {lead} and then the axes of `terminal.L`", received)
    if not grams.shape[0]:
        raise _checks.error("grams.shape", "begin with a known number of stages, at least 1", grams.shape)
    sample_space.check_stage("grams", grams, L, owner="terminal")
    return grams, None if linear is None else _as_linear(linear, grams, per_stage=True)
