"""A small experiment, and a store filled by a function of the cell."""

import dataclasses

from keras_examples.papers import catalogue
from keras_examples.papers.calls import call
from keras_examples.papers.cells import Outcome, Store
from keras_examples.papers.experiment import Experiment, Part, Row

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


def cells_of(text, first, second):
    """Cells of the rows of the tables in a text that begin with two given cells."""
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if "|" in line]
    return [row for row in rows if row[:2] == [first, second]]
