"""The papers' tables and figures: cells and their store, what comes next, data, networks, reports, the command."""

import dataclasses
import json
import math

import keras
import numpy as np
import pytest

from keras_examples._lines import Lines
from keras_examples.papers import __main__ as command
from keras_examples.papers import catalogue, engines, figures, networks, reports, statistics, train
from keras_examples.papers import data as paper_data
from keras_examples.papers.calls import call
from keras_examples.papers.cells import Cell, Outcome, Store
from keras_examples.papers.experiment import Experiment, Part, Row
from tests.tfds_directory import prepare

NETWORK = call("papers.fully_connected", hidden=(4,), activation="tanh", classes=3)
SGD = Row("SGD", call("keras.optimizers.SGD"), (0.1, 1.0))
OURS = Row("ours", call("btf.DDPNOpt.as_published", curvature="identity"), (0.1, 1.0), base="SGD")
PART = Part("IRIS", "iris", NETWORK, 16, 40, level=50.0, watch=True)
EXPERIMENT = Experiment(
    "name", "Paper, Table 0", "something", (PART,), (SGD, OURS), seeds=3, report="table",
    printed={("IRIS", "SGD"): {"loss": 0.5, "accuracy": 90.0}, ("IRIS", "ours"): {"loss": 0.25, "accuracy": 91.0}},
)  # fmt: skip
EXPERIMENTS = [entry for entry in catalogue.ENTRIES.values() if isinstance(entry, Experiment)]
LOOKS = [entry for entry in catalogue.ENTRIES.values() if isinstance(entry, catalogue.Look)]


def outcome(loss=1.0, accuracy=0.5, **changes):
    made = Outcome(loss, accuracy, (2.0, loss), (0.25, accuracy), 0, 1.5, 1.0)
    return dataclasses.replace(made, **changes)


def filled(experiment, path, loss):
    """The store of a complete experiment, the outcomes given by a function of the cell; and the stages asked for."""
    store, stages = Store(path / "cells.jsonl"), []
    while cells := experiment.next_cells(store):
        stages.append(cells)
        for cell in cells:
            store.add(cell, loss(cell))
    return store, stages


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


def test_a_rate_that_breaks_is_not_the_best(tmp_path):
    store, _ = filled(EXPERIMENT, tmp_path, lambda cell: outcome(math.nan if cell.rate == 0.1 else 5.0))
    assert EXPERIMENT.best_rate(store, PART, SGD) == 1.0


def test_the_perturbed_rate_is_the_next_one(tmp_path):
    perturbed = dataclasses.replace(EXPERIMENT, perturbed=True, report="curves")
    store, stages = filled(perturbed, tmp_path, lambda cell: outcome(1.0 + (cell.rate != 0.1)))
    assert perturbed.perturbed_rate(store, PART, SGD) == 1.0
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


# ---- data and networks


@pytest.mark.parametrize("name", paper_data.CARRIED)
def test_carried_data_are_standardised_and_split(name):
    data = paper_data.load(name, None)
    axes = tuple(range(data.x_train.ndim - 1))
    assert np.allclose(data.x_train.mean(axis=axes), 0, atol=1e-5)
    assert np.allclose(data.x_train.std(axis=axes), 1, atol=1e-4)
    assert len(data.x_train) + len(data.x_test) == {"digits": 1797, "wine": 178, "iris": 150}[name]
    assert set(data.y_test) == set(data.y_train) == set(range({"digits": 10}.get(name, 3)))
    half = paper_data.load(name, None, 0.5)
    assert len(half.x_train) == round(0.5 * len(data.x_train)) and len(half.x_test) == len(data.x_test)


DIRECTORIES = {
    "mnist": ("3.0.1", (28, 28, 1), 10, {}),
    "fashion-mnist": ("3.0.1", (28, 28, 1), 10, {}),
    "cifar-10": ("3.0.2", (32, 32, 3), 10, {"id": ("text", None)}),
    "cifar-100": ("3.0.2", (32, 32, 3), 100, {"id": ("text", None), "coarse_label": ("label", 20)}),
    "svhn": ("3.1.0", (32, 32, 3), 10, {"id": ("text", None)}),
}


@pytest.mark.parametrize("name", DIRECTORIES)
def test_images_come_from_a_tfds_directory(name, tmp_path):
    version, shape, classes, extra = DIRECTORIES[name]
    prepare(tmp_path, paper_data.IMAGES[name], version, shape, classes, extra, counts=(120, 20))
    data = paper_data.load(name, str(tmp_path), share=0.5)
    assert data.x_train.shape == (60, *shape) and data.x_test.shape == (20, *shape)
    assert np.array_equal(data.y_train, np.arange(60) % classes)
    assert np.allclose(data.x_train.mean(axis=(0, 1, 2)), 0, atol=1e-4)


@pytest.mark.parametrize("name", ["svhn", "fashion-mnist", "cifar-100"])
def test_data_that_are_not_on_disk_are_named(name, tmp_path):
    folder = paper_data.IMAGES[name]
    with pytest.raises(ValueError, match=f"TFDS directory that holds {folder}.*--data-dir.*tfds.load.'{folder}'"):
        paper_data.load(name, str(tmp_path))


def test_sigmoid_outputs_keep_the_loss_above_its_floor():
    model = networks.fully_connected((4,), (), "tanh", classes=3, sigmoid=True)
    model.set_weights([1e3 * np.eye(4, 3), np.zeros(3)])
    x, y = np.array([[5.0, -5.0, -5.0, 0]], "float32"), np.array([0])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    floor = math.log(1 + 2 / math.e)
    assert float(loss(y, model(x))) == pytest.approx(floor, abs=1e-5)
    inputs = keras.Input((4,))
    theirs = keras.Model(inputs, keras.layers.Dense(3, activation="sigmoid")(inputs))
    theirs.set_weights(model.get_weights())
    with pytest.warns(UserWarning, match="does not represent logits"):
        assert float(loss(y, theirs(x))) < 0.01  # why ours is written out


@pytest.mark.parametrize("strides", [1, 2])
def test_residual_networks_have_three_convolutions_in_a_block(strides):
    model = networks.residual_blocks((16, 16, 1), 4, 2, "relu", strides=strides)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds.count("Conv2D") == 1 + 2 * 3 and kinds.count("Add") == 2
    assert model.output_shape == (None, 10)


@pytest.mark.slow
def test_resnet18_has_eighteen_layers_with_weights():
    for trainable, shortcuts in ((False, 3), (True, 8)):
        model = networks.resnet18((32, 32, 3), width=4, trainable_shortcuts=trainable)
        players = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense)]
        assert len(players) == 18 + shortcuts


# ---- the catalogue


def test_every_table_and_figure_of_the_list_is_there():
    wanted = {
        "ddp-table-3", "ddp-table-4", "ddp-fig-4", "ddp-fig-5", "ddp-fig-8", "ddp-fig-6", "ddpnopt-table-3",
        "ddpnopt-fig-3", "ddpnopt-fig-4", "ddpnopt-fig-5", "gtddp-table-2", "gtddp-fig-1", "gtddp-fig-4",
        "gtddp-fig-6b", "gtddp-fig-7b", "gtddp-fig-8", "gtddp-section-5", "dgnopt-table-2", "dgnopt-table-3",
        "dgnopt-table-4", "dgnopt-fig-3b", "dgnopt-fig-5", "dgnopt-fig-6", "dgnopt-fig-11",
    }  # fmt: skip
    assert wanted <= set(catalogue.ENTRIES)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_methods_can_be_made_and_numbers_belong_to_rows(experiment):
    names = {row.name for row in experiment.rows}
    assert len(names) == len(experiment.rows)
    assert {row.base for row in experiment.rows} <= {*names, None}
    for row in experiment.rows:
        optimizer = row.method.make(row.rates[0])
        assert isinstance(optimizer, keras.optimizers.Optimizer)
        assert not row.only or set(row.only) & {part.name for part in experiment.parts}
    pairs = {(part.name, row.name) for part in experiment.parts for row in experiment.rows}
    related = {(part, row) for part, row in experiment.printed if part in {each.name for each in experiment.parts}}
    assert related <= pairs and len(related) == len(experiment.printed)


def test_quick_is_small_and_pairs_a_method_with_its_baseline():
    for experiment in EXPERIMENTS:
        quick = experiment.quick()
        cells = quick.next_cells(Store(command.STORE / "there is no such file"))
        assert len(cells) <= 6 and all(cell.steps <= 40 for cell in cells)
        assert {cell.data for cell in cells} <= set(paper_data.CARRIED)
        if any(row.base for row in experiment.rows_of(experiment.parts[0])):
            assert any(row.base for row in quick.rows), experiment.name


# ---- intervals and reports


def test_variance_intervals_are_as_wide_as_few_seeds_make_them():
    low, high = statistics.variance_interval(0.0, 10, 10)
    assert (1 + high / 100, 1 / (1 + low / 100)) == pytest.approx((4.03, 4.03), abs=0.01)
    assert 1 + statistics.variance_interval(0.0, 3, 3)[1] / 100 == pytest.approx(39.0, abs=0.1)


def test_intervals_cover_what_they_should():
    rng, inside, means = np.random.default_rng(0), 0, 0
    for _ in range(400):
        ours, base = 2 * rng.normal(size=5), rng.normal(size=7)
        low, high = statistics.variance_interval(statistics.variance_change(ours, base), 5, 7)
        inside += low <= 300 <= high
        low, high = statistics.mean_interval(rng.normal(size=40))
        means += low <= 0 <= high
    assert inside / 400 == pytest.approx(0.95, abs=0.033)  # three deviations of 400 tosses
    assert means / 400 == pytest.approx(0.94, abs=0.036)  # a percentile interval of 40 is a little short


def test_differences_are_taken_seed_by_seed():
    base = np.array([1.0, 5.0, 9.0])
    assert statistics.difference_interval(base + 0.5, base) == pytest.approx((0.5, 0.5))
    assert math.isnan(statistics.variance_change(base, [1.0, 1.0]))


def cells_of(text, first, second):
    """Cells of the rows of the tables in a text that begin with two given cells."""
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if "|" in line]
    return [row for row in rows if row[:2] == [first, second]]


def test_the_table_has_the_papers_number_ours_and_the_difference(tmp_path):
    at = {str(SGD.method): 0.4, str(OURS.method): 0.3}
    store, _ = filled(
        EXPERIMENT, tmp_path, lambda c: outcome(at[str(c.method)] + c.rate + 0.01 * c.seed, 0.9 + 0.01 * c.seed)
    )
    text = reports.table(EXPERIMENT, store)
    [row] = cells_of(text, "IRIS", "ours")
    assert row[2:4] == ["0.1", "3"] and row[4].startswith("0.41 +- 0.008 [0.4, 0.42]")
    assert row[5] == "0.25" and row[6].startswith("91.00 +- 0.8") and row[7:9] == ["91", "+0"]
    [pair] = cells_of(text, "IRIS", "ours - SGD")
    assert pair[4:8] == ["-0.1 [-0.1, -0.1]", "-0.25", "+0 [+0, +0]", "+1"]
    assert "not run" in reports.table(EXPERIMENT, Store(tmp_path / "empty"))


def test_broken_runs_are_counted_and_not_averaged(tmp_path):
    store, _ = filled(EXPERIMENT, tmp_path, lambda c: outcome(math.inf if c.seed == 2 else 1.0))
    [row] = cells_of(reports.table(EXPERIMENT, store), "IRIS", "SGD")
    assert row[4] == "1 +- 0 [1, 1], 1 broken"
    [pair] = cells_of(reports.difference(EXPERIMENT, store), "IRIS", "ours - SGD")
    assert pair[4] == "broken: 1 and 1 of the base" and pair[6] == "-"


def test_the_variance_report_has_the_interval_of_its_seeds(tmp_path):
    scale = {str(SGD.method): 1.0, str(OURS.method): 2.0}
    store, _ = filled(EXPERIMENT, tmp_path, lambda c: outcome(5 + scale[str(c.method)] * c.seed, 0.5 + 0.1 * c.seed))
    [row] = cells_of(reports.variance(EXPERIMENT, store), "IRIS", "ours / SGD")
    assert row[3] == "3" and row[5] == "+300 %" and row[6] == "[-90, +15500]"
    assert abs(float(row[8].split()[0])) < 1e-6


def test_steps_to_a_level_are_those_of_the_curve(tmp_path):
    counted = dataclasses.replace(EXPERIMENT, report="steps", tune=0)
    reached = (0.1, 0.4, 0.5, 0.7)
    store, _ = filled(
        counted, tmp_path, lambda c: outcome(curve=(1.0,) * 4, accuracies=reached if c.seed else (0.0,) * 4)
    )
    [row] = cells_of(reports.steps(counted, store), "IRIS", "50 %")[:1]
    assert row[5] == "30.00 +- 0 [30.00, 30.00], 1 never"


def test_the_grid_counts_where_the_method_is_better(tmp_path):
    grid = dataclasses.replace(EXPERIMENT, report="grid", tune=0)
    ours = str(OURS.method)
    store, _ = filled(grid, tmp_path, lambda c: outcome(1.0 - 0.5 * (str(c.method) == ours) * (c.rate == 0.1)))
    text = reports.grid(grid, store)
    assert "better at 1 of 2 points" in text and "better at 0 of 2 points" in text
    assert reports.grid_values(grid, store, OURS, "loss").tolist() == [[-0.5, 0.0]]
    assert figures.heat_maps(grid, store, tmp_path / "grid.png") and (tmp_path / "grid.png").stat().st_size
    assert not figures.heat_maps(grid, Store(tmp_path / "empty"), tmp_path / "none.png")


def test_costs_are_times_the_baselines(tmp_path):
    costs = dataclasses.replace(EXPERIMENT, report="costs", tune=0)
    ours = str(OURS.method)
    store, _ = filled(costs, tmp_path, lambda c: outcome(processor=3.0 if str(c.method) == ours else 2.0))
    [row] = cells_of(reports.costs(costs, store), "IRIS", "ours")
    assert row[2:] == ["3", "1.50 (SGD)"]


# ---- the command


def test_the_list_names_every_entry(capsys):
    command.main(["--list"])
    text = capsys.readouterr().out
    assert all(f"| {name} " in text for name in catalogue.ENTRIES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "at least one"),
        (["ddp-table-9"], "ddp-table-9"),
        (["ddp-table-3", "--parts", "WINNE"], "`--parts` must be among"),
        (["dgnopt-table-4", "--parts", "SVHN", "--data-dir", "none"], "TFDS directory that holds svhn_cropped"),
    ],
)
def test_what_cannot_be_run_is_said(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main([*arguments, "--store", str(tmp_path), "--out", str(tmp_path)])
    assert message in capsys.readouterr().err


def test_quick_runs_a_table_and_another_of_its_cells(tmp_path, capsys):
    command.main(["ddp-table-3", "--quick", "--out", str(tmp_path)])
    text = (tmp_path / "ddp-table-3.md").read_text()
    assert "0.5654" in text and cells_of(text, "WINE", "DDP-SGD")
    lines = (tmp_path / "quick" / "cells.jsonl").read_text().splitlines()
    assert len(lines) == 6
    losses = [json.loads(line)["outcome"]["loss"] for line in lines]
    assert all(0.5514 < loss < 1.1 for loss in losses)
    command.main(["ddp-table-3", "--quick", "--report", "--out", str(tmp_path)])
    assert (tmp_path / "ddp-table-3.md").read_text() == text
    assert len((tmp_path / "quick" / "cells.jsonl").read_text().splitlines()) == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in catalogue.ENTRIES if name != "ddp-table-3"])
def test_quick_runs_everything(name, tmp_path, capsys):
    command.main([name, "--quick", "--out", str(tmp_path)])
    assert catalogue.ENTRIES[name].place in capsys.readouterr().out
    if not isinstance(catalogue.ENTRIES[name], catalogue.Elsewhere):
        assert (tmp_path / f"{name}.md").stat().st_size > 200
    drawn = isinstance(catalogue.ENTRIES[name], catalogue.Look) or catalogue.ENTRIES[name].name in figures.DRAWN
    assert not drawn or (tmp_path / f"{name}.png").stat().st_size


def test_the_engine_says_what_it_lacks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        command.main(["ddp-table-3", "--quick", "--engine", "ray", "--out", str(tmp_path)])
    assert 'pip install "bellman_tf[ray]"' in capsys.readouterr().err


@pytest.mark.slow
def test_rays_workers_give_what_this_process_gives():
    cluster = pytest.importorskip("ray", reason="the extra [ray]")
    cells = [EXPERIMENT.cell(PART, row, rate, seed) for row in (SGD, OURS) for rate in (0.1, 1.0) for seed in (0, 1)]
    here, there = (dict(engines.ENGINES[name](cells, None)) for name in ("local", "ray"))
    cluster.shutdown()
    assert set(here) == set(there) == set(cells)
    for cell in cells:
        assert there[cell].loss == pytest.approx(here[cell].loss, rel=1e-3)
        assert there[cell].curve == pytest.approx(here[cell].curve, rel=1e-3)
