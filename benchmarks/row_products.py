"""Inner products of few long rows, as in Gram matrices of gradients: TensorFlow's `matmul` against its `einsum`.

    python -m benchmarks.row_products [--rounds 15]

`bellman_tf.linalg.products.row_products` takes the faster of the two; `LONG_ROWS` is where they cross on this machine.
"""

import argparse
import statistics
import time

import tensorflow as tf

SIZES = ((32, 1024), (32, 4096), (32, 65536), (32, 262144), (64, 512), (64, 2048), (128, 256), (128, 1024), (128, 4096))


def milliseconds(function: tf.types.experimental.PolymorphicFunction, rows: tf.Tensor, rounds: int) -> float:
    """Median time of one call."""
    function(rows)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function(rows).numpy()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(f"tensorflow {tf.__version__}\n{'rows':>6}{'columns':>9}{'matmul ms':>11}{'einsum ms':>11}")
    for size in SIZES:
        rows = tf.random.stateless_normal(size, [0, 0])
        matmul = tf.function(lambda x: tf.matmul(x, x, transpose_b=True))
        einsum = tf.function(lambda x: tf.einsum("ik,jk->ij", x, x))
        times = [milliseconds(function, rows, rounds) for function in (matmul, einsum)]
        print(f"{size[0]:6}{size[1]:9}{times[0]:11.2f}{times[1]:11.2f}", flush=True)


if __name__ == "__main__":
    main()
