"""Running one computation eagerly, traced, and compiled by XLA."""

import numpy as np
import tensorflow as tf

from tests.helpers import assert_close, slow_row

DTYPES = (np.float32, slow_row(np.float64))


def assert_modes_agree(compute, *arguments, rtol):
    """Checks that eager, `tf.function` and XLA give the same named results, in the dtype of the first argument.

    `compute` returns a dict: one compilation for a whole module is what keeps the suite fast.
    """
    arguments = tf.nest.map_structure(tf.constant, arguments)
    dtype = tf.nest.flatten(arguments)[0].dtype
    eager = compute(*arguments)
    for jit in (False, True):
        compiled = tf.function(compute, jit_compile=jit)(*arguments)
        for name, expected in eager.items():
            results = zip(tf.nest.flatten(compiled[name]), tf.nest.flatten(expected), strict=True)
            for actual, reference in results:
                assert actual.dtype == dtype, f"{name} came back as {actual.dtype.name}"
                assert actual.shape == reference.shape, f"{name} came back as {actual.shape}"
                assert_close(actual, reference, rtol=rtol, label=f"{name}, jit_compile={jit}:")
