"""What K-FAC's factorisations cost where every device makes all of them, and where each makes a share and sends it.

    python -m benchmarks.sharded_factors [--networks autoencoder,vit] [--devices 1,2,4] [--repeats 5]

The matrices are random ones of the sizes of a network's factors. *All*: every device factorises all of them, as the
package does. *Shared*: the largest matrix that is left goes to the device with the least work, devices factorise their
own in a branch of the graph, and an all-gather of the flattened results, of as many numbers as there are entries, gives
them to all. Processor time is of all devices together, wall time that of a machine with as many cores as it says.
Logical devices of one CPU exchange through its memory: a network is slower, so the shared way looks better here than it
would between machines.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import bellman_tf as btf
from bellman_tf.curvature.cached import damped_inverses
from bellman_tf.linalg import eigh
from benchmarks.networks import PROBLEMS


def _inverse(matrix: tf.Tensor) -> tf.Tensor:
    [[inverse, _]] = damped_inverses([(matrix[None], tf.fill([1], tf.constant(1e-2)))])
    return inverse[0]


def _eigenvectors(matrix: tf.Tensor) -> tf.Tensor:
    return eigh(matrix)[1]


KINDS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {"inverses": _inverse, "eigenvectors": _eigenvectors}


def sizes_of(network: str) -> list[int]:
    """Rows of every factor of a network under K-FAC.

    Args:
        network: of `benchmarks.networks.PROBLEMS`.

    Returns:
        Input and output side of every player that K-FAC factorises.
    """
    problem = PROBLEMS[network]
    model = btf.as_game(problem.network())
    model.compile(btf.GTDDP(1e-3), problem.loss())
    model.optimizer.build(model.trainable_variables)
    specs = [spec for block in model.optimizer.blocks for spec in block.state_specs() if spec.initial == "identity"]
    return [spec.shape[0] for spec in specs if len(spec.shape) == 2]


def shares(sizes: list[int], devices: int) -> list[list[int]]:
    """Places in `sizes` for every device, the work n^3 of each about the same.

    Args:
        sizes: rows of the matrices.
        devices: how many.

    Returns:
        A list of places per device.
    """
    found: list[list[int]] = [[] for _ in range(devices)]
    for place in sorted(range(len(sizes)), key=lambda k: -sizes[k]):
        min(found, key=lambda own: sum(sizes[k] ** 3 for k in own)).append(place)
    return found


def measure(sizes: list[int], kind: str, devices: int, shared: bool, repeats: int) -> dict[str, float]:
    """One point, in this process.

    Args:
        sizes: rows of the matrices.
        kind: of `KINDS`.
        devices: logical ones.
        shared: whether each factorises a share.
        repeats: that are timed.

    Returns:
        Milliseconds of processor and of wall time, megabytes that all devices together have to receive once.
    """
    cpu, *_ = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    factorise, rng = KINDS[kind], np.random.default_rng(0)
    roots = [rng.normal(size=(n, n)).astype("float32") / np.sqrt(n) for n in sizes]
    matrices = [tf.constant(root @ root.T) for root in roots]
    strategy = tf.distribute.MirroredStrategy([f"CPU:{k}" for k in range(devices)])
    split = shares(sizes, devices)
    order = [place for own in split for place in own]

    def every() -> list[tf.Tensor]:
        return [factorise(matrix) for matrix in matrices]

    def some() -> list[tf.Tensor]:
        context = tf.distribute.get_replica_context()
        own = [
            lambda places=places: tf.concat([tf.reshape(factorise(matrices[k]), [-1]) for k in places], 0)
            for places in split
        ]
        flat = context.all_gather(tf.switch_case(context.replica_id_in_sync_group, own), axis=0)
        parts = dict(zip(order, tf.split(flat, [sizes[k] ** 2 for k in order]), strict=True))
        return [tf.reshape(parts[k], [n, n]) for k, n in enumerate(sizes)]

    @tf.function(autograph=False)
    def run() -> object:
        return strategy.run(some if shared else every)

    results = strategy.experimental_local_results(run())[-1]
    wrong = max(float(tf.reduce_max(tf.abs(a - factorise(b)))) for a, b in zip(results, matrices, strict=True))
    if not wrong < 1e-3:
        raise RuntimeError(f"the shared factorisations are off by {wrong}")
    times = []
    for _ in range(repeats):
        start = time.process_time(), time.perf_counter()
        run()
        times.append((time.process_time() - start[0], time.perf_counter() - start[1]))
    processor, wall = (1000 * statistics.median(column) for column in zip(*times, strict=True))
    return {"processor": processor, "wall": wall, "MB": 4e-6 * sum(n * n for n in sizes) if shared else 0.0}


def _table(network: str, counts: list[int], repeats: int) -> str:
    make = multiprocessing.get_context("spawn").Pool
    with make(1) as pool:
        sizes = pool.apply(sizes_of, (network,))
    lines = [
        f"**{network}**: {len(sizes)} factors, the largest of {max(sizes)} rows, {os.cpu_count()} cores.",
        "",
        "| factorisation | devices | all: processor, wall, ms | shared: processor, wall, ms | sent, MB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for kind in KINDS:
        for devices in counts:
            points = []
            for shared in (False, True):
                with make(1) as pool:
                    points.append(pool.apply(measure, (sizes, kind, devices, shared, repeats)))
            cells = [f"{point['processor']:,.0f}, {point['wall']:,.0f}" for point in points]
            lines.append(f"| {kind} | {devices} | {' | '.join(cells)} | {points[1]['MB']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="autoencoder,vit")
    parser.add_argument("--devices", default="1,2,4")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"TensorFlow {tf.__version__}, Keras {keras.__version__}, one thread an operation.")
    for network in options.networks.split(","):
        print(_table(network, [int(n) for n in options.devices.split(",")], options.repeats))


if __name__ == "__main__":
    main()
