"""L-BFGS as one TensorFlow loop: minimises a function of a vector inside a compiled graph, XLA included.

    H_k     inverse Hessian estimate of the last `history` pairs (s, y) = (step, change of the gradient)
    d       -H_k g in the compact form: products with S and Y, and a triangle of `history` rows
    alpha   bisection until Armijo's rule and the weak curvature rule hold, which makes s'y > 0
    x       x + alpha d

TensorFlow has no minimiser of its own, and SciPy's would leave the graph at every evaluation and cannot be compiled.
The compact form takes the place of the usual two loops, which unrolled are 8 x history operations in every graph.
Source: Byrd, Nocedal & Schnabel 1994, Thm. 2.2 (compact form); Nocedal & Wright 2006, Alg. 7.5, Eq. 7.20 (scaling);
Lewis & Overton 2013, Alg. 2.6 (bisection).
"""

from typing import NamedTuple

import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Function, Scalar, Vector
from bellman_tf.linalg.products import matmul, matvec

SUFFICIENT = 1e-4  # share of the predicted decrease that a step must deliver (Armijo)
FLATTENED = 0.9  # share of the slope that may be left after it (weak curvature rule)


class Minimum(NamedTuple):
    """Where a minimisation has ended.

    Attributes:
        point: `[n]`, the best point.
        value: of the function there, scalar.
        gradient: `[n]`, there.
        iterations: steps taken, int32 scalar.
    """

    point: tf.Tensor
    value: tf.Tensor
    gradient: tf.Tensor
    iterations: tf.Tensor


class _Pairs(NamedTuple):
    """The last steps, newest last; an unused place holds zeros."""

    steps: tf.Tensor  # S, [m, n]
    changes: tf.Tensor  # Y, [m, n]
    scale: tf.Tensor  # s'y / y'y of the newest pair, scalar


def minimise(function: Function, start: Vector, *, iterations: int, history: int = 10, trials: int = 20) -> Minimum:
    """Takes some steps of L-BFGS from a point.

    A step whose trials all fail, or that no longer lowers the value, ends the minimisation, so the value never rises. A
    value that is not finite counts as a failed trial.

    Args:
        function: value (scalar) and gradient `[n]` at a point `[n]`, in its dtype.
        start: `[n]`, float32 or float64.
        iterations: steps at most.
        history: pairs that are kept.
        trials: step lengths that one step may try.

    Returns:
        The last point, with its value and gradient.

    Raises:
        ValueError: for a number below 1 or another dtype.

    Source: Nocedal & Wright 2006, Alg. 7.5.
    Checked against: `verification/references/lbfgs.py`, a dense inverse BFGS matrix, and SciPy.
    """
    _checks.check_float_dtype("start", start)
    for argument, value in (("iterations", iterations), ("history", history), ("trials", trials)):
        _checks.check_integer(argument, value, least=1)
    value, gradient = function(start)
    first = Minimum(start, value, gradient, tf.constant(0))
    size = tf.shape(start)[0] if start.shape[0] is None else start.shape[0]
    empty = tf.zeros([history, size], start.dtype)
    norm = tf.linalg.norm(gradient)
    scale = tf.math.divide_no_nan(tf.minimum(norm, 1), norm)  # the first trial step is no longer than 1
    pairs = _Pairs(empty, empty, scale)

    def unfinished(going: tf.Tensor, at: Minimum, pairs: _Pairs) -> tf.Tensor:
        return going

    def step(going: tf.Tensor, at: Minimum, pairs: _Pairs) -> tuple[tf.Tensor, Minimum, _Pairs]:
        direction = -inverse_times(*pairs, at.gradient)
        found, after = _search(function, at, direction, trials)
        going = found & (after.value < at.value) & tf.reduce_any(tf.not_equal(after.gradient, 0))
        return going, after, _with_pair(pairs, after.point - at.point, after.gradient - at.gradient)

    going = tf.math.is_finite(value) & tf.reduce_any(tf.not_equal(gradient, 0))
    _, last, _ = tf.while_loop(unfinished, step, (going, first, pairs), maximum_iterations=iterations)
    return last


def inverse_times(steps: tf.Tensor, changes: tf.Tensor, scale: tf.Tensor, vector: tf.Tensor) -> tf.Tensor:
    """Applies the inverse BFGS matrix of some pairs to a vector, without forming it.

    With R the upper triangle of S Y' and D its diagonal, `H = gamma I + S'(b) - gamma Y'(a)` applied to v, where
    `a = R^{-1} S v` and `b = R^{-T} [(D + gamma Y Y') a - gamma Y v]`.

    Args:
        steps: S, `[m, n]`, oldest first.
        changes: Y, `[m, n]`; a pair of zeros is left out.
        scale: gamma, the matrix before the first pair is gamma I.
        vector: v, `[n]`.

    Returns:
        `H v`, `[n]`.
    """
    products = matmul(steps, changes, transpose_b=True)  # s_i' y_j
    diagonal = tf.linalg.diag_part(products)
    triangle = tf.linalg.band_part(products, 0, -1)
    triangle += tf.linalg.diag(tf.cast(tf.equal(diagonal, 0), diagonal.dtype))  # 1 for a pair of zeros
    a = tf.linalg.triangular_solve(triangle, matvec(steps, vector)[:, None], lower=False)
    inner = diagonal[:, None] * a + scale * matmul(changes, matmul(changes, a, transpose_a=True))
    inner -= scale * matvec(changes, vector)[:, None]
    b = tf.linalg.triangular_solve(triangle, inner, lower=False, adjoint=True)
    spread = matmul(steps, b, transpose_a=True) - scale * matmul(changes, a, transpose_a=True)
    return scale * vector + spread[:, 0]


def _with_pair(pairs: _Pairs, s: Vector, y: Vector) -> _Pairs:
    """Drops the oldest pair for a new one; a pair without positive curvature is not taken."""
    curvature, square = tf.tensordot(s, y, 1), tf.tensordot(y, y, 1)
    eps = tf.experimental.numpy.finfo(s.dtype.as_numpy_dtype).eps
    good = curvature > eps * square  # false for NaN
    new = _Pairs(
        tf.concat([pairs.steps[1:], s[None]], axis=0),
        tf.concat([pairs.changes[1:], y[None]], axis=0),
        tf.math.divide_no_nan(curvature, square),
    )
    return _Pairs(*(tf.where(good, after, before) for after, before in zip(new, pairs, strict=True)))


def _search(function: Function, at: Minimum, direction: Vector, trials: int) -> tuple[Scalar, Minimum]:
    """Bisection for a step length with both rules; the longest one with Armijo's rule where none has both.

    Returns:
        Whether the point has moved, and the point reached.
    """
    slope = tf.tensordot(at.gradient, direction, 1)
    dtype = slope.dtype
    nothing, unknown = tf.zeros([], dtype), tf.constant(float("inf"), dtype)

    def unfinished(trial: tf.Tensor, done: tf.Tensor, *_: tf.Tensor | Minimum) -> tf.Tensor:
        return ~done

    def attempt(
        trial: tf.Tensor, done: tf.Tensor, length: tf.Tensor, low: tf.Tensor, high: tf.Tensor, best: Minimum
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, Minimum]:
        point = at.point + length * direction
        value, gradient = function(point)
        armijo = value <= at.value + SUFFICIENT * length * slope  # false for NaN
        armijo &= tf.math.is_finite(tf.reduce_sum(gradient))
        flat = tf.tensordot(gradient, direction, 1) >= FLATTENED * slope
        here = Minimum(point, value, gradient, at.iterations + 1)
        best = Minimum(*(tf.where(armijo, new, old) for new, old in zip(here, best, strict=True)))
        low, high = tf.where(armijo, length, low), tf.where(armijo, high, length)
        longer = tf.where(tf.math.is_finite(high), (low + high) / 2, 2 * length)
        return trial + 1, armijo & flat, longer, low, high, best

    start = (tf.constant(0), ~(slope < 0), tf.ones([], dtype), nothing, unknown, at)
    *_, best = tf.while_loop(unfinished, attempt, start, maximum_iterations=trials)
    return best.iterations > at.iterations, best
