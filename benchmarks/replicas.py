"""Bytes that replicas exchange in one step, and the time of a step, on 1, 2 and 4 logical CPU devices.

    python -m benchmarks.replicas [--networks mlp,cnn] [--rows ...] [--devices 1,2,4] [--steps 20] [--out FILE.json]

The batch of a network is shared by the devices, so all columns do the same work for the samples. Every network and
number of devices has a process of its own; an existing file keeps the points that are not measured again. *Reduced*
are the bytes of the tensors that go into an all-reduce, per replica and step, read off the graph of the step;
*gathered* those that a replica sends to the others as they are, with `coupling="global"`, and of factorisations with
`sharded=True` (the mean over the steps, of which one in ten renews them). What the network carries for
that depends on the algorithm: of n replicas in a ring each sends 2 (n - 1) / n times the former and n - 1 times the
latter. *Time* is processor time of a step, the mean after the first ten (give a multiple of ten steps, of which K-FAC
factorises in one), of all devices together: on one machine it says what is computed several times (factorisations are,
in every replica, unless they are sharded), not what several machines would gain.
"""

import argparse
import contextlib
import functools
import json
import math
import multiprocessing
import os
import pathlib
import statistics
import time
from collections.abc import Generator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

import bellman_tf as btf
from bellman_tf.curvature.kfac import KFACBlock
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
    "identity, global": lambda: btf.GTDDP(0.01, curvature="identity", coupling="global"),
    "adamw inside, global": lambda: btf.GTDDP(inner_optimizer=keras.optimizers.AdamW(1e-3), coupling="global"),
    "kfac, global": lambda: btf.GTDDP(1e-3, curvature="kfac", coupling="global"),
    "kfac, sharded": lambda: btf.GTDDP(1e-3, curvature=btf.curvature.KFAC(sharded=True)),
    "ekfac, sharded": lambda: btf.GTDDP(1e-3, curvature=btf.curvature.EKFAC(sharded=True)),
}


def measure(network: str, rows: list[str], devices: int, steps: int) -> dict[str, dict[str, float]]:
    """The points of one network and number of devices, in this process.

    Args:
        network: of `benchmarks.networks.PROBLEMS`.
        rows: of `ROWS`.
        devices: replicas; 1 is no strategy.
        steps: that are timed.

    Returns:
        Bytes and collective operations of one replica in one step, milliseconds of processor time of all together.
    """
    cpu, *_ = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    strategy = tf.distribute.get_strategy()
    if devices > 1:
        strategy = tf.distribute.MirroredStrategy([f"CPU:{k}" for k in range(devices)])
    return {row: _point(network, row, devices, steps, strategy) for row in rows}


def _point(network: str, row: str, devices: int, steps: int, strategy: tf.distribute.Strategy) -> dict[str, float]:
    problem = PROBLEMS[network]
    keras.utils.set_random_seed(0)
    with contextlib.nullcontext() if devices == 1 else strategy.scope():
        model = _compiled(network, row)
    share = problem.batch // devices
    whole = problem.data(share * devices)

    def of_replica(context: tf.distribute.ReplicaContext, part: tf.Tensor) -> tf.Tensor:
        start = share * context.replica_id_in_sync_group
        return part[start : start + share]

    parts = whole
    if devices > 1:
        make = strategy.experimental_distribute_values_from_function
        parts = tuple(make(functools.partial(of_replica, part=part)) for part in whole)
    model.make_train_function()

    @tf.function(autograph=False)
    def step() -> object:
        return strategy.run(model.train_step, args=(parts,))

    with _gathered(share * devices) as gathered:
        graph = step.get_concrete_function().graph
    reduced = [_bytes(op.inputs[0]) for op in graph.get_operations() if op.type.startswith("CollectiveReduce")]
    times = []
    for _ in range(steps + 10):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return {
        "reduced": sum(reduced) / devices,
        "gathered": (sum(gathered) + (_renewed(model.optimizer) if devices > 1 else 0)) / devices,
        "exchanges": (len(reduced) + len(gathered)) / devices,
        "ms": 1000 * statistics.mean(times[10:]),
    }


@contextlib.contextmanager
def _gathered(batch: int) -> Generator[list[int], None, None]:
    """Lists the bytes of the tensors that replicas gather while a step is traced.

    Args:
        batch: samples of all replicas, the only size that may not be static.

    Yields:
        The list, of all replicas.
    """
    found: list[int] = []
    original = tf.distribute.ReplicaContext.all_gather

    def counting(self: tf.distribute.ReplicaContext, value: tf.Tensor, axis: int) -> tf.Tensor:
        found.append(0 if value.shape == [None, 1] else _bytes(value, batch))  # such are counted in `_renewed`
        return original(self, value, axis)

    tf.distribute.ReplicaContext.all_gather = counting
    try:
        yield found
    finally:
        tf.distribute.ReplicaContext.all_gather = original


def _renewed(optimizer: keras.optimizers.Optimizer) -> float:
    """Bytes of sharded factorisations, all replicas together, the mean over the steps."""
    blocks = [block for block in getattr(optimizer, "blocks", []) if isinstance(block, KFACBlock) and block.sharded]
    kept = [(spec, block.period) for block in blocks for spec in block.state_specs()[2:]]  # after A and B
    return sum(4 * math.prod(spec.shape) / period for spec, period in kept)


def _bytes(tensor: tf.Tensor, unknown: int | None = None) -> int:
    return math.prod(unknown if size is None else size for size in tensor.shape) * tensor.dtype.size


def _compiled(network: str, row: str) -> keras.Model:
    model = PROBLEMS[network].network()
    model = model if row.startswith("keras") else btf.as_game(model)
    model.compile(ROWS[row](), PROBLEMS[network].loss(), jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="mlp,cnn,autoencoder")
    parser.add_argument("--rows", default=";".join(ROWS), help="separated by semicolons")
    parser.add_argument("--devices", default="1,2,4")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    rows, path = options.rows.split(";"), pathlib.Path(options.out)
    kept = json.loads(path.read_text()) if options.out and path.exists() else {"points": {}}
    results = kept["points"]
    for network in options.networks.split(","):
        for count in options.devices.split(","):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                points = pool.apply(measure, (network, rows, int(count), options.steps))
            for row, point in points.items():
                results.setdefault(network, {}).setdefault(row, {})[count] = point
        print(_table(results[network], network))
    if options.out:
        versions = {"tensorflow": tf.__version__, "keras": keras.__version__, "steps": options.steps}
        path.write_text(json.dumps(versions | {"points": results}, indent=1) + "\n")


def _table(points: dict[str, dict[str, dict]], network: str) -> str:
    """A row per optimizer: kB reduced and gathered, exchanges, and the time over that of the first row."""
    counts = [n for n in next(iter(points.values())) if all(n in found for found in points.values())]
    many = [count for count in counts if count != "1"]
    first = points[next(iter(points))]
    names = [network, "reduced, kB", *(f"gathered of {n}, kB" for n in many), "exchanges"]
    names += [f"ms on {n}" for n in counts] + [f"over SGD on {n}" for n in counts]
    lines = ["| " + " | ".join(names) + " |", "| --- |" + " ---: |" * (len(names) - 1)]
    for row, found in points.items():
        last = found[many[-1] if many else counts[0]]
        cells = [f"{last['reduced'] / 1e3:,.1f}", *(f"{found[n]['gathered'] / 1e3:,.1f}" for n in many)]
        cells += [f"{last['exchanges']:.0f}", *(f"{found[n]['ms']:.2f}" for n in counts)]
        cells += [f"{found[n]['ms'] / first[n]['ms']:.2f}" for n in counts]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
