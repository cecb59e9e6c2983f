"""The loop of several workers: against Keras's `fit` on one, its checkpoints; two processes in the slow suite."""

import functools
import json
import pathlib
import signal
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import bellman_tf as btf
from bellman_tf import workers
from tests import processes
from tests.processes import Workers
from tests.strategies.networks import cross_entropy, labels, normal

PROGRAM = "test_workers.run_worker"


def batches(samples=22):
    return tf.data.Dataset.from_tensor_slices((normal(samples, 6), labels(samples))).batch(8)


def compiled(optimizer=None, dropout=0.2):
    keras.utils.set_random_seed(0)
    parts = [layers.Dense(4, activation="tanh"), layers.Dropout(dropout, seed=1), layers.Dense(3)]
    model = btf.Sequential([layers.Input((6,)), *parts])
    optimizer = optimizer or btf.GTDDP(0.05, curvature="adam")
    model.compile(optimizer, metrics=["accuracy"], **cross_entropy(), jit_compile=False)
    return model


def state(model):
    return [v.numpy() for v in (*model.variables, *model.optimizer.variables, *model.seed_variables())]


@pytest.mark.parametrize("optimizer", [None, keras.optimizers.SGD])
def test_on_one_worker_it_is_keras_fit(optimizer):
    ours, keras_own = (compiled(optimizer and optimizer(0.1)) for _ in range(2))
    found = workers.fit(ours, batches(), 2)
    expected = keras_own.fit(batches(), epochs=2, verbose=0, shuffle=False).history
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6)
    for a, b in zip(state(ours), state(keras_own), strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_goes_on_from_the_last_checkpoint(tmp_path):
    whole, seen = compiled(), []
    workers.fit(whole, batches(), 4)
    for epochs in (2, 4):
        part = compiled()
        history = workers.fit(part, lambda epoch: (seen.append(epoch), batches())[1], epochs, directory=tmp_path)
    assert seen == [0, 1, 2, 3]
    assert len(history["loss"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-000003.weights.h5", "epoch-000004.weights.h5"]
    for a, b in zip(state(whole), state(part), strict=True):
        np.testing.assert_array_equal(a, b)


def test_callbacks_see_it_and_may_stop_it():
    class Stop(keras.callbacks.Callback):
        batches = 0

        def on_train_batch_end(self, batch, logs=None):
            self.batches += 1

        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = "accuracy" in logs

    stop = Stop()
    assert len(workers.fit(compiled(), batches(), 5, callbacks=[stop])["loss"]) == 1
    assert stop.batches == 3


def test_a_broken_exchange_names_the_way_on(tmp_path):
    class Break(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            raise tf.errors.UnavailableError(None, None, "Collective ops is aborted")

    with pytest.raises(workers.WorkerLost, match=r"Start all workers again. They go on from the last checkpoint in"):
        workers.fit(compiled(), batches(), 1, directory=tmp_path, callbacks=[Break()])


def test_what_it_needs_is_said():
    model = btf.Sequential([layers.Dense(3)])
    model.compile(btf.GTDDP(0.1), "mse")
    with pytest.raises(ValueError, match="`model` must be built and compiled in the strategy's scope"):
        workers.fit(model, batches())
    with pytest.raises(ValueError, match="`epochs` must be an integer >= 1"):
        workers.fit(compiled(), batches(), 0)


# ---- two processes


def run_worker():
    """What every worker runs: argv is index, epochs, directory, and the epoch at which it waits to be killed."""
    strategy = processes.strategy()
    epochs, directory, wait = int(sys.argv[2]), pathlib.Path(sys.argv[3]), int(sys.argv[4])
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA

    class Wait(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == wait:
                (directory / "waits").write_text("")
                time.sleep(processes.LIMIT)

    with strategy.scope():
        model = compiled()
    if wait < 0:
        with pytest.raises(ValueError, match="`fit` must be left to `bellman_tf.workers.fit`"):
            model.fit(batches())
    history = workers.fit(
        model, batches().with_options(options), epochs, directory=directory / "run",
        callbacks=[Wait()] if sys.argv[1] == "1" else [],
    )  # fmt: skip
    with open(directory / f"result_{sys.argv[1]}.json", "w") as file:
        json.dump({"history": history, "state": [part.tolist() for part in state(model)]}, file)


KFAC = functools.partial(btf.curvature.KFAC, invert_every=2)
TOGETHER = {"replica": {}, "global": {"coupling": "global"}, "sharded": {"curvature": KFAC(sharded=True)}}
ALONE = {"replica": {"group_size": 4}, "global": {}, "sharded": {"group_size": 4, "curvature": KFAC()}}


def run_couplings():
    """What every worker runs to be compared with one process: argv is index and directory."""
    strategy = processes.strategy()
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    found = {}
    for name, own in TOGETHER.items():
        with strategy.scope():
            model = compiled(btf.GTDDP(0.03, **own), dropout=0.0)
        history = workers.fit(model, batches(24).with_options(options), 2)
        found[name] = {"history": history, "state": [part.tolist() for part in state(model)]}
    (pathlib.Path(sys.argv[2]) / f"result_{sys.argv[1]}.json").write_text(json.dumps(found))


def results(directory):
    return [json.loads((directory / f"result_{index}.json").read_text()) for index in range(2)]


@pytest.mark.slow
def test_two_workers_train_and_one_that_is_killed_ends_both(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for directory in (whole, cut):
        directory.mkdir()
    with Workers(whole, PROGRAM, 3, whole, -1) as both:
        assert both.statuses() == [0, 0], both.report()
    first, second = results(whole)
    assert first == second
    with Workers(cut, PROGRAM, 3, cut, 2) as both:
        both.wait_for(cut / "waits")
        both.processes[1].send_signal(signal.SIGKILL)
        assert both.statuses() == [1, -signal.SIGKILL], both.report()
    assert "WorkerLost: Another worker has ended or cannot be reached" in (cut / "log_0").read_text()
    with Workers(cut, PROGRAM, 3, cut, -1) as both:
        assert both.statuses() == [0, 0], both.report()
    again = results(cut)[0]
    assert again["state"] == first["state"]
    assert again["history"]["loss"] == first["history"]["loss"][2:]


@pytest.mark.slow
def test_two_bothare_one_process_in_groups_or_with_coupling_global_one_process(tmp_path):
    with Workers(tmp_path, "test_workers.run_couplings", tmp_path) as both:
        assert both.statuses() == [0, 0], both.report()
    first, second = results(tmp_path)
    assert first == second
    for name, options in ALONE.items():
        alone = compiled(btf.GTDDP(0.03, **options), dropout=0.0)
        expected = workers.fit(alone, batches(24), 2)
        np.testing.assert_allclose(first[name]["history"]["loss"], expected["loss"], rtol=1e-5)
        for found, value in zip(first[name]["state"], state(alone), strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5)


def run_missing():
    """What every worker runs of a pair whose second one does not come."""
    if sys.argv[1] == "1":
        raise RuntimeError("this worker does not come")
    processes.strategy()


@pytest.mark.slow
def test_a_worker_that_waits_for_one_that_does_not_come_is_ended_with_both_logs(tmp_path, monkeypatch):
    """TensorFlow waits for an hour."""
    monkeypatch.setattr(processes, "GRACE", 15)
    with Workers(tmp_path, "test_workers.run_missing") as both:
        with pytest.raises(TimeoutError, match=r"did not end within 15 s of the other.*\[None, 1\]") as found:
            both.statuses()
        assert "RuntimeError: this worker does not come" in str(found.value)
    assert [process.poll() for process in both.processes] == [-signal.SIGKILL, 1]
