"""The problems for peers in other frameworks: what is written, in which order."""

import ast
import dataclasses
import functools
import json
import pathlib

import keras
import numpy as np
import pytest

from benchmarks import peers, peers_loop, peers_table
from keras_examples.studies import _networks
from keras_examples.studies._cells import COSINE, Entry, Store
from keras_examples.studies._data import Data
from keras_examples.studies._study import Task
from keras_examples.studies.against_the_best import Kind


def small(network, shape, classes):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (12, *shape)).astype("float32") / 255
    y = rng.integers(0, 10, 12).astype("int32") if classes else x
    loss = functools.partial(
        keras.losses.SparseCategoricalCrossentropy if classes else keras.losses.BinaryCrossentropy, from_logits=True
    )
    return Task("small", network, Data(x, y, x, y), 4, 3, 1, {}, loss=loss, classes=classes)


def test_weights_are_written_in_the_order_of_the_layers(tmp_path):
    network = functools.partial(_networks.residual_stages, (8, 8, 3), (4, 4, 6), False)
    task = small(network, (8, 8, 3), True)
    peers.export(task, tmp_path / "task.npz")
    with np.load(tmp_path / "task.npz") as values:
        shapes = [values[key].shape for key in sorted(values) if key.startswith("weight_")]
        assert shapes[0::2] == [
            (3, 3, 3, 4), (3, 3, 4, 4), (3, 3, 4, 4), (3, 3, 4, 6), (3, 3, 6, 6), (1, 1, 4, 6), (6, 10),
        ]  # fmt: skip
        assert values["x"].shape == (3, 4, 8, 8, 3)
        assert values["y"].shape == (3, 4)
        x, y = next(iter(task.batches(0)))
        assert np.array_equal(values["x"][0], np.round(255 * x))
        assert np.array_equal(values["y"][0], y)


def test_the_loss_written_is_that_of_the_weights_written(tmp_path):
    def network():
        return keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(6)])

    values = peers.export(small(network, (6,), False), tmp_path / "task.npz")
    assert "y" not in values
    x = values["x_test"] / 255
    w = [values[f"weight_{k:02d}"] for k in range(4)]
    z = np.tanh(x @ w[0] + w[1]) @ w[2] + w[3]
    assert values["loss"] == pytest.approx(np.mean(np.logaddexp(0, z) - x * z), rel=1e-5)


@pytest.mark.parametrize("name", ["peers_jax", "peers_torch", "peers_loop"])
def test_the_scripts_of_the_peers_need_no_tensorflow(name):
    script = pathlib.Path(peers.__file__).with_name(f"{name}.py")
    tree = ast.walk(ast.parse(script.read_text()))
    found = [node for node in tree if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {alias.name for node in found if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in found if isinstance(node, ast.ImportFrom)}
    assert not {module.split(".")[0] for module in modules} & {"tensorflow", "keras", "bellman_tf", "benchmarks"}


class Parabola:
    """Minimises x^2 / 2 by gradient descent; a framework's method for the loop."""

    def restart(self):
        self.x, self.rates = 1.0, []

    def step(self, number, rate):
        self.x -= rate * self.x
        self.rates.append(rate)

    def test_loss(self):
        return self.x**2 / 2 if abs(self.x) < 1e3 else float("inf")


def test_the_loop_of_the_peers_finds_the_best_rate_and_goes_on_from_its_file(tmp_path):
    values = {"x": np.zeros((20, 4, 6), "uint8"), "x_test": np.zeros((4, 6), "uint8"), "loss": 0.5}
    np.savez(tmp_path / "autoencoder.npz", **values)
    out, made = tmp_path / "out.json", []

    def make(problem):
        assert problem.steps == 20
        made.append(Parabola())
        return {"SGD": made[-1], "other": Parabola()}

    def command(*more):
        peers_loop.command(
            "", "", {"SGD": 1.0, "other": None}, make, ["numpy"],
            [str(tmp_path), "--tasks", "autoencoder", "--rounds", "1", "--out", str(out), *more],
        )  # fmt: skip

    command()
    sgd, other = json.loads(out.read_text())["results"]
    assert list(sgd["losses"]) == ["0.1", "0.316", "1", "3.16", "10"]
    assert sgd["losses"]["10"] is None
    assert (sgd["rate"], sgd["loss"]) == (1.0, 0.0)
    assert (other["rate"], list(other["losses"])) == (None, ["1"])
    assert (sgd["ratio"], sgd["equal_time"]) == (1.0, {"steps": 20, "loss": 0.0})
    assert max(made[-1].rates) <= 10.0
    assert made[-1].rates[:10] == [made[-1].rates[0]] * 10
    assert made[-1].rates[10] == pytest.approx(made[-1].rates[0] / 2)
    stamp = out.stat().st_mtime_ns
    command()
    assert out.stat().st_mtime_ns == stamp
    command("--retime")
    assert out.stat().st_mtime_ns > stamp


def test_a_row_of_ours_runs_as_long_as_fits_in_the_time_of_sgd(tmp_path, monkeypatch):
    def network():
        return keras.Sequential([keras.Input((6,)), keras.layers.Dense(6)])

    entries = [
        Entry("SGD, momentum", keras.optimizers.SGD, 0.1),
        Entry("twice as slow", keras.optimizers.SGD, 0.1, "SGD, momentum"),
        Entry("too dear", keras.optimizers.SGD, 0.1),
        Entry("never run", keras.optimizers.SGD, 0.1),
    ]
    kind = Kind("small", 4, 40, lambda data_dir, steps: dataclasses.replace(small(network, (6,), False), every=10))
    monkeypatch.setattr(peers_table, "TASKS", {"autoencoder": kind})
    monkeypatch.setattr(peers_table, "ENTRIES", entries)
    contest, own = Store(tmp_path / "contest.jsonl"), Store(tmp_path / "own.jsonl")
    run = {"task": "small", "schedule": COSINE, "steps": 40, "seed": 0, "accuracy": 0.0, "curve": []}
    for entry, loss in zip(entries, (0.5, 0.4), strict=False):
        contest.add(run | {"method": entry.name, "rate": 0.1, "loss": loss})
        contest.add(run | {"method": entry.name, "rate": 0.3, "loss": 9.0})
        contest.add({"task": "small", "method": entry.name, "milliseconds": 2.0 if loss == 0.4 else 1.0})
    contest.add(run | {"method": "too dear", "rate": 0.1, "loss": 0.3})
    contest.add({"task": "small", "method": "too dear", "milliseconds": 9.0})
    baseline, ours, dear = peers_table.own_rows("autoencoder", contest, own, None)
    assert baseline["equal_time"] == {"steps": 40, "loss": 0.5}
    assert (ours["ratio"], ours["rate"], ours["equal_time"]["steps"]) == (2.0, 0.1, 20)
    (setting,) = own.of("small", "twice as slow")
    assert (setting.steps, setting.rate) == (20, 0.1)
    assert ours["equal_time"]["loss"] == own.of("small", "twice as slow")[setting].loss
    assert "| twice as slow | 2.0 | 2.00 | 0.1 | 0.4 |" in peers_table.table([baseline, ours])
    assert "| 0.3 | - | 0 |" in peers_table.table([dear])
    assert "| broken | 20 |" in peers_table.table([ours | {"equal_time": {"steps": 20, "loss": None}}])


def test_the_page_of_the_benchmarks_has_the_table_of_what_is_committed(capsys):
    peers_table.main([])
    tables = [part for part in capsys.readouterr().out.strip().split("\n\n") if part.startswith("| method")]
    assert len(tables) == 2
    page = pathlib.Path(peers.__file__).with_name("README.md").read_text()
    for table in tables:
        assert table.count("\n") > 10
        assert table in page
