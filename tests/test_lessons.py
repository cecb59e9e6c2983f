"""The lessons run to their assertions, keep their form, and are the same lessons as notebooks."""

import ast
import os
import pathlib
import re
import runpy

import pytest

from keras_examples import notebooks

ROOT = pathlib.Path(__file__).parents[1]
SLOW = {"01_first_fit", "02_any_keras_model", "03_step_control", "04_reading_a_game"}  # notebooks of all in `.ci/run`
NAMES = ("01_first_fit", "02_any_keras_model", "03_step_control", "04_reading_a_game", "05_control_problem")


def lesson(path):
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else [])


def code_of(script):
    return [cell.source for cell in notebooks.cells_of(script) if not cell.is_text]


@pytest.mark.filterwarnings("ignore:KFAC has rejected:UserWarning")  # what the first lesson shows
@pytest.mark.filterwarnings("ignore:GTDDP trains these layers open-loop:UserWarning")  # and the second
@pytest.mark.parametrize("path", [lesson(path) for path in notebooks.LESSONS])
def test_it_runs_to_its_last_assertion(path, capsys):
    runpy.run_path(str(path))
    assert capsys.readouterr().out


def test_the_five_lessons_are_there():
    assert tuple(path.stem for path in notebooks.LESSONS) == NAMES


@pytest.mark.parametrize("path", notebooks.LESSONS, ids=lambda path: path.stem)
def test_it_is_short_and_ends_in_an_assertion(path):
    script = path.read_text()
    lines = [line for cell in code_of(script) for line in cell.splitlines() if line.strip()]
    assert len(lines) < 60
    assert isinstance(ast.parse(script).body[-1], ast.Assert)
    assert re.search(r"btf\.(GTDDP|trajectory\.solve)\(", "\n".join(script.splitlines()[:40]))


@pytest.mark.parametrize("path", notebooks.LESSONS, ids=lambda path: path.stem)
def test_the_notebook_has_its_code_in_order(path):
    script = path.read_text()
    cells = notebooks.cells_of(script)
    assert cells[0].source.startswith("# ") and "**Author:** bellman_tf" in cells[0].source
    assert cells[1].is_text and not cells[-1].is_text
    without_texts = ast.parse(script)
    without_texts.body = [
        node for node in without_texts.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]
    assert ast.dump(ast.parse("\n".join(code_of(script)))) == ast.dump(without_texts)


@pytest.mark.parametrize("script", ["x = 1\n", '"""\nTitle: a\nDescription: b\n"""\n', ""])
def test_a_script_without_a_header_is_refused(script):
    with pytest.raises(ValueError, match="must begin with a header of the fields"):
        notebooks.cells_of(script)


@pytest.mark.slow
def test_notebooks_run(tmp_path, monkeypatch):
    """Needs the extra `lessons`."""
    import nbformat

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebooks.main(["--execute", "--out", str(tmp_path)])
    made = [nbformat.read(path, as_version=4) for path in sorted(tmp_path.glob("*.ipynb"))]
    assert len(made) == len(NAMES)
    for notebook in made:
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        assert any(cell.outputs for cell in code)
