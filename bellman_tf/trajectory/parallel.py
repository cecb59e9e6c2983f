"""A batch of initial states in equal parts, solved at the same time by one program."""

from collections.abc import Callable
from typing import Any, TypeAlias

import tensorflow as tf

from bellman_tf.trajectory.solution import Solution, continued

# (x0, u_init) -> (Solution without history, the history's entries, begin and size of the part of them that is used)
Program: TypeAlias = Callable[[tf.Tensor, tf.Tensor], tuple[Solution, tf.Tensor, tf.Tensor, tf.Tensor]]


def in_parts(function: Any, x0: tf.Tensor, u_init: tf.Tensor, threads: int) -> Program:
    """A program that divides its batch and has TensorFlow run the parts side by side.

    Parts do not depend on each other, so TensorFlow's executor starts as many at a time as its inter-op pool has
    threads. All are of one size, for one compilation: where the batch cannot be divided so, the last part is filled up
    with copies of the last initial state, which are dropped at the end.

    Args:
        function: `tf.function` of a solve, `(x0, u_init) -> (Solution, history, begin, size)` as in `solver.py`.
        x0: `[B, n]`, for shape and dtype, B > 1.
        u_init: `[B, T, m]`.
        threads: largest number of parts.

    Returns:
        Concrete function with the arguments and results of `function`.
    """
    B = x0.shape[0]
    size = -(-B // threads)
    parts = -(-B // size)
    part = function.get_concrete_function(
        *(tf.TensorSpec([size, *array.shape[1:]], array.dtype) for array in (x0, u_init))
    )

    def cut(array: tf.Tensor) -> list[tf.Tensor]:
        copies = tf.repeat(array[-1:], parts * size - B, axis=0)
        return tf.split(tf.concat([array, copies], axis=0), parts)

    def program(x0: tf.Tensor, u_init: tf.Tensor) -> tuple[Solution, tf.Tensor, tf.Tensor, tf.Tensor]:
        solutions, histories, _, sizes = zip(*map(part, cut(x0), cut(u_init)), strict=True)
        solution = tf.nest.map_structure(
            lambda *arrays: None if arrays[0] is None else tf.concat(arrays, axis=0)[:B], *solutions
        )
        entries = [size[-1] for size in sizes]
        history = tf.concat(list(map(continued, histories, entries)), axis=1)[:, :B]
        used = tf.stack([*history.shape[:2], tf.reduce_max(tf.stack(entries))])
        return solution, history, tf.zeros_like(used), used

    whole = tf.function(program, autograph=False)
    return whole.get_concrete_function(*(tf.TensorSpec(array.shape, array.dtype) for array in (x0, u_init)))
