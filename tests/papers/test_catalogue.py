"""Every table and figure has a name, methods that can be made, and numbers."""

import keras
import pytest

from keras_examples.papers import __main__ as command
from keras_examples.papers import catalogue
from keras_examples.papers import data as paper_data
from keras_examples.papers.cells import Store
from tests.papers.small import EXPERIMENTS


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
