"""Training on several machines, `tf.distribute.MultiWorkerMirroredStrategy`, by a loop of our own.

`fit` of Keras 3 does not run under this strategy (keras-team/keras#20585; seen with Keras 3.15.1, TensorFlow 2.21):
before the first step it averages the batch of all workers in order to build the model, which TensorFlow refuses
(`_maybe_symbolic_build`: "Attempt to convert a value (PerReplica ...) to a Tensor"), and after it the step's numbers
are averaged along an axis that they do not have (`reduce_per_replica`: "Invalid reduction dimension 0"). What is
between, `strategy.run(model.train_step)`, works, and so does what our optimizers exchange in it.

    TF_CONFIG   in the environment of every process, before TensorFlow is imported
    strategy = tf.distribute.MultiWorkerMirroredStrategy()     before anything else is done with TensorFlow
    with strategy.scope(): model = ...; model.compile(...)
    bellman_tf.workers.fit(model, dataset, epochs=10, directory="shared/run")

Every worker runs the same program. What its step means is what it means on several devices of one machine.
"""

import pathlib
import tempfile
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from bellman_tf import _checks, replicas
from bellman_tf._typing import Nested
from bellman_tf.optimizers.gtddp import GTDDP
from bellman_tf.optimizers.rejections import watching

# What TensorFlow raises in a worker whose exchange with another one breaks off.
_BROKEN = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.InternalError,
    tf.errors.DeadlineExceededError,
    tf.errors.CancelledError,
)
_SUFFIX = ".weights.h5"

__all__ = ["WorkerLost", "fit"]


class WorkerLost(RuntimeError):
    """Another worker has ended, or cannot be reached: the step that was under way is lost.

    Example:
        >>> issubclass(WorkerLost, RuntimeError)
        True
    """


def fit(
    model: keras.Model,
    dataset: tf.data.Dataset | Callable[[int], tf.data.Dataset],
    epochs: int = 1,
    *,
    directory: str | pathlib.Path | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> dict[str, list[float]]:
    """Trains a model that was compiled in the scope of a strategy, on all of its workers.

    At the end of every epoch the first worker writes weights, optimizer and random generators to `directory`, in one
    move, and keeps the last two. Where the directory holds such a file the run goes on from it: exactly, if the dataset
    of an epoch depends on the number of the epoch alone.

    Args:
        model: of any class of Keras's, built and compiled; training steps are its own `train_step`.
        dataset: of batches of all workers together, which `strategy.experimental_distribute_dataset` shards; or a
            function that makes one for an epoch, counted from 0.
        epochs: at which number to stop, those of an earlier run included.
        directory: for checkpoints, on a file system that all workers share; `None` for no checkpoints.
        callbacks: as in Keras's `fit`. Every worker has the same logs; a callback that writes files should do so on one
            worker. `model.stop_training` must come out the same on all.

    Returns:
        The metrics of every epoch of this run, over the samples of all workers.

    Raises:
        ValueError: if the model is not built and compiled, or the workers find different checkpoints.
        WorkerLost: if another worker ends; start all of them again, and they go on from the last checkpoint.

    Example:
        >>> model = btf.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(btf.GTDDP(0.1), loss="mse")
        >>> batches = tf.data.Dataset.from_tensor_slices((tf.ones([8, 2]), tf.ones([8, 1]))).batch(4)
        >>> len(fit(model, batches, epochs=2)["loss"])
        2
    """
    _checks.check_integer("epochs", epochs, least=1)
    if not model.built or getattr(model, "optimizer", None) is None:
        raise _checks.error(
            "model", "be built and compiled in the strategy's scope", model.name,
            "Give it an Input, and call `compile`.",
        )  # fmt: skip
    strategy = model.distribute_strategy
    with strategy.scope():
        model.optimizer.build(model.trainable_variables)
        if isinstance(model.optimizer, GTDDP):
            model.optimizer.prepare(model.game)
            model.warn_open_loop()
    try:
        return _train(model, strategy, dataset, epochs, directory, callbacks)
    except _BROKEN as error:
        hint = "" if directory is None else f" They go on from the last checkpoint in '{directory}'."
        raise WorkerLost(
            f"Another worker has ended or cannot be reached: TensorFlow says {type(error).__name__}, printed above. "
            f"Start all workers again.{hint}"
        ) from error


def _train(
    model: keras.Model,
    strategy: tf.distribute.Strategy,
    dataset: tf.data.Dataset | Callable[[int], tf.data.Dataset],
    epochs: int,
    directory: str | pathlib.Path | None,
    callbacks: Sequence[keras.callbacks.Callback],
) -> dict[str, list[float]]:
    first = 0 if directory is None else _resume(model, strategy, pathlib.Path(directory))
    made = dataset if callable(dataset) else lambda epoch: dataset

    def step_of(batch: Nested) -> dict[str, tf.Tensor]:
        return strategy.run(model.train_step, args=(batch,))

    def summed() -> list[tf.Tensor]:
        return strategy.run(_summed, args=(model,))

    step, total = None, tf.function(summed, autograph=False)  # as Keras traces a step
    given = watching(list(callbacks), model) if isinstance(model.optimizer, GTDDP) else list(callbacks)
    events = keras.callbacks.CallbackList(given, add_history=True, model=model, epochs=epochs)
    model.stop_training = False
    events.on_train_begin()
    for epoch in range(first, epochs):
        model.reset_metrics()
        events.on_epoch_begin(epoch)
        distributed = strategy.experimental_distribute_dataset(made(epoch))
        if step is None:
            step = tf.function(step_of, input_signature=[distributed.element_spec], autograph=False)
        # A batch is fetched before its step: a step that finds none has drawn random numbers already.
        for number, batch in enumerate(distributed):
            events.on_train_batch_begin(number)
            logs = {k: strategy.experimental_local_results(v)[0] for k, v in step(batch).items()}
            events.on_train_batch_end(number, logs)
        events.on_epoch_end(epoch, _results(model, strategy, total()))
        if directory is not None:
            _save(model, strategy, pathlib.Path(directory), epoch + 1)
        if model.stop_training:
            break
    model.optimizer.finalize_variable_values(model.trainable_variables)
    events.on_train_end()
    return model.history.history


def _summed(model: keras.Model) -> list[tf.Tensor]:
    """Sums of metrics over all replicas, called in each: counts and totals are those of its own samples."""
    # TensorFlow exchanges a copy of a variable's value, the value itself it does not take
    return replicas.total([tf.identity(v) for metric in model.metrics for v in metric.variables])


def _results(model: keras.Model, strategy: tf.distribute.Strategy, sums: list[tf.Tensor]) -> dict[str, float]:
    """The metrics of an epoch, from the sums over all workers."""
    variables = [v for metric in model.metrics for v in metric.variables]
    sums = [strategy.experimental_local_results(part)[0] for part in sums]
    with keras.StatelessScope(state_mapping=list(zip(variables, sums, strict=True))):
        results = model.get_metrics_result()
    return {name: float(value) for name, value in results.items()}


# ---- checkpoints


def _is_first(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes: the first worker, or the only one."""
    resolver = strategy.cluster_resolver
    return resolver is None or not resolver.task_type or resolver.task_id == 0


def _numbers(directory: pathlib.Path) -> list[int]:
    """Epochs after which there are checkpoints, in order."""
    return sorted(int(path.name[6:12]) for path in directory.glob(f"epoch-??????{_SUFFIX}"))


def _file(directory: pathlib.Path, epoch: int) -> pathlib.Path:
    return directory / f"epoch-{epoch:06d}{_SUFFIX}"


def _resume(model: keras.Model, strategy: tf.distribute.Strategy, directory: pathlib.Path) -> int:
    """Loads the last checkpoint, if there is one, and says after which epoch it was written."""
    found = (_numbers(directory) or [0])[-1]
    count = strategy.num_replicas_in_sync
    total = tf.function(lambda: strategy.run(lambda: replicas.total([tf.constant(found)])), autograph=False)()
    if int(strategy.experimental_local_results(total[0])[0]) != count * found:
        raise _checks.error(
            "directory", "hold the same checkpoints for all workers", f"epoch {found} for this one",
            "Use a file system that they share.",
        )  # fmt: skip
    if found:
        with strategy.scope():
            model.load_weights(_file(directory, found))
    return found


def _save(model: keras.Model, strategy: tf.distribute.Strategy, directory: pathlib.Path, epoch: int) -> None:
    """Writes a checkpoint. Every worker reads the variables, which may be an exchange; only the first keeps them."""
    if not _is_first(strategy):
        with tempfile.TemporaryDirectory() as aside:
            model.save_weights(pathlib.Path(aside) / f"unused{_SUFFIX}")
        return
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = directory / f"unfinished{_SUFFIX}"
    model.save_weights(unfinished, overwrite=True)
    unfinished.replace(_file(directory, epoch))
    for old in _numbers(directory)[:-2]:
        _file(directory, old).unlink()
