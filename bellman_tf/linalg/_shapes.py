"""What arguments must be: float dtypes, fitting last axes, complete games. What tracing does not know is not judged."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from bellman_tf import _checks
from bellman_tf._typing import Array, LowerBlocks, Matrix, Number, Shape, Square, Tensors
from bellman_tf.linalg.constants import constant, number
from bellman_tf.linalg.products import diag


def shape_error(argument: str, rule: str, **tensors: tf.Tensor) -> ValueError:
    """Builds the house `ValueError` that shows the shapes of several arguments.

    Args:
        argument: name of the offending argument.
        rule: what must hold, a phrase that follows "must".
        **tensors: the arguments whose shapes are worth seeing, by name.

    Returns:
        The exception, for the caller to raise.
    """
    shown = ", ".join(f"{name}.shape={_show(value)}" for name, value in tensors.items())
    return ValueError(f"`{argument}` must {rule}. Received: {shown}.")


def _show(tensor: tf.Tensor) -> Shape | None:
    return None if tensor.shape.rank is None else tuple(tensor.shape)


def as_matrices(**values: Array) -> Tensors:
    """Converts to tensors of one float dtype with two axes or more.

    Args:
        **values: the arguments by name; the first one sets the dtype.

    Returns:
        The tensors, in order.

    Raises:
        ValueError: if a dtype is not float32 or float64, differs from the first, or an axis is missing.
    """
    tensors = {name: tf.convert_to_tensor(value) for name, value in values.items()}
    first, reference = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        _checks.check_float_dtype(name, tensor)
        if tensor.dtype != reference.dtype:
            raise _checks.error(f"{name}.dtype", f"equal {first}.dtype, {reference.dtype.name}", tensor.dtype.name)
        if tensor.shape.rank is None or tensor.shape.rank < 2:
            raise shape_error(name, "have a known rank of at least 2", **{name: tensor})
    return list(tensors.values())


def _differ(size: int | None, other: int | None) -> bool:
    return size is not None and other is not None and size != other


def check_square(name: str, tensor: Square) -> None:
    """Checks that the last two axes have one size.

    Args:
        name: name of the argument.
        tensor: `[..., n, n]`.

    Raises:
        ValueError: if the two sizes are known and differ.
    """
    if _differ(tensor.shape[-2], tensor.shape[-1]):
        raise shape_error(name, "be square in its last two axes", **{name: tensor})


def check_rows(name: str, tensor: Matrix, matrix_name: str, matrix: Matrix) -> None:
    """Checks that `tensor` `[..., n, k]` has one row per row of `matrix` `[..., n, m]`; raises a `ValueError`."""
    _check_fits(name, tensor, "row", -2, matrix_name, matrix)


def check_columns(name: str, tensor: Matrix, matrix_name: str, matrix: Matrix) -> None:
    """Checks that `tensor` `[..., k, n]` has one column per row of `matrix` `[..., n, m]`; raises a `ValueError`."""
    _check_fits(name, tensor, "column", -1, matrix_name, matrix)


def _check_fits(name: str, tensor: Matrix, word: str, axis: int, matrix_name: str, matrix: Matrix) -> None:
    if _differ(tensor.shape[axis], matrix.shape[-2]):
        raise shape_error(name, f"have one {word} per row of `{matrix_name}`", **{matrix_name: matrix, name: tensor})


def damping_like(damping: Number, reference: tf.Tensor) -> tf.Tensor:
    """Converts a damping to the dtype of a tensor; a Python number goes there without a stop in float32.

    Args:
        damping: number or tensor.
        reference: tensor whose dtype is wanted.

    Returns:
        The damping as a tensor.

    Raises:
        ValueError: if a Python number is negative or not finite.
    """
    if isinstance(damping, int | float):
        _checks.check_real("damping", damping, least=0.0)
        return number(damping, reference.dtype)
    return tf.cast(damping, reference.dtype)


def identity_like(A: Square) -> Square:
    """The identity of a square matrix's size and dtype, one constant of the graph where it is small.

    Args:
        A: `[..., n, n]`.

    Returns:
        `[n, n]`.
    """
    size = A.shape[-1]
    if size is not None and size <= 64:
        return tf.constant(np.eye(size), A.dtype)
    if size is not None:
        return diag(tf.fill(constant([size]), number(1, A.dtype)))
    return tf.eye(tf.shape(A)[-1], dtype=A.dtype)


def lower_blocks(name: str, blocks: LowerBlocks) -> list[Tensors]:
    """Reads the blocks on and below the diagonal of a symmetric game of N players.

    Args:
        name: name of the argument.
        blocks: N rows of N blocks, `blocks[n][m]` is `[..., p_n, p_m]`; those above the diagonal are not read.

    Returns:
        N rows, row n with the tensors m = 0 .. n.

    Raises:
        ValueError: if the game is not N x N or the blocks do not fit.
    """
    count = len(blocks)
    if count == 0:
        raise _checks.error(name, "hold one row of blocks per player", blocks)
    named = {}
    for n, row in enumerate(blocks):
        if len(row) != count:
            raise _checks.error(f"len({name}[{n}])", f"be {count}, one block per player", len(row))
        named |= {f"{name}[{n}][{m}]": row[m] for m in range(n + 1)}
    named = dict(zip(named, as_matrices(**named), strict=True))
    for n in range(count):
        own = f"{name}[{n}][{n}]"
        check_square(own, named[own])
        for m in range(n):
            cross, other = f"{name}[{n}][{m}]", f"{name}[{m}][{m}]"
            check_rows(cross, named[cross], own, named[own])
            check_columns(cross, named[cross], other, named[other])
    return [[named[f"{name}[{n}][{m}]"] for m in range(n + 1)] for n in range(count)]


def per_player(name: str, values: Sequence[Matrix], diagonal_name: str, diagonal: Sequence[Square]) -> Tensors:
    """Converts one right-hand side per player and checks its rows.

    Args:
        name: name of the argument.
        values: N matrices `[..., p_n, k]`.
        diagonal_name: name of the game they belong to.
        diagonal: its N diagonal blocks.

    Returns:
        The N tensors.

    Raises:
        ValueError: if the number, a dtype or the rows do not fit.
    """
    if len(values) != len(diagonal):
        raise _checks.error(f"len({name})", f"be {len(diagonal)}, one matrix per player", len(values))
    tensors = []
    for n, (value, block) in enumerate(zip(values, diagonal, strict=True)):
        own = f"{diagonal_name}[{n}][{n}]"
        _, tensor = as_matrices(**{own: block, f"{name}[{n}]": value})
        check_rows(f"{name}[{n}]", tensor, own, block)
        tensors.append(tensor)
    return tensors
