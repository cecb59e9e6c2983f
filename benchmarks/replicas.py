"""Bytes that replicas exchange in one step, and the time of a step, on 1, 2 and 4 logical CPU devices.

    python -m benchmarks.replicas [--networks mlp,cnn] [--rows ...] [--devices 1,2,4] [--steps 20] [--out FILE.json]

The batch of a network is shared by the devices, so all columns do the same work for the samples. Every point is a
process of its own. *Bytes* are those of the tensors that go into an all-reduce, per replica and step, read off the
graph of the step; what the network carries for that depends on the algorithm (a ring sends 2 (n - 1) / n times as
much). *Time* is processor time of a step, the median after the first two, of all devices together: on one machine it
says what is computed several times (factorisations are, in every replica), not what several machines would gain.
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

import bellman_tf as btf
from benchmarks.networks import PROBLEMS

ROWS = {
    "keras sgd": lambda: keras.optimizers.SGD(0.01),
    "keras adamw": lambda: keras.optimizers.AdamW(1e-3),
    "identity": lambda: btf.GTDDP(0.01, curvature="identity"),
    "adam": lambda: btf.GTDDP(1e-3, curvature="adam"),
    "adamw inside": lambda: btf.GTDDP(inner_optimizer=keras.optimizers.AdamW(1e-3)),
    "open kfac": lambda: btf.KFAC(1e-3),
    "kfac": lambda: btf.GTDDP(1e-3, curvature="kfac"),
    "ekfac": lambda: btf.GTDDP(1e-3, curvature="ekfac"),
}


def measure(network: str, row: str, devices: int, steps: int) -> dict[str, float]:
    """One point, in this process.

    Args:
        network: of `benchmarks.networks.PROBLEMS`.
        row: of `ROWS`.
        devices: replicas; 1 is no strategy.
        steps: that are timed.

    Returns:
        Bytes and collective operations of one replica in one step, milliseconds of processor time of all together.
    """
    cpu, *_ = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    problem = PROBLEMS[network]
    strategy = tf.distribute.get_strategy()
    if devices > 1:
        strategy = tf.distribute.MirroredStrategy([f"CPU:{k}" for k in range(devices)])
    keras.utils.set_random_seed(0)
    if devices > 1:
        with strategy.scope():
            model = _compiled(network, row)
    else:
        model = _compiled(network, row)
    share = problem.batch // devices
    whole = problem.data(share * devices)

    def of_replica(context: tf.distribute.ReplicaContext) -> tuple[tf.Tensor, tf.Tensor]:
        start = share * context.replica_id_in_sync_group
        return tuple(part[start : start + share] for part in whole)

    if devices > 1:
        parts = [
            strategy.experimental_distribute_values_from_function(lambda c, k=k: of_replica(c)[k]) for k in range(2)
        ]
    else:
        parts = list(whole)
    model.make_train_function()

    @tf.function(autograph=False)
    def step() -> object:
        return strategy.run(model.train_step, args=(tuple(parts),))

    exchanged = [op.inputs[0] for op in step.get_concrete_function().graph.get_operations() if _reduces(op)]
    sizes = [math.prod(tensor.shape) * tensor.dtype.size for tensor in exchanged]
    times = []
    for _ in range(steps + 2):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return {
        "bytes": sum(sizes) / devices,
        "collectives": len(sizes) / devices,
        "ms": 1000 * statistics.median(times[2:]),
    }


def _compiled(network: str, row: str) -> keras.Model:
    model = PROBLEMS[network].network()
    model = model if row.startswith("keras") else btf.as_game(model)
    model.compile(ROWS[row](), PROBLEMS[network].loss(), jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


def _reduces(operation: tf.Operation) -> bool:
    return operation.type.startswith("CollectiveReduce")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="mlp,cnn,autoencoder")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--devices", default="1,2,4")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    devices = [int(count) for count in options.devices.split(",")]
    results: dict[str, dict[str, dict[str, dict]]] = {}
    for network in options.networks.split(","):
        results[network] = {}
        for row in options.rows.split(","):
            points = {}
            for count in devices:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    points[str(count)] = pool.apply(measure, (network, row, count, options.steps))
            results[network][row] = points
            first = results[network][options.rows.split(",")[0]]
            cells = [
                f"{count} devices {point['bytes'] / 1e3:10.1f} kB {point['collectives']:5.0f} all-reduces "
                f"{point['ms']:9.2f} ms {point['ms'] / first[count]['ms']:6.2f}"
                for count, point in points.items()
            ]
            print(f"{network:12}{row:14}" + " | ".join(cells), flush=True)
    if options.out:
        versions = {"tensorflow": tf.__version__, "keras": keras.__version__, "steps": options.steps}
        with open(options.out, "w") as file:
            json.dump(versions | {"points": results}, file, indent=1)


if __name__ == "__main__":
    main()
