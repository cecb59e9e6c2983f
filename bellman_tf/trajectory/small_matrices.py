"""Small matrices of many instances, instance axis last: every entry of a matrix is a vector of instances.

Products are sums of elementwise ones, which XLA fuses with what stands around them and vectorises over the instances;
a matrix product or factorisation of the library is a call per instance, or a loop of its own, and takes longer than its
arithmetic.
"""

import tensorflow as tf

from bellman_tf.linalg import factor_spd, solve_spd

_SMALL = 4096  # multiplications of a product that is written out
_UNROLLED = 6  # unknowns of a system that is eliminated row by row


def times(A: tf.Tensor, B: tf.Tensor) -> tf.Tensor:
    """A B.

    Args:
        A: `[i, j, B]`.
        B: `[j, k, B]`.

    Returns:
        `[i, k, B]`.
    """
    if A.shape[0] * A.shape[1] * B.shape[1] > _SMALL:
        return tf.einsum("ijb,jkb->ikb", A, B)
    return tf.reduce_sum(A[:, :, None] * B[None], axis=1)


def pulled(A: tf.Tensor, B: tf.Tensor) -> tf.Tensor:
    """A' B.

    Args:
        A: `[j, i, B]`.
        B: `[j, k, B]`.

    Returns:
        `[i, k, B]`.
    """
    if A.shape[0] * A.shape[1] * B.shape[1] > _SMALL:
        return tf.einsum("jib,jkb->ikb", A, B)
    return tf.reduce_sum(A[:, :, None] * B[:, None], axis=0)


def transposed(A: tf.Tensor) -> tf.Tensor:
    """A'.

    Args:
        A: `[i, j, B]`.

    Returns:
        `[j, i, B]`.
    """
    return tf.transpose(A, [1, 0, 2])


def first(array: tf.Tensor) -> tf.Tensor:
    """Moves the instances from the last axis to the first.

    Args:
        array: `[..., B]`.

    Returns:
        `[B, ...]`.
    """
    return tf.transpose(array, [array.shape.rank - 1, *range(array.shape.rank - 1)])


def last(array: tf.Tensor, axis: int = 0) -> tf.Tensor:
    """Moves the instances from `axis` to the last one.

    Args:
        array: with the instances on `axis`.
        axis: where they are.

    Returns:
        `[..., B]`.
    """
    rank = array.shape.rank
    return tf.transpose(array, [*range(axis), *range(axis + 1, rank), axis])


def rows_of(
    states: tf.Tensor, controls: tf.Tensor, start: tf.Tensor | int = 0
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Stages of all instances as the rows that the functions of a `Problem` take.

    Args:
        states: `[T, n, B]`.
        controls: `[T, m, B]`.
        start: time of the first.

    Returns:
        `[T B, n]`, `[T B, m]` and the time, `[T B]`; the instances of a stage stand next to each other.
    """
    T, m, B = controls.shape
    x, u = (transposed_last(array) for array in (states, controls))
    return tf.reshape(x, [T * B, x.shape[2]]), tf.reshape(u, [T * B, m]), start + tf.repeat(tf.range(T), B)


def of_rows(array: tf.Tensor, T: int) -> tf.Tensor:
    """Results per row as stages, instances last.

    Args:
        array: `[T B, ...]`, in the order of `rows_of`.
        T: stages.

    Returns:
        `[T, ..., B]`.
    """
    return last(tf.reshape(array, [T, array.shape[0] // T, *array.shape[1:]]), 1)


def transposed_last(array: tf.Tensor) -> tf.Tensor:
    """Exchanges the last two axes.

    Args:
        array: `[..., i, j]`.

    Returns:
        `[..., j, i]`.
    """
    return tf.linalg.matrix_transpose(array)


def finite(*arrays: tf.Tensor | None) -> tf.Tensor:
    """Whether every entry of an instance is finite.

    Args:
        *arrays: `[..., B]`; `None` has no entries.

    Returns:
        `[B]`, bool.
    """
    checks = [
        tf.reduce_all(tf.math.is_finite(array), axis=list(range(array.shape.rank - 1)))
        for array in arrays
        if array is not None
    ]
    return tf.reduce_all(tf.stack(checks), axis=0) if len(checks) > 1 else checks[0]


def solve_definite(A: tf.Tensor, rhs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Solves A X = rhs for symmetric positive definite A.

    Args:
        A: `[m, m, B]`, symmetric.
        rhs: `[m, k, B]`.

    Returns:
        `[m, k, B]`, without meaning where A is not positive definite, and `[B]`, bool: where it is.

    Numerics: up to six unknowns are eliminated row by row without exchanges, which is stable for these matrices; more
        by the Cholesky factorisation of the library. The relative error grows like `cond(A) eps`.
    Checked against: NumPy's solver.
    """
    m = A.shape[0]
    if m > _UNROLLED:
        solved = last(solve_spd(factor_spd(first(A)), first(rhs)))
        return solved, finite(solved)
    rows = [tf.concat([A[i], rhs[i]], axis=0) for i in range(m)]  # each loses its first column per elimination
    definite = rows[0][0] > 0.0
    reduced: list[tf.Tensor] = []
    for i in range(m):
        definite &= rows[i][0] > 0.0
        reduced.append(rows[i][1:] * (1.0 / rows[i][0]))
        for j in range(i + 1, m):
            rows[j] = rows[j][1:] - rows[j][0] * reduced[i]
    found: list[tf.Tensor] = []  # the last unknown first
    for i in reversed(range(m)):
        ahead, entry = m - 1 - i, reduced[i][m - 1 - i :]
        for j in range(ahead):
            entry -= reduced[i][ahead - 1 - j] * found[j]
        found.append(entry)
    return tf.stack(found[::-1]), definite
