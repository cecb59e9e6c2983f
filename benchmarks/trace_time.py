"""Processor seconds to look at a model and trace its training step, as ratios to Keras's SGD.

    python -m benchmarks.trace_time [--networks cnn,resnet18] [--rows ...] [--rounds 5] [--out FILE]

What is timed is what `benchmarks.step_time` calls *trace*: `optimizer.build` and tracing a compiled loop around the
training step, without running it. Every measurement makes a new model, rows in turns, after one round that is not
counted; seconds are processor time of the process, so that other work on the machine enters little.
"""

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

from benchmarks import step_time
from benchmarks.networks import PROBLEMS


def trace(network: str, row: str) -> float:
    """Processor seconds of one trace.

    Args:
        network: of `PROBLEMS`.
        row: of `step_time.optimizers`.

    Returns:
        Seconds.
    """
    problem = PROBLEMS[network]
    model, optimizer = step_time.made(problem, row)
    data = problem.data()
    model.compile(optimizer=optimizer, loss=problem.loss(), jit_compile=False)
    start = time.process_time()
    step_time.traced(model, data, 4)
    return time.process_time() - start


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="cnn,resnet18")
    parser.add_argument("--rows", default="keras sgd,open,linear identity,linear adam,linear kfac")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    rows, results = options.rows.split(","), {}
    for network in options.networks.split(","):
        seconds: dict[str, list[float]] = {row: [] for row in rows}
        for counted in range(-1, options.rounds):
            for row in rows:
                measured = trace(network, row)
                if counted >= 0:
                    seconds[row].append(measured)
        results[network] = medians = {row: statistics.median(own) for row, own in seconds.items()}
        for row, median in medians.items():
            print(f"{network:12}{row:18}{median:8.3f} s{median / medians[rows[0]]:8.2f}", flush=True)
    if options.out:
        versions = {"tensorflow": tf.__version__, "keras": keras.__version__, "rounds": options.rounds}
        with open(options.out, "w") as file:
            json.dump(versions | {"seconds": results}, file, indent=1)


if __name__ == "__main__":
    main()
