"""Where the time of a training step goes: milliseconds of operations by type, and by the line of ours that made them.

    python -m benchmarks.profile_step resnet18 "linear identity" [--steps 4] [--most 25]

Networks and rows are those of `step_time`. Operations of a step run beside each other on several cores, so their sum is
more than the step takes; shares and differences between two rows are what to read. Needs nothing but TensorFlow, whose
profiler writes the times.
"""

import argparse
import collections
import glob
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

import bellman_tf
from benchmarks import step_time
from benchmarks.networks import PROBLEMS

PACKAGE = str(pathlib.Path(bellman_tf.__file__).parent) + os.sep
INTERNAL = ("", "Run", "Process", "Record", "StartRegion", "StopRegion")  # of the profiler and the executor


def makers(graph: tf.Graph) -> dict[str, str]:
    """Operation name to the innermost line of this package that made it, or "Keras and TensorFlow"."""
    found = {}
    for operation in graph.get_operations():
        ours = [frame for frame in operation.traceback if frame.filename.startswith(PACKAGE)]
        last = ours[-1] if ours else None
        where = f"{last.filename.removeprefix(PACKAGE)}:{last.lineno} {last.name}" if ours else "Keras and TensorFlow"
        found[operation.name] = where
    return found


def operation_times(directory: str) -> collections.Counter:
    """(operation name, type) to milliseconds, of everything that was profiled."""
    [path] = glob.glob(f"{directory}/**/*.xplane.pb", recursive=True)
    space = xplane_pb2.XSpace()
    space.ParseFromString(pathlib.Path(path).read_bytes())
    times: collections.Counter = collections.Counter()
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                name, _, kind = plane.event_metadata[event.metadata_id].name.partition(":")
                if kind not in INTERNAL and not kind.startswith((":", " ")):
                    times[name, kind] += event.duration_ps / 1e9
    return times


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=PROBLEMS)
    parser.add_argument("row", choices=list(step_time.optimizers(10)))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--most", type=int, default=25, help="lines to print")
    options = parser.parse_args()
    model = step_time.Row(options.network, options.row, False, 1, 10).model
    data = PROBLEMS[options.network].data()
    step = tf.function(model.train_step, autograph=False)
    made_by = makers(step.get_concrete_function(data).graph)
    for _ in range(3):
        float(step(data)["loss"])
    directory = tempfile.mkdtemp()
    tf.profiler.experimental.start(directory)
    for _ in range(options.steps):
        float(step(data)["loss"])
    tf.profiler.experimental.stop()
    kinds: collections.Counter = collections.Counter()
    lines: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for (name, kind), milliseconds in operation_times(directory).items():
        where = made_by.get(name.split("PartitionedCall/")[-1], "made by TensorFlow's optimisation")
        kinds[kind] += milliseconds / options.steps
        lines[where][kind] += milliseconds / options.steps
    print(f"{options.network}, {options.row}: {sum(kinds.values()):.1f} ms of operations a step")
    print("by type: " + ", ".join(f"{kind} {ms:.1f}" for kind, ms in kinds.most_common(8)))
    for where, inside in sorted(lines.items(), key=lambda pair: -sum(pair[1].values()))[: options.most]:
        shown = ", ".join(f"{kind} {ms:.1f}" for kind, ms in inside.most_common(4))
        print(f"{sum(inside.values()):9.1f}  {where}: {shown}", flush=True)


if __name__ == "__main__":
    main()
