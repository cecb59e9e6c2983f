"""Cholesky factorisations inside programs that XLA compiles: TensorFlow's against `bellman_tf.linalg.columns`.

    python -m benchmarks.factorisation [--rounds 15]                 here
    python -m benchmarks.factorisation --out DIRECTORY               exported as StableHLO
    python benchmarks/gpu_run_exported.py DIRECTORY                  where JAX has an accelerator

Float32, one matrix each, and the inverses of eight matrices as K-FAC takes them. Ratios are to TensorFlow's.
"""

import argparse
import pathlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from bellman_tf.linalg import Factor, inverse_spd
from bellman_tf.linalg.blocked import whiteners_in_blocks
from bellman_tf.linalg.columns import factor_in_columns
from benchmarks.exported import write_function
from benchmarks.row_products import milliseconds

SIZES = (64, 128, 256, 512)
STACK = 8


def spd(size: int) -> np.ndarray:
    """A banded matrix with a small file: 2^{-|i - j|} near the diagonal."""
    apart = np.abs(np.arange(size)[:, None] - np.arange(size))
    return np.where(apart < 30, 0.5**apart, 0.0).astype(np.float32)


def inverse_in_blocks(A: tf.Tensor) -> tf.Tensor:
    """The inverses of a stack, from its whiteners."""
    [W] = whiteners_in_blocks([A], [tf.zeros([STACK])])
    return tf.matmul(W, W, transpose_a=True)


def rows(size: int) -> dict[str, Callable[[tf.Tensor], tf.Tensor]]:
    """Functions of a matrix, `factor`, and of a stack of them, `inverse`."""
    return {
        "factor tf": lambda A: tf.linalg.cholesky(A),  # not itself: its further arguments would become the program's
        "factor columns": factor_in_columns,
        "inverse tf": lambda A: inverse_spd(Factor(tf.linalg.cholesky(A))),
        "inverse blocks": inverse_in_blocks,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=pathlib.Path, help="directory for exported programs")
    options = parser.parse_args()
    print(f"tensorflow {tf.__version__}")
    for size in SIZES:
        one = tf.constant(spd(size))
        stack = tf.stack([one] * STACK)
        for name, function in rows(size).items():
            kind, form = name.split()
            A = one if kind == "factor" else stack
            compiled = tf.function(function, jit_compile=True, autograph=False)
            if options.out:
                write_function(options.out, f"{kind}{size}_{form}", f"{kind}{size}_tf", compiled, [A])
            else:
                print(f"{size:5} {name:15}{milliseconds(compiled, A, options.rounds):9.2f} ms", flush=True)


if __name__ == "__main__":
    main()
