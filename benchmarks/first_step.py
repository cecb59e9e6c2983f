"""Seconds until the first training step of a network is done, or until its trace is: looking at it, tracing.

    python -m benchmarks.first_step [--part step|trace] [--networks mobilenet,resnet18] [--rows ...] [--rounds 3]

Every measurement makes a new model, rows in turns, after one round that is not counted. *step* is from `compile` to
the end of `fit` on one batch, TensorFlow's own work included; *trace* is what `benchmarks.step_time` calls so:
`optimizer.build` and tracing a loop around the training step, without running it. Seconds are processor time of the
process, so that other work on the machine enters little.
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
from benchmarks.networks import PROBLEMS, Problem


def mobilenet() -> keras.Model:
    """MobileNetV3Small for 64 x 64 images."""
    return keras.applications.MobileNetV3Small(
        weights=None, input_shape=(64, 64, 3), classes=10, classifier_activation=None
    )


NETWORKS = PROBLEMS | {"mobilenet": Problem(mobilenet, (64, 64, 3), 16, 1)}


def first_step(network: str, row: str) -> float:
    """Processor seconds from `compile` to the end of the first step.

    Args:
        network: of `NETWORKS`.
        row: of `step_time.optimizers`.

    Returns:
        Seconds.
    """
    problem = NETWORKS[network]
    model, optimizer = step_time.made(problem, row)
    batches = tf.data.Dataset.from_tensors(problem.data())
    start = time.process_time()
    model.compile(optimizer=optimizer, loss=problem.loss(), jit_compile=False)
    model.fit(batches, verbose=0)
    return time.process_time() - start


def trace(network: str, row: str) -> float:
    """Processor seconds to look at a model and trace its training step.

    Args:
        network: of `NETWORKS`.
        row: of `step_time.optimizers`.

    Returns:
        Seconds.
    """
    problem = NETWORKS[network]
    model, optimizer = step_time.made(problem, row)
    data = problem.data()
    model.compile(optimizer=optimizer, loss=problem.loss(), jit_compile=False)
    start = time.process_time()
    step_time.traced(model, data, 4)
    return time.process_time() - start


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("step", "trace"), default="step")
    parser.add_argument("--networks", default="mobilenet,resnet18,vit")
    parser.add_argument("--rows", default="keras sgd,open,linear identity,linear adam,linear kfac")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    measure = {"step": first_step, "trace": trace}[options.part]
    rows, results = options.rows.split(","), {}
    for network in options.networks.split(","):
        seconds: dict[str, list[float]] = {row: [] for row in rows}
        for counted in range(-1, options.rounds):
            for row in rows:
                measured = measure(network, row)
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
