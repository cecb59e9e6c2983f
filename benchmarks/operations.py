"""Number of TensorFlow operations in one compiled training step of the MLP, after TensorFlow's own optimisation.

    python -m benchmarks.operations [--rows "open,linear identity"]

The rows are those of `benchmarks.step_time`. A small network's step costs what its operations cost to start.
"""

import argparse
import collections

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.grappler import tf_optimizer
from tensorflow.python.training.saver import export_meta_graph

from benchmarks import step_time


def operations(row: str) -> collections.Counter:
    """Counts the operations of one row of `step_time` by type."""
    model = step_time.Row("mlp", row, False, 1, 10).model
    data = (tf.zeros([8, 64]), tf.zeros([8], tf.int64))
    function = tf.function(model.train_step, autograph=False).get_concrete_function(data)
    graph = function.graph
    meta = export_meta_graph(graph_def=graph.as_graph_def(), graph=graph)
    kept = [output.op.name for output in function.outputs]
    kept += [op.name for op in graph.get_operations() if op.type.startswith("Assign")]
    meta.collection_def["train_op"].node_list.value.extend(kept)
    return collections.Counter(node.op for node in tf_optimizer.OptimizeGraph(config_pb2.ConfigProto(), meta).node)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="keras sgd,open,linear identity,linear kfac,nonlinear identity")
    for row in parser.parse_args().rows.split(","):
        counts = operations(row)
        common = ", ".join(f"{name} {count}" for name, count in counts.most_common(6))
        print(f"{row:20}{sum(counts.values()):6}  {common}", flush=True)


if __name__ == "__main__":
    main()
