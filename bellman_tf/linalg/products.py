"""Matrix products whose leading axes differ.

TensorFlow 2.21's float32 `matmul` on CPU (oneDNN) writes out of bounds for some products with leading axes that have
to be broadcast, for example `[3, 1, 64, 64]` by `[1, 64, 1]`: a crash or silent corruption. Here leading axes are made
equal first, or folded into the rows where that is free.
"""

import tensorflow as tf

from bellman_tf.linalg.constants import constant, expand_dims, reshape

LONG_ROWS = 1024  # columns from which on `row_products` leaves oneDNN, see `benchmarks/row_products.py`


def matmul(A: tf.Tensor, B: tf.Tensor, *, transpose_a: bool = False, transpose_b: bool = False) -> tf.Tensor:
    """`A B` with leading axes broadcast, safely.

    Args:
        A: `[..., m, n]`, or its transpose with `transpose_a`.
        B: `[..., n, p]`, or its transpose with `transpose_b`.
        transpose_a: use the transpose of A.
        transpose_b: use the transpose of B.

    Returns:
        `[..., m, p]`.

    Example:
        >>> matmul(tf.ones([2, 3, 1, 4]), tf.ones([4, 1])).shape.as_list()
        [2, 3, 1, 1]
    """
    A = tf.convert_to_tensor(A)
    B = tf.convert_to_tensor(B, A.dtype)
    if A.shape.rank == B.shape.rank and A.shape[:-2].is_fully_defined() and A.shape[:-2] == B.shape[:-2]:
        return tf.matmul(A, B, transpose_a=transpose_a, transpose_b=transpose_b)
    inner_a, inner_b = -2 if transpose_a else -1, -1 if transpose_b else -2
    if B.shape.rank == 2:  # the leading axes of A are more rows
        if not transpose_a and A.shape.rank > 2:
            return _rows_times(A, B, transpose_b)
        return tf.tensordot(A, B, [[inner_a], [inner_b]])
    if A.shape.rank == 2:  # the leading axes of B are more columns
        left, right = "ba" if transpose_a else "ab", "cb" if transpose_b else "bc"
        return _einsum(f"{left},...{right}->...ac", A, B)
    lead = tf.broadcast_dynamic_shape(tf.shape(A)[:-2], tf.shape(B)[:-2])
    static = tf.broadcast_static_shape(A.shape[:-2], B.shape[:-2])
    A, B = (
        tf.ensure_shape(tf.broadcast_to(X, tf.concat([lead, tf.shape(X)[-2:]], 0)), static.concatenate(X.shape[-2:]))
        for X in (A, B)
    )
    return tf.matmul(A, B, transpose_a=transpose_a, transpose_b=transpose_b)


def _rows_times(A: tf.Tensor, B: tf.Tensor, transpose_b: bool) -> tf.Tensor:
    """All rows of `A` `[..., m, n]` times a matrix."""
    rest = A.shape[:-1].as_list()
    if rest.count(None) > 1:
        return tf.tensordot(A, B, [[-1], [-1 if transpose_b else -2]])
    found = tf.matmul(reshape(A, [-1, A.shape[-1]]), B, transpose_b=transpose_b)
    return reshape(found, [*(-1 if size is None else size for size in rest), found.shape[-1]])


def times(A: tf.Tensor, B: tf.Tensor) -> tf.Tensor:
    """`A B` for the rows of a tensor of any rank; `tf.tensordot` takes twice the operations.

    Args:
        A: `[..., n]`.
        B: `[n, p]`.

    Returns:
        `[..., p]`.

    Example:
        >>> times(tf.ones([4]), tf.ones([4, 1])).numpy().tolist()
        [4.0]
    """
    return tf.matmul(A, B) if A.shape.rank == 2 else _einsum("...a,ab->...b", A, B)


def row_products(A: tf.Tensor, B: tf.Tensor) -> tf.Tensor:
    """`A B'`, the inner products of rows.

    TensorFlow 2.21's `matmul` on CPU (oneDNN) is slow where few rows are long, as in a Gram matrix of gradients:
    `[32, 262144]` with itself takes 18 ms on two cores, by `einsum` (Eigen) 4. Below a thousand columns `matmul` is the
    faster one.

    Args:
        A: `[m, n]`.
        B: `[p, n]`.

    Returns:
        `[m, p]`.

    Example:
        >>> row_products(tf.ones([2, 3]), tf.ones([1, 3])).numpy().tolist()
        [[3.0], [3.0]]
    """
    long = A.shape[1] is not None and A.shape[1] >= LONG_ROWS
    return tf.einsum("ik,jk->ij", A, B) if long else tf.matmul(A, B, transpose_b=True)


def matvec(A: tf.Tensor, x: tf.Tensor, *, transpose_a: bool = False) -> tf.Tensor:
    """`A x` with leading axes broadcast, safely.

    Formed entry by entry: a batch of matrix-vector products is bound by memory, and the batched product costs tens of
    microseconds before it starts.

    Args:
        A: `[..., m, n]`, or its transpose with `transpose_a`.
        x: `[..., n]`.
        transpose_a: use the transpose of A.

    Returns:
        `[..., m]`.

    Example:
        >>> matvec(tf.ones([3, 1, 2, 2]), tf.ones([1, 2])).shape.as_list()
        [3, 1, 2]
    """
    if transpose_a:
        return tf.reduce_sum(A * expand_dims(x, -1), constant(-2))
    return tf.reduce_sum(A * expand_dims(x, -2), constant(-1))


def _einsum(equation: str, *tensors: tf.Tensor) -> tf.Tensor:
    """`tf.einsum` of one or two tensors without its search for an order."""
    return tf.raw_ops.Einsum(inputs=tensors, equation=equation)


def diag(x: tf.Tensor) -> tf.Tensor:
    """The matrix with a given diagonal, one operation: `tf.linalg.diag` takes five.

    Args:
        x: `[..., n]`.

    Returns:
        `[..., n, n]`.

    Example:
        >>> diag(tf.constant([1.0, 2.0])).numpy().tolist()
        [[1.0, 0.0], [0.0, 2.0]]
    """
    return tf.raw_ops.MatrixDiag(diagonal=x)


def diag_part(A: tf.Tensor) -> tf.Tensor:
    """The diagonal, one operation: `tf.linalg.diag_part` takes three.

    Args:
        A: `[..., n, n]`.

    Returns:
        `[..., n]`.

    Example:
        >>> diag_part(tf.eye(2)).numpy().tolist()
        [1.0, 1.0]
    """
    return tf.raw_ops.MatrixDiagPart(input=A)


def trace(A: tf.Tensor) -> tf.Tensor:
    """The trace, as one operation of the graph: `tf.linalg.trace` takes five, and tracing a step costs by operations.

    Args:
        A: `[..., n, n]`.

    Returns:
        `[...]`.

    Example:
        >>> trace(tf.eye(3)).numpy().item()
        3.0
    """
    return _einsum("...ii->...", A)
