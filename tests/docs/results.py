"""The committed results that pages quote, read; nothing is measured here."""

import json
import re
import statistics
from collections.abc import Iterable
from typing import NamedTuple

from tests.docs.pages import ROOT

RESULTS = ROOT / "keras_examples" / "results"
BENCHMARKS = ROOT / "benchmarks"
_VERDICT = re.compile(
    r"- (.+) against (.+): best (\S+) against (\S+) \(.*\); at \S+, ten times .*, (\S+) against (\S+)"
)


class Pair(NamedTuple):
    """A rule alone and the same rule with the game: losses as the table prints them."""

    alone: str
    game: str

    def __str__(self) -> str:
        """Both, the lower one bold."""
        lower = min(self, key=float)
        return ", ".join(f"**{text}**" if text == lower else text for text in self)

    @property
    def words(self) -> str:
        """Both, as a sentence has them."""
        return f"{self.alone} and {self.game}"


class Study(NamedTuple):
    """One network of `keras_examples.digits` or `studies.mnist`: a pair of losses per method with the game."""

    best: dict[str, Pair]
    at_ten: dict[str, Pair]  # at ten times the baseline's best rate


def study(name: str, task: str) -> Study:
    """Losses of a task, from the lines "... against ..." of a study's table.

    Args:
        name: folder of `keras_examples/results`.
        task: bold heading of the table, up to the first comma.

    Returns:
        The losses.
    """
    found = Study({}, {})
    sections = re.split(r"^\*\*(.+)\*\*$", (RESULTS / name / "table.md").read_text(), flags=re.MULTILINE)
    for heading, text in zip(sections[1::2], sections[2::2], strict=True):
        if heading.startswith(f"{task},"):
            for method, _, best, best_alone, ten, ten_alone in _VERDICT.findall(text):
                found.best[method] = Pair(best_alone, best)
                found.at_ten[method] = Pair(ten_alone, ten)
    assert found.best, f"{task} is not in the table of {name}"
    return found


Row = dict[str, str]  # of a table: cell by heading of the column


def tables(text: str) -> list[list[Row]]:
    """All tables of a page in Markdown.

    Args:
        text: the page.

    Returns:
        Rows, table by table.
    """
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
        found.append([dict(zip(lines[0], line, strict=True)) for line in lines[2:]])
    return found


class Contest(NamedTuple):
    """The report of `studies.against_the_best`: a row per task, and a row per method of each task."""

    goals: dict[str, Row]
    tasks: dict[str, dict[str, Row]]

    def loss(self, task: str, method: str) -> str:
        """Mean test loss, without its bracket."""
        return self._row(task, method)["test loss"].split(" ")[0]

    def bracket(self, task: str, method: str) -> list[float]:
        """Ends of the interval of the test loss."""
        return [float(end) for end in self._row(task, method)["test loss"].split("[")[1].rstrip("]").split(",")]

    def accuracy(self, task: str, method: str) -> str:
        """In per cent."""
        return self._row(task, method)["accuracy"]

    def train_loss(self, task: str, method: str) -> str:
        """Mean train loss."""
        return self._row(task, method)["train loss"]

    def alone_at_equal_time(self, task: str, method: str) -> str:
        """Test loss of the rule alone in the time that `method` takes."""
        return self._row(task, method)["rule alone, same time"]

    def milliseconds(self, task: str, method: str) -> float:
        """Of a step."""
        return float(self._row(task, method)["ms/step"])

    def to_adamw(self, task: str, method: str) -> list[float]:
        """Shares of AdamW's steps and of its time to its train loss; empty where the loss is not reached."""
        cell = self._row(task, method)["steps, time to AdamW's loss"]
        return [] if cell == "never" else [float(part) for part in cell.split(",")]

    def games(self, task: str) -> list[str]:
        """Methods with the game."""
        return [method for method in self.tasks[task] if method.startswith("GTDDP")]

    def goal(self, task: str, column: str) -> str:
        """A cell of the goals' table, found by the beginning of its column's heading."""
        return next(cell for heading, cell in self.goals[task].items() if heading.startswith(column))

    def _row(self, task: str, method: str) -> Row:
        rows = self.tasks[task]
        return rows[method] if method in rows else rows[f"{method} (best baseline)"]


def contest(folder: str = "against_the_best", file: str = "table.md") -> Contest:
    """The contest's report.

    Args:
        folder: of the results; "against_the_best_gpu" has the long runs.
        file: "table_cpu.md" has the long runs in the step times of the short ones.

    Returns:
        Its tables.
    """
    text = (RESULTS / folder / file).read_text()
    goals, *rest = tables(text)
    names = re.findall(r"^\*\*(.+)\*\*, B = ", text, re.MULTILINE)
    by_task = {task: {row["method"]: row for row in rows} for task, rows in zip(names, rest, strict=True)}
    found = {row["task"]: row for row in goals}
    assert set(by_task) == set(found) - {f"{len(by_task)} tasks"}
    return Contest(found, by_task)


def by_rate(folder: str, task: str, method: str) -> list[float]:
    """Test losses of a method of the contest at all rates of its grid.

    Args:
        folder: of the results.
        task: its name.
        method: its name.

    Returns:
        Of the cosine schedule and seed 0, at the length of most runs.
    """
    records = [json.loads(line) for line in (RESULTS / folder / "cells.jsonl").read_text().splitlines()]
    wanted = {"task": task, "method": method, "schedule": "cosine", "seed": 0}
    cells = [r for r in records if "loss" in r and all(r[key] == value for key, value in wanted.items())]
    steps = statistics.mode(cell["steps"] for cell in cells)
    return [cell["loss"] for cell in cells if cell["steps"] == steps]


def benchmark(name: str) -> dict:
    """The JSON of a benchmark.

    Args:
        name: of the file in `benchmarks`.

    Returns:
        Its contents.
    """
    return json.loads((BENCHMARKS / f"{name}.json").read_text())


def step_control() -> list[Row]:
    """Rows "controlled" of the step-control table of `keras_examples/README.md`.

    Returns:
        The rows.
    """
    wanted = "median / best plain"
    text = (ROOT / "keras_examples" / "README.md").read_text()
    rows = [row for table in tables(text) if wanted in table[0] for row in table if row["form"] == "controlled"]
    assert rows
    return rows


def span(values: Iterable[float], spec: str = ".2f") -> str:
    """The least and the largest of several figures.

    Args:
        values: the figures.
        spec: format of each.

    Returns:
        "least to largest", or one figure where both read the same.
    """
    values = list(values)
    least, largest = format(min(values), spec), format(max(values), spec)
    return least if least == largest else f"{least} to {largest}"
