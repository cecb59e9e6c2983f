"""Wall time of `bellman_tf.trajectory` for 64 initial states on one thread and on several.

    python -m benchmarks.trajectory_threads [--threads 2] [--rounds 15] [--out benchmarks/trajectory_threads.json]

The unicycle of `benchmarks.trajectory`, Gauss-Newton, XLA, a fixed number of iterations; TensorFlow's two pools have so
many threads. The rows of a horizon are timed in turns; printed are medians of whole solves, call and first roll-out
included, and their ratio to one start.
"""

import argparse
import json
import os
import platform
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

from benchmarks.unicycle import ours


def measure(horizon: int, iterations: int, threads: int, rounds: int, dtype: tf.DType) -> dict[str, dict]:
    """Wall times of one horizon and dtype."""
    several = f"64 starts, {threads} threads"
    built = {
        "one start": ours(horizon, iterations, False, True, dtype=dtype),
        "64 starts": ours(horizon, iterations, False, True, 64, dtype=dtype),
        several: ours(horizon, iterations, False, True, 64, threads, dtype),
    }
    wall: dict[str, list[float]] = {name: [] for name in built}
    reached = {name: run() for name, run in built.items()}
    for _ in range(rounds):
        for name, run in built.items():
            start = time.perf_counter()
            run()
            wall[name].append(time.perf_counter() - start)
    one = statistics.median(wall["one start"])
    return {
        name: {
            "ms": round(1e3 * statistics.median(times), 3),
            "ms_quartiles": [round(1e3 * q, 3) for q in statistics.quantiles(times)[::2]],
            "ratio": round(statistics.median(times) / one, 2),
            "iterations": reached[name][0],
            "cost": reached[name][1],
        }
        for name, times in wall.items()
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--horizons", default="50,200,1000")
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    report: dict = {
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "tensorflow": tf.__version__,
        "rounds": options.rounds,
        "results": {},
    }
    for dtype in (tf.float64, tf.float32):
        for horizon in map(int, options.horizons.split(",")):
            result = measure(horizon, options.iterations, options.threads, options.rounds, dtype)
            report["results"].setdefault(dtype.name, {})[str(horizon)] = result
            cells = (f"{name} {row['ms']:.2f} ms ({row['ratio']:.1f})" for name, row in result.items())
            print(f"{dtype.name}, horizon {horizon:5}: " + ", ".join(cells), flush=True)
    if options.out:
        with open(options.out, "w") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
