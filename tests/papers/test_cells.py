"""Cells and their store, and which runs come next."""

import dataclasses
import json
import math

import numpy as np
import pytest

from keras_examples.papers import __main__ as command
from keras_examples.papers import catalogue, engines, figures, reports, train
from keras_examples.papers.calls import call
from keras_examples.papers.cells import Cell, Store
from keras_examples.studies._lines import Lines
from tests.papers.small import EXPERIMENT, OURS, PART, SGD, filled, outcome


def test_a_call_says_what_it_makes():
    made = call("btf.EKFAC.as_published", curvature=call("btf.curvature.EKFAC", cooperative="rescale"))
    assert str(made) == "btf.EKFAC.as_published(curvature=btf.curvature.EKFAC(cooperative='rescale'))"
    optimizer = made.make(0.25)
    assert float(optimizer.learning_rate.numpy()) == 0.25
    assert optimizer.get_config()["curvature"]["config"]["cooperative"] == "rescale"


def test_a_cell_is_the_same_by_content_alone():
    cell = EXPERIMENT.cell(PART, SGD, 0.1, 0)
    renamed = dataclasses.replace(PART, name="other name", level=3.0)
    assert EXPERIMENT.cell(renamed, dataclasses.replace(SGD, name="other"), 0.1, 0).key == cell.key
    changes = {"data": "wine", "batch": 8, "steps": 41, "rate": 0.2, "seed": 1, "share": 0.5, "schedule": "drops"}
    changes |= {"network": call("papers.fully_connected"), "method": OURS.method, "watch": False, "reward": True}
    keys = [dataclasses.replace(cell, **{name: value}).key for name, value in changes.items()]
    assert set(changes) == {field.name for field in dataclasses.fields(Cell)}
    assert len({*keys, cell.key}) == len(changes) + 1


def test_the_store_keeps_what_is_written_whole(tmp_path):
    path = tmp_path / "deep" / "cells.jsonl"
    first, second = (EXPERIMENT.cell(PART, SGD, 0.1, seed) for seed in (0, 1))
    store = Store(path)
    store.add(first, outcome(loss=math.inf))
    text = path.read_text()
    path.write_text(text + text[: len(text) // 2])  # an interruption
    again = Store(path)
    assert again[first] == outcome(loss=math.inf)
    assert second not in again
    again.add(second, outcome(accuracy=0.75))
    assert Store(path)[second].accuracy == 0.75
    assert [json.loads(line)["cell"]["seed"] for line in text.splitlines()] == [0]


def test_a_line_that_was_cut_off_does_not_spoil_the_next(tmp_path):
    lines = Lines(tmp_path / "lines")
    lines.add({"a": 1})
    with (tmp_path / "lines").open("a") as file:
        file.write('{"a": 2')
    assert lines.read() == [{"a": 1}]
    lines.add({"a": 3})
    assert lines.read() == [{"a": 1}, {"a": 3}]


def test_rates_are_tried_on_few_seeds_and_the_best_ones_run_on_all(tmp_path):
    best = {"SGD": 1.0, "ours": 0.1}
    names = {str(row.method): row.name for row in EXPERIMENT.rows}
    store, (first, second) = filled(
        EXPERIMENT, tmp_path, lambda cell: outcome(1.0 + (cell.rate != best[names[str(cell.method)]]))
    )
    assert len(first) == 8 and {cell.seed for cell in first} == {0, 1}
    assert {(names[str(cell.method)], cell.rate) for cell in second} == {("SGD", 1.0), ("ours", 0.1), ("ours", 1.0)}
    assert {cell.seed for cell in second} == {2}
    assert EXPERIMENT.best_rate(store, PART, OURS) == 0.1


def test_an_experiment_is_run_at_some_of_its_rates():
    extra = dataclasses.replace(SGD, name="other", rates=(5.0,))
    chosen = dataclasses.replace(EXPERIMENT, rows=(*EXPERIMENT.rows, extra)).at_rates([0.1, 0.2])
    assert [(row.name, row.rates) for row in chosen.rows] == [("SGD", (0.1,)), ("ours", (0.1,))]
    assert EXPERIMENT.at_rates(None) == EXPERIMENT
    with pytest.raises(ValueError, match=r"`--rates` must be among \[0.1, 1.0\]"):
        EXPERIMENT.at_rates([7.0])


def test_a_rate_that_breaks_is_not_the_best(tmp_path):
    store, _ = filled(EXPERIMENT, tmp_path, lambda cell: outcome(math.nan if cell.rate == 0.1 else 5.0))
    assert EXPERIMENT.best_rate(store, PART, SGD) == 1.0


def test_the_perturbed_rate_is_the_next_one(tmp_path):
    perturbed = dataclasses.replace(EXPERIMENT, perturbed=True, report="curves")
    store, stages = filled(perturbed, tmp_path, lambda cell: outcome(1.0 + (cell.rate != 0.1)))
    assert perturbed.perturbed_rate(store, PART, SGD) == 1.0
    beyond, asked = filled(perturbed, tmp_path / "beyond", lambda cell: outcome(1.0 / cell.rate))
    assert perturbed.perturbed_rate(beyond, PART, SGD) == 10.0
    assert {cell.rate for cell in asked[1]} == {1.0, 10.0}
    assert {cell.rate for cell in stages[1] if cell.method == OURS.method} == {0.1, 1.0}
    assert "perturbed" in reports.curves(perturbed, store)
    assert figures.curves(perturbed, store, tmp_path / "curves.png")


def test_experiments_of_one_paper_share_their_cells(tmp_path):
    table, variances = (catalogue.ENTRIES[name].restricted(["WINE"], None) for name in ("ddp-table-3", "ddp-table-4"))
    store, _ = filled(table, tmp_path, lambda cell: outcome(cell.rate))
    assert variances.next_cells(store) == []


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    ran = []

    def engine(cells, data_dir):
        for cell in cells:
            ran.append(cell.key)
            yield cell, outcome(cell.rate)

    monkeypatch.setitem(engines.ENGINES, "local", engine)
    path = tmp_path / "cells.jsonl"
    assert not command.conduct(EXPERIMENT, Store(path), "local", None, -math.inf)
    assert len(ran) == 1
    assert command.conduct(EXPERIMENT, Store(path), "local", None, math.inf)
    assert len(ran) == len(set(ran)) == len(path.read_text().splitlines()) == 8 + 2


def test_cells_of_one_compiled_step_are_run_together():
    cells = [EXPERIMENT.cell(PART, row, rate, seed) for seed in (0, 1) for rate in (0.1, 1.0) for row in (SGD, OURS)]
    groups = train.groups(cells)
    assert [{cell.method for cell in group} for group in groups] == [{SGD.method}, {OURS.method}]
    assert [len(group) for group in groups] == [4, 4]


def test_cells_give_the_same_again_and_learn(tmp_path):
    cells = [EXPERIMENT.cell(PART, SGD, rate, 0) for rate in (0.1, 0.1 / 3, 0.1)]
    first, other, again = (found for _, found in train.run(cells, None))
    assert dataclasses.replace(first, milliseconds=0, processor=0) == dataclasses.replace(
        again, milliseconds=0, processor=0
    )
    assert 0 < first.processor < 100
    assert first.curve != other.curve and first.loss < other.loss < 1.1
    assert len(first.curve) == len(first.accuracies) == 40
    assert first.accuracies[-1] == pytest.approx(first.accuracy, abs=1e-4)


def test_the_rate_drops_twice():
    cells = [dataclasses.replace(EXPERIMENT.cell(PART, SGD, 0.5, 0), schedule=schedule) for schedule in ("drops",)]
    [(_, dropped)] = train.run(cells, None)
    [(_, constant)] = train.run([EXPERIMENT.cell(PART, SGD, 0.5, 0)], None)
    assert dropped.curve[:20] == constant.curve[:20]
    late = [np.abs(np.diff(each.curve[30:])).mean() for each in (dropped, constant)]
    assert dropped.curve[20:] != constant.curve[20:] and late[0] < late[1] * 2
