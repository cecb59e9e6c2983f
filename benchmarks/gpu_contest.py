"""The contest of optimizers on a GPU: the steps of its methods exported as StableHLO, with data and initial weights.

    python -m benchmarks.gpu_contest --out DIRECTORY --data-dir TFDS --tasks vit --steps 2000 [--methods ...]
    python -m benchmarks.gpu_run_contest DIRECTORY --store cells.jsonl     where JAX has an accelerator, without Keras
    python -m keras_examples.studies.against_the_best --report --out STORE'S --steps 2000 --tasks vit

Tasks, methods, tuning and report are those of `keras_examples.studies.against_the_best`; what differs is who runs a
step. A task has the files

TASK.json             title, B, steps, the methods and their middles, what `TASK_evaluate` takes
TASK.npz              data (pixels as bytes), and each seed's initial weights
TASK_evaluate.stablehlo  (x, y, weight, weights...) -> sums over samples of loss and of hits
TASK_METHOD.*         the step of method number METHOD: program, arguments and results, starting values of its state
"""

import argparse
import json
import os
import pathlib
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from benchmarks import exported
from benchmarks.gpu_step import Step, portable
from keras_examples.studies._cells import Entry
from keras_examples.studies._study import Task
from keras_examples.studies.against_the_best import ENTRIES, TASKS, UNIT

CHUNK = 1000  # samples that are evaluated at once
RATE = 0.123  # no optimizer has it from the start: what takes it is a learning rate


def pixels(x: np.ndarray) -> np.ndarray:
    """Numbers that are all k / 255 as bytes k, a quarter of the size; others as they are."""
    k = np.round(255 * x)
    whole = x.dtype == np.float32 and np.array_equal(k.astype(np.uint8).astype(np.float32) / 255, x)
    return k.astype(np.uint8) if whole else x


def data_of(task: Task) -> dict[str, np.ndarray]:
    """Inputs and labels of both parts; no labels where they are the inputs."""
    data = task.data
    values = {"x_train": data.x_train, "x_test": data.x_test}
    if data.y_train is not data.x_train:
        values |= {"y_train": data.y_train, "y_test": data.y_test}
    return {name: pixels(value) for name, value in values.items()}


def step_of(task: Task, entry: Entry) -> Step:
    """The training step of a method, its optimizer built and nothing run."""
    keras.utils.set_random_seed(0)
    model, optimizer = task.network(), entry.make()
    model.compile(optimizer, task.loss(), jit_compile=True)
    optimizer.build(model.trainable_variables)
    x, y = (tf.constant(part[: task.batch_size]) for part in (task.data.x_train, task.data.y_train))
    return Step(model, x, y)


def rates(optimizer: keras.optimizers.Optimizer, sources: Sequence[tf.Variable | tf.Tensor]) -> list[int]:
    """Numbers of the arguments that change with `optimizer.learning_rate`."""

    def values() -> list[np.ndarray]:
        return [source.numpy() for source in sources]

    before = values()
    optimizer.learning_rate = RATE
    return [i for i, (old, new) in enumerate(zip(before, values(), strict=True)) if not np.array_equal(old, new)]


def weight_numbers(model: keras.Model, sources: Sequence[tf.Variable | tf.Tensor]) -> list[int | None]:
    """For each argument the place of its variable in `model.weights`; `None` if it is not among them."""
    places = {id(weight.value): k for k, weight in enumerate(model.weights)}
    return [places.get(id(source)) for source in sources]


def write_step(task: Task, entry: Entry, directory: pathlib.Path, name: str) -> int:
    """Writes the program of a method's step, what its arguments are, and the state before the first step.

    Args:
        task: network and data.
        entry: the method.
        directory: of the files.
        name: of the files, without their ends.

    Returns:
        Bytes of the program.
    """
    step = step_of(task, entry)
    module, description, sources = portable(step)
    weights = weight_numbers(step.model, sources)
    start = {f"argument_{i}": source.numpy() for i, source in enumerate(sources) if i > 1 and weights[i] is None}
    rejected = getattr(step.model.optimizer, "rejected_batches", None)
    counters = [i for i, source in enumerate(sources) if rejected is not None and source is rejected.value]
    extra = {"weights": weights, "rejected": counters, "rates": rates(step.model.optimizer, sources)}
    (directory / f"{name}.stablehlo").write_bytes(module)
    (directory / f"{name}.json").write_text(json.dumps(description | extra) + "\n")
    np.savez_compressed(directory / f"{name}.npz", **start)
    return len(module)


def evaluation(task: Task, model: keras.Model) -> tf.types.experimental.PolymorphicFunction:
    """Sums of loss and hits over samples, each times a weight; of a sample with several labels it counts their mean.

    Args:
        task: has the loss.
        model: whose logits count.

    Returns:
        Compiled function `(x, y, weight) -> (loss, hits)`.
    """
    loss = task.loss()

    def evaluate(x: tf.Tensor, y: tf.Tensor, weight: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        logits = model(x, training=False)
        hits = tf.cast(tf.argmax(logits, -1, tf.int32) == y, tf.float32) if task.classes else tf.zeros_like(weight)
        means = [tf.reduce_mean(tf.reshape(each, [x.shape[0], -1]), 1) for each in (loss.call(y, logits), hits)]
        return tuple(tf.tensordot(weight, each, 1) for each in means)

    return tf.function(evaluate, jit_compile=True, autograph=False)


def write_evaluation(task: Task, directory: pathlib.Path, name: str) -> dict:
    """Writes the program of `evaluation`.

    Args:
        task: network and data.
        directory: of the file.
        name: of the task.

    Returns:
        "weights", which weight each argument behind the first three is, and "chunk", samples.
    """
    model, chunk = task.network(), min(CHUNK, len(task.data.x_test))
    function = evaluation(task, model)
    inputs = [tf.constant(task.data.x_test[:chunk]), tf.constant(task.data.y_test[:chunk]), tf.ones([chunk])]
    module = function.experimental_get_compiler_ir(*inputs)(stage="stablehlo")
    (directory / f"{name}_evaluate.stablehlo").write_bytes(exported.versioned(module))
    weights = weight_numbers(model, exported.arguments_of(function, inputs))[len(inputs) :]
    if None in weights:
        raise ValueError(f"{name}: evaluation reads what is no weight of the model: {weights}")
    return {"weights": weights, "chunk": chunk}


def write_task(
    name: str, task: Task, entries: Sequence[Entry], seeds: int, chance: float, directory: pathlib.Path
) -> None:  # fmt: skip
    """Writes all files of a task and prints their programs' sizes.

    Args:
        name: of the files.
        task: network and data.
        entries: the methods.
        seeds: whose initial weights are written.
        chance: loss of a network that has learnt nothing.
        directory: made if it does not exist.
    """
    directory.mkdir(parents=True, exist_ok=True)
    weights = {f"weight_{seed}_{k}": v for seed in range(seeds) for k, v in enumerate(task.initial_weights(seed))}
    np.savez_compressed(directory / f"{name}.npz", **data_of(task), **weights)
    description = {
        "title": task.name, "batch_size": task.batch_size, "steps": task.steps, "every": task.every, "chance": chance,
        "classes": task.classes, "seeds": seeds, "unit": UNIT.name, "evaluate": write_evaluation(task, directory, name),
        "methods": [{"name": entry.name, "middle": entry.middle, "base": entry.base} for entry in entries],
    }  # fmt: skip
    for number, entry in enumerate(entries):
        size = write_step(task, entry, directory, f"{name}_{number}")
        print(f"{name}  {entry.name}: {size} bytes", flush=True)
    (directory / f"{name}.json").write_text(json.dumps(description, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command.

    Args:
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory of the files")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=[entry.name for entry in ENTRIES])
    parser.add_argument("--steps", type=int, default=2000, help="of a run")
    parser.add_argument("--every", type=int, help="steps between points of a loss curve; default: a hundredth of all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data-dir", default=os.environ.get("TFDS_DATA_DIR"), help="TFDS directory")
    options = parser.parse_args(arguments)
    entries = [entry for entry in ENTRIES if options.methods is None or entry.name in options.methods]
    for name in options.tasks:
        task = TASKS[name].make(options.data_dir, options.steps)
        task.every = options.every or max(1, options.steps // 100)
        write_task(name, task, entries, options.seeds, TASKS[name].chance, options.out)


if __name__ == "__main__":
    main()
