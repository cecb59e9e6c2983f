"""The contest for a GPU: what its files say, and that JAX runs the cells that Keras runs."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import bellman_tf as btf
from benchmarks import gpu_contest
from keras_examples.studies._cells import CONSTANT, COSINE, Cell, Entry, Setting, Store
from keras_examples.studies._contest import Ring
from keras_examples.studies._data import Data
from keras_examples.studies._study import Task
from keras_examples.studies.against_the_best import TASKS
from tests.helpers import assert_close

JAX = os.environ.get("BELLMAN_TF_JAX_PYTHON")
ENTRIES = [
    Entry("AdamW", keras.optimizers.AdamW, 0.03),
    Entry("inside", lambda: btf.GTDDP(inner_optimizer=keras.optimizers.SGD(momentum=0.9)), 0.1, "AdamW"),
    Entry("K-FAC", lambda: btf.GTDDP(curvature=btf.curvature.KFAC(invert_every=2)), 0.1, "AdamW"),
]


def network():
    inputs = keras.Input((2, 3))
    h = keras.layers.BatchNormalization()(keras.layers.Dense(5, activation="tanh")(keras.layers.Flatten()(inputs)))
    return btf.Model(inputs, keras.layers.Dense(10)(h))


def task_of(seed=0):
    """A task whose inputs are bytes over 255 and whose test part is no multiple of a chunk."""
    rng = np.random.default_rng(seed)
    x = (rng.integers(256, size=(70, 2, 3)) / np.float32(255)).astype("float32")
    y = (255 * x.mean((1, 2)) // 26).astype("int32")
    return Task("tiny", network, Data(x[:47], y[:47], x[47:], y[47:]), 8, 12, 4, {})


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_contest, "CHUNK", 10)
    gpu_contest.write_task("tiny", task_of(), ENTRIES, 2, 2.3, tmp_path)
    return tmp_path


def arguments_of(directory, number):
    description = json.loads((directory / f"tiny_{number}.json").read_text())
    with np.load(directory / f"tiny_{number}.npz") as values:
        return description, dict(values)


def test_files_hold_data_weights_and_the_state_before_the_first_step(written):
    task = task_of()
    with np.load(written / "tiny.npz") as values:
        assert values["x_train"].dtype == np.uint8
        assert_close(values["x_train"].astype("float32") / 255, task.data.x_train, rtol=0)
        assert_close(values["y_test"], task.data.y_test, rtol=0)
        for seed in range(2):
            for k, weight in enumerate(task.initial_weights(seed)):
                assert_close(values[f"weight_{seed}_{k}"], weight, rtol=0)
    about = json.loads((written / "tiny.json").read_text())
    assert (about["title"], about["batch_size"], about["steps"], about["every"]) == ("tiny", 8, 12, 4)
    assert [m["base"] for m in about["methods"]] == [None, "AdamW", "AdamW"]
    assert sorted(about["evaluate"]["weights"]) == list(range(8))
    for number, entry in enumerate(ENTRIES):
        description, start = arguments_of(written, number)
        names = [argument["name"] for argument in description["arguments"]]
        assert {k for k in description["weights"] if k is not None} == set(range(8))
        [rate] = description["rates"]
        assert names[rate].endswith("learning_rate")
        assert start[f"argument_{rate}"] == pytest.approx(float(entry.make().learning_rate))  # not the one it tried
        assert [names[i].split("/")[-1] for i in description["rejected"]] == ["rejected_batches"] * (number > 0)
        stored = [i for i, k in enumerate(description["weights"]) if k is None and i > 1]
        assert start.keys() == {f"argument_{i}" for i in stored}
        counters = [i for i in stored if names[i].endswith("iteration")]
        assert counters and all(start[f"argument_{i}"] == 0 for i in counters)


def test_inputs_that_are_no_bytes_stay_as_they_are():
    for x in (np.float32([0.1, 0.5]), np.int32([3, 700]), np.float32([-1, 2])):
        assert gpu_contest.pixels(x) is x
    assert_close(gpu_contest.pixels(np.float32([0, 51, 255]) / 255), [0, 51, 255], rtol=0)
    assert gpu_contest.pixels(np.float32([0, 51, 255]) / 255).dtype == np.uint8


def test_labels_that_are_the_inputs_are_stored_once():
    task = task_of()
    x = task.data.x_train
    task.data = Data(x, x, task.data.x_test, task.data.x_test)
    assert gpu_contest.data_of(task).keys() == {"x_train", "x_test"}


@pytest.mark.parametrize("length", [1, 6])
def test_evaluation_sums_what_keras_averages(length):
    """Over samples, and over the labels of each where it has several."""
    rng, task = np.random.default_rng(1), task_of()
    model = keras.Sequential([keras.Input((6, 4)), keras.layers.Dense(10)])
    x = tf.constant(rng.normal(size=(5, 6, 4)), tf.float32)
    y = tf.constant(rng.integers(10, size=(5, 6)), tf.int32)
    if length == 1:
        model, x, y = keras.Sequential([keras.Input((4,)), keras.layers.Dense(10)]), x[:, 0], y[:, 0]
    sums = gpu_contest.evaluation(task, model)(x, y, tf.ones([5]))
    logits = model(x)
    assert_close(sums[0] / 5, task.loss()(y, logits), rtol=1e-6)
    assert_close(sums[1] / 5, np.mean(np.argmax(logits, -1) == y.numpy()), rtol=1e-6)
    part = gpu_contest.evaluation(task, model)(x, y, tf.constant([1.0, 0, 0, 0, 0]))
    assert_close(part[0], task.loss()(y[:1], logits[:1]), rtol=1e-6)


def test_evaluation_that_reads_more_than_weights_is_refused(tmp_path):
    task, shift = task_of(), tf.Variable(np.float32(1.0))
    plain = task.network
    task.network = lambda: keras.Sequential([plain(), keras.layers.Lambda(lambda x: x + shift)])
    with pytest.raises(ValueError, match="no weight"):
        gpu_contest.write_evaluation(task, tmp_path, "tiny")


@pytest.mark.parametrize("name", ["vit", "residual"])
def test_long_runs_see_all_images(name, monkeypatch):
    asked = []
    data = task_of().data
    monkeypatch.setattr("keras_examples.studies._data.load", lambda *a: asked.append(a[2:]) or data)
    for steps in (200, 2000):
        TASKS[name].make("somewhere", steps)
    assert asked == [(20000,), ()]


@pytest.mark.skipif(not JAX, reason="BELLMAN_TF_JAX_PYTHON names no interpreter that has JAX")
def test_jax_runs_the_cells_that_keras_runs(written):
    ours, script = Store(written / "keras.jsonl"), written / "jax.jsonl"
    command = [JAX, "-m", "benchmarks.gpu_run_contest", written, "--store", script, "--rates", "1", "--threads", "2"]
    environment = {"PATH": os.environ["PATH"], "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(pathlib.Path.cwd())}
    subprocess.run(command, env=environment, check=True)
    theirs = Store(script)
    ring = Ring(task_of(), ours)
    for entry in ENTRIES:
        cells = theirs.of("tiny", entry.name)
        assert {Setting(COSINE, 12, entry.middle, 0), Setting(CONSTANT, 12, entry.middle, 0)} <= cells.keys()
        assert {setting.seed for setting in cells} == {0, 1}
        assert theirs.milliseconds["tiny", entry.name] > 0
        same = [setting for setting in cells if setting.steps == 12]
        assert ring.run(entry, same, float("inf"))
        for setting in same:
            mine, other = ours.of("tiny", entry.name)[setting], cells[setting]
            assert isinstance(other, Cell)
            assert_close(other.loss, mine.loss, rtol=1e-4)
            assert other.accuracy == pytest.approx(mine.accuracy, abs=0.05)
            assert_close(other.curve, mine.curve, rtol=1e-3)
    before = script.read_text()
    subprocess.run(command, env=environment, check=True)
    assert script.read_text() == before


def test_what_runs_cells_elsewhere_needs_no_keras():
    """JAX's interpreter has neither Keras nor TensorFlow."""
    modules = ("_rounds", "_tuning", "_standings", "_cells", "_data", "_markdown")
    names = ", ".join(f"keras_examples.studies.{name}" for name in modules)
    blocked = "import sys; sys.modules.update(keras=None, tensorflow=None, bellman_tf=None)"
    subprocess.run([sys.executable, "-c", f"{blocked}; import {names}"], check=True)
