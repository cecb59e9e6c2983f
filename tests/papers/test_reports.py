"""Intervals and reports."""

import dataclasses
import math

import numpy as np
import pytest

from keras_examples.papers import figures, reports, statistics
from keras_examples.papers.cells import Store
from tests.papers.small import EXPERIMENT, OURS, SGD, cells_of, filled, outcome


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
        low, high = statistics.mean_interval(rng.normal(size=3))
        means += low <= 0 <= high
    assert inside / 400 == pytest.approx(0.95, abs=0.033)  # three deviations of 400 tosses
    assert means / 400 == pytest.approx(0.95, abs=0.033)
    assert statistics.mean_interval([2.0]) == (2.0, 2.0)


def test_differences_are_taken_seed_by_seed():
    base = np.array([1.0, 5.0, 9.0])
    assert statistics.difference_interval(base + 0.5, base) == pytest.approx((0.5, 0.5))
    assert math.isnan(statistics.variance_change(base, [1.0, 1.0]))


def test_the_table_has_the_papers_number_ours_and_the_difference(tmp_path):
    at = {str(SGD.method): 0.4, str(OURS.method): 0.3}
    store, _ = filled(
        EXPERIMENT, tmp_path, lambda c: outcome(at[str(c.method)] + c.rate + 0.01 * c.seed, 0.9 + 0.01 * c.seed)
    )
    text = reports.table(EXPERIMENT, store)
    [row] = cells_of(text, "IRIS", "ours")
    assert row[2:4] == ["0.1", "3"] and row[4].startswith("0.41 +- 0.01 [0.3852, 0.4348]")
    assert row[5] == "0.25" and row[6].startswith("91.00 +- 1 ") and row[7:9] == ["91", "+0"]
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
    lost, _ = filled(EXPERIMENT, tmp_path / "lost", lambda c: outcome(math.inf if c.seed == 1 else 1.0 + c.seed))
    [row] = cells_of(reports.variance(EXPERIMENT, lost), "IRIS", "ours / SGD")
    assert row[5] == "broken: 1 and 1 of the base" and row[6] == "-"


def test_steps_to_a_level_are_those_of_the_curve(tmp_path):
    counted = dataclasses.replace(EXPERIMENT, report="steps", tune=0)
    reached = (0.1, 0.4, 0.5, 0.7)
    store, _ = filled(
        counted, tmp_path, lambda c: outcome(curve=(1.0,) * 4, accuracies=reached if c.seed else (0.0,) * 4)
    )
    [row] = cells_of(reports.steps(counted, store), "IRIS", "50 %")[:1]
    assert row[5] == "30.00 +- 0 [30.00, 30.00], 1 never"


def test_a_run_that_broke_has_no_accuracy_behind_its_end_and_is_drawn(tmp_path):
    watched = dataclasses.replace(EXPERIMENT, parts=(dataclasses.replace(EXPERIMENT.parts[0], watch=True),), tune=0)
    short = lambda c: (0.1, 0.2) if c.seed else (0.1, 0.2, 0.3, 0.4)
    store, _ = filled(watched, tmp_path, lambda c: outcome(curve=(1.0, 1.0, math.inf, math.inf), accuracies=short(c)))
    broken = store[watched.cell(watched.parts[0], watched.rows[0], watched.rows[0].rates[0], 1)]
    np.testing.assert_equal(broken.accuracies, (0.1, 0.2, math.nan, math.nan))
    assert figures.curves(watched, store, tmp_path / "curves.png") and (tmp_path / "curves.png").stat().st_size


def test_the_grid_counts_where_the_method_is_better(tmp_path):
    grid = dataclasses.replace(EXPERIMENT, report="grid", tune=0)
    ours = str(OURS.method)
    store, _ = filled(grid, tmp_path, lambda c: outcome(1.0 - 0.5 * (str(c.method) == ours) * (c.rate == 0.1)))
    text = reports.grid(grid, store)
    assert "better at 1 of 2 points" in text and "better at 0 of 2 points" in text
    assert reports.grid_values(grid, store, OURS, "loss").tolist() == [[-0.5, 0.0]]
    assert figures.heat_maps(grid, store, tmp_path / "grid.png") and (tmp_path / "grid.png").stat().st_size
    assert not figures.heat_maps(grid, Store(tmp_path / "empty"), tmp_path / "none.png")


def test_runs_that_break_or_fall_behind_are_counted_where_the_base_does_not(tmp_path):
    ours = str(OURS.method)
    losses = {(ours, 0): math.inf, (ours, 1): 2.1, (ours, 2): 1.9, (str(SGD.method), 2): math.inf}
    store, _ = filled(
        dataclasses.replace(EXPERIMENT, tune=0), tmp_path,
        lambda c: outcome(losses.get((str(c.method), c.seed), 1.0) if c.rate == 0.1 else 1.0),
    )  # fmt: skip
    [row] = cells_of(reports.trains(EXPERIMENT, store), "IRIS", "ours - SGD")
    assert row[2:] == ["6", "1", "1", "1", "0.1"]


def test_costs_are_times_the_baselines(tmp_path):
    costs = dataclasses.replace(EXPERIMENT, report="costs", tune=0)
    ours = str(OURS.method)
    store, _ = filled(costs, tmp_path, lambda c: outcome(processor=3.0 if str(c.method) == ours else 2.0))
    [row] = cells_of(reports.costs(costs, store), "IRIS", "ours")
    assert row[2:] == ["3", "1.50 (SGD)"]


def test_changes_of_accuracy_are_those_of_the_seeds_that_both_have(tmp_path):
    compared = dataclasses.replace(EXPERIMENT, report="difference")
    ours, store = str(OURS.method), Store(tmp_path / "cells.jsonl")
    assert np.isnan(reports.accuracy_changes(compared, store)).all()
    for row, seeds in ((SGD, 3), (OURS, 2)):
        for rate in row.rates:
            for seed in range(seeds):
                better = 0.1 * (str(row.method) == ours)
                store.add(compared.cell(compared.parts[0], row, rate, seed), outcome(accuracy=0.2 * seed + better))
    np.testing.assert_allclose(reports.accuracy_changes(compared, store), [[10.0]])
    [row] = cells_of(reports.difference(compared, store), "IRIS", "ours - SGD")
    assert row[3] == "2" and row[6] == "+10 [+10, +10]"
