"""The problems that peers in other frameworks are compared on: data, batches and initial weights as NumPy files.

    python -m benchmarks.peers --data-dir DIRECTORY --out peers                       # here, with TensorFlow
    python benchmarks/peers_jax.py peers --out benchmarks/peers.json                  # in an environment of `.[peers]`
    python benchmarks/peers_torch.py peers --out benchmarks/peers_torch.json          # in one of `.[peers-torch]`
    python -m benchmarks.peers_table --data-dir DIRECTORY                             # here: all of them in one table

Two tasks of `keras_examples.studies.against_the_best` with its weights and batches of seed 0: the deep autoencoder on
MNIST and the residual net on CIFAR-10. `peers_jax.py` (kfac-jax, somax, optax) and `peers_torch.py` (SOAP, Shampoo)
need nothing of TensorFlow.
"""

import argparse
import os
import pathlib
import re
from collections.abc import Sequence

import keras
import numpy as np

from keras_examples.studies._study import Task
from keras_examples.studies.against_the_best import TASKS

NAMES = ("autoencoder", "residual")


def weights_of(model: keras.Model, values: list[np.ndarray]) -> list[np.ndarray]:
    """Weights in the order in which the network's layers were made.

    Args:
        model: whose layers have Keras's numbered names.
        values: in the order of `model.weights`.

    Returns:
        Kernel and bias of each layer.
    """
    at = {id(variable): value for variable, value in zip(model.weights, values, strict=True)}

    def number(layer: keras.layers.Layer) -> tuple[str, int]:
        kind, count = re.fullmatch(r"(.*?)(?:_(\d+))?", layer.name).groups()
        return kind, int(count or 0)  # "conv2d" before "dense", as the networks are built

    return [at[id(v)] for layer in sorted(model.layers, key=number) for v in layer.weights]


def export(task: Task, path: pathlib.Path) -> dict[str, np.ndarray]:
    """Writes a task with its weights and batches of seed 0.

    Args:
        task: the task.
        path: of the npz file.

    Returns:
        What was written: batches x `[steps, B, ...]` and y, x_test, y_test, the weights, and the loss at them.
    """
    keras.utils.set_random_seed(0)
    model = task.network()
    x, y = zip(*((x.numpy(), y.numpy()) for x, y in task.batches(0)), strict=True)
    x_test, y_test = task.data.x_test, task.data.y_test
    values = {
        "x": np.round(255 * np.array(x)).astype("uint8"),
        "x_test": np.round(255 * x_test).astype("uint8"),
        "loss": np.float64(task.loss()(y_test, model(x_test, training=False))),
        **{f"weight_{k:02d}": value for k, value in enumerate(weights_of(model, model.get_weights()))},
    }
    if task.classes:
        values |= {"y": np.array(y), "y_test": y_test}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **values)
    return values


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default=os.environ.get("TFDS_DATA_DIR"), help="TFDS directory")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("peers"))
    options = parser.parse_args(arguments)
    for name in NAMES:
        try:
            task = TASKS[name].make(options.data_dir, TASKS[name].steps)
        except ValueError as problem:
            parser.error(str(problem))
        export(task, options.out / f"{name}.npz")
        print(f"{options.out / name}.npz: {TASKS[name].title}, {task.steps} steps of B = {task.batch_size}")


if __name__ == "__main__":
    main()
