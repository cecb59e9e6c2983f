"""The command and its engines."""

import json

import pytest

from keras_examples.papers import __main__ as command
from keras_examples.papers import catalogue, engines, figures
from tests.papers.small import EXPERIMENT, OURS, PART, SGD, cells_of


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
