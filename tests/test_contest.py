"""The contest of optimizers: how methods are tuned, what the store says, and that an interrupted run goes on."""

import dataclasses
import json
import math
import pathlib
import re
from types import SimpleNamespace

import numpy as np
import pytest

from keras_examples.studies import _cells, _contest, _goals, _rounds, _standings, _tuning, against_the_best
from keras_examples.studies._cells import CONSTANT, COSINE, Cell, Entry, Setting

RESULTS = pathlib.Path(against_the_best.__file__).parents[1] / "results"
BUDGET = _tuning.Budget(steps=40, rates=5, seeds=3, finalists=2)
CURVE = (2.0, 1.0, 0.5, 0.25)


def cells(losses, curve=CURVE):
    """Cells of one method: setting -> loss."""
    return {
        setting: Cell("task", "method", *dataclasses.astuple(setting), loss, math.nan, curve)
        for setting, loss in losses.items()
    }


def tuned(middle, loss):
    """What the rule asks for, stage by stage, with the loss of a setting given by a function."""
    done, stages = {}, []
    while asked := _tuning.next_settings(done, middle, BUDGET):
        assert not set(asked) & set(done)
        stages.append(asked)
        done |= cells({setting: loss(setting) for setting in asked})
    return done, stages


def distance(best):
    """A loss that is lowest at one rate, worse with the constant rate and a little so with later seeds."""
    return lambda s: 1 + abs(math.log10(s.rate / best)) + 0.1 * (s.schedule == CONSTANT) + 0.01 * s.seed


def test_rates_are_half_a_decade_apart_around_the_middle():
    rates = _tuning.rates_of(0.03, 5)
    assert rates == [0.003, 0.00949, 0.03, 0.0949, 0.3]
    assert [_tuning.place_of(rate, 0.03) for rate in rates] == [-2, -1, 0, 1, 2]


def test_a_cosine_starts_at_its_rate_and_would_be_zero_after_the_last_piece():
    for schedule in (COSINE, _cells.BEYOND):
        rates = [Setting(schedule, 40, 0.3, 0).rate_in(piece, 4) for piece in range(5)]
        assert rates == pytest.approx([0.3, 0.15 + 0.15 * math.sqrt(0.5), 0.15, 0.15 - 0.15 * math.sqrt(0.5), 0])
    assert [Setting(CONSTANT, 40, 0.3, 0).rate_in(piece, 4) for piece in (0, 3)] == [0.3, 0.3]


def test_every_method_is_tuned_in_three_stages():
    _, stages = tuned(0.1, distance(0.1))
    assert [len(stage) for stage in stages] == [5, 2, 4]
    assert {(s.schedule, s.seed) for s in stages[0]} == {(COSINE, 0)}
    assert [(s.schedule, s.rate) for s in stages[1]] == [(CONSTANT, 0.0316), (CONSTANT, 0.1)]
    assert {s.seed for s in stages[2]} == {1, 2}
    assert {(s.schedule, s.rate) for s in stages[2]} == {(COSINE, 0.1), (CONSTANT, 0.1)}


@pytest.mark.parametrize(("best", "extra"), [(1.0, []), (3.16, [3.16]), (100.0, [3.16, 10.0]), (1e-9, [3.16e-3, 1e-3])])
def test_a_best_rate_on_the_rim_extends_the_grid_at_most_twice(best, extra):
    middle = 0.1 if best != 1.0 else 0.316
    done, _ = tuned(middle, distance(best))
    rates = {s.rate for s in done if s.schedule == COSINE}
    assert rates - set(_tuning.rates_of(middle, 5)) >= set(extra)
    assert len(rates) == min(7, 5 + len(extra) + (best == 3.16))


@pytest.mark.parametrize(("best", "lowest"), [(0.1, 0.0316), (0.0316, 0.01), (0.01, 0.00316), (0.001, 0.00316)])
def test_constant_rates_go_down_while_the_lowest_is_best(best, lowest):
    constant = distance(best)
    done, _ = tuned(0.1, lambda s: (constant if s.schedule == CONSTANT else distance(0.1))(s))
    assert min(s.rate for s in done if s.schedule == CONSTANT) == lowest


def test_a_method_that_breaks_everywhere_is_tried_at_smaller_rates():
    done, _ = tuned(0.1, lambda s: math.inf)
    assert min(s.rate for s in done) < 0.0032


def test_other_lengths_are_run_at_the_finalists_settings():
    done, _ = tuned(0.1, distance(0.1))
    asked = _tuning.other_lengths(done, BUDGET, [60, 40])
    assert {s.steps for s in asked} == {60}
    assert len(asked) == 2 * 3
    done |= cells(dict.fromkeys(asked, 0.5))
    assert not _tuning.other_lengths(done, BUDGET, [60, 40])
    assert not _tuning.next_settings(done, 0.1, BUDGET)


def test_the_best_is_taken_from_settings_with_all_seeds():
    losses = {Setting(COSINE, 40, 0.1, seed): loss for seed, loss in enumerate((0.3, 0.6, 0.6))}
    losses |= {Setting(COSINE, 40, 0.316, seed): 0.4 for seed in range(3)}
    losses |= {Setting(COSINE, 40, 1.0, 0): 0.5, Setting(COSINE, 40, 0.0316, 0): 0.7}
    best = _standings.best_of(cells(losses), BUDGET)
    assert (best.setting.rate, best.loss) == (0.316, pytest.approx(0.4))
    del losses[Setting(COSINE, 40, 0.316, 2)]
    assert _standings.best_of(cells(losses), BUDGET).setting.rate == 0.1
    assert _standings.best_of(cells({Setting(COSINE, 40, 0.1, 0): 1.0}), BUDGET) is None


def test_width_is_interpolated_on_logarithmic_scales():
    losses = {
        Setting(COSINE, 40, rate, 0): loss for rate, loss in ((0.01, 4.0), (0.1, 1.0), (1.0, 4.0), (10.0, math.inf))
    }
    losses |= {Setting(COSINE, 40, 0.1, seed): 1.0 for seed in (1, 2)}
    best = _standings.best_of(cells(losses), dataclasses.replace(BUDGET, finalists=1))
    assert best.widths[0] == pytest.approx(2 * math.log(2) / math.log(4))
    assert best.widths[1] == pytest.approx(2 * math.log(1.1) / math.log(4))
    assert not best.open
    del losses[Setting(COSINE, 40, 0.01, 0)]
    assert _standings.best_of(cells(losses), dataclasses.replace(BUDGET, finalists=1)).open


def test_rates_beyond_the_grid_are_run_while_they_are_good():
    """Within 2 of 0.1 for two decades downwards and one upwards; what is run there tunes nothing."""

    def loss(setting):
        away = 2 * math.log10(setting.rate / 0.1)
        return 1.0 + abs(away) / 4 if -4.2 < away < 2.2 else 9.0

    done, _ = tuned(0.1, loss)
    level, asked = 2.0, []
    while settings := _tuning.beyond(done, 0.1, BUDGET, level):
        asked += [setting.rate for setting in settings]
        done |= cells({setting: loss(setting) for setting in settings})
    assert sorted(asked) == [0.000316, 0.001, 0.00316, 3.16]
    assert _tuning.losses_by_rate(done, BUDGET).keys() == set(_tuning.rates_of(0.1, 5))
    decades, is_open = _standings.width(_tuning.losses_by_rate(done, BUDGET, beyond=True), level)
    assert 3 < decades < 4
    assert not is_open
    assert all(setting.schedule != _cells.BEYOND for setting in _tuning.finalists(done, BUDGET))
    better = cells({Setting(_cells.BEYOND, BUDGET.steps, 10.0, 0): 0.1})
    assert _tuning.finalists(done | better, BUDGET) == _tuning.finalists(done, BUDGET)


def test_good_is_at_least_half_way_from_knowing_nothing():
    rows = [SimpleNamespace(best=SimpleNamespace(loss=loss)) for loss in (1.5, 1.9)]
    assert _standings.good_loss(rows, 2.3) == pytest.approx(1.9)
    assert _standings.good_loss(rows, 23.0) == 3.0
    assert _standings.good_loss([], 2.3) == math.inf


@pytest.mark.parametrize("name", ["digits", "characters"])
def test_a_network_that_has_learnt_nothing_has_the_loss_of_its_task(name):
    kind = against_the_best.TASKS[name]
    task = kind.make(None, 10)
    labels = task.data.y_test[:50]
    outputs = task.network().output_shape[-1]
    assert math.isclose(kind.chance, math.log(outputs), rel_tol=0.02)  # the text differs between Pythons
    assert float(task.loss()(labels, np.zeros([*labels.shape[:2][: labels.ndim], outputs]))) == pytest.approx(
        math.log(outputs), rel=1e-6
    )


def test_six_decades_are_enough():
    done, _ = tuned(0.1, lambda s: 1.0 + abs(math.log10(s.rate / 0.1)) / 100)
    while settings := _tuning.beyond(done, 0.1, BUDGET, 2.0):
        done |= cells(dict.fromkeys(settings, 1.5))
    decades, is_open = _standings.width(_tuning.losses_by_rate(done, BUDGET, beyond=True), 2.0)
    assert decades == pytest.approx(6.0)
    assert is_open


def test_loss_at_equal_time_interpolates_between_lengths_and_never_extrapolates():
    losses = {Setting(COSINE, steps, 0.1, seed): loss for steps, loss in ((40, 1.0), (80, 0.5)) for seed in range(3)}
    done, budget = cells(losses), dataclasses.replace(BUDGET, finalists=1)
    assert _standings.loss_at(done, budget, 40) == pytest.approx(1.0)
    assert _standings.loss_at(done, budget, math.sqrt(40 * 80)) == pytest.approx(0.75)
    assert _standings.loss_at(done, budget, 20) == pytest.approx(1.0)
    assert _standings.loss_at(done, budget, 81) is None
    assert _standings.length_in(100, 2.0, 2.1, 10) == 140
    assert _standings.length_in(100, 4.0, 2.0, 10) == 50
    assert _standings.length_in(100, 1.0, 100.0, 10) == 1120
    assert _standings.length_in(100, 8.0, 1.0, 10) == 20  # 12.5 steps fit: up to the next rung, in whole pieces
    assert _standings.length_in(20, 100.0, 1.0, 10) == 10


def test_a_baseline_runs_in_the_time_of_its_rule_with_the_game_of_faster_games_and_of_the_best_one():
    def row(name, milliseconds, loss, base=None):
        return SimpleNamespace(
            entry=Entry(name, None, 0.1, base), milliseconds=milliseconds, best=SimpleNamespace(loss=loss)
        )

    slow, quick = row("Muon", 8.0, 0.1), row("AdamW", 1.0, 0.2)
    games = [
        row("Muon inside", 8.5, 0.15, "Muon"),
        row("AdamW inside", 1.3, 0.2, "AdamW"),
        row("K-FAC", 4.0, 0.3, "K-FAC"),
    ]
    rows, budget = [slow, quick, *games], dataclasses.replace(BUDGET, steps=100)
    assert _rounds.lengths_of(slow.entry, rows, budget, 10) == [20, 50, 140]  # of AdamW, K-FAC and Muon inside
    assert _rounds.lengths_of(quick.entry, rows, budget, 10) == [140, 1120]  # of AdamW inside and the best one


def test_time_to_a_loss_is_read_off_the_mean_curve():
    losses = {Setting(COSINE, 40, 0.1, seed): 1.0 for seed in range(3)}
    best = _standings.best_of(cells(losses, curve=(4.0,) * 3 + (2.0,) * 7), BUDGET)  # 4 steps a piece, mean of three
    assert best.curve[0] == pytest.approx([4, 4, 4, 10 / 3, 8 / 3, 2, 2, 2, 2, 2])
    assert _standings.steps_to(best, 3.0) == pytest.approx((4 + 0.5) * 4)
    assert _standings.steps_to(best, 1.9) is None


def test_an_interval_holds_the_mean_of_three_seeds():
    mean, low, high = map(float, re.findall(r"[\d.]+", _standings.mean_text([1.0, 2.0, 4.0])))
    assert 1.0 <= low < mean < high <= 4.0
    assert mean == 2.333


def test_two_seeds_have_no_interval():
    assert _standings.mean_text([1.0, 2.0]) == "1.5 (1, 2)"
    assert _standings.mean_text([1.0, math.inf, 2.0]) == "inf"


def contest_of(tmp_path, ours, milliseconds):
    """A store with AdamW, whose loss is 1 at two lengths, and a method of ours with another loss and time."""
    store = _cells.Store(tmp_path / "cells.jsonl")
    for name, loss, lengths in (("AdamW", 1.0, (40, 80)), ("ours", ours, (40,))):
        for setting in [Setting(COSINE, n, rate, seed) for n in lengths for rate in (0.1, 1.0) for seed in range(3)]:
            record = {"task": "task", "method": name, **dataclasses.asdict(setting), "accuracy": 0.5}
            end = loss * setting.rate / 0.1
            curve = [2.0, 2.0, 2.0, end, end, end, end, end, end, end]
            store.add(record | {"loss": end, "curve": curve})
    store.add({"task": "task", "method": "AdamW", "milliseconds": 10.0})
    store.add({"task": "task", "method": "ours", "milliseconds": milliseconds})
    return store, [Entry("AdamW", None, 0.1), Entry("ours", None, 0.1, "AdamW")]


@pytest.mark.parametrize(
    ("ours", "milliseconds", "verdicts"),
    [(0.25, 10.0, [True, True, True]), (0.25, 30.0, [False, None, True]), (1.5, 10.0, [False, False, None])],
)
def test_goals_are_read_off_the_store(tmp_path, ours, milliseconds, verdicts):
    store, entries = contest_of(tmp_path, ours, milliseconds)
    rows = _standings.standings(store, "task", entries, BUDGET)
    row, found = _goals.goals(store, "task", rows, BUDGET, 100.0)
    assert found == verdicts
    assert ("**yes**" in row[1]) == verdicts[0]
    text = _goals.goals_table([(row, found)])
    assert f"{sum(verdict is True for verdict in found[:1])} of 1; goal 4 of 6" in text
    assert "AdamW (best baseline)" in _standings.table(rows) or ours < 1
    _goals.plot(store, "task", rows, BUDGET, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


class Formula(_rounds.Ring):
    """Runs whose loss is a formula of the rate, and steps of one millisecond."""

    def __init__(self, store):
        self.name, self.every, self.store = "task", 10, store

    def once(self, entry, setting):
        return distance(0.1)(setting), math.nan, CURVE

    def milliseconds(self, entry, steps):
        return 1.0


@pytest.mark.parametrize("widths", [True, False])
def test_a_task_is_run_to_its_end_and_beyond_the_grid_where_that_is_asked_for(tmp_path, widths):
    entries = [Entry("AdamW", None, 0.1), Entry("ours", None, 0.1, "AdamW")]
    methods, store = _rounds.Methods(entries, entries, entries[0]), _cells.Store(tmp_path / "cells.jsonl")
    assert not _rounds.contest(Formula(store), methods, BUDGET, 10.0, 1, 0.0, widths)
    assert not store.cells
    assert _rounds.contest(Formula(store), methods, BUDGET, 10.0, 1, math.inf, widths)
    assert store.milliseconds == {("task", "AdamW"): 1.0, ("task", "ours"): 1.0}
    for entry in entries:
        assert not _tuning.next_settings(store.of("task", entry.name), entry.middle, BUDGET)
        schedules = {setting.schedule for setting in store.of("task", entry.name)}
        assert schedules == {COSINE, CONSTANT} | ({_cells.BEYOND} if widths else set())


LONG = ["--steps", "2000", "--rates", "4", "--tasks", "vit", "residual"]


@pytest.mark.parametrize(("folder", "table", "options"), [
    ("against_the_best", "table.md", []),
    ("against_the_best_gpu", "table.md", LONG),
    ("against_the_best_gpu", "table_cpu.md", [*LONG, "--times", str(RESULTS / "against_the_best" / "cells.jsonl")]),
], ids=["short", "long", "long in a CPU's times"])  # fmt: skip
def test_the_committed_tables_are_those_of_the_committed_runs(tmp_path, folder, table, options):
    (tmp_path / "cells.jsonl").write_text((RESULTS / folder / "cells.jsonl").read_text())
    against_the_best.main(["--report", "--out", str(tmp_path), *options])
    report, committed = (
        path.read_text().split("\n", 1)[1] for path in (tmp_path / "table.md", RESULTS / folder / table)
    )
    assert report == committed  # but for the first line, the versions


def test_times_of_another_machine_are_for_reports(tmp_path, capsys):
    with pytest.raises(SystemExit):
        against_the_best.main(["--quick", "--times", "cells.jsonl", "--out", str(tmp_path)])
    assert "`--times` must come with `--report`" in capsys.readouterr().err


def test_the_last_step_time_counts_and_runs_are_kept(tmp_path):
    store, _ = contest_of(tmp_path, 0.5, 10.0)
    store.add({"task": "task", "method": "ours", "milliseconds": 12.0})
    again = _cells.Store(tmp_path / "cells.jsonl")
    assert again.milliseconds["task", "ours"] == 12.0
    assert again.cells == store.cells
    assert np.all(np.array([len(cells) for cells in again.cells.values()]) == [12, 6])


class Dummy:
    """A trainer whose pieces of two steps take given milliseconds a step."""

    def __init__(self, milliseconds):
        self.milliseconds = milliseconds

    def run(self, number, seed, steps, rate, callbacks, test):
        assert steps == 2 * len(self.milliseconds)
        callbacks[0].seconds += [2e-3 * each for each in self.milliseconds]


@pytest.mark.parametrize(("names", "expected"), [
    (["new"], {"new": 20.0}),  # AdamW takes 6 where it took 8
    (["new", "AdamW"], {"new": 15.0, "AdamW": 6.0}),
], ids=str)  # fmt: skip
def test_steps_are_timed_over_whole_runs_and_later_ones_in_times_of_a_method_timed_before(tmp_path, names, expected):
    adamw, new = (Entry(name, None, 1.0) for name in ("AdamW", "new"))
    store = _cells.Store(tmp_path / "cells.jsonl")
    ring = _contest.Ring(SimpleNamespace(name="task", every=2), store)
    trainers = {"AdamW": Dummy([5, 6, 7]), "new": Dummy([30, 10, 5])}
    ring.trainer = lambda entry: trainers[entry.name]
    ring.time_steps([new], 1, 6, adamw)
    assert store.milliseconds == {("task", "new"): 15.0}  # nothing was timed before
    store.add({"task": "task", "method": "AdamW", "milliseconds": 8.0})
    ring.time_steps([entry for entry in (adamw, new) if entry.name in names], 3, 6, adamw)
    assert store.milliseconds == {("task", name): ms for name, ms in {"AdamW": 8.0, **expected}.items()}


def test_the_contest_goes_on_where_it_stopped(tmp_path, capsys):
    command = ["--quick", "--out", str(tmp_path)]
    against_the_best.main(command)
    first = (tmp_path / "cells.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in first]
    timed = [record for record in records if "milliseconds" in record]
    assert {record["method"] for record in timed} == {"AdamW", "GTDDP, AdamW inside", "GTDDP, K-FAC"}
    assert all(record["milliseconds"] > 0 for record in timed)
    runs = [record for record in records if "loss" in record]
    assert {run["schedule"] for run in runs} == {CONSTANT, COSINE}
    assert all(0 < run["loss"] < 2.3 for run in runs if run["method"] == "GTDDP, K-FAC")
    lost = next(k for k, record in enumerate(records) if record.get("method") == "GTDDP, K-FAC")
    (tmp_path / "cells.jsonl").write_text("".join(f"{line}\n" for k, line in enumerate(first) if k != lost))
    capsys.readouterr()
    against_the_best.main(command)
    assert capsys.readouterr().out.count(" steps  rate ") == 1
    again = json.loads((tmp_path / "cells.jsonl").read_text().splitlines()[len(first) - 1])
    assert again["loss"] == pytest.approx(records[lost]["loss"], rel=1e-4)
    assert "GTDDP, K-FAC" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "against_the_best_digits.png").exists()
    against_the_best.main([*command, "--report"])
    before = len((tmp_path / "cells.jsonl").read_text().splitlines())
    against_the_best.main([*command, "--retime"])
    assert capsys.readouterr().out.count(" steps  rate ") == 0
    added = (tmp_path / "cells.jsonl").read_text().splitlines()[before:]
    assert ["milliseconds" in json.loads(line) for line in added] == [True] * 3
