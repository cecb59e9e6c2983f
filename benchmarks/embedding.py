"""A large table read at many positions: the exact Gram matrix against the hashed one, in time and in the step.

    python -m benchmarks.embedding [--rounds 5]

Tokens follow Zipf's law (token k with a probability that goes as 1 / k). Printed are milliseconds per step, and how far
the weights after one step are from those with the exact matrix, as a share of what the game changes: the distance of
the open loop's weights from them.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import bellman_tf as btf

ROWS = {"open": {"information": "open"}, "hashed": {"gram": "hashed"}, "exact": {"gram": "exact"}}
SIZES = ((1000, 16, 64), (4096, 64, 64), (4096, 64, 256), (20000, 128, 64))  # tokens, positions, B


def compiled(vocabulary: int, length: int, options: dict) -> keras.Model:
    """Embedding of width 64, mean over the positions, dense.

    Args:
        vocabulary: tokens.
        length: positions of a sample.
        options: of `GTDDP`.

    Returns:
        The model, compiled without XLA.
    """
    keras.utils.set_random_seed(0)
    inputs = keras.Input((length,), dtype="int32")
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(vocabulary, 64)(inputs))
    model = btf.Model(inputs, keras.layers.Dense(10)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(btf.GTDDP(0.5, curvature="identity", **options), loss, jit_compile=False)
    return model


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for vocabulary, length, batch in SIZES:
        rng = np.random.default_rng(0)
        share = 1 / np.arange(1, vocabulary + 1)
        x = tf.constant(rng.choice(vocabulary, p=share / share.sum(), size=(batch, length)), tf.int32)
        y = tf.constant(rng.integers(0, 10, size=batch))
        weights, milliseconds = {}, {}
        for row, own in ROWS.items():
            model = compiled(vocabulary, length, own)
            step = tf.function(model.train_step, autograph=False)
            float(step((x, y))["loss"])
            weights[row], times = np.concatenate([w.ravel() for w in model.get_weights()]), []
            for _ in range(options.rounds):
                start = time.perf_counter()
                float(step((x, y))["loss"])
                times.append(time.perf_counter() - start)
            milliseconds[row] = 1e3 * statistics.median(times)
        gap = np.linalg.norm(weights["hashed"] - weights["exact"]) / np.linalg.norm(weights["open"] - weights["exact"])
        shown = ", ".join(f"{row} {ms:.1f} ms" for row, ms in milliseconds.items())
        print(f"{vocabulary} tokens, {length} positions, B = {batch}: {shown}; weights off by {gap:.4f}", flush=True)


if __name__ == "__main__":
    main()
